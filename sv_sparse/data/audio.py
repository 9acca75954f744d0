"""Utterances of a manifest to samples: whole ones, and stretches of them."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from sv_sparse.data.decoding import (
    SAMPLE_RATE,
    AudioFile,
    Waveform,
    check_length,
    check_silence,
    resample,
)
from sv_sparse.data.layout import OPEN_FLAGS, read_at
from sv_sparse.data.manifest import Part
from sv_sparse.io import printable

Samples = NDArray[np.int16]

_FULL_SCALE = np.float32(32768)


def read_utterance(parts: Sequence[Part], sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Return the first channel of a whole utterance, float32 [S] in [-1, 1], at ``sample_rate`` Hz.

    Raises:
        ValueError: A file is missing, damaged, not a recording, or the utterance is silent or shorter than a fifth of a
            second; the message names the file.
    """
    waveform = read_samples(parts, sample_rate)
    try:
        check_length(len(waveform), sample_rate)
        check_silence(waveform)
    except ValueError as error:
        raise ValueError(f"{printable(parts[0].path)}: {error}") from error
    return torch.from_numpy(waveform)


def read_samples(parts: Sequence[Part], sample_rate: int = SAMPLE_RATE) -> Waveform:
    """As ``read_utterance``, but of any length and also of silence: for room responses and noise."""
    pieces, rates = [], set()
    for part in parts:
        samples, rate = _read(part)
        pieces.append(samples)
        rates.add(rate)
    if len(rates) > 1:
        raise ValueError(
            f"{printable(parts[0].path)} and what is joined to it have different rates: {sorted(rates)} Hz"
        )
    waveform = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
    return resample(waveform, rates.pop(), sample_rate)


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
        out.data.cast("B")[:] = _read_bytes(part, part.pcm + 2 * start, out.nbytes)
        return
    samples, found = _read(part, start, len(out), out.dtype, held)
    if found != rate:
        raise ValueError(f"{printable(part.path)}: has {found} Hz but {rate} Hz when its manifest was written")
    out[:] = samples if samples.dtype == out.dtype else to_int16(samples)


def _read_bytes(part: Part, start: int, count: int) -> bytes:
    """Return ``count`` bytes of a part's file from byte ``start`` on."""
    try:
        file = os.open(part.path, OPEN_FLAGS)
        try:
            size = os.fstat(file).st_size
            content = read_at(file, count, start)
        finally:
            os.close(file)
    except OSError as error:
        raise ValueError(f"{printable(part.path)}: cannot be read as a recording ({error.strerror})") from error
    changed = size < part.offset + part.bytes if part.offset else size != part.bytes
    if changed or len(content) != count:
        raise ValueError(
            f"{printable(part.path)}: is not as long as when its manifest was written; it has {size} bytes now"
        )
    return content


def _read(
    part: Part, start: int = 0, count: int | None = None, kind: DTypeLike = np.float32, held: bytes | None = None
) -> tuple[NDArray[Any], int]:
    """Return the first channel of ``count`` samples from ``start`` on (None: all), and the file's rate in Hz.

    Samples are of the kind wanted, but never int16 unless the file has 16 bits: libsndfile does not round.
    """
    try:
        with AudioFile(held if held is not None else _source(part)) as file:
            dtype = kind if file.subtype == "PCM_16" else np.float32
            samples = file.read(start=start, count=count, dtype=dtype)
            if not len(samples):
                raise ValueError("has no samples")
            return samples, file.sample_rate
    except OSError as error:
        raise ValueError(f"{printable(part.path)}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{printable(part.path)}: {error}") from error


def _source(part: Part) -> str | bytes:
    """Return what is decoded: the file, or what a tar file holds of it."""
    return _read_bytes(part, part.offset, part.bytes) if part.offset else part.path


def to_int16(waveform: Waveform) -> Samples:
    """Samples in [-1, 1] rounded to 16 bits; what lies beyond is cut off."""
    return np.clip(np.rint(waveform * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
