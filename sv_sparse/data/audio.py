"""Audio of a manifest's utterances as samples: complete utterances, and segments of them."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from sv_sparse.data.decoding import SAMPLE_RATE, AudioFile, Waveform, check_length, check_silence, resample
from sv_sparse.data.layout import OPEN_FLAGS, read_at
from sv_sparse.data.manifest import AudioSegment
from sv_sparse.io import printable

Samples = NDArray[np.int16]

_INT16_SCALE = np.float32(32768)


def read_utterance(segments: Sequence[AudioSegment], sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Read the first channel of an utterance at a rate in Hz, float32 [S], in [-1, 1] unless it is louder.

    Raises:
        ValueError: a file is missing, damaged or no recording, or the utterance is silent or shorter than a
            fifth of a second; the message names the file.
    """
    waveform = read_samples(segments, sample_rate)
    try:
        check_length(len(waveform), sample_rate)
        check_silence(waveform)
    except ValueError as error:
        raise ValueError(f"{printable(segments[0].path)}: {error}") from error
    return torch.from_numpy(waveform)


def read_samples(segments: Sequence[AudioSegment], sample_rate: int = SAMPLE_RATE) -> Waveform:
    """Read like :func:`read_utterance`, but allow any length and silence: for room responses and noise."""
    waveforms, file_rates = zip(*[_decode(segment) for segment in segments], strict=True)
    rates = set(file_rates)
    if len(rates) > 1:
        raise ValueError(
            f"{printable(segments[0].path)} and what is joined to it have different rates: {sorted(rates)} Hz"
        )
    waveform = waveforms[0] if len(waveforms) == 1 else np.concatenate(waveforms)
    return resample(waveform, rates.pop(), sample_rate)


def single_file(path: str | os.PathLike[str]) -> list[AudioSegment]:
    """Return a file that is in no manifest as the segments of an utterance, for :func:`read_utterance`."""
    return [AudioSegment(os.fspath(path), samples=0, offset=0, size=0, pcm_offset=-1)]


def read_segment(segments: Sequence[AudioSegment], rate: int, start: int, count: int) -> Waveform:
    """Return ``count`` samples of an utterance from ``start`` on, float32 [count]; see :func:`read_into`."""
    out = np.empty(count, np.float32)
    read_into(out, segments, rate, start)
    return out


def read_into(
    out: Waveform | Samples, segments: Sequence[AudioSegment], rate: int, start: int, buffer: bytes | None = None
) -> None:
    """Fill ``out`` with samples of an utterance, which must be long enough.

    Args:
        out: float32 [N], for samples in [-1, 1], or int16 [N].
        segments: files of the utterance.
        rate: rate of the files according to their manifest, in Hz.
        start: first sample, at that rate, counted over all segments.
        buffer: content of the only file, if it has been read already.

    Raises:
        ValueError: a file is missing, damaged, or has changed since its manifest was written; names it.
    """
    segment_start = 0
    for segment in segments:
        first = max(start, segment_start)
        end = min(start + len(out), segment_start + segment.samples)
        # Files without any of these samples stay closed.
        if first < end:
            _read_part(out[first - start : end - start], segment, rate, first - segment_start, buffer)
        segment_start += segment.samples


def _read_part(out: Waveform | Samples, segment: AudioSegment, rate: int, start: int, buffer: bytes | None) -> None:
    if buffer is None and segment.pcm_offset >= 0 and out.dtype == np.int16:
        # Mono 16-bit samples need no decoder: one positioned read. DECISIONS 31
        out.data.cast("B")[:] = _read_bytes(segment, segment.pcm_offset + 2 * start, out.nbytes)
        return
    samples, file_rate = _decode(segment, start, len(out), out.dtype, buffer)
    if file_rate != rate:
        raise ValueError(f"{printable(segment.path)}: has {file_rate} Hz but {rate} Hz when its manifest was written")
    out[:] = samples if samples.dtype == out.dtype else to_int16(samples)


def _read_bytes(segment: AudioSegment, start: int, count: int) -> bytes:
    """Return ``count`` bytes of a segment's file from byte ``start`` on."""
    try:
        descriptor = os.open(segment.path, OPEN_FLAGS)
        try:
            size = os.fstat(descriptor).st_size
            content = read_at(descriptor, count, start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"{printable(segment.path)}: cannot be read as a recording ({error.strerror})") from error
    # A tar file may have grown: what a shard lacked is put behind what it holds. DECISIONS 70
    has_changed = size < segment.offset + segment.size if segment.offset else size != segment.size
    if has_changed or len(content) != count:
        raise ValueError(
            f"{printable(segment.path)}: is not as long as when its manifest was written; it has {size} bytes now"
        )
    return content


def _decode(
    segment: AudioSegment,
    start: int = 0,
    count: int | None = None,
    dtype: DTypeLike = np.float32,
    buffer: bytes | None = None,
) -> tuple[NDArray[Any], int]:
    """Return the first channel of ``count`` samples from ``start`` on (None: all), and the file's rate in Hz."""
    if buffer is None and segment.offset:
        buffer = _read_bytes(segment, segment.offset, segment.size)
    try:
        with AudioFile(segment.path if buffer is None else buffer) as file:
            # libsndfile cuts samples of more bits to 16 where ``to_int16`` rounds them.
            file_dtype = dtype if file.subtype == "PCM_16" else np.float32
            samples = file.read(start=start, count=count, dtype=file_dtype)
            if not len(samples):
                raise ValueError("has no samples")
            return samples, file.sample_rate
    except OSError as error:
        raise ValueError(f"{printable(segment.path)}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{printable(segment.path)}: {error}") from error


def to_int16(waveform: Waveform) -> Samples:
    """Return samples in [-1, 1] rounded to 16 bits; louder ones are clipped."""
    return np.clip(np.rint(waveform * _INT16_SCALE), -_INT16_SCALE, _INT16_SCALE - 1).astype(np.int16)
