"""ResNet34 over the filterbank as an image, in WeSpeaker's layout."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models.layers import check_at_least, keep_channels_last, safe_memory_format, without_autocast
from sv_sparse.models.module_checks import relu_after
from sv_sparse.models.pooling import TemporalStatisticsPooling

BLOCKS = (3, 4, 6, 3)
STRIDES = (1, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus the input: [B, C_in, F, T] to [B, C_out, F/stride, T/stride].

    Where the shape changes, the input passes through a strided 1x1 convolution with batch norm.

    Source: He et al., "Deep Residual Learning for Image Recognition", 2016.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, F, T] to [B, C_out, F/stride, T/stride], rounded up."""
        y = relu_after(self.norm1, self.conv1(x))
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        # In place: the sum is a new tensor of which nobody else holds a reference.
        return F.relu_(y)


class ResNet34(nn.Module):
    """Filterbank [B, F, T] to embedding [B, E] in float32, whatever the precision around it.

    A 3x3 convolution; four stages of basic blocks (3, 4, 6, 3) which from the second on double the channels and halve
    bins and frames; mean and standard deviation over time; one linear layer.

    Args:
        base_channels: Channels of the first stage.
        embedding_dim: E.
        mel_bins: F.
        statistics_norm: Batch norm without weights between pooling and linear layer; WeSpeaker has none.

    Raises:
        ValueError: An argument is below 1.

    Source: Zeinali et al., "BUT System Description to VoxCeleb Speaker Recognition Challenge 2019", with the
    details of WeSpeaker's ResNet34.

    >>> ResNet34(base_channels=4)(torch.randn(2, 80, 50)).shape
    torch.Size([2, 256])
    """

    def __init__(
        self,
        base_channels: int = 32,
        embedding_dim: int = 256,
        mel_bins: int = 80,
        *,
        statistics_norm: bool = True,
    ) -> None:
        super().__init__()
        check_at_least(1, base_channels=base_channels, embedding_dim=embedding_dim, mel_bins=mel_bins)
        self.mel_bins = mel_bins
        self.embedding_dim = embedding_dim
        self.conv = nn.Conv2d(1, base_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(base_channels)
        self.stages = nn.Sequential()
        channels = base_channels
        bins = mel_bins
        for index, (blocks, stride) in enumerate(zip(BLOCKS, STRIDES, strict=True)):
            width = base_channels * 2**index
            self.stages.append(_stage(channels, width, blocks, stride))
            channels = width
            # A strided convolution with padding 1 rounds up.
            bins = -(-bins // stride)
        self.pooling = TemporalStatisticsPooling()
        size = 2 * channels * bins
        # Means and deviations of what a ReLU lets through are positive. Without this norm all embeddings point the same
        # way at first (cosine 0.9 between speakers), and a run spends its first steps on undoing that.
        self.statistics_norm = nn.BatchNorm1d(size, affine=False) if statistics_norm else nn.Identity()
        self.embedding = nn.Linear(size, embedding_dim)
        self.memory_format: torch.memory_format = safe_memory_format(base_channels)
        keep_channels_last(self)

    def forward(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E].

        Raises:
            ValueError: T is less than 9, which leaves one frame for the pooling.
        """
        x = filterbank.unsqueeze(1).contiguous(memory_format=self.memory_format)
        x = relu_after(self.norm, self.conv(x))
        statistics = self.pooling(self.stages(x))
        # In float32, so that embeddings of a model under autocast are not rounded to eight bits.
        with without_autocast(statistics.device):
            return self.embedding(self.statistics_norm(statistics))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Return a stage, whose first block changes the shape."""
    stage = nn.Sequential(BasicBlock(in_channels, out_channels, stride))
    for _ in range(blocks - 1):
        stage.append(BasicBlock(out_channels, out_channels, 1))
    return stage
