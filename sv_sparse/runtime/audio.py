"""Recordings and waveforms as users bring them, to a waveform of one rate, piece by piece.

What a file's header says is not believed: no memory is set aside for it. See ``sv_sparse.data.decoding``, by which
training and evaluation read files too.
"""

import os
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from sv_sparse.data.decoding import MAX_SECONDS, Resampler, Source, check_loudness, iter_audio
from sv_sparse.io import printable
from sv_sparse.scoring.arrays import Float32Array

__all__ = ["LONGEST_SECONDS", "Resampler", "Source", "as_samples", "decode", "pieces"]

LONGEST_SECONDS = MAX_SECONDS


def pieces(
    source: Source, sample_rate: int, *, max_seconds: float = LONGEST_SECONDS, name: str = "the recording"
) -> Iterator[Float32Array]:
    """Decode a recording's first channel and resample it, as ``decoding.iter_audio``; errors name the recording.

    Args:
        source: a file's path, or what a file holds.
        sample_rate: of the pieces, in Hz.
        max_seconds: beyond which a recording is refused, whatever its header says.
        name: what bytes are called in errors; a file is called by its path.

    Yields:
        float32 [S], in [-1, 1] but for recordings that are louder.

    Raises:
        ValueError: it cannot be read, is empty or broken off, too long, of a rate below 4 or above 384 kHz, of more
            than 64 channels, or holds samples that are not finite or beyond 2 ** 31; names it.
    """
    name = name if isinstance(source, bytes) else printable(os.fspath(source))
    try:
        yield from iter_audio(source, sample_rate, max_seconds=max_seconds)
    except (ValueError, OSError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{name}: {problem}") from error


def decode(source: Source, sample_rate: int, *, max_seconds: float, name: str = "the recording") -> Float32Array:
    """A whole recording, float32 [S]; see ``pieces``."""
    return np.concatenate(list(pieces(source, sample_rate, max_seconds=max_seconds, name=name)))


def as_samples(waveform: object) -> Float32Array:
    """A waveform, float32 [S] in [-1, 1], of an array or tensor [S] of floating-point or 16-bit samples.

    Raises:
        ValueError: it is of another kind or shape, or holds samples that are not finite or beyond 2 ** 31.
    """
    found = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else np.asarray(waveform)
    if found.ndim != 1 or not (found.dtype == np.int16 or np.issubdtype(found.dtype, np.floating)):
        raise ValueError(
            f"expected a waveform [S] of floating-point or 16-bit samples, got {list(found.shape)} of {found.dtype}"
        )
    check_loudness(found)
    samples = found.astype(np.float32)
    return samples / np.float32(32768) if found.dtype == np.int16 else samples
