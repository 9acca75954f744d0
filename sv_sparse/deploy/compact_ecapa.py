"""ECAPA-TDNN with as many channels in each layer as are needed there, for evaluation.

Its layers are those of `sv_sparse.models.ecapa`, of any width. What is summed up there, the outputs of blocks and of
the units of a Res2Net convolution, lies side by side here, since each has channels of its own: a layer that hears a
sum has the same weights for each summand. Only channels that both have are added. Batch norms are in the weights.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models import fused
from sv_sparse.models.autocast import without_autocast
from sv_sparse.models.layers import keep_channels_last, same_conv, to_image
from sv_sparse.models.pooling import AttentiveStatisticsPooling


class StreamConv(nn.Module):
    """``relu(conv(x) + linear(gains))``: x [B, C, 1, T] and gains [B, G] to [B, C_out, 1, T]."""

    def __init__(self, channels: int, gains: int, out_channels: int) -> None:
        super().__init__()
        self.conv = same_conv(channels, out_channels)
        self.gains = nn.Linear(gains, out_channels, bias=False) if gains else None

    def forward(self, x: Tensor, gains: Sequence[Tensor]) -> Tensor:
        """Map [B, C, 1, T] and gains, whose widths add up to G, to [B, C_out, 1, T]."""
        y = self.conv(x)
        if self.gains is not None:
            y += self.gains(torch.cat(list(gains), dim=1))[:, :, None, None]
        return F.relu_(y)


class CompactRes2(nn.Module):
    """Res2Net convolution of uneven chunks: [B, sum of chunks, 1, T] to [B, width, 1, T].

    The chunk that passes unchanged comes last, in and out.

    Args:
        chunks: widths of what comes in, one for each unit, then the unchanged one; 0: nothing.
        units: widths of the units; 0: left out.
        shared: how many channels at the end of a chunk are added to the first ones of the unit before.
        kernel_size: taps of each unit.
        dilation: frames between two taps.
        reflect: as in ``same_conv``.
    """

    def __init__(
        self,
        chunks: Sequence[int],
        units: Sequence[int],
        shared: Sequence[int],
        kernel_size: int,
        dilation: int,
        *,
        reflect: bool,
    ) -> None:
        super().__init__()
        self.chunks, self.outputs, self.shared = list(chunks), list(units), list(shared)
        self.taps = kernel_size, dilation
        heard = [chunk + before - both for chunk, before, both in zip(chunks, [0, *units], shared, strict=False)]
        self.width = sum(units) + chunks[-1]
        self.units = nn.ModuleDict(
            {
                str(index): same_conv(width, out, kernel_size, dilation, reflect=reflect)
                for index, (width, out) in enumerate(zip(heard, units, strict=False))
                if out
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, 1, T] to [B, C_out, 1, T]."""
        parts = iter(x.split([chunk for chunk in self.chunks if chunk], dim=1))
        *chunks, identity = [[next(parts)] if chunk else [] for chunk in self.chunks]
        outputs, previous = [], list[Tensor]()
        for index, (chunk, shared) in enumerate(zip(chunks, self.shared, strict=True)):
            inputs, previous = chunk + previous, []
            if str(index) in self.units:
                previous = [F.relu_(self.units[str(index)](_side_by_side(inputs, shared)))]
            outputs += previous
        return _side_by_side(outputs + identity)


