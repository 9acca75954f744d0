"""Recordings and waveforms as users bring them, converted to one sample rate piece by piece."""

import os
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from sv_sparse.data import decoding
from sv_sparse.data.decoding import MAX_SECONDS, Source, check_loudness
from sv_sparse.io import printable
from sv_sparse.scoring.arrays import Float32Array


def iter_audio(source: Source, sample_rate: int, *, max_seconds: float = MAX_SECONDS) -> Iterator[Float32Array]:
    """Decode a recording's first channel and resample it; errors name the recording.

    Args:
        source: Path of a file, or the content of one.
        sample_rate: Rate of the pieces, in Hz.
        max_seconds: Longest duration, whatever the header says. Default: 24 hours.

    Yields:
        float32 [S], in [-1, 1] except for recordings that are louder.

    Raises:
        ValueError: The recording cannot be read, is empty, cut off or too long, has a rate below 4 or above 384 kHz or
            more than 64 channels, or holds samples that are not finite or beyond 2 ** 31.
    """
    name = "the recording" if isinstance(source, bytes) else printable(os.fspath(source))
    try:
        # As in training and evaluation. No memory is allocated for what a header promises.  DECISIONS 68
        yield from decoding.iter_audio(source, sample_rate, max_seconds=max_seconds)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def read_audio(source: Source, sample_rate: int, *, max_seconds: float = MAX_SECONDS) -> Float32Array:
    """Return a complete recording, float32 [S]; arguments and errors as of ``iter_audio``."""
    return np.concatenate(list(iter_audio(source, sample_rate, max_seconds=max_seconds)))


def to_float(waveform: object) -> Float32Array:
    """Return an array, tensor or list [S] of floating-point or 16-bit samples as float32 in [-1, 1].

    Raises:
        ValueError: It has another type or shape, or holds samples that are not finite or beyond 2 ** 31.

    >>> to_float(np.array([16384, -32768], np.int16))
    array([ 0.5, -1. ], dtype=float32)
    """
    array = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else np.asarray(waveform)
    is_int16 = array.dtype == np.int16
    if array.ndim != 1 or not (is_int16 or np.issubdtype(array.dtype, np.floating)):
        shape = f"{list(array.shape)} of {array.dtype}"
        hint = "; take one channel, such as waveform[:, 0]" if array.ndim == 2 else ""
        raise ValueError(f"expected a waveform [S] of floating-point or 16-bit samples, got {shape}{hint}")
    # Before the conversion, in which a large float64 would become infinite.
    check_loudness(array)
    samples = array.astype(np.float32)
    return samples / np.float32(32768) if is_int16 else samples
