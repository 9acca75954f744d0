"""Recordings of any kind that libsndfile reads, to a waveform of one rate, piece by piece.

What a file's header says is not believed: no memory is set aside for it. A recording of fewer samples than its header
says is refused where libsndfile lets that be known, as for FLAC; of a WAV file that was cut off, what is there is read.
An MP3 file of varying bitrate without a header that counts its frames is read as far as libsndfile guesses.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from torch import Tensor

from sv_sparse.scoring.cosine import Array

Source = str | os.PathLike[str] | bytes

LOWEST_HZ, HIGHEST_HZ = 4_000, 384_000
LONGEST_SECONDS = 24 * 3600.0
MOST_CHANNELS = 64
_VALUES_AT_ONCE = 1 << 18  # of all channels together
_LOUDEST = np.float32(2**31)  # of samples that should lie in [-1, 1]; energies of louder ones overflow
_UNKNOWN = 1 << 62  # libsndfile's count of frames, or more, where the header has none


def pieces(
    source: Source, sample_rate: int, *, max_seconds: float = LONGEST_SECONDS, name: str = "the recording"
) -> Iterator[Array]:
    """Decode a recording's first channel and resample it, in pieces that need little memory.

    The joined pieces do not depend on how long they are; of a file that has the rate already they are the file's own
    samples.

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
    name = name if isinstance(source, bytes) else os.fspath(source)
    try:
        with _opened(source) as file:
            _refuse_unusual(file)
            resampler = Resampler(file.samplerate, sample_rate)
            for samples in _first_channel(file, max_seconds):
                yield resampler(samples)
            yield resampler.rest()
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name}: cannot be read as a recording ({error.error_string})") from error
    except (ValueError, OSError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{name}: {problem}") from error


def decode(source: Source, sample_rate: int, *, max_seconds: float, name: str = "the recording") -> Array:
    """A whole recording, float32 [S]; see ``pieces``."""
    return np.concatenate(list(pieces(source, sample_rate, max_seconds=max_seconds, name=name)))


def as_samples(waveform: object) -> Array:
    """A waveform, float32 [S] in [-1, 1], of an array or tensor [S] of floating-point or 16-bit samples.

    Raises:
        ValueError: it is of another kind or shape, or holds samples that are not finite or beyond 2 ** 31.
    """
    found = waveform.detach().cpu().numpy() if isinstance(waveform, Tensor) else np.asarray(waveform)
    if found.ndim != 1 or not (found.dtype == np.int16 or np.issubdtype(found.dtype, np.floating)):
        raise ValueError(
            f"expected a waveform [S] of floating-point or 16-bit samples, got {list(found.shape)} of {found.dtype}"
        )
    _refuse_loud(found)
    samples = found.astype(np.float32)
    return samples / np.float32(32768) if found.dtype == np.int16 else samples


class Resampler:
    """Pieces of a waveform to pieces at another rate; the same samples whatever the pieces are.

    Args:
        rate: of what comes, in Hz.
        sample_rate: of what goes, in Hz.

    Raises:
        ValueError: ``rate`` is below 4 or above 384 kHz.
    """

    def __init__(self, rate: int, sample_rate: int) -> None:
        if not LOWEST_HZ <= rate <= HIGHEST_HZ:
            raise ValueError(f"has {rate} Hz, expected {LOWEST_HZ:,} to {HIGHEST_HZ:,}")
        self._stream = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")

    def __call__(self, samples: Array) -> Array:
        """What is certain after these samples [S]; up to a quarter of a second stays behind."""
        return samples if self._stream is None else self._stream.resample_chunk(samples)

    def rest(self) -> Array:
        """What stayed behind; nothing can follow."""
        nothing = np.empty(0, np.float32)
        return nothing if self._stream is None else self._stream.resample_chunk(nothing, last=True)


class _Decoder(soundfile.SoundFile):
    """A file that is read from beginning to end: soundfile seeks after each read, for which FLAC decodes a block."""

    def seekable(self) -> bool:
        return False


class _Memory(io.BytesIO):
    """Bytes in which damaged headers may send the reader anywhere."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):  # before the beginning, or beyond all numbers
            return -1


@contextmanager
def _opened(source: Source) -> Iterator[soundfile.SoundFile]:
    """The recording; a file is opened here, since soundfile takes some endings for formats without a header."""
    if isinstance(source, bytes):
        with _Decoder(_Memory(source)) as file:
            yield file
        return
    if not stat.S_ISREG(Path(source).stat().st_mode):  # others may never end, or never begin
        raise ValueError("is no file")
    with open(source, "rb", buffering=0) as content, _Decoder(content.fileno(), closefd=False) as file:
        yield file


def _refuse_unusual(file: soundfile.SoundFile) -> None:
    if file.channels > MOST_CHANNELS:
        raise ValueError(f"has {file.channels} channels, at most {MOST_CHANNELS} are read")
    if not LOWEST_HZ <= file.samplerate <= HIGHEST_HZ:
        raise ValueError(f"has {file.samplerate} Hz, expected {LOWEST_HZ:,} to {HIGHEST_HZ:,}")


def _first_channel(file: soundfile.SoundFile, max_seconds: float) -> Iterator[Array]:
    """The first channel in pieces; errors if there is too much of it, less than the header says, or nothing."""
    at_once, count = _VALUES_AT_ONCE // file.channels, 0
    while len(samples := file.read(at_once, dtype="float32", always_2d=True)):
        count += len(samples)
        if count > max_seconds * file.samplerate:
            raise ValueError(f"is longer than {max_seconds:g} seconds")
        first = np.ascontiguousarray(samples[:, 0])
        _refuse_loud(first)
        yield first
    if not count:
        raise ValueError("has no samples")
    if count < file.frames < _UNKNOWN and file.format != "MP3":  # whose length is an estimate
        raise ValueError(f"is broken off: {count:,} of {file.frames:,} samples are there")


def _refuse_loud(samples: NDArray[np.floating | np.int16]) -> None:
    if not (np.abs(samples) <= _LOUDEST).all():
        raise ValueError("holds samples that are not finite, or beyond 2 ** 31")
