"""Building blocks shared by the models, and the checks of their settings."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse.models.module_checks import relu_after


def check_at_least(minimum: int, **settings: int) -> None:
    """Raise ``ValueError`` for the first setting that is no whole number, or below ``minimum``.

    >>> check_at_least(1, channels=0)
    Traceback (most recent call last):
    ValueError: channels must be at least 1, got 0
    """
    for name, value in settings.items():
        if not is_int(value):
            raise ValueError(f"{name} must be a whole number, got {value}")
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def is_int(value: Any) -> bool:
    """Return whether a value is a whole number of some type; true and false are none, NaN is none."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def keep_channels_last(model: nn.Module) -> None:
    """Put the convolutions' weights in channels-last order, unless the model has another ``memory_format``."""
    if getattr(model, "memory_format", torch.channels_last) != torch.channels_last:
        return
    # Copies and loaded states keep this order.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs miss it


def safe_memory_format(*widths: int) -> torch.memory_format:
    """Return the memory format for images of these numbers of channels, which strided 1x1 convolutions read."""
    # Channels-last is faster. But in that order the backward pass of such a convolution ends in a segmentation fault on
    # a CPU (torch 2.13), unless its input channels are a multiple of 16.
    if all(width % 16 == 0 for width in widths):
        return torch.channels_last
    return torch.contiguous_format


def to_image(filterbank: Tensor) -> Tensor:
    """Return [B, C, T] as an image of height one, [B, C, 1, T], with the channels of a frame side by side in memory."""
    return filterbank.unsqueeze(2).contiguous(memory_format=torch.channels_last)


def same_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    dilation: int = 1,
    *,
    reflect: bool = False,
    bias: bool = True,
) -> nn.Conv2d:
    """Return a convolution over time that keeps the number of frames: [B, C_in, 1, T] to [B, C_out, 1, T].

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        kernel_size: Taps, an odd number.
        dilation: Frames between two taps.
        reflect: Continue the input by its mirror image instead of zeros, which costs a copy of it.
        bias: Add a number to each output channel.
    """
    padding = dilation * (kernel_size - 1) // 2
    # Two-dimensional, of height one: convolutions and batch norms run faster in channels-last order, and torch has that
    # for images only.
    return nn.Conv2d(
        in_channels,
        out_channels,
        (1, kernel_size),
        dilation=(1, dilation),
        padding=(0, padding),
        padding_mode="reflect" if reflect and padding else "zeros",
        bias=bias,
    )


class ConvReluNorm(nn.Module):
    """Convolution, ReLU, batch norm: [B, C_in, 1, T] to [B, C_out, 1, T]; arguments as of `same_conv`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        *,
        reflect: bool = False,
    ) -> None:
        super().__init__()
        self.conv = same_conv(in_channels, out_channels, kernel_size, dilation, reflect=reflect)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, 1, T] to [B, C_out, 1, T]."""
        return self.norm(relu_after(self.conv, x))


class Res2Conv(nn.Module):
    """Res2Net convolution: [B, C, 1, T] to [B, C, 1, T], a hierarchy of narrow convolutions over chunks of channels.

    The channels are cut into ``scale`` chunks. One passes unchanged. Each other one is added to the output of the
    convolution before and goes through a convolution of its own, so later chunks see a wider context.

    Args:
        channels: C, divisible by ``scale``.
        scale: Number of chunks, at least 2.
        kernel_size: Taps of each convolution.
        dilation: Frames between two taps.
        identity_first: The unchanged chunk is the first one, else the last one.
        reflect: As in `same_conv`.

    Source: Gao et al., "Res2Net: A New Multi-scale Backbone Architecture", 2019.
    """

    def __init__(
        self,
        channels: int,
        scale: int,
        kernel_size: int,
        dilation: int,
        *,
        identity_first: bool,
        reflect: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.identity_first = identity_first
        width = channels // scale
        self.convs = nn.ModuleList(
            ConvReluNorm(width, width, kernel_size, dilation, reflect=reflect) for _ in range(scale - 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, 1, T] to [B, C, 1, T]."""
        chunks = list(x.chunk(self.scale, dim=1))
        identity = chunks.pop(0 if self.identity_first else -1)
        outputs = [self.convs[0](chunks[0])]
        for conv, chunk in zip(self.convs[1:], chunks[1:], strict=True):
            outputs.append(conv(outputs[-1] + chunk))
        outputs.insert(0 if self.identity_first else len(outputs), identity)
        return torch.cat(outputs, dim=1)


class SqueezeExcitation(nn.Module):
    """Squeeze-excitation: a gain in (0, 1) for each channel, [B, C, H, T] to [B, C, 1, 1].

    ``sigmoid(expand(relu(squeeze(mean over H and T))))``.

    Source: Hu et al., "Squeeze-and-Excitation Networks", 2018.
    """

    def __init__(self, channels: int, se_channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, se_channels)
        self.expand = nn.Linear(se_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, T] to gains [B, C, 1, 1]."""
        return self.gains(x.mean(dim=(2, 3)))[:, :, None, None]

    def gains(self, means: Tensor) -> Tensor:
        """Map means [B, C] to gains [B, C]."""
        return torch.sigmoid(self.expand(relu_after(self.squeeze, means)))


class SERes2Block(nn.Module):
    """SE-Res2Block of ECAPA-TDNN, [B, C, 1, T] to [B, C, 1, T].

    A 1x1 convolution, a Res2Net convolution, a 1x1 convolution, squeeze-excitation; its input is added to the result.
    Arguments as of `Res2Conv`; ``se_channels`` is the width of the squeeze.

    Source: Desplanques et al., "ECAPA-TDNN", 2020, section 3.2.
    """

    def __init__(
        self,
        channels: int,
        se_channels: int,
        scale: int,
        kernel_size: int,
        dilation: int,
        *,
        identity_first: bool,
        reflect: bool = False,
    ) -> None:
        super().__init__()
        self.conv_in = ConvReluNorm(channels, channels)
        self.res2 = Res2Conv(channels, scale, kernel_size, dilation, identity_first=identity_first, reflect=reflect)
        self.conv_out = ConvReluNorm(channels, channels)
        self.se = SqueezeExcitation(channels, se_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, 1, T] to [B, C, 1, T]."""
        return self.add_scaled(x, self.conv_out(self.res2(self.conv_in(x))))

    def add_scaled(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x + gain * y``, all [B, C, 1, T], with the gain of the squeeze-excitation for ``y``."""
        # addcmul makes one pass over memory.
        return torch.addcmul(x, y, self.se(y))


def as_odd_sizes(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """Return the values as a tuple.

    Raises:
        ValueError: One of them is not a positive odd number.
    """
    sizes = tuple(values)
    if not all(is_int(size) and size > 0 and size % 2 == 1 for size in sizes):
        raise ValueError(f"{name} must be positive odd numbers, got {list(sizes)}")
    return sizes


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which nothing is cast to a lower precision."""
    # torch.autocast refuses devices that it does not know, such as meta.
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
