"""Waveforms to filterbanks, batched and on any device: log-mel energies as Kaldi and SpeechBrain compute them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FRAMES_PER_SECOND = 100
# Bins of the networks that are trained here.
MEL_BINS = 80
WINDOW_SECONDS = 0.025
# Float32's epsilon, below which Kaldi lets no energy fall.
_EPSILON = torch.finfo(torch.float32).eps
# The same for 16-bit sample values, of which ours are the 32768th part: a power of two rounds nothing.
ENERGY_FLOOR = _EPSILON / 32768**2
# Utterances at a time on a CPU: 1.4 times faster than a batch of 32 in one, which leaves the cache.
_CPU_BATCH = 4


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of a kind of features, with Kaldi's names where Kaldi has the setting.

    All kinds have windows of 25 ms every 10 ms, power spectra, filters up to the Nyquist frequency, no dither, and
    remove each bin's mean over the utterance.
    """

    # hamming, symmetric; hamming_periodic; or povey, Kaldi's Hann window to the power of 0.85.
    window_type: str = "hamming"
    # Fraction of the sample before that is subtracted from each sample of a frame; 0: none.
    preemphasis_coefficient: float = 0.0
    # Subtract each frame's mean.
    remove_dc_offset: bool = False
    # Transform of the next power of two of samples; otherwise of the window's.
    round_to_power_of_two: bool = True
    # Frames centered on multiples of the shift, with zeros beyond the ends; otherwise all inside the waveform.
    center: bool = False
    # Triangles over the mel axis, as Kaldi's; or over Hz and as wide above the center as below, as SpeechBrain's.
    mel_triangles: bool = True
    # Lower edge of the first filter, in Hz.
    low_freq: float = 20.0
    # Smallest energy of samples in [-1, 1].
    energy_floor: float = ENERGY_FLOOR
    # 10·log10 in place of the natural logarithm.
    decibels: bool = False
    # Decibels below the utterance's largest value at which smaller ones are cut off; None: nowhere.
    top_db: float | None = None


DEFAULT_FEATURES = "sv_sparse"
# 3D-Speaker gives Kaldi's fbank samples in [-1, 1], WeSpeaker 16-bit values: beside the window, they differ in the
# floor. References: torchaudio.compliance.kaldi.fbank; SpeechBrain's Fbank and InputNormalization.
FEATURES = {
    "3dspeaker": FeatureSettings(
        window_type="povey", preemphasis_coefficient=0.97, remove_dc_offset=True, energy_floor=_EPSILON
    ),
    "wespeaker": FeatureSettings(preemphasis_coefficient=0.97, remove_dc_offset=True),
    "speechbrain": FeatureSettings(
        window_type="hamming_periodic",
        round_to_power_of_two=False,
        center=True,
        mel_triangles=False,
        low_freq=0.0,
        energy_floor=1e-10,
        decibels=True,
        top_db=80.0,
    ),
    DEFAULT_FEATURES: FeatureSettings(),
}


def check_features(name: object) -> str:
    """Return the name of a kind of features.

    Raises:
        ValueError: ``name`` is none of ``FEATURES``.
    """
    if not isinstance(name, str) or name not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {name!r}")
    return name


def network_features(network: nn.Module) -> str:
    """Return the name of a network's kind of features; the default of one that ``build_model`` did not build."""
    return check_features(getattr(network, "features", DEFAULT_FEATURES))


def build_features(name: str, sample_rate: int = 16000, mel_bins: int = MEL_BINS) -> "Filterbank":
    """Build the features of a kind: waveform [B, S] in [-1, 1] to filterbank [B, F, T], float32.

    Args:
        name: One of ``FEATURES``: ``3dspeaker``, ``wespeaker``, ``speechbrain`` or ``sv_sparse``.
        sample_rate: Samples per second, a multiple of 200. Default: 16000.
        mel_bins: F, at least 4 and few enough that no filter is empty. Default: 80.

    Raises:
        ValueError: An argument is not allowed.

    >>> build_features("speechbrain")(torch.randn(3, 32000)).shape
    torch.Size([3, 80, 201])
    """
    return Filterbank(sample_rate, mel_bins, FEATURES[check_features(name)])


def _frame_geometry(sample_rate: int) -> tuple[int, int]:
    """Return the samples in a window and in the shift from one frame to the next.

    Raises:
        ValueError: They are not whole numbers.
    """
    if sample_rate < 200 or sample_rate % 200:
        raise ValueError(f"sample_rate must be a positive multiple of 200 Hz, got {sample_rate}")
    return round(sample_rate * WINDOW_SECONDS), sample_rate // FRAMES_PER_SECOND


