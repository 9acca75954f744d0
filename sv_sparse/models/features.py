"""Waveforms to filterbanks: Kaldi's log-mel energies, mean-normalized, batched and on any device."""

import math

import torch
from torch import Tensor, nn

FRAMES_PER_SECOND = 100
# Bins of the networks that are trained here.
MEL_BINS = 80
WINDOW_SECONDS = 0.025
LOW_HZ = 20.0
# Kaldi floors energies of 16-bit samples at float32's epsilon; here samples are in [-1, 1].
ENERGY_FLOOR = torch.finfo(torch.float32).eps / 32768**2
# Utterances at a time on a CPU: 1.4 times faster than a batch of 32 in one, which leaves the cache.
_CPU_BATCH = 4


def _frame_geometry(sample_rate: int) -> tuple[int, int]:
    """Return the samples in a window and in the shift from one frame to the next.

    Raises:
        ValueError: They are not whole numbers.
    """
    if sample_rate < 200 or sample_rate % 200:
        raise ValueError(f"sample_rate must be a positive multiple of 200 Hz, got {sample_rate}")
    return round(sample_rate * WINDOW_SECONDS), sample_rate // FRAMES_PER_SECOND


def crop_samples(crop_seconds: float, sample_rate: int = 16000) -> int:
    """Return the samples of a crop of ``round(100 * crop_seconds)`` frames: (frames - 1)·shift + window.

    Raises:
        ValueError: ``crop_seconds`` is not finite or too short for a frame, or ``sample_rate`` is not allowed.

    >>> crop_samples(2.0)
    32240
    """
    window, shift = _frame_geometry(sample_rate)
    if not math.isfinite(crop_seconds):
        raise ValueError(f"crop_seconds must be a finite number, got {crop_seconds}")
    frames = round(FRAMES_PER_SECOND * crop_seconds)
    if frames < 1:
        raise ValueError(f"crop_seconds must be at least {1 / FRAMES_PER_SECOND}, got {crop_seconds}")
    return (frames - 1) * shift + window


class Filterbank(nn.Module):
    """Waveform [B, S] in [-1, 1] to filterbank [B, F, T] float32, each bin with mean zero over T.

    Windows of 25 ms (Hamming) every 10 ms, all inside the waveform, so S samples give
    ``1 + (S - window) // shift`` frames. Power spectrum, triangular filters that are equally wide in mel from
    20 Hz to the Nyquist frequency, natural logarithm, mean removal for each utterance. No pre-emphasis, no
    dither, no removal of each frame's mean. Equal to Kaldi's features with these settings. Runs in float32, whatever
    the precision around it, and has no trainable parameters.

    Args:
        sample_rate: Samples per second, a multiple of 200.
        mel_bins: F, at least 4 and few enough that no filter is empty.

    Raises:
        ValueError: An argument is not allowed.

    >>> Filterbank()(torch.randn(3, crop_samples(2.0))).shape
    torch.Size([3, 80, 200])
    """

    def __init__(self, sample_rate: int = 16000, mel_bins: int = 80) -> None:
        super().__init__()
        self.window, shift = _frame_geometry(sample_rate)
        fft_size = 2 ** (self.window - 1).bit_length()
        filters = _mel_filters(mel_bins, fft_size, sample_rate)
        self.mel_bins = mel_bins
        # Together these two are torchaudio's MelSpectrogram; apart, the power needs no square root on its way.
        # Their names, and those of their buffers, are torchaudio's too: states that were saved with it load.
        self.spectrogram = _Spectrogram(fft_size, self.window, shift)
        self.mel_scale = _MelScale(filters)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveform [B, S] to filterbank [B, F, T].

        Raises:
            ValueError: S is less than a window.
        """
        if waveform.shape[-1] < self.window:
            raise ValueError(f"a waveform must have at least {self.window} samples, got {waveform.shape[-1]}")
        batch_size = _CPU_BATCH if waveform.device.type == "cpu" else max(1, len(waveform))
        with torch.autocast(waveform.device.type, enabled=False):
            return torch.cat([self._filterbank(part.float()) for part in waveform.split(batch_size)])

    def _filterbank(self, waveform: Tensor) -> Tensor:
        spectrum = self.spectrogram(waveform)
        power = spectrum.real.square() + spectrum.imag.square()
        filterbank = self.mel_scale(power).clamp(min=ENERGY_FLOOR).log()
        return (filterbank - filterbank.mean(dim=-1, keepdim=True)).contiguous()


class _Spectrogram(nn.Module):
    """Waveform [B, S] to its complex spectrum [B, fft_size / 2 + 1, T], frame 0 beginning at sample 0.

    Args:
        fft_size: Points of the Fourier transform, even.
        window: Samples in a frame, at most ``fft_size``.
        shift: Samples from one frame to the next.
    """

    window: Tensor

    def __init__(self, fft_size: int, window: int, shift: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length = fft_size, shift
        self.register_buffer("window", torch.hamming_window(window, periodic=False))

    def forward(self, waveform: Tensor) -> Tensor:
        """Transform each frame."""
        # torch puts the window in the middle of the transform; Kaldi's frame begins at its first sample.
        margin = (self.n_fft - len(self.window)) // 2
        padded = nn.functional.pad(waveform, (margin, margin))
        return torch.stft(
            padded,
            self.n_fft,
            hop_length=self.hop_length,
            win_length=len(self.window),
            window=self.window,
            center=False,
            return_complex=True,
        )


class _MelScale(nn.Module):
    """Power spectrum [B, bins, T] to energies [B, F, T] in the filters ``fb`` [bins, F]."""

    fb: Tensor

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        self.register_buffer("fb", filters)

    def forward(self, power: Tensor) -> Tensor:
        """Sum the power in each filter."""
        return (power.transpose(-1, -2) @ self.fb).transpose(-1, -2)


def _mel(hz: float) -> float:
    return 1127 * math.log(1 + hz / 700)


def _mel_filters(mel_bins: int, fft_size: int, sample_rate: int) -> Tensor:
    """Return Kaldi's filters [fft_size / 2 + 1, F]: triangles over the mel axis.

    They are those of ``torchaudio.compliance.kaldi.get_mel_banks`` to the bit; torchaudio's ``MelScale`` has triangles
    over the Hz axis.

    Raises:
        ValueError: ``mel_bins`` is below 4, or a filter covers no bin of the spectrum.
    """
    problem = (
        f"mel_bins must be at least 4 and few enough that each filter covers a bin of the {fft_size}-point "
        f"spectrum at {sample_rate} Hz, got {mel_bins}"
    )
    if mel_bins < 4:
        raise ValueError(problem)
    lowest = _mel(LOW_HZ)
    # The last triangle ends at the Nyquist frequency.
    width = (_mel(sample_rate / 2) - lowest) / (mel_bins + 1)
    number = torch.arange(mel_bins).unsqueeze(1)
    left = lowest + number * width
    center = lowest + (number + 1.0) * width
    right = lowest + (number + 2.0) * width
    # Kaldi leaves out the Nyquist bin.
    hz = sample_rate / fft_size * torch.arange(fft_size / 2)
    mel = 1127.0 * (1.0 + hz / 700.0).log()
    rising = (mel - left) / (center - left)
    falling = (right - mel) / (right - center)
    filters = torch.minimum(rising, falling).clamp(min=0)
    if (filters.amax(dim=1) == 0).any():
        raise ValueError(problem)
    return nn.functional.pad(filters, (0, 1)).T.contiguous()
