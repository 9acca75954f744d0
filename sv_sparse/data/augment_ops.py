"""Augmentation of a batch on the training device: speed, rooms, noise, masks."""

import functools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor, nn

from sv_sparse.data.augment import Extras
from sv_sparse.data.torchaudio_guard import torchaudio

_CPU_ROWS = 8
_ROLLOFF, _ZERO_CROSSINGS = 0.99, 6  # of the resampling filters: torchaudio's defaults


class Mixer(nn.Module):
    """Waveforms of a batch as the network hears them.

    Args:
        crop_samples: S, length of the crops that come out.
        speeds: What the batch's speed indices mean.
    """

    def __init__(self, crop_samples: int, speeds: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.crop_samples, self.speeds = crop_samples, tuple(speeds)

    def forward(self, waveforms: Tensor, extras: Extras | None) -> Tensor:
        """16-bit samples [B, S'] to float32 [B, S] in [-1, 1], with the batch's extras mixed in, also under autocast.

        Args:
            waveforms: int16; rows at another speed than 1 are longer or shorter than S, with zeros at their ends.
            extras: On the same device, but for ``speed``, which stays on the CPU (``Extras.to``).
                Nothing waits for a GPU to say which rows are played faster. None leaves the samples
                as they are.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            if extras is None:
                return waveforms[:, : self.crop_samples] / 32768
            return self._mix(self._at_speed(waveforms, extras.speed), extras)

    def _mix(self, found: Tensor, extras: Extras) -> Tensor:
        """Rooms and noise into waveforms that may be overwritten."""
        for rows, rooms in _blocks(extras.room_rows, extras.rooms):
            found.index_copy_(0, rows, reverberate(found[rows], rooms))
        for rows, noises, snr in _blocks(extras.noise_rows, extras.noises, extras.snr):
            found.index_copy_(0, rows, torchaudio.functional.add_noise(found[rows], noises, snr))
        return found

    def _at_speed(self, waveforms: Tensor, speed: Tensor) -> Tensor:
        """Play int16 [B, S'] as float32 [B, S], each row at its speed.

        ``speed`` [B] is on the CPU: elsewhere, where its values cannot be known without waiting, all rows are played
        at all speeds.
        """
        if len(self.speeds) == 1:
            return waveforms[:, : self.crop_samples] / 32768
        result = torch.zeros(len(waveforms), self.crop_samples, device=waveforms.device)
        for index, factor in enumerate(self.speeds):
            if speed.device.type != "cpu":
                played = play(waveforms / 32768, factor)[:, : self.crop_samples]
                played = F.pad(played, (0, self.crop_samples - played.shape[1]))
                result = torch.where((speed == index).unsqueeze(1), played, result)
                continue
            rows = torch.nonzero(speed == index).squeeze(1)
            if len(rows):
                rows = rows.to(waveforms.device, non_blocking=True)
                played = play(waveforms[rows] / 32768, factor)[:, : self.crop_samples]
                result[rows, : played.shape[1]] = played
        return result


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """All rows, on a CPU a few at a time: what is computed in between then stays in its cache."""
    rows = len(tensors[0])
    block = _CPU_ROWS if tensors[0].device.type == "cpu" else rows
    return zip(*(tensor.split(block) for tensor in tensors), strict=True) if rows else iter(())


def play(waveforms: Tensor, speed: float) -> Tensor:
    """Play waveforms [B, S] at another speed: float32 [B, ceil(S / speed)], also under autocast.

    Pitch moves with it. The filters are those of torchaudio.transforms.Resample, without its constructor, which reads
    tensors on the host.
    """
    waveforms = waveforms.float()
    if speed == 1:
        return waveforms
    ratio = Fraction(speed).limit_denominator(100)  # unreduced, the filters would be thousands of samples long
    rate, new_rate = ratio.numerator, ratio.denominator
    values, width = _resampling_filters(rate, new_rate)
    filters = torch.tensor(values).to(waveforms.device, non_blocking=True)
    with torch.autocast(waveforms.device.type, enabled=False):
        phases = F.conv1d(F.pad(waveforms, (width, width + rate)).unsqueeze(1), filters, stride=rate)
    return phases.transpose(1, 2).flatten(1)[:, : ceil(new_rate * waveforms.shape[1] / rate)]


@functools.cache
def _resampling_filters(rate: int, new_rate: int) -> tuple[np.ndarray, int]:
    """Return a filter for each sample in a period of the new rate, [new_rate, 1, taps], and the taps before it."""
    cutoff = _ROLLOFF * min(rate, new_rate)
    width = ceil(_ZERO_CROSSINGS * rate / cutoff)
    taps = np.arange(-width, width + rate) / rate
    times = (taps - np.arange(new_rate)[:, None] / new_rate) * cutoff
    times = times.clip(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = np.cos(np.pi * times / _ZERO_CROSSINGS / 2) ** 2
    filters = np.sinc(times) * window * (cutoff / rate)
    return filters[:, None].astype(np.float32), width


def reverberate(waveforms: Tensor, rooms: Tensor) -> Tensor:
    """Waveforms [B, S] heard in rooms [B, L], float32, as long and as loud at their peaks as before.

    The sum of lengths is brought to one with small prime factors, five of them 2, where the transform is many times
    faster.
    """
    waveforms, rooms = waveforms.float(), rooms.float()
    samples = waveforms.shape[1]
    whole = 32 * next_fast_len(ceil((samples + rooms.shape[1] - 1) / 32))
    rooms = F.pad(rooms, (0, whole - samples + 1 - rooms.shape[1]))
    with torch.autocast(waveforms.device.type, enabled=False):
        heard = torchaudio.functional.fftconvolve(waveforms, rooms)[:, :samples]
    return heard.mul_(_peak(waveforms) / _peak(heard).clamp(min=torch.finfo(torch.float32).tiny))


def _peak(waveforms: Tensor) -> Tensor:
    """[B, S] to [B, 1]; takes no copy for absolute values."""
    return torch.maximum(waveforms.amax(dim=1, keepdim=True), -waveforms.amin(dim=1, keepdim=True))


def mask_filterbank(filterbank: Tensor, mask: Tensor) -> Tensor:
    """Filterbank [B, F, T] with some frames and bins of each utterance set to 0, their mean.

    Args:
        filterbank: Of mean zero over T.
        mask: float32 [B, 4]: share of the frames before the mask, frames in it, the same for bins.
    """
    _, bins, frames = filterbank.shape
    hidden = _span(mask[:, 0], mask[:, 1], frames)[:, None, :] | _span(mask[:, 2], mask[:, 3], bins)[:, :, None]
    return filterbank.masked_fill(hidden, 0.0)


def _span(place: Tensor, length: Tensor, size: int) -> Tensor:
    """Bool [B, size], True on ``length`` positions from a place on that is a share of those possible."""
    first = (place * (size - length + 1)).floor()[:, None]
    position = torch.arange(size, device=place.device)
    return (position >= first) & (position < first + length[:, None])
