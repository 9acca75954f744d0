"""What is computed in a Res2Net convolution, and in which order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sv_sparse.deploy.compact_signals import Signal, Term, constants, outputs, sides, slots_for, without
from sv_sparse.models.layers import ConvUnit, Res2Conv


@dataclass
class Res2Plan:
    """Chunks in the order of their units, the unchanged one last.

    Attributes:
        units: of the original.
        offsets: the first channel of each chunk, in what comes in and in what goes out.
        chunks: what comes in, each of a chunk's channels.
        signals: what comes out of the units.
        common: how many channels of a chunk are added to those of the unit before.
    """

    units: list[ConvUnit]
    offsets: list[int]
    chunks: list[Signal]
    signals: list[Signal]
    common: list[int]

    def terms(self, index: int) -> list[Term]:
        """What a unit hears."""
        weight = self.units[index].conv.weight.squeeze(2)
        before = [without(self.signals[index - 1], self.common[index])] if index else []
        return [Term(weight, signal) for signal in (self.chunks[index], *before)]

    def entering(self) -> Tensor:
        """The slots of all chunks, in numbers of channels that come in."""
        pairs = zip(self.chunks, self.offsets, strict=True)
        return torch.cat([torch.where(chunk.slots >= 0, chunk.slots + start, chunk.slots) for chunk, start in pairs])

    def leaving(self, weight: Tensor) -> list[Term]:
        """What hears all that comes out by a weight [O, C, 1]."""
        width = len(self.chunks[-1].scale)
        pairs = zip([*self.signals, self.chunks[-1]], self.offsets, strict=True)
        return [Term(weight[:, start : start + width], signal) for signal, start in pairs]


def plan_res2(res2: Res2Conv, entered: Signal, round_to: int, *, padded: bool) -> Res2Plan:
    """The plan for a convolution that hears ``entered``; ``padded``: it continues its input by zeros."""
    width = len(entered.scale) // res2.scale
    order = [*range(1, res2.scale), 0] if res2.identity_first else [*range(res2.scale)]
    units = [unit for unit in res2.units if isinstance(unit, ConvUnit)]
    plan = Res2Plan(units, [width * chunk for chunk in order], [], [], [0] * len(units))
    for index, unit in enumerate(units):
        plan.chunks.append(_part(entered, plan.offsets[index], width, round_to))
        terms = plan.terms(index)
        assert unit.conv.bias is not None
        signal = outputs(terms, unit.conv.bias, unit.norm, round_to, padded=padded)
        one = padded and bool(constants(terms)[signal.scale != 0].any())
        nothing = not len(signal.slots)
        plan.chunks[-1] = _part(entered, plan.offsets[index], width, round_to, one=one, nothing=nothing)
        plan.signals.append(signal)
    plan.chunks.append(_part(entered, plan.offsets[-1], width, round_to))
    for index in range(1, len(units)):
        if len(plan.signals[index].slots):
            before = plan.chunks[index], plan.signals[index - 1]
            plan.chunks[index], plan.signals[index - 1], plan.common[index] = sides(*before, round_to)
    return plan


def _part(signal: Signal, start: int, width: int, round_to: int, *, one: bool = False, nothing: bool = False) -> Signal:
    """A chunk of a signal, with slots of its own; none where nothing is heard of it."""
    scale, shift = signal.scale[start : start + width], signal.shift[start : start + width]
    return Signal(slots_for((scale != 0) & (not nothing), round_to, one=one), scale, shift)
