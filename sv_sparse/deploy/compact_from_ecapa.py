"""From an ECAPA-TDNN to the settings and the state of a `CompactECAPA` with the same outputs. All in float64."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse.deploy.compact_res2 import Res2Plan, plan_res2
from sv_sparse.deploy.compact_signals import (
    Signal,
    Term,
    assembled,
    constants,
    filled,
    outputs,
    picked,
    reached,
    scale_and_shift,
    sides,
    slots_for,
    without,
)
from sv_sparse.deploy.compact_silence import silence_ecapa
from sv_sparse.models.ecapa import ECAPA
from sv_sparse.models.layers import ConvUnit, SERes2Block, SqueezeExcitation


def from_ecapa(network: ECAPA, round_to: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings of a `CompactECAPA` without ``mel_bins``, and its state in float64."""
    source = copy.deepcopy(network).double().eval()
    silence_ecapa(source)
    made = _Maker(source, round_to)
    made.first()
    for index in range(len(source.blocks)):
        made.block(index)
    made.end()
    return made.settings, made.state


class _Maker:
    """Settings and state of what is made so far, and the pieces whose sum the next block hears.

    Attributes:
        pieces: the block that adds each, from 1 on, or 0; what it computes; gains of its constant channels.
    """

    def __init__(self, source: ECAPA, round_to: int) -> None:
        self.source = source
        self.round_to = round_to
        self.padded = source.mfa_norm is None  # else the layout that mirrors what it hears at its ends
        self.pieces: list[tuple[int, Signal, Signal | None]] = []
        convs = [source.first.conv, *(_block(source, index).res2.units[0].conv for index in range(len(source.blocks)))]
        self.taps = [(conv.kernel_size[1], conv.dilation[1]) for conv in convs]  # type: ignore[union-attr,index]
        by_block = ("chunk", "unit", "shared", "leave", "se", "gain")
        self.settings: dict[str, Any] = {f"{name}_channels": [] for name in by_block}
        self.settings |= {
            "common_channels": 0,
            "res2net_scale": _block(source, 0).res2.scale,
            "kernel_sizes": [self.taps[0][0]],
            "dilations": [self.taps[0][1]],
            "embedding_dim": source.embedding_dim,
            "layout": "wespeaker" if self.padded else "speechbrain",
        }
        self.state: dict[str, Tensor] = {}

    def first(self) -> None:
        """What the first convolution gives; it is put into the state at the end, when its order is known."""
        signal = self._outputs(self._bins(), self.source.first, padded=self.padded)
        self.pieces.append((0, Signal(filled(signal.slots, self.round_to), signal.scale, signal.shift), None))

    def block(self, index: int) -> None:
        """A block; left out if all that it adds to the stream is constant."""
        source = _block(self.source, index)
        name = f"blocks.{len(self.settings['leave_channels'])}"
        enter = self._stream(_taps(source.enter.conv))
        gains = [Term(term.weight, gains) for term, gains in enter if gains is not None]
        entered = self._outputs([term for term, _ in enter], source.enter, varies=gains)
        plan = plan_res2(source.res2, entered, self.round_to, padded=self.padded)
        heard = plan.leaving(_taps(source.leave.conv))
        left = self._outputs(heard, source.leave)
        if len(left.slots) and index == 0:  # later ones are no part of what the blocks between hear
            first, left, self.settings["common_channels"] = sides(self.pieces[0][1], left, self.round_to)
            self.pieces[0] = (0, first, None)
        added, gained, squeezed, factor = self._excitation(name, source.excitation, left)
        if len(left.slots):
            self._units(name, source, plan)
            self._conv(f"{name}.leave", heard, source.leave.conv, left.slots, factor * _amounts(source.leave.norm))
            self._note(index, plan, left, gained, squeezed)
        self.pieces.append((index + 1, added, gained))

    def _units(self, name: str, source: SERes2Block, plan: Res2Plan) -> None:
        """What enters a Res2Net convolution, and its units."""
        enter, amounts = self._stream(_taps(source.enter.conv)), _amounts(source.enter.norm)
        self._stream_conv(f"{name}.enter", enter, source.enter.conv, plan.entering(), amounts)
        for number, (unit, signal) in enumerate(zip(plan.units, plan.signals, strict=True)):
            if len(signal.slots):
                place, terms = f"{name}.res2.units.{number}", plan.terms(number)
                self._conv(place, terms, unit.conv, signal.slots, _amounts(unit.norm), padded=self.padded)

    def _note(self, index: int, plan: Res2Plan, left: Signal, gained: Signal | None, squeezed: int) -> None:
        """The settings of a block."""
        for setting, values in (
            ("chunk_channels", [len(chunk.slots) for chunk in plan.chunks]),
            ("unit_channels", [len(signal.slots) for signal in plan.signals]),
            ("shared_channels", plan.common),
            ("leave_channels", [len(left.slots)]),
            ("se_channels", [squeezed]),
            ("gain_channels", [0 if gained is None else len(gained.slots)]),
            ("kernel_sizes", [self.taps[index + 1][0]]),
            ("dilations", [self.taps[index + 1][1]]),
        ):
            self.settings[setting] += values

    def _excitation(
        self, name: str, source: SqueezeExcitation, signal: Signal
    ) -> tuple[Signal, Signal | None, int, Tensor]:
        """The signal times its gains.

        Returns:
            The signal; gains of constants, which are heard by these; the width of the squeeze, 0 if all gains are
            constant; what the rows of the signal's layer are multiplied by, [C].
        """
        squeeze, expand = [Term(source.squeeze.weight, signal)], source.expand.weight
        live = reached(squeeze)
        rest = torch.relu(source.squeeze.bias + constants(squeeze))
        squeezed = Signal(slots_for(live, self.round_to), live.double(), torch.where(live, 0.0, rest))
        terms = [Term(expand, squeezed)]
        moves = reached(terms)
        gain = torch.sigmoid(source.expand.bias + constants(terms))
        if not moves.any():
            return Signal(signal.slots, signal.scale, signal.shift * gain), None, 0, gain
        alone = moves & (signal.scale == 0) & (signal.shift != 0)
        extra = slots_for(alone, self.round_to)
        self._put(f"{name}.squeeze", *assembled(squeeze, source.squeeze.bias, squeezed.slots))
        self._put(f"{name}.expand", *assembled(terms, source.expand.bias, torch.cat([signal.slots, extra])))
        self.state[f"{name}.offset"] = picked(signal.shift * signal.scale, signal.slots)
        gone, nothing = alone | (signal.scale != 0), torch.zeros_like(gain)
        own = Signal(signal.slots, signal.scale, torch.where(gone, nothing, signal.shift * gain))
        gains = Signal(extra, torch.where(alone, signal.shift, nothing), nothing) if len(extra) else None
        return own, gains, len(squeezed.slots), torch.ones_like(gain)

    def end(self) -> None:
        """Aggregation, pooling, the embedding."""
        source, first = self.source, self.source.first
        slots = self.pieces[0][1].slots
        self._conv("first", self._bins(), first.conv, slots, _amounts(first.norm), padded=self.padded)
        self.settings["first_channels"] = len(slots)
        by_block = _taps(source.mfa).chunk(len(source.blocks), dim=1)
        terms = self._stream(*by_block)
        live = reached([Term(weight, each) for (weight, piece), gains in terms for each in (piece, gains) if each])
        bias = source.mfa.bias
        assert bias is not None
        rest = torch.relu(bias + constants([term for term, _ in terms]).sum(1))
        slots = filled(slots_for(live, self.round_to), self.round_to)
        self._stream_conv("mfa", terms, source.mfa, slots, torch.ones_like(bias))
        if source.mfa_norm is not None:
            scale, shift = scale_and_shift(source.mfa_norm)
            rest = rest * scale + shift
            self._norm("mfa_norm", source.mfa_norm, slots)
        signal = Signal(slots, live.double(), torch.where(live, 0.0, rest))
        self._pooling(signal)
        self._embedding(signal)
        self.settings["mfa_channels"] = len(slots)

    def _pooling(self, frames: Signal) -> None:
        """Attention over frames of the aggregated channels."""
        pooling = self.source.pooling
        floor = torch.where(frames.scale == 0, pooling.variance_floor**0.5, 0.0)
        signals = [frames, frames, Signal(frames.slots, frames.scale, floor.double())]
        weights = pooling.hidden.weight.chunk(3, dim=1)
        terms = [Term(weight, signal) for weight, signal in zip(weights, signals, strict=True)]
        moves = reached(terms)
        slots = filled(slots_for(moves, self.round_to), self.round_to)
        self._put("pooling.hidden", *assembled(terms, pooling.hidden.bias, slots))
        hidden = Signal(slots, moves.double(), torch.zeros_like(moves.double()))  # a constant score weighs nothing
        if pooling.norm is not None:
            self._norm("pooling.norm", pooling.norm, slots)
        self._put("pooling.score", *assembled([Term(pooling.score.weight, hidden)], pooling.score.bias, frames.slots))
        self.settings["attention_channels"] = len(slots)

    def _embedding(self, frames: Signal) -> None:
        """Batch norm and linear layer of means, then deviations, over frames."""
        source, slots, count = self.source, frames.slots, len(frames.scale)
        both, live = torch.cat([slots, torch.where(slots >= 0, slots + count, slots)]), frames.scale.repeat(2)
        deviation = torch.full_like(frames.shift, source.pooling.variance_floor**0.5)
        scale, shift = scale_and_shift(source.norm)
        rest = torch.cat([frames.shift, deviation]) * scale + shift
        normed = Signal(both, live, torch.where(live == 0, rest, 0.0))
        self._norm("norm", source.norm, both)
        rows = torch.arange(source.embedding_dim)
        self._put("embedding", *assembled([Term(source.embedding.weight, normed)], source.embedding.bias, rows))

    def _bins(self) -> list[Term]:
        """What the first convolution hears."""
        bins = self.source.mel_bins
        whole = Signal(torch.arange(bins), torch.ones(bins).double(), torch.zeros(bins).double())
        return [Term(_taps(self.source.first.conv), whole)]

    def _stream(self, *weights: Tensor) -> list[tuple[Term, Signal | None]]:
        """The pieces of the stream and their gains, as heard by one weight now, or by one after each block."""
        starts = [max(start - 1, 0) if len(weights) > 1 else 0 for start, _, _ in self.pieces]
        sums = [torch.stack(weights[start:]).sum(0) for start in starts]
        return [(Term(weight, piece), gains) for weight, (_, piece, gains) in zip(sums, self.pieces, strict=True)]

    def _outputs(
        self, terms: list[Term], unit: ConvUnit, *, padded: bool = False, varies: Sequence[Term] = ()
    ) -> Signal:
        assert unit.conv.bias is not None
        return outputs(terms, unit.conv.bias, unit.norm, self.round_to, padded=padded, varies=varies)

    def _conv(
        self,
        name: str,
        terms: Sequence[Term],
        conv: nn.Conv2d,
        rows: Tensor,
        amounts: Tensor,
        *,
        padded: bool = False,
    ) -> None:
        """A convolution whose rows are multiplied by ``amounts``, [O]."""
        assert conv.bias is not None
        weight, bias = assembled(_multiplied(terms, amounts), conv.bias * amounts, rows, padded=padded)
        self._put(name, weight.unsqueeze(2), bias)

    def _stream_conv(
        self, name: str, terms: Sequence[tuple[Term, Signal | None]], conv: nn.Conv2d, rows: Tensor, amounts: Tensor
    ) -> None:
        """A convolution that hears the stream, with its gains."""
        pieces = [term for term, _ in terms]
        if self.settings["common_channels"] and len(pieces) > 1:  # the sum is heard by the first one's columns
            pieces[1] = Term(pieces[1].weight, without(pieces[1].signal, self.settings["common_channels"]))
        self._conv(f"{name}.conv", pieces, conv, rows, amounts)
        gains = [Term(term.weight.squeeze(2), gains) for term, gains in terms if gains is not None]
        if gains:
            weight, _ = assembled(_multiplied(gains, amounts), torch.zeros(conv.out_channels), rows)
            self.state[f"{name}.gains.weight"] = weight

    def _norm(self, name: str, norm: nn.Module, slots: Tensor) -> None:
        for part, value in norm.state_dict().items():
            rest = float(part == "running_var")
            self.state[f"{name}.{part}"] = picked(value, slots, nothing=rest) if value.ndim else value

    def _put(self, name: str, weight: Tensor, bias: Tensor) -> None:
        self.state |= {f"{name}.weight": weight, f"{name}.bias": bias}


def _block(source: ECAPA, index: int) -> SERes2Block:
    block = source.blocks[index]
    assert isinstance(block, SERes2Block)
    return block


def _amounts(norm: nn.Module) -> Tensor:
    """By what the rows of a layer are multiplied so that its norm's scales are signs."""
    return scale_and_shift(norm)[0].abs()


def _multiplied(terms: Sequence[Term], amounts: Tensor) -> list[Term]:
    return [Term(weight * amounts.view(-1, *(1 for _ in weight.shape[1:])), signal) for weight, signal in terms]


def _taps(conv: nn.Conv2d) -> Tensor:
    """[O, C, taps] of a convolution over images of height one."""
    return conv.weight.squeeze(2)
