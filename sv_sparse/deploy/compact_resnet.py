"""ResNet34 with as many channels in each layer as are needed there, for evaluation."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models.autocast import without_autocast
from sv_sparse.models.layers import keep_channels_last
from sv_sparse.models.pooling import TemporalStatisticsPooling
from sv_sparse.models.resnet import BLOCKS, STRIDES


class CompactBasicBlock(nn.Module):
    """Two 3x3 convolutions plus the input: [B, C_in, F, T] to [B, C_out, F/stride, T/stride], rounded up.

    Batch norms are in the convolutions' weights. Where the second convolution computes few channels of the stream,
    another one of zeros and ones puts them in their places, which is faster than to index.

    Args:
        in_channels: C_in.
        inner_channels: Between the convolutions.
        branch_channels: What the second convolution computes; 0: all of the stream.
        out_channels: C_out.
        stride: Of the first convolution.
        shortcut: The input passes through a strided 1x1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        inner_channels: int,
        branch_channels: int,
        out_channels: int,
        stride: int,
        *,
        shortcut: bool,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(inner_channels, branch_channels or out_channels, 3, padding=1)
        self.spread = nn.Conv2d(branch_channels, out_channels, 1) if branch_channels else nn.Identity()
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride) if shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, F, T] to [B, C_out, F/stride, T/stride], rounded up."""
        y = self.spread(self.conv2(F.relu_(self.conv1(x))))
        y += self.shortcut(x)
        return F.relu_(y)


class CompactResNet34(nn.Module):
    """Filterbank [B, F, T] to embedding [B, E], as the ResNet34 that it was made of by `sv_sparse.deploy.compact`.

    Args:
        stream_channels: width of each of the four stages.
        inner_channels: width between the convolutions of each block, stage after stage.
        branch_channels: what the second convolution of each block computes; 0: all of the stream.
        embedding_dim: E.
        statistics_norm: batch norm between pooling and linear layer.
        mel_bins: F.
    """

    def __init__(
        self,
        stream_channels: Iterable[int],
        inner_channels: Iterable[int],
        branch_channels: Iterable[int],
        embedding_dim: int,
        *,
        statistics_norm: bool,
        mel_bins: int = 80,
    ) -> None:
        super().__init__()
        self.embedding_dim, self.mel_bins = embedding_dim, mel_bins
        widths, parts = list(stream_channels), zip(inner_channels, branch_channels, strict=True)
        self.conv = nn.Conv2d(1, widths[0], 3, padding=1)
        self.stages = nn.Sequential()
        before, bins = widths[0], mel_bins
        for stage, (width, blocks, stride) in enumerate(zip(widths, BLOCKS, STRIDES, strict=True)):
            first = CompactBasicBlock(before, *next(parts), width, stride, shortcut=stage > 0)
            rest = (CompactBasicBlock(width, *next(parts), width, 1, shortcut=False) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
            before, bins = width, -(-bins // stride)
        self.pooling = TemporalStatisticsPooling()
        size = 2 * before * bins
        self.statistics_norm = nn.BatchNorm1d(size, affine=False) if statistics_norm else nn.Identity()
        self.embedding = nn.Linear(size, embedding_dim)
        keep_channels_last(self)

    @property
    def settings(self) -> dict[str, Any]:
        """Plain data: the class as ``_target_`` and its arguments, without ``mel_bins``."""
        blocks: list[Any] = [block for stage in self.stages for block in stage.children()]
        ends: list[Any] = [list(stage.children())[-1] for stage in self.stages]
        return {
            "_target_": f"{CompactResNet34.__module__}.CompactResNet34",
            "stream_channels": [block.conv1.in_channels for block in ends],
            "inner_channels": [block.conv1.out_channels for block in blocks],
            "branch_channels": [
                block.spread.in_channels if isinstance(block.spread, nn.Conv2d) else 0 for block in blocks
            ],
            "embedding_dim": self.embedding_dim,
            "statistics_norm": isinstance(self.statistics_norm, nn.BatchNorm1d),
        }

    def forward(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E].

        Raises:
            ValueError: T is less than 9, which leaves one frame for the pooling.
        """
        x = filterbank.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        statistics = self.pooling(self.stages(F.relu_(self.conv(x))))
        with without_autocast(statistics.device):
            return self.embedding(self.statistics_norm(statistics))
