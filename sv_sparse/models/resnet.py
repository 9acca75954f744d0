"""ResNets of 34 to 293 layers over the filterbank as an image, in WeSpeaker's layout."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models.layers import check_at_least, keep_channels_last, safe_memory_format, without_autocast
from sv_sparse.models.module_checks import relu_after
from sv_sparse.models.pooling import TemporalStatisticsPooling

STRIDES = (1, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus the input: [B, C_in, F, T] to [B, C_out, F/stride, T/stride].

    Where the shape changes, the input passes through a strided 1x1 convolution with batch norm.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        stride: Of the first convolution, over bins and frames, or one for each.

    Source: He et al., "Deep Residual Learning for Image Recognition", 2016.
    """

    # Channels of the output for each channel of the 3x3 convolutions.
    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, stride: int | tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, F, T] to [B, C_out, F/stride, T/stride], rounded up."""
        y = relu_after(self.norm1, self.conv1(x))
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        # In place: the sum is a new tensor of which nobody else holds a reference.
        return F.relu_(y)


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolution with batch norm, plus the input: [B, C_in, F, T] to [B, 4·C, F/stride, T/stride].

    Where the shape changes, the input passes through a strided 1x1 convolution with batch norm.

    Args:
        in_channels: C_in.
        channels: C, of the 3x3 convolution.
        stride: Of the 3x3 convolution, over bins and frames.

    Source: He et al., "Deep Residual Learning for Image Recognition", 2016, with the stride in the 3x3 convolution as
    WeSpeaker and torchvision have it.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, F, T] to [B, 4·C, F/stride, T/stride], rounded up."""
        y = relu_after(self.norm1, self.conv1(x))
        y = relu_after(self.norm2, self.conv2(y))
        y = self.norm3(self.conv3(y)) + self.shortcut(x)
        # In place: the sum is a new tensor of which nobody else holds a reference.
        return F.relu_(y)


class ResNet(nn.Module):
    """Filterbank [B, F, T] to embedding [B, E] in float32, whatever the precision around it.

    A 3x3 convolution; four stages of blocks which from the second on double the channels and halve bins and frames;
    mean and standard deviation over time; one linear layer. Its subclasses have the numbers of blocks.

    Args:
        base_channels: Channels of the first stage's 3x3 convolutions.
        embedding_dim: E.
        mel_bins: F.
        statistics_norm: Batch norm without weights between pooling and linear layer; WeSpeaker has none.

    Raises:
        ValueError: An argument is below 1.

    Source: Zeinali et al., "BUT System Description to VoxCeleb Speaker Recognition Challenge 2019", with the
    details of WeSpeaker's ResNets.
    """

    block: ClassVar[type[BasicBlock | BottleneckBlock]]
    # Blocks of the four stages.
    num_blocks: ClassVar[tuple[int, int, int, int]]

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
        for index, (num_blocks, stride) in enumerate(zip(self.num_blocks, STRIDES, strict=True)):
            width = base_channels * 2**index
            self.stages.append(_stage(self.block, channels, width, num_blocks, stride))
            channels = width * self.block.expansion
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


class ResNet34(ResNet):
    """ResNet of 34 layers; arguments and source as of `ResNet`.

    >>> ResNet34(base_channels=4)(torch.randn(2, 80, 50)).shape
    torch.Size([2, 256])
    """

    block = BasicBlock
    num_blocks = (3, 4, 6, 3)


class ResNet50(ResNet):
    """ResNet of 50 layers in bottleneck blocks; arguments and source as of `ResNet`.

    >>> ResNet50(base_channels=4)(torch.randn(2, 80, 50)).shape
    torch.Size([2, 256])
    """

    block = BottleneckBlock
    num_blocks = (3, 4, 6, 3)


class ResNet101(ResNet):
    """ResNet of 101 layers in bottleneck blocks; arguments and source as of `ResNet`."""

    block = BottleneckBlock
    num_blocks = (3, 4, 23, 3)


class ResNet152(ResNet):
    """ResNet of 152 layers in bottleneck blocks; arguments and source as of `ResNet`."""

    block = BottleneckBlock
    num_blocks = (3, 8, 36, 3)


class ResNet221(ResNet):
    """ResNet of 221 layers in bottleneck blocks; arguments and source as of `ResNet`."""

    block = BottleneckBlock
    num_blocks = (6, 16, 48, 3)


class ResNet293(ResNet):
    """ResNet of 293 layers in bottleneck blocks; arguments and source as of `ResNet`."""

    block = BottleneckBlock
    num_blocks = (10, 20, 64, 3)


def _shortcut(in_channels: int, out_channels: int, stride: int | tuple[int, int]) -> nn.Sequential:
    """Return what a block's input passes through: nothing, or where the shape changes a convolution with batch norm."""
    shortcut = nn.Sequential()
    if stride != 1 or in_channels != out_channels:
        shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))
        shortcut.append(nn.BatchNorm2d(out_channels))
    return shortcut


def _stage(
    block: type[BasicBlock | BottleneckBlock], in_channels: int, channels: int, num_blocks: int, stride: int
) -> nn.Sequential:
    """Return a stage, whose first block changes the shape."""
    stage = nn.Sequential(block(in_channels, channels, stride))
    for _ in range(num_blocks - 1):
        stage.append(block(channels * block.expansion, channels, 1))
    return stage
