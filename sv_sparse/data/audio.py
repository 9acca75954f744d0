"""Audio files to samples: headers, whole recordings, and stretches of them."""

import functools
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from sv_sparse.data.headers import SAMPLE_RATE
from sv_sparse.data.manifest import Part
from sv_sparse.torchaudio_guard import torchaudio

Waveform = NDArray[np.float32]
Samples = NDArray[np.int16]

_FULL_SCALE = np.float32(32768)


def read_utterance(parts: Sequence[Part], sample_rate: int = SAMPLE_RATE) -> Tensor:
    """The first channel of a whole utterance, float32 [S] in [-1, 1], at ``sample_rate`` Hz.

    Raises:
        ValueError: A file is missing, empty, broken or no recording; the message names it.
    """
    found = [_read(part) for part in parts]
    rates = {rate for _, rate in found}
    if len(rates) > 1:
        raise ValueError(f"{parts[0].path} and what is joined to it have different rates: {sorted(rates)} Hz")
    waveform = np.concatenate([samples for samples, _ in found]) if len(found) > 1 else found[0][0]
    return resample(torch.from_numpy(waveform), rates.pop(), sample_rate)


def recording(path: str | os.PathLike[str]) -> list[Part]:
    """A file that is in no manifest, as the one part of an utterance, for ``read_utterance``."""
    return [Part(os.fspath(path), samples=0, offset=0, bytes=0, pcm=-1)]


def read_stretch(parts: Sequence[Part], rate: int, start: int, count: int) -> Waveform:
    """``count`` samples from ``start`` on, float32 [count] in [-1, 1]; otherwise as :func:`fill_stretch`."""
    out = np.empty(count, np.float32)
    fill_stretch(parts, rate, start, out)
    return out


def fill_stretch(
    parts: Sequence[Part], rate: int, start: int, out: Waveform | Samples, held: bytes | None = None
) -> None:
    """Fill ``out`` with samples of the utterance that ``parts`` make up.

    Args:
        parts: The utterance's files, of which only those in question are opened.
        rate: What the files' rate is known to be, in Hz.
        start: In samples at that rate, counted over all parts.
        out: float32 [N], for samples in [-1, 1], or int16 [N]; the utterance must be long enough.
        held: What the only file holds, where that has been read already.

    Raises:
        ValueError: A file is missing, broken or no longer what it was; the message names it.
    """
    first = 0
    for part in parts:
        left, right = max(start, first), min(start + len(out), first + part.samples)
        if left < right:
            _fill(part, rate, left - first, out[left - start : right - start], held)
        first += part.samples


def _fill(part: Part, rate: int, start: int, out: Waveform | Samples, held: bytes | None) -> None:
    if held is None and part.pcm >= 0 and out.dtype == np.int16:
        _read_bytes(part, part.pcm + 2 * start, out.data)
        return
    samples, found = _read(part, start, len(out), out.dtype, held)
    if found != rate:
        raise ValueError(f"{part.path}: has {found} Hz but {rate} Hz when its manifest was written")
    out[:] = samples if samples.dtype == out.dtype else to_int16(samples)


def _read_bytes(part: Part, start: int, out: memoryview) -> None:
    """Fill ``out`` with what is in a part's file from byte ``start`` on."""
    try:
        file = os.open(part.path, os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            found = os.preadv(file, [out], start)
        finally:
            os.close(file)
    except OSError as error:
        raise ValueError(f"{part.path}: cannot be read as a recording ({error})") from error
    changed = size < part.offset + part.bytes if part.offset else size != part.bytes
    if changed or found != out.nbytes:
        raise ValueError(f"{part.path}: is not as long as when its manifest was written; it has {size} bytes now")


class _ReadOnce(soundfile.SoundFile):
    """A file that is read by one call: after each, soundfile seeks to where it is, for which FLAC decodes a block."""

    def seekable(self) -> bool:
        return False


def _read(
    part: Part, start: int = 0, count: int = -1, kind: DTypeLike = np.float32, held: bytes | None = None
) -> tuple[NDArray[Any], int]:
    """First channel of ``count`` samples from ``start`` (-1: all), and the file's rate in Hz.

    Samples are of the kind wanted, but never int16 unless the file has 16 bits: libsndfile does not round.
    """
    try:
        source = io.BytesIO(held) if held is not None else _source(part)
        with _ReadOnce(source) as file:
            kept = np.dtype(kind if file.subtype == "PCM_16" else np.float32).name
            if start:
                file.seek(start)
            samples = file.read(file.frames if count < 0 else count, dtype=kept, always_2d=True)
            rate = file.samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{part.path}: cannot be read as a recording ({error})") from error
    if len(samples) != count if count >= 0 else not len(samples):
        raise ValueError(f"{part.path}: broken off, {len(samples)} samples where {max(count, 1)} were expected")
    first = np.ascontiguousarray(samples[:, 0])
    if not np.isfinite(first).all():
        raise ValueError(f"{part.path}: holds samples that are not finite")
    return first, rate


def _source(part: Part) -> str | io.BytesIO:
    """What soundfile opens: the file, or what a tar file holds of it."""
    if not part.offset:
        return part.path
    content = bytearray(part.bytes)
    _read_bytes(part, part.offset, memoryview(content))
    return io.BytesIO(content)


def to_int16(waveform: Waveform) -> Samples:
    """Samples in [-1, 1] rounded to 16 bits; what lies beyond is cut off."""
    return np.clip(np.rint(waveform * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def resample(waveform: Tensor, rate: int, sample_rate: int) -> Tensor:
    """The waveform at another rate, [..., S]."""
    return waveform if rate == sample_rate else _resampler(rate, sample_rate)(waveform)


@functools.cache
def _resampler(rate: int, sample_rate: int) -> torch.nn.Module:
    """Kept, since computing its kernel takes longer than using it."""
    return torchaudio.transforms.Resample(rate, sample_rate)
