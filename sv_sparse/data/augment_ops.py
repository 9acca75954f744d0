"""Augmentation of a batch on the training device: speed, reverberation, noise, masks."""

import functools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor, nn

from sv_sparse.data.augment import AugmentBatch

# Waveforms [B, S] and a generator for its draws, both on the device, to waveforms [B, S].
Transform = Callable[[Tensor, torch.Generator], Tensor]

# Rows that are convolved at once on a CPU, so that intermediate results stay in its cache.
_CPU_ROWS = 8
# Of the resampling filters: the defaults of torchaudio.transforms.Resample.
_ROLLOFF, _ZERO_CROSSINGS = 0.99, 6


class AugmentOnDevice(nn.Module):
    """Augmentation of a batch's waveforms, to crops of S samples; its indices refer to ``speeds``.

    Args:
        crop_samples: S.
        speeds: as of ``Augmentation``. Default: none but 1.
        transform: changes augmented waveforms, float32 [B, S], by draws from a generator. Default: none.

    >>> augment = AugmentOnDevice(crop_samples=800)
    >>> augment(torch.zeros(2, 800, dtype=torch.int16), None).dtype
    torch.float32
    """

    def __init__(self, crop_samples: int, speeds: Sequence[float] = (1.0,), transform: Transform | None = None) -> None:
        super().__init__()
        self.crop_samples = crop_samples
        self.speeds = tuple(speeds)
        self.transform = transform

    def forward(self, waveforms: Tensor, augmentation: AugmentBatch | None) -> Tensor:
        """Return augmented waveforms, float32 [B, S] in [-1, 1], also under autocast.

        Args:
            waveforms: int16 [B, S']. Rows at another speed than 1 are longer or shorter than S, with zeros at
                their ends.
            augmentation: inputs on the same device, except for ``speed`` (see ``AugmentBatch.to``). None
                leaves the samples as they are.
        """
        clean = self.perturb_speed(waveforms, augmentation)
        return clean if augmentation is None else self.mix_(clean, augmentation)

    def perturb_speed(self, waveforms: Tensor, augmentation: AugmentBatch | None) -> Tensor:
        """Return the crops at their speeds, without rooms and noises; arguments and result are as of ``forward``."""
        with torch.autocast(waveforms.device.type, enabled=False):
            if augmentation is None or len(self.speeds) == 1:
                return waveforms[:, : self.crop_samples] / 32768
            return self._play(waveforms, augmentation.speed)

    def mix_(self, crops: Tensor, augmentation: AugmentBatch) -> Tensor:
        """Add rooms and noises in place to crops, float32 [B, S] as of ``perturb_speed``, and transform them."""
        with torch.autocast(crops.device.type, enabled=False):
            for rows, rirs in _row_blocks(augmentation.rir_rows, augmentation.rirs):
                crops.index_copy_(0, rows, add_reverb(crops[rows], rirs))
            for rows, noises, snr in _row_blocks(augmentation.noise_rows, augmentation.noises, augmentation.snr):
                crops.index_copy_(0, rows, add_noise(crops[rows], noises, snr))
            if self.transform is None:
                return crops
            # A function of the batch: a resumed run draws the same.
            generator = torch.Generator(crops.device).manual_seed(int(augmentation.seed[0]))
            return self.transform(crops, generator)

    def _play(self, waveforms: Tensor, speed: Tensor) -> Tensor:
        outputs = torch.zeros(len(waveforms), self.crop_samples, device=waveforms.device)
        for index, factor in enumerate(self.speeds):
            if speed.device.type != "cpu":
                # Which rows have this speed could only be known by waiting for the device: play all of them.
                perturbed = speed_perturb(waveforms / 32768, factor)[:, : self.crop_samples]
                perturbed = F.pad(perturbed, (0, self.crop_samples - perturbed.shape[1]))
                outputs = torch.where((speed == index).unsqueeze(1), perturbed, outputs)
                continue
            rows = torch.nonzero(speed == index).squeeze(1)
            if len(rows):
                rows = rows.to(waveforms.device, non_blocking=True)
                perturbed = speed_perturb(waveforms[rows] / 32768, factor)[:, : self.crop_samples]
                outputs[rows, : perturbed.shape[1]] = perturbed
        return outputs