def crop_samples(crop_seconds: float, sample_rate: int = 16000, features: str = DEFAULT_FEATURES) -> int:
    """Return the samples of a crop of ``round(100 * crop_seconds)`` frames.

    Args:
        crop_seconds: Frames in seconds, at least 0.01.
        sample_rate: Samples per second, a multiple of 200. Default: 16000.
        features: Kind of features, one of ``FEATURES``: (frames - 1)·shift + window samples where frames lie inside
            the waveform, (frames - 1)·shift where they are centered on multiples of the shift, at least 1.

    Raises:
        ValueError: ``crop_seconds`` is not finite or too short for a frame, or another argument is not allowed.

    >>> crop_samples(2.0)
    32240
    >>> crop_samples(2.0, features="speechbrain")
    31840
    """
    window, shift = _frame_geometry(sample_rate)
    if not math.isfinite(crop_seconds):
        raise ValueError(f"crop_seconds must be a finite number, got {crop_seconds}")
    frames = round(FRAMES_PER_SECOND * crop_seconds)
    if frames < 1:
        raise ValueError(f"crop_seconds must be at least {1 / FRAMES_PER_SECOND}, got {crop_seconds}")
    is_centered = FEATURES[check_features(features)].center
    return max(1, (frames - 1) * shift + (0 if is_centered else window))


class Filterbank(nn.Module):
    """Waveform [B, S] in [-1, 1] to filterbank [B, F, T] float32, each bin with mean zero over T.

    Windows of 25 ms every 10 ms, so S samples give ``1 + (S - window) // shift`` frames, or ``1 + S // shift`` where
    frames are centered. Power spectrum, triangular filters up to the Nyquist frequency, logarithm, mean removal for
    each utterance. Runs in float32, whatever the precision around it, and has no trainable parameters. An utterance
    does not depend on its batch.

    Args:
        sample_rate: Samples per second, a multiple of 200.
        mel_bins: F, at least 4 and few enough that no filter is empty.
        settings: Kind of features. Default: that of ``sv_sparse``, which is Kaldi's with a Hamming window, and without
            pre-emphasis, dither and removal of each frame's mean.

    Raises:
        ValueError: An argument is not allowed.

    >>> Filterbank()(torch.randn(3, crop_samples(2.0))).shape
    torch.Size([3, 80, 200])
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        mel_bins: int = MEL_BINS,
        settings: FeatureSettings = FEATURES[DEFAULT_FEATURES],
    ) -> None:
        super().__init__()
        window, shift = _frame_geometry(sample_rate)
        fft_size = 2 ** (window - 1).bit_length() if settings.round_to_power_of_two else window
        filters = _mel_filters(mel_bins, fft_size, sample_rate, settings)
        self.settings = settings
        self.mel_bins = mel_bins
        self.min_samples = 1 if settings.center else window
        # Their names, and those of their buffers, are those of torchaudio's MelSpectrogram: states of it load.
        self.spectrogram = _Spectrogram(fft_size, window, shift, settings)
        self.mel_scale = _MelScale(filters)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveform [B, S] to filterbank [B, F, T].

        Raises:
            ValueError: S is less than a window, or nothing where frames are centered.
        """
        if waveform.shape[-1] < self.min_samples:
            raise ValueError(f"a waveform must have at least {self.min_samples} samples, got {waveform.shape[-1]}")
        batch_size = _CPU_BATCH if waveform.device.type == "cpu" else max(1, len(waveform))
        with torch.autocast(waveform.device.type, enabled=False):
            return torch.cat([self._filterbank(part.float()) for part in waveform.split(batch_size)])

    def _filterbank(self, waveform: Tensor) -> Tensor:
        spectrum = self.spectrogram(waveform)
        power = spectrum.real.square() + spectrum.imag.square()
        return log_normalize(self.mel_scale(power), self.settings).contiguous()


def log_normalize(energies: Tensor, settings: FeatureSettings) -> Tensor:
    """Map energies [B, F, T] to their logarithms without each bin's mean over T."""
    energies = energies.clamp(min=settings.energy_floor)
    filterbank = 10 * energies.log10() if settings.decibels else energies.log()
    if settings.top_db is not None:
        filterbank = filterbank.maximum(filterbank.amax(dim=(1, 2), keepdim=True) - settings.top_db)
    return filterbank - filterbank.mean(dim=-1, keepdim=True)


