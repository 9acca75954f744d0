"""ResNet with squeeze-excitation and attentive pooling, in SpeechBrain's layout."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sv_sparse.models.layers import (
    SqueezeExcitation,
    check_at_least,
    is_int,
    keep_channels_last,
    safe_memory_format,
    without_autocast,
)
from sv_sparse.models.module_checks import relu_after
from sv_sparse.models.pooling import statistics

BLOCKS = (3, 4, 6, 3)
STRIDES = (1, 2, 2, 2)
USE_SE = (True, True, False, False)


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1, plus the input: [B, C_in, F, T] to [B, C_out, F/stride, T/stride].

    Batch norm and ReLU stand before each convolution. Where the shape changes, the input passes through a strided
    1x1 convolution with batch norm.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        stride: Of the first convolution, over bins and frames.
        use_se: Multiply the channels by the gains of a squeeze-excitation before the input is added.

    Source: He et al., "Identity Mappings in Deep Residual Networks", 2016.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, use_se: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.conv3 = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.se = SqueezeExcitation(out_channels, out_channels) if use_se else None
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, F, T] to [B, C_out, F/stride, T/stride], rounded up."""
        y = self.conv1(relu_after(self.norm1, x))
        y = self.conv2(relu_after(self.norm2, y))
        y = self.conv3(relu_after(self.norm3, y))
        # The gains scale the residual branch only, as in the paper of squeeze-excitation.
        if self.se is not None:
            y = y * self.se(y)
        return y + self.shortcut(x)


class FramePooling(nn.Module):
    """Weighted mean and standard deviation of each channel and bin: [B, C, F, T] to [B, 2·C·F] float32.

    Each channel and bin has weights of its own, the softmax over T of ``linear2(norm(relu(linear1(frame))))``. Unlike
    the pooling of ECAPA-TDNN it has no global context.

    Args:
        size: C·F.
        attention_channels: Width of the hidden layer.
    """

    # SpeechBrain's, so that its weights give its embeddings.
    variance_floor = 1e-5

    def __init__(self, size: int, attention_channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(size, attention_channels)
        self.norm = nn.BatchNorm1d(attention_channels)
        self.linear2 = nn.Linear(attention_channels, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, F, T] to [B, 2·C·F].

        Raises:
            ValueError: T is less than 2.
        """
        frames = x.flatten(1, 2).transpose(1, 2)
        # BatchNorm1d takes frames of all utterances as one batch: [B·T, hidden].
        hidden = relu_after(self.linear1, frames)
        hidden = self.norm(hidden.flatten(0, 1)).view_as(hidden)
        return statistics(frames, self.linear2(hidden), correction=0, variance_floor=self.variance_floor)


class SEResNet(nn.Module):
    """Filterbank [B, F, T] to embedding [B, E] in float32, whatever the precision around it.

    A 3x3 convolution; four stages of pre-activation blocks (3, 4, 6, 3), the first two with squeeze-excitation,
    which from the second on halve bins and frames; attentive mean and standard deviation over time; batch norm,
    one linear layer, batch norm.

    Args:
        channels: Channels of the four stages; the first convolution has those of the first.
        attention_channels: Width of the attention's hidden layer.
        embedding_dim: E.
        mel_bins: F.

    Raises:
        ValueError: An argument is not allowed.

    Source: Rouvier and Bousquet, "Studying Squeeze-and-Excitation Used in CNN for Speaker Verification", 2021, with
    the details of SpeechBrain's ``spkrec-resnet-voxceleb``.

    >>> SEResNet(channels=(4, 4, 8, 8))(torch.randn(2, 80, 50)).shape
    torch.Size([2, 256])
    """

    def __init__(
        self,
        channels: Iterable[int] = (128, 128, 256, 256),
        attention_channels: int = 128,
        embedding_dim: int = 256,
        mel_bins: int = 80,
    ) -> None:
        super().__init__()
        widths = tuple(channels)
        if len(widths) != len(BLOCKS) or not all(is_int(width) and width >= 1 for width in widths):
            raise ValueError(f"channels must be {len(BLOCKS)} whole numbers of at least 1, got {list(widths)}")
        check_at_least(1, attention_channels=attention_channels, embedding_dim=embedding_dim, mel_bins=mel_bins)
        self.mel_bins = mel_bins
        self.embedding_dim = embedding_dim
        self.conv = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential()
        in_channels = widths[0]
        bins = mel_bins
        for width, blocks, stride, use_se in zip(widths, BLOCKS, STRIDES, USE_SE, strict=True):
            self.stages.append(_stage(in_channels, width, blocks, stride, use_se=use_se))
            in_channels = width
            # A strided convolution with padding 1 rounds up.
            bins = -(-bins // stride)
        size = in_channels * bins
        self.pooling = FramePooling(size, attention_channels)
        self.statistics_norm = nn.BatchNorm1d(2 * size)
        self.embedding = nn.Linear(2 * size, embedding_dim)
        self.embedding_norm = nn.BatchNorm1d(embedding_dim)
        self.memory_format: torch.memory_format = safe_memory_format(*widths)
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
            return self.embedding_norm(self.embedding(self.statistics_norm(statistics)))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, *, use_se: bool) -> nn.Sequential:
    """Return a stage, whose first block changes the shape."""
    stage = nn.Sequential(PreActivationBlock(in_channels, out_channels, stride, use_se=use_se))
    for _ in range(blocks - 1):
        stage.append(PreActivationBlock(out_channels, out_channels, 1, use_se=use_se))
    return stage