class CompactBlock(nn.Module):
    """Convolution, Res2Net convolution, convolution, squeeze-excitation.

    Args:
        enter: of the stream.
        res2: hears ``enter``.
        leave_channels: C_out.
        se_channels: width of the squeeze; 0: the gains are in the next layers' weights.
        gains: G, of channels that are constant but for their gain.
    """

    offset: Tensor | None

    def __init__(self, enter: StreamConv, res2: CompactRes2, leave_channels: int, se_channels: int, gains: int) -> None:
        super().__init__()
        self.enter, self.res2, self.gains = enter, res2, gains
        self.leave = same_conv(res2.width, leave_channels)
        self.squeeze = nn.Linear(leave_channels, se_channels) if se_channels else None
        self.expand = nn.Linear(se_channels, leave_channels + gains) if se_channels else None
        self.register_buffer("offset", torch.zeros(leave_channels) if se_channels else None)

    def forward(self, x: Tensor, gains: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Map the stream [B, C, 1, T] and its gains to what comes in addition: [B, C_out, 1, T], gains [B, G]."""
        y = F.relu_(self.leave(self.res2(self.enter(x, gains))))
        if self.squeeze is None or self.expand is None or self.offset is None:
            return y, y.new_zeros(len(y), 0)
        gain = torch.sigmoid(self.expand(F.relu_(self.squeeze(y.mean(dim=(2, 3))))))
        own, others = gain.split([y.shape[1], gain.shape[1] - y.shape[1]], dim=1)
        # (y + offset) * own in one pass over memory
        return torch.addcmul((self.offset * own)[:, :, None, None], y, own[:, :, None, None]), others


class CompactECAPA(nn.Module):
    """Filterbank [B, F, T] to embedding [B, E], as the ECAPA-TDNN that it was made of by `sv_sparse.deploy.compact`.

    Lists have an entry for each block, or several, block after block. Blocks that were constant are left out.

    Args:
        first_channels: width of the first convolution.
        common_channels: of it and the first block, which are added.
        chunk_channels: ``res2net_scale`` widths of what enters each Res2Net convolution, the unchanged last.
        unit_channels: for each block ``res2net_scale`` - 1 widths of its units.
        shared_channels: as many, of a chunk and the unit before, which are added.
        leave_channels: width of what each block adds to the stream.
        se_channels: width of the squeeze of each block; 0: none.
        gain_channels: gains of each block's constant channels.
        mfa_channels: width after aggregation.
        attention_channels: width of the attention's hidden layer.
        res2net_scale: chunks of a Res2Net convolution.
        kernel_sizes: taps of the first convolution, then of each block's Res2Net convolution.
        dilations: frames between two taps, as many.
        embedding_dim: E.
        layout: ``wespeaker`` or ``speechbrain``.
        mel_bins: F.
    """

    def __init__(
        self,
        first_channels: int,
        common_channels: int,
        chunk_channels: Iterable[int],
        unit_channels: Iterable[int],
        shared_channels: Iterable[int],
        leave_channels: Iterable[int],
        se_channels: Iterable[int],
        gain_channels: Iterable[int],
        mfa_channels: int,
        attention_channels: int,
        res2net_scale: int,
        kernel_sizes: Iterable[int],
        dilations: Iterable[int],
        embedding_dim: int,
        layout: str,
        mel_bins: int = 80,
    ) -> None:
        super().__init__()
        speechbrain, scale = layout == "speechbrain", res2net_scale
        self.embedding_dim, self.mel_bins, self.res2net_scale = embedding_dim, mel_bins, scale
        self.common_channels = common_channels
        self.taps, *taps = zip(kernel_sizes, dilations, strict=True)
        self.first = same_conv(mel_bins, first_channels, *self.taps, reflect=speechbrain)
        self.blocks = nn.ModuleList()
        chunks, units, shared = (
            _cut(chunk_channels, scale),
            _cut(unit_channels, scale - 1),
            _cut(shared_channels, scale - 1),
        )
        widths = zip(chunks, units, shared, taps, leave_channels, se_channels, gain_channels, strict=True)
        channels, gains = first_channels - common_channels, 0
        for inner, outer, both, tap, leave, squeeze, gain in widths:
            enter = StreamConv(channels + (0 if self.blocks else common_channels), gains, sum(inner))
            res2 = CompactRes2(inner, outer, both, *tap, reflect=speechbrain)
            self.blocks.append(CompactBlock(enter, res2, leave, squeeze, gain))
            channels, gains = channels + leave, gains + gain
        self.mfa = StreamConv(channels, gains, mfa_channels)
        self.mfa_norm = nn.BatchNorm2d(mfa_channels) if speechbrain else None
        self.pooling = _pooling(mfa_channels, attention_channels, speechbrain=speechbrain)
        self.norm = nn.BatchNorm1d(2 * mfa_channels)
        self.embedding = nn.Linear(2 * mfa_channels, embedding_dim)
        keep_channels_last(self)
        fused.choose(self, "torch")

    @property
    def settings(self) -> dict[str, Any]:
        """Plain data: the class as ``_target_`` and its arguments, without ``mel_bins``."""
        blocks: list[Any] = list(self.blocks)
        sizes, dilations = zip(self.taps, *(block.res2.taps for block in blocks), strict=True)
        return {
            "_target_": f"{CompactECAPA.__module__}.CompactECAPA",
            "first_channels": self.first.out_channels,
            "common_channels": self.common_channels,
            "chunk_channels": [width for block in blocks for width in block.res2.chunks],
            "shared_channels": [width for block in blocks for width in block.res2.shared],
            "unit_channels": [width for block in blocks for width in block.res2.outputs],
            "leave_channels": [block.leave.out_channels for block in blocks],
            "se_channels": [block.squeeze.out_features if block.squeeze else 0 for block in blocks],
            "gain_channels": [block.gains for block in blocks],
            "mfa_channels": self.mfa.conv.out_channels,
            "attention_channels": self.pooling.hidden.out_features,
            "res2net_scale": self.res2net_scale,
            "kernel_sizes": list(sizes),
            "dilations": list(dilations),
            "embedding_dim": self.embedding_dim,
            "layout": "wespeaker" if self.mfa_norm is None else "speechbrain",
        }

    def forward(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E].

        Raises:
            ValueError: T is less than 2.
        """
        x = F.relu_(self.first(to_image(filterbank)))
        gains, common = list[Tensor](), self.common_channels
        for block in self.blocks:
            piece, gain = block(x, gains)
            x = _side_by_side([x, piece], common)
            common = 0
            gains += [gain] if block.gains else []
        x = self.mfa(x, gains)
        if self.mfa_norm is not None:
            x = self.mfa_norm(x)
        statistics = self.pooling(x.squeeze(2))
        with without_autocast(statistics.device):
            return self.embedding(self.norm(statistics))


def _pooling(channels: int, attention_channels: int, *, speechbrain: bool) -> AttentiveStatisticsPooling:
    """As that of the original."""
    return AttentiveStatisticsPooling(
        channels,
        attention_channels,
        hidden_norm=speechbrain,
        context_correction=0 if speechbrain else 1,
        variance_floor=1e-12 if speechbrain else 1e-10,
    )


def _cut(values: Iterable[int], size: int) -> list[list[int]]:
    """A list for each block."""
    whole = list(values)
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _side_by_side(parts: Sequence[Tensor], shared: int = 0) -> Tensor:
    """The parts one after the other; of two, the last ``shared`` channels and the first ones are added."""
    if shared:
        first, second = parts
        own, ends = first.split([first.shape[1] - shared, shared], dim=1)
        begins, rest = second.split([shared, second.shape[1] - shared], dim=1)
        parts = [part for part in (own, ends + begins, rest) if part.shape[1]]
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