def _row_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors in blocks of rows: all at once, on a CPU a few."""
    num_rows = len(tensors[0])
    if not num_rows:
        return
    block_size = _CPU_ROWS if tensors[0].device.type == "cpu" else num_rows
    yield from zip(*(tensor.split(block_size) for tensor in tensors), strict=True)


def speed_perturb(waveforms: Tensor, speed: float) -> Tensor:
    """Play waveforms [B, S] faster or slower, also under autocast: float32 [B, ceil(S / speed)]."""
    # The pitch changes with the speed, so that another speed makes another speaker.
    waveforms = waveforms.float()
    if speed == 1:
        return waveforms
    # Unreduced, the filters would be thousands of samples long.
    ratio = Fraction(speed).limit_denominator(100)
    rate, new_rate = ratio.numerator, ratio.denominator
    values, width = _resampling_filters(rate, new_rate)
    filters = torch.tensor(values).to(waveforms.device, non_blocking=True)
    with torch.autocast(waveforms.device.type, enabled=False):
        phases = F.conv1d(F.pad(waveforms, (width, width + rate)).unsqueeze(1), filters, stride=rate)
    return phases.transpose(1, 2).flatten(1)[:, : ceil(new_rate * waveforms.shape[1] / rate)]


@functools.cache
def _resampling_filters(rate: int, new_rate: int) -> tuple[np.ndarray, int]:
    """Return a filter for each sample in a period of the new rate, [new_rate, 1, taps], and the taps before it."""
    # torchaudio.transforms.Resample makes the same ones, but reads tensors on the host and so waits for a GPU.
    cutoff = _ROLLOFF * min(rate, new_rate)
    width = ceil(_ZERO_CROSSINGS * rate / cutoff)
    taps = np.arange(-width, width + rate) / rate
    times = (taps - np.arange(new_rate)[:, None] / new_rate) * cutoff
    times = times.clip(-_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    window = np.cos(np.pi * times / _ZERO_CROSSINGS / 2) ** 2
    filters = np.sinc(times) * window * (cutoff / rate)
    return filters[:, None].astype(np.float32), width


def add_reverb(waveforms: Tensor, rirs: Tensor) -> Tensor:
    """Convolve waveforms [B, S] with room impulse responses [B, L], also under autocast: float32 with their peaks."""
    waveforms = waveforms.float()
    samples = waveforms.shape[1]
    # A length with small prime factors, five of them 2, where the transform is many times faster. DECISIONS 32
    size = 32 * next_fast_len(ceil((samples + rirs.shape[1] - 1) / 32))
    with torch.autocast(waveforms.device.type, enabled=False):
        spectrum = torch.fft.rfft(waveforms, n=size) * torch.fft.rfft(rirs.float(), n=size)
        outputs = torch.fft.irfft(spectrum, n=size)[:, :samples]
    return outputs.mul_(_peak(waveforms) / _peak(outputs).clamp(min=torch.finfo(torch.float32).tiny))


def _peak(waveforms: Tensor) -> Tensor:
    # [B, S] to [B, 1]; absolute values would need a copy.
    return torch.maximum(waveforms.amax(dim=1, keepdim=True), -waveforms.amin(dim=1, keepdim=True))


def add_noise(waveforms: Tensor, noises: Tensor, snr: Tensor) -> Tensor:
    """Add noise, float32 [B, S] and not silent, to waveforms, float32 [B, S], at a ratio ``snr`` [B] in dB."""
    signal_energy = torch.linalg.vector_norm(waveforms, dim=-1) ** 2
    noise_energy = torch.linalg.vector_norm(noises, dim=-1) ** 2
    original_snr = 10 * (torch.log10(signal_energy) - torch.log10(noise_energy))
    scale = 10 ** ((original_snr - snr) / 20)
    return waveforms + scale.unsqueeze(-1) * noises


def mask_filterbank(filterbank: Tensor, mask: Tensor) -> Tensor:
    """Set some frames and bins of each utterance to 0, their mean (SpecAugment).

    Args:
        filterbank: [B, F, T], of mean zero over T.
        mask: float32 [B, 4]: fraction of the frames before the mask, number of masked frames, and the same
            for bins.
    """
    _, bins, frames = filterbank.shape
    is_masked_frame = _span(mask[:, 0], mask[:, 1], frames)[:, None, :]
    is_masked_bin = _span(mask[:, 2], mask[:, 3], bins)[:, :, None]
    return filterbank.masked_fill(is_masked_frame | is_masked_bin, 0.0)


def _span(position: Tensor, length: Tensor, size: int) -> Tensor:
    """Return bool [B, size], True at ``length`` indices; ``position`` in [0, 1) says where among those possible."""
    first = (position * (size - length + 1)).floor()[:, None]
    index = torch.arange(size, device=position.device)
    return (index >= first) & (index < first + length[:, None])
