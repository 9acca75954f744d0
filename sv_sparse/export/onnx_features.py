"""The features in operations that ONNX has."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models.features import ENERGY_FLOOR, Filterbank


class ConvolvedFilterbank(nn.Module):
    """`Filterbank` at 16 kHz, windows and Fourier transform being one convolution: [B, S] to [B, F, T] float32.

    Where a voice's spectrum falls by 60 dB and digital silence interrupts it, a bin differs from `Filterbank` by up to
    1.5e-4, on average by 5e-6; with 120 dB by up to 1.2e-3. Most of that is the rounding of torch's fast transform: of
    such sounds the convolution is nearer to the result in float64, by a factor of 1 to 7 in the worst bin, hence stays
    in float32. ONNX's STFT, in onnxruntime, has 1.5 to 13 times its error. Engines that multiply float32 in fewer bits,
    such as TF32, are to be told not to, or to be given the filterbank.

    Args:
        mel_bins: F.

    Raises:
        ValueError: ``mel_bins`` is not allowed.

    >>> ConvolvedFilterbank(80)(torch.randn(3, 32240)).shape
    torch.Size([3, 80, 200])
    """

    transform: Tensor
    mel_filters: Tensor

    def __init__(self, mel_bins: int) -> None:
        super().__init__()
        original = Filterbank(mel_bins=mel_bins)
        spectrogram = original.spectrogram
        self.shift = int(spectrogram.hop_length)
        window, filters = spectrogram.window.double(), original.mel_scale.fb.T
        samples = torch.arange(len(window), dtype=torch.float64)
        angles = torch.outer(torch.arange(filters.shape[1]), samples) * (2 * torch.pi / spectrogram.n_fft)
        waves = torch.cat([angles.cos(), angles.sin()]) * window
        self.register_buffer("transform", waves.float().unsqueeze(1))
        self.register_buffer("mel_filters", filters.clone())

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveform [B, S], S at least a window, to filterbank [B, F, T]."""
        real, imaginary = F.conv1d(waveform.unsqueeze(1), self.transform, stride=self.shift).chunk(2, dim=1)
        power = real * real + imaginary * imaginary
        filterbank = (self.mel_filters @ power).clamp(min=ENERGY_FLOOR).log()
        return filterbank - filterbank.mean(dim=-1, keepdim=True)
