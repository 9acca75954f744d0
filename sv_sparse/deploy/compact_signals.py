"""Which channels of an activation are computed, and what is known of the others.

Every activation here is r = relu(...) of a layer, and what the next layers of the original network hear of it is
``scale·r + shift`` for each channel: a batch norm, or nothing. A channel whose weights are zero has ``scale`` 0: it is
the constant ``shift``, and is not computed. A layer that hears a signal takes the scales into its weights, and the
shifts into its bias. Only where a convolution of several taps continues its input by zeros the shifts are no constant,
since they end where the recording ends: there they are the weights of one more channel, which is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ONE, NOTHING = -1, -2  # in the place of a channel's number: a channel that is 1, and one that is 0 and only fills up


@dataclass(frozen=True)
class Signal:
    """An activation of C channels of the original network, of which some are computed.

    Attributes:
        slots: what is computed, in this order: numbers of channels, ONE or NOTHING; int64.
        scale: [C] float64, of the channels that are computed; 0 for others.
        shift: [C] float64, of all channels.
    """

    slots: Tensor
    scale: Tensor
    shift: Tensor


class Term(NamedTuple):
    """A signal, and the weight [O, C, ...taps] float64 by which a layer hears it."""

    weight: Tensor
    signal: Signal


def slots_for(live: Tensor, round_to: int, *, one: bool = False) -> Tensor:
    """The channels where ``live`` [C] is true, ONE if asked for, and NOTHING up to a multiple of ``round_to``.

    >>> slots_for(torch.tensor([True, False, True]), 4, one=True)
    tensor([ 0,  2, -1, -2])
    """
    slots = [*live.nonzero().flatten().tolist(), *([ONE] if one else [])]
    return torch.tensor(slots + [NOTHING] * (-len(slots) % round_to), dtype=torch.int64)


def filled(slots: Tensor, round_to: int) -> Tensor:
    """The slots, or those of a layer of zeros if there are none: for layers that cannot be left out."""
    return slots if len(slots) else torch.full((round_to,), NOTHING)


def reached(terms: Sequence[Term]) -> Tensor:
    """Which rows [O] have a weight other than zero on anything that is computed."""
    rows = [_columns(term).flatten(1).ne(0).any(1) for term in terms]
    return torch.stack(rows).any(0)


def constants(terms: Sequence[Term]) -> Tensor:
    """What the shifts add to each row, for each tap: [O, ...taps]."""
    return torch.stack([torch.einsum("oc...,c->o...", term.weight, term.signal.shift) for term in terms]).sum(0)


def assembled(
    terms: Sequence[Term], bias: Tensor, rows: Tensor, *, padded: bool = False, one: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Weight [R, N, ...taps] and bias [R] of a layer that hears all the slots of all terms, one after the other.

    Args:
        terms: what it hears.
        bias: [O], of the original.
        rows: the slots that it computes.
        padded: its taps reach beyond the ends, into zeros; then one slot is ONE, or all shifts are 0.
        one: the bias of a row that is ONE.
    """
    weight, constant = torch.cat([_columns(term) for term in terms], dim=1), constants(terms)
    if not padded:
        bias = bias + constant.reshape(len(bias), -1).sum(1)
    elif constant[rows[rows >= 0]].any():
        ones = torch.cat([term.signal.slots for term in terms]).eq(ONE).nonzero()
        weight[:, ones[0, 0]] = constant
    return picked(weight, rows), picked(bias, rows, one=one)


def picked(values: Tensor, slots: Tensor, *, one: float = 0.0, nothing: float = 0.0) -> Tensor:
    """The values [C, ...] of the slots, [N, ...]; ``one`` and ``nothing`` where a slot is no channel.

    >>> picked(torch.tensor([5.0, 6.0]), torch.tensor([1, ONE, NOTHING]), one=1.0)
    tensor([6., 1., 0.])
    """
    found = values[slots.clamp(min=0)].clone()
    found[slots == ONE] = one
    found[slots == NOTHING] = nothing
    return found


def sides(signal: Signal, after: Signal, round_to: int) -> tuple[Signal, Signal, int]:
    """Both in an order in which their common channels can be added, and how many these are, a multiple of ``round_to``.

    Common are channels of the same scale: the last slots of ``signal``, the first ones of ``after``.

    >>> left, right = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0])
    >>> chunk, unit, count = sides(
    ...     Signal(torch.tensor([0, 1]), left, 0 * left), Signal(torch.tensor([1, 2]), right, 0 * right), 1
    ... )
    >>> chunk.slots, unit.slots, count
    (tensor([0, 1]), tensor([1, 2]), 1)
    """
    equal = (signal.scale == after.scale) & (signal.scale != 0)
    common = equal.nonzero().flatten()
    common = common[: len(common) - len(common) % round_to]
    left, right = (each.slots[~torch.isin(each.slots, common)] for each in (signal, after))
    first = Signal(torch.cat([left, common]), signal.scale, signal.shift)
    return first, Signal(torch.cat([common, right]), after.scale, after.shift), len(common)


def without(signal: Signal, count: int) -> Signal:
    """The signal without its first slots."""
    return Signal(signal.slots[count:], signal.scale, signal.shift)


def outputs(
    terms: Sequence[Term],
    bias: Tensor,
    norm: nn.Module,
    round_to: int,
    *,
    padded: bool = False,
    varies: Sequence[Term] = (),
) -> Signal:
    """What ``norm(relu(layer))`` gives, whose rows are multiplied by the amounts of the norm's scales.

    Args:
        terms: what the layer hears.
        bias: [O], of the layer.
        norm: a batch norm; what remains of its scales are the signs.
        round_to: slots are a multiple of it.
        padded: as in `assembled`.
        varies: what it hears in addition, of an utterance as a whole.
    """
    constant, (scale, shift) = constants(terms), scale_and_shift(norm)
    live = reached([*terms, *varies])
    if padded:
        live = live | constant.flatten(1).ne(0).any(1)
    live = live & (scale != 0)
    rest = torch.relu(bias + constant.flatten(1).sum(1)) * scale + shift
    return Signal(slots_for(live, round_to), torch.where(live, scale.sign(), 0.0), torch.where(live, shift, rest))


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch norm in evaluation multiplies by and adds, each [C] in the type of its statistics."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        return scale * norm.weight, norm.bias - norm.running_mean * scale * norm.weight
    return scale, -norm.running_mean * scale


def _columns(term: Term) -> Tensor:
    """The weight for each slot, [O, N, ...taps]."""
    by_column = term.weight.transpose(0, 1)
    scale = term.signal.scale.view(-1, *(1 for _ in by_column.shape[1:]))
    return picked(by_column * scale, term.signal.slots).transpose(0, 1)
