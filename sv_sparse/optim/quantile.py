"""The lambda that leaves exactly so many weights: an order statistic of the duals."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sv_sparse.optim import native
from sv_sparse.optim.optimizer import BregmanOptimizer, Group
from sv_sparse.optim.prox import group_norms, group_size, grouping_of

_BELOW = 1 - 2**-20  # times a float32, some bits less


def nearest(optimizer: BregmanOptimizer, groups: Sequence[Group], kept: int) -> Tensor:
    """The lambda nearest to the present one at which ``kept`` weights of ``groups`` survive, 0-dim on the device."""
    low, high = bracket(optimizer, groups, kept)
    return optimizer.lambda_of(groups[0]).clamp(min=low, max=torch.maximum(low, _BELOW * high))


def bracket(optimizer: BregmanOptimizer, groups: Sequence[Group], kept: int) -> tuple[Tensor, Tensor]:
    """From which lambda on, and up to which, ``kept`` weights of ``groups`` survive, 0-dim on the device.

    At fixed duals, sparsity is a step function of lambda that never falls. The threshold is strict: with lambda from
    the (kept + 1)-th largest ``|v| / lambda_scale`` on, below the next above it, that many survive, or fewer where that
    value occurs more than once.
    Groups of weights count with their size; the first that would be too many falls, and all smaller ones with it.
    """
    if kept >= sum(param.numel() for group in groups for param in group["params"]):
        units = torch.cat([_units(optimizer, group)[0] for group in groups])
        smallest = torch.where(units > 0, units, torch.inf).min()  # what is zero at any lambda does not count
        return torch.zeros_like(smallest), torch.where(smallest.isinf(), 0.0, smallest)
    if any(group["regularizer"] == "group" for group in groups):
        values, sizes = zip(*(_units(optimizer, group) for group in groups), strict=True)
        ordered, order = torch.cat(values).sort(descending=True)
        survivors = (torch.cat(sizes)[order].cumsum(0) <= kept).sum()
        ordered = torch.cat([torch.full_like(ordered[:1], torch.inf), ordered])
        low, high = ordered.gather(0, survivors.view(1) + 1), ordered.gather(0, survivors.view(1))  # without waiting
        return low.squeeze(0), high.squeeze(0)
    duals = [(dual, group["lambda_scale"]) for group in groups for dual in optimizer.duals(group)]
    readable = all(native.readable(dual) for dual, _ in duals)
    if readable and all(native.takes_over(group["implementation"]) for group in groups):
        low, high = native.largest(duals, kept)
    else:
        magnitudes = torch.cat([(dual.abs() / scale).flatten() for dual, scale in duals])
        rank = magnitudes.numel() - kept
        low, high = (magnitudes.kthvalue(place).values for place in (rank, min(rank + 1, magnitudes.numel())))
    if all(math.frexp(scale)[0] == 0.5 for _, scale in duals):  # powers of two: multiplied again it is |v|
        return low, high
    return low.nextafter(torch.full_like(low, torch.inf)), high


def _units(optimizer: BregmanOptimizer, group: Group) -> tuple[Tensor, Tensor]:
    """What falls at which lambda, and how many weights it is."""
    values, sizes = [], []
    for dual in optimizer.duals(group):
        in_groups = group["regularizer"] == "group"
        size = group_size(dual, grouping_of(group)) if in_groups else 1
        units = group_norms(dual, grouping_of(group)) if in_groups else dual.abs()
        values.append(units.flatten() / group["lambda_scale"])
        sizes.append(torch.full_like(values[-1], size, dtype=torch.int64))
    return torch.cat(values), torch.cat(sizes)
