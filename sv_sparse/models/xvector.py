"""X-vector network: a time-delay neural network with statistics pooling, in WeSpeaker's layout."""

from torch import Tensor, nn

from sv_sparse.models.layers import check_at_least, keep_channels_last, to_image, without_autocast
from sv_sparse.models.module_checks import relu_after
from sv_sparse.models.pooling import statistics

# Of the layers over time: in Kaldi's recipe {t-2 .. t+2}, {t-2, t, t+2}, {t-3, t, t+3}, {t}, {t}.
KERNEL_SIZES = (5, 3, 3, 1, 1)
DILATIONS = (1, 2, 3, 1, 1)
# Frames of which the layers make two, the fewest with a standard deviation.
MIN_FRAMES = 2 + sum(dilation * (size - 1) for size, dilation in zip(KERNEL_SIZES, DILATIONS, strict=True))
# WeSpeaker adds it to the variance.
VARIANCE_FLOOR = 1e-7


class TDNNLayer(nn.Module):
    """Convolution over time without padding, ReLU, batch norm without weights: [B, C_in, 1, T] to [B, C_out, 1, T'].

    T' is T - ``dilation`` · (``kernel_size`` - 1).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, (1, kernel_size), dilation=(1, dilation))
        # As in Kaldi.
        self.norm = nn.BatchNorm2d(out_channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, 1, T] to [B, C_out, 1, T']."""
        return self.norm(relu_after(self.conv, x))


class XVector(nn.Module):
    """Filterbank [B, F, T] to embedding [B, E] in float32, whatever the precision around it.

    Five layers over time, which see 15 frames; mean and standard deviation over time; linear layer, ReLU, batch norm
    without weights, linear layer. Kaldi takes the output of the first linear layer as the embedding, WeSpeaker and
    this class that of the second.

    Args:
        mel_bins: F.
        channels: Channels of the first four layers.
        statistics_channels: Channels of the fifth, which are pooled.
        embedding_dim: E.

    Raises:
        ValueError: An argument is below 1.

    Source: Snyder et al., "X-Vectors: Robust DNN Embeddings for Speaker Recognition", 2018, with the details of
    WeSpeaker's XVEC.

    >>> import torch
    >>> XVector(channels=16, statistics_channels=24)(torch.randn(2, 80, 50)).shape
    torch.Size([2, 512])
    """

    def __init__(
        self, mel_bins: int = 80, channels: int = 512, statistics_channels: int = 1500, embedding_dim: int = 512
    ) -> None:
        super().__init__()
        check_at_least(1, mel_bins=mel_bins, channels=channels, statistics_channels=statistics_channels)
        check_at_least(1, embedding_dim=embedding_dim)
        self.mel_bins = mel_bins
        self.embedding_dim = embedding_dim
        self.layers = nn.Sequential()
        widths = [mel_bins, *[channels] * (len(KERNEL_SIZES) - 1), statistics_channels]
        for index, (kernel_size, dilation) in enumerate(zip(KERNEL_SIZES, DILATIONS, strict=True)):
            self.layers.append(TDNNLayer(widths[index], widths[index + 1], kernel_size, dilation))
        self.linear = nn.Linear(2 * statistics_channels, embedding_dim)
        self.norm = nn.BatchNorm1d(embedding_dim, affine=False)
        self.embedding = nn.Linear(embedding_dim, embedding_dim)
        keep_channels_last(self)

    def forward(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E].

        Raises:
            ValueError: T is less than 16.
        """
        if filterbank.shape[2] < MIN_FRAMES:
            raise ValueError(
                f"x-vectors need at least {MIN_FRAMES} frames, got {filterbank.shape[2]}; use longer utterances"
            )
        frames = self.layers(to_image(filterbank)).squeeze(2).transpose(1, 2)
        pooled = statistics(frames, None, correction=1, variance_floor=VARIANCE_FLOOR)
        # In float32, so that embeddings of a model under autocast are not rounded to eight bits.
        with without_autocast(pooled.device):
            return self.embedding(self.norm(relu_after(self.linear, pooled)))
