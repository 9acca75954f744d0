"""CAM++: a convolutional front end and a densely connected TDNN with context-aware masks, in 3D-Speaker's layout."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models.layers import (
    check_at_least,
    is_int,
    keep_channels_last,
    safe_memory_format,
    same_conv,
    without_autocast,
)
from sv_sparse.models.module_checks import is_ordinary, relu_after
from sv_sparse.models.pooling import statistics
from sv_sparse.models.resnet import BasicBlock

# Of the three dense blocks.
DILATIONS = (1, 2, 2)
KERNEL_SIZE = 3
# Frames after the stride of 2 in time: two seconds.
SEGMENT_FRAMES = 100
# Only against an infinite slope: 3D-Speaker has no floor, and constant channels are common behind a ReLU.
VARIANCE_FLOOR = 1e-12


class FrontEnd(nn.Module):
    """Filterbank [B, F, T] to [B, C·F/8, T]: residual blocks that halve the bins three times and keep the frames.

    Args:
        channels: C.
        mel_bins: F.
    """

    def __init__(self, channels: int, mel_bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.stages = nn.Sequential()
        bins = mel_bins
        for _ in range(2):
            self.stages.append(nn.Sequential(BasicBlock(channels, channels, (2, 1)), BasicBlock(channels, channels, 1)))
            # A strided convolution with padding 1 rounds up.
            bins = -(-bins // 2)
        self.conv_out = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.norm_out = nn.BatchNorm2d(channels)
        self.out_channels = channels * -(-bins // 2)
        self.memory_format: torch.memory_format = safe_memory_format(channels)

    def forward(self, filterbank: Tensor) -> Tensor:
        """Map [B, F, T] to [B, C·F/8, T], rounded up."""
        x = filterbank.unsqueeze(1).contiguous(memory_format=self.memory_format)
        x = self.stages(relu_after(self.norm, self.conv(x)))
        return relu_after(self.norm_out, self.conv_out(x)).flatten(1, 2)


class ContextMask(nn.Module):
    """Context-aware mask: a gain in (0, 1) for each output channel and frame, [B, C, 1, T] to [B, C', 1, T].

    ``sigmoid(expand(relu(squeeze(mean of all frames + mean of the frame's segment))))``, with segments of 100 frames
    of which the last may be shorter.

    Args:
        in_channels: C, at least 2; half of it is the width of the squeeze.
        out_channels: C'.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.squeeze = same_conv(in_channels, in_channels // 2)
        self.expand = same_conv(in_channels // 2, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, 1, T] to gains [B, C', 1, T]."""
        # All frames of a segment have the same gains, so these are computed for segments.
        gains = torch.sigmoid(self.expand(relu_after(self.squeeze, _context(x))))
        repeated = gains.unsqueeze(4).expand(-1, -1, -1, -1, SEGMENT_FRAMES).flatten(3)
        return repeated[:, :, :, : x.shape[3]]


def _context(x: Tensor) -> Tensor:
    """Return the mean of each segment of frames plus that of all: [B, C, 1, T] to [B, C, 1, segments]."""
    if not torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return F.avg_pool2d(x, (1, SEGMENT_FRAMES), ceil_mode=True) + x.mean(dim=3, keepdim=True)
    # This way, forward and backward pass take half of the time.
    num_frames = x.shape[3]
    num_segments = (num_frames + SEGMENT_FRAMES - 1) // SEGMENT_FRAMES
    if torch.compiler.is_exporting():
        # A size that can be 1 becomes a constant there. Nothing reads the segment without frames.
        num_segments += 1
    # [B, T, C]: the channels of a frame are side by side in memory, as in x.
    frames = x.squeeze(2).transpose(1, 2)
    padded = F.pad(frames, (0, 0, 0, num_segments * SEGMENT_FRAMES - num_frames))
    sums = padded.unflatten(1, (num_segments, SEGMENT_FRAMES)).sum(dim=2)
    starts = SEGMENT_FRAMES * torch.arange(num_segments, device=x.device)
    sizes = (num_frames - starts).clamp(min=1, max=SEGMENT_FRAMES).to(x.dtype).unsqueeze(1)
    return (sums / sizes + sums.sum(dim=1, keepdim=True) / num_frames).transpose(1, 2).unsqueeze(2)


class DenseLayer(nn.Module):
    """Layer of a dense block: [B, C, 1, T] to [B, growth_rate, 1, T], which are added to the channels of its input.

    Batch norm, ReLU, 1x1 convolution; batch norm, ReLU, dilated convolution over time times the context-aware mask.

    Args:
        in_channels: C.
        growth_rate: Channels that go out.
        bottleneck_channels: Channels between the convolutions.
        dilation: Frames between two taps.
    """

    def __init__(self, in_channels: int, growth_rate: int, bottleneck_channels: int, dilation: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = same_conv(in_channels, bottleneck_channels, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck_channels)
        self.conv2 = same_conv(bottleneck_channels, growth_rate, KERNEL_SIZE, dilation, bias=False)
        self.mask = ContextMask(bottleneck_channels, growth_rate)

    def forward(self, x: Tensor, parts: list[Tensor]) -> Tensor:
        """Map ``x`` [B, C, 1, T], the concatenation of ``parts``, to [B, growth_rate, 1, T]."""
        with _saved_as_parts(x, parts):
            y = relu_after(self.norm1, x)
        y = relu_after(self.norm2, self.conv1(y))
        return self.conv2(y) * self.mask(y)


class DenseBlock(nn.ModuleList):
    """Layers that each read the block's input and the outputs of all layers before: [B, C, 1, T] to [B, C', 1, T].

    C' is C + ``num_layers`` · ``growth_rate``. Arguments as of `DenseLayer`.

    Source: Huang et al., "Densely Connected Convolutional Networks", 2017.
    """

    def __init__(
        self, num_layers: int, in_channels: int, growth_rate: int, bottleneck_channels: int, dilation: int
    ) -> None:
        super().__init__()
        for index in range(num_layers):
            channels = in_channels + index * growth_rate
            self.append(DenseLayer(channels, growth_rate, bottleneck_channels, dilation))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, 1, T] to [B, C', 1, T]."""
        parts = [x]
        for layer in self:
            parts.append(layer(x, list(parts)))
            x = torch.cat([x, parts[-1]], dim=1)
        return x


class Transition(nn.Module):
    """Batch norm, ReLU and 1x1 convolution to half of the channels: [B, C, 1, T] to [B, C/2, 1, T]."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = same_conv(in_channels, in_channels // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, 1, T] to [B, C/2, 1, T]."""
        return self.conv(relu_after(self.norm, x))


class CAMPlusPlus(nn.Module):
    """Filterbank [B, F, T] to embedding [B, E] in float32, whatever the precision around it.

    A front end of two-dimensional convolutions; a convolution over time with stride 2; three dense blocks with
    context-aware masks, each followed by a transition to half of the channels; mean and standard deviation over time;
    one linear layer and a batch norm without weights.

    Args:
        mel_bins: F.
        front_channels: Channels of the front end.
        channels: Channels that enter the first dense block.
        growth_rate: Channels that a dense layer adds.
        bottleneck_channels: Channels inside a dense layer, at least 2.
        block_layers: Layers of the three dense blocks.
        embedding_dim: E; 192 and 512 are published.

    Raises:
        ValueError: An argument is not allowed.

    Source: Wang et al., "CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware Masking",
    2023, with the details of 3D-Speaker's networks.

    >>> CAMPlusPlus(front_channels=4, channels=16, block_layers=[2, 2, 2])(torch.randn(2, 80, 50)).shape
    torch.Size([2, 192])
    """

    def __init__(
        self,
        mel_bins: int = 80,
        front_channels: int = 32,
        channels: int = 128,
        growth_rate: int = 32,
        bottleneck_channels: int = 128,
        block_layers: Iterable[int] = (12, 24, 16),
        embedding_dim: int = 192,
    ) -> None:
        super().__init__()
        check_at_least(1, mel_bins=mel_bins, front_channels=front_channels, growth_rate=growth_rate)
        check_at_least(1, embedding_dim=embedding_dim)
        check_at_least(2, channels=channels, bottleneck_channels=bottleneck_channels)
        depths = tuple(block_layers)
        if len(depths) != len(DILATIONS) or not all(is_int(depth) and depth >= 1 for depth in depths):
            raise ValueError(f"block_layers must be {len(DILATIONS)} whole numbers of at least 1, got {list(depths)}")
        self.mel_bins = mel_bins
        self.embedding_dim = embedding_dim
        self.front = FrontEnd(front_channels, mel_bins)
        self.conv = nn.Conv2d(self.front.out_channels, channels, (1, 5), stride=(1, 2), padding=(0, 2), bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for depth, dilation in zip(depths, DILATIONS, strict=True):
            self.blocks.append(DenseBlock(depth, channels, growth_rate, bottleneck_channels, dilation))
            channels += depth * growth_rate
            self.transitions.append(Transition(channels))
            channels //= 2
        self.norm_out = nn.BatchNorm2d(channels)
        self.embedding = nn.Linear(2 * channels, embedding_dim, bias=False)
        self.embedding_norm = nn.BatchNorm1d(embedding_dim, affine=False)
        self.memory_format = self.front.memory_format
        keep_channels_last(self)

    def forward(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E].

        Raises:
            ValueError: T is less than 3, which leaves one frame for the pooling.
        """
        # The channels of a frame side by side in memory. Not by to_image, which vmap over weights cannot run.
        frames = self.front(filterbank).transpose(1, 2).contiguous()
        x = relu_after(self.norm, self.conv(frames.transpose(1, 2).unsqueeze(2)))
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            x = transition(block(x))
        frames = relu_after(self.norm_out, x).squeeze(2).transpose(1, 2)
        pooled = statistics(frames, None, correction=1, variance_floor=VARIANCE_FLOOR)
        # In float32, so that embeddings of a model under autocast are not rounded to eight bits.
        with without_autocast(pooled.device):
            return self.embedding_norm(self.embedding(pooled))


def _saved_as_parts(x: Tensor, parts: list[Tensor]) -> AbstractContextManager[object]:
    """Return a context in which autograd saves ``parts``, which it has anyway, in place of their concatenation ``x``.

    A dense block would otherwise save the square of its depth.
    """
    if len(parts) == 1 or not torch.is_grad_enabled() or not is_ordinary(x):
        return nullcontext()
    address = x.data_ptr()
    shape = x.shape
    saved_parts = [part.detach() for part in parts]

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == address and tensor.shape == shape else tensor

    def unpack(packed: Tensor | None) -> Tensor:
        return torch.cat(saved_parts, dim=1) if packed is None else packed

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