_WINDOWS: dict[str, Callable[[int], Tensor]] = {
    "hamming": lambda length: torch.hamming_window(length, periodic=False),
    "hamming_periodic": lambda length: torch.hamming_window(length, periodic=True),
    "povey": lambda length: torch.hann_window(length, periodic=False).pow(0.85),
}


class _Spectrogram(nn.Module):
    """Waveform [B, S] to its complex spectrum [B, fft_size / 2 + 1, T].

    Args:
        fft_size: Points of the Fourier transform, even.
        window: Samples in a frame, at most ``fft_size``.
        shift: Samples from one frame to the next.
        settings: Window, pre-emphasis, removal of the mean, and the place of frame 0.
    """

    window: Tensor

    def __init__(self, fft_size: int, window: int, shift: int, settings: FeatureSettings) -> None:
        super().__init__()
        self.n_fft, self.hop_length = fft_size, shift
        self.settings = settings
        # Zeros before the first sample and after the last.
        self.padding = window // 2 if settings.center else 0
        self.register_buffer("window", _WINDOWS[settings.window_type](window))

    def forward(self, waveform: Tensor) -> Tensor:
        """Transform each frame."""
        # torch.stft would put the frame in the middle of a longer transform, which rounds otherwise than Kaldi.
        return torch.fft.rfft(self.frames(waveform) * self.window, self.n_fft).transpose(-1, -2)

    def frames(self, waveform: Tensor) -> Tensor:
        """Cut waveform [B, S] into frames [B, T, window], without their mean and with pre-emphasis if so set."""
        padded = nn.functional.pad(waveform, (self.padding, self.padding))
        frames = padded.unfold(-1, len(self.window), self.hop_length)
        if self.settings.remove_dc_offset:
            frames = frames - frames.mean(dim=-1, keepdim=True)
        if self.settings.preemphasis_coefficient:
            # Before the first sample of a frame stands itself.
            previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
            frames = frames - self.settings.preemphasis_coefficient * previous
        return frames


class _MelScale(nn.Module):
    """Power spectrum [B, bins, T] to energies [B, F, T] in the filters ``fb`` [bins, F]."""

    fb: Tensor

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        self.register_buffer("fb", filters)

    def forward(self, power: Tensor) -> Tensor:
        """Sum the power in each filter."""
        return (power.transpose(-1, -2) @ self.fb).transpose(-1, -2)


def _mel_filters(mel_bins: int, fft_size: int, sample_rate: int, settings: FeatureSettings) -> Tensor:
    """Return the filters [fft_size / 2 + 1, F], to the bit those of Kaldi in torchaudio, or of SpeechBrain.

    torchaudio's ``MelScale`` has other ones.

    Raises:
        ValueError: ``mel_bins`` is below 4, or a filter covers no bin of the spectrum.
    """
    problem = (
        f"mel_bins must be at least 4 and few enough that each filter covers a bin of the {fft_size}-point "
        f"spectrum at {sample_rate} Hz, got {mel_bins}"
    )
    if mel_bins < 4:
        raise ValueError(problem)
    if settings.mel_triangles:
        filters = _mel_triangles(mel_bins, fft_size, sample_rate, settings.low_freq)
    else:
        filters = _hz_triangles(mel_bins, fft_size, sample_rate, settings.low_freq)
    if (filters.amax(dim=1) == 0).any():
        raise ValueError(problem)
    return filters.T.contiguous()


def _mel(hz: float) -> float:
    return 1127 * math.log(1 + hz / 700)


def _mel_triangles(mel_bins: int, fft_size: int, sample_rate: int, low_freq: float) -> Tensor:
    """Return triangles [F, fft_size / 2 + 1] over the mel axis, as ``torchaudio.compliance.kaldi.get_mel_banks``."""
    lowest = _mel(low_freq)
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
    return nn.functional.pad(torch.minimum(rising, falling).clamp(min=0), (0, 1))


def _hz_triangles(mel_bins: int, fft_size: int, sample_rate: int, low_freq: float) -> Tensor:
    """Return triangles [F, fft_size / 2 + 1] over Hz, as ``speechbrain.processing.features.Filterbank``."""
    highest = 2595 * math.log10(1 + sample_rate / 2 / 700)
    mel = torch.linspace(2595 * math.log10(1 + low_freq / 700), highest, mel_bins + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    center = edges[1:-1].unsqueeze(1)
    # On both sides the distance to the center below.
    width = edges.diff()[:-1].unsqueeze(1)
    hz = torch.linspace(0, sample_rate // 2, fft_size // 2 + 1)
    slope = (hz - center) / width
    return torch.minimum(slope + 1, 1 - slope).clamp(min=0)
