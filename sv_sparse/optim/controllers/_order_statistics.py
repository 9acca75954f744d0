"""Order statistics of dual variables and weights: the lambda, or threshold, that leaves exactly so many nonzero."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sv_sparse.optim.bregman_optimizer import BregmanOptimizer
from sv_sparse.optim.cpp import bindings
from sv_sparse.optim.prox import STRICTLY_BELOW, granularity_of, group_size, zero_lambdas
from sv_sparse.optim.state_dict_checks import Group


def lambda_for_nnz(optimizer: BregmanOptimizer, groups: Sequence[Group], nnz: int) -> Tensor:
    """Return the lambda nearest to the present one at which ``nnz`` weights are nonzero, 0-dim on the device.

    Args:
        optimizer: has the dual variables.
        groups: regularized groups.
        nnz: weights of these groups that are nonzero, at least 1.
    """
    low, high = lambda_interval(optimizer, groups, nnz)
    return optimizer.lambda_of(groups[0]).clamp(min=low, max=torch.maximum(low, STRICTLY_BELOW * high))


def lambda_interval(optimizer: BregmanOptimizer, groups: Sequence[Group], nnz: int) -> tuple[Tensor, Tensor]:
    """Return the interval [low, high) of lambda in which ``nnz`` weights are nonzero, 0-dim on the device.

    At fixed dual variables, sparsity is a step function of lambda that never falls. The threshold is strict: from the
    (nnz + 1)-th largest ``|v| / lambda_scale`` on, below the next larger one, that many weights are nonzero, or fewer
    where that value occurs more than once. Groups of weights count with their size; the first that would be too many
    becomes zero, and all smaller ones with it.

    Args:
        optimizer: has the dual variables.
        groups: regularized groups.
        nnz: weights of these groups that are nonzero, at least 1.
    """
    if nnz >= sum(param.numel() for group in groups for param in group["params"]):
        magnitudes = torch.cat([_group_magnitudes(optimizer, group)[0] for group in groups])
        # a magnitude of 0 is a zero weight at any lambda, so it does not count
        smallest = torch.where(magnitudes > 0, magnitudes, torch.inf).min()
        return torch.zeros_like(smallest), torch.where(smallest.isinf(), 0.0, smallest)
    if any(group["penalty"] == "group" for group in groups):
        return _interval_of_groups(optimizer, groups, nnz)
    duals = [(dual, group["lambda_scale"]) for group in groups for dual in optimizer.duals(group)]
    low, high = magnitudes_around(duals, nnz, [group["backend"] for group in groups])
    # Powers of two.
    has_exact_scales = all(math.frexp(scale)[0] == 0.5 for _, scale in duals)
    if has_exact_scales:
        return low, high
    # multiplied by the scale again, the value could be less than the |v| it was taken from, DECISIONS 26
    return low.nextafter(torch.full_like(low, torch.inf)), high


def separate_ties(optimizer: BregmanOptimizer, groups: Sequence[Group], nnz: int) -> None:
    """Raise dual variables by a few units in the last place, so that exactly ``nnz`` are above the next smaller ones.

    Under l0, weights near lambda cross it from both sides, so that their dual variables gather there and many are equal
    in the end. Zeros stay: their weights never had a gradient. Waits for the device.

    Args:
        optimizer: has the dual variables.
        groups: regularized groups of single weights.
        nnz: weights of these groups that are to be nonzero, at least 1.
    """
    low, _ = lambda_interval(optimizer, groups, nnz)
    pairs = [(dual, group["lambda_scale"]) for group in groups for dual in optimizer.duals(group)]
    missing = nnz - sum(int((dual.abs() / scale > low).sum()) for dual, scale in pairs)
    for dual, scale in pairs:
        if missing <= 0 or float(low) == 0:
            return
        # The interval begins a unit above them where a scale rounds.
        eps = torch.finfo(dual.dtype).eps
        magnitudes = dual.abs() / scale
        is_tied = (magnitudes <= low) & (magnitudes >= (1 - 2 * eps) * low)
        is_raised = is_tied & (is_tied.flatten().cumsum(0).view(dual.shape) <= missing)
        dual.copy_(torch.where(is_raised, (1 + 6 * eps) * dual, dual))
        missing -= int(is_raised.sum())


def magnitudes_around(
    tensors: Sequence[tuple[Tensor, float]], nnz: int, backends: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Return the (nnz + 1)-th largest ``|v| / scale`` and the next larger one, 0-dim on the device.

    Args:
        tensors: pairs of a tensor v and its scale.
        nnz: number of values above the first result, at least 0 and less than there are values.
        backends: of the optimizer's groups.
    """
    is_supported = all(bindings.supports(tensor) for tensor, _ in tensors)
    if is_supported and all(bindings.is_selected(backend) for backend in backends):
        low, high = bindings.kth_largest(tensors, nnz)
        return low, high
    magnitudes = torch.cat([(tensor.abs() / scale).flatten() for tensor, scale in tensors])
    # kthvalue counts from the smallest.
    rank = magnitudes.numel() - nnz
    low = magnitudes.kthvalue(rank).values
    high = magnitudes.kthvalue(min(rank + 1, magnitudes.numel())).values
    return low, high


def _interval_of_groups(optimizer: BregmanOptimizer, groups: Sequence[Group], nnz: int) -> tuple[Tensor, Tensor]:
    pairs = [_group_magnitudes(optimizer, group) for group in groups]
    magnitudes, order = torch.cat([magnitude for magnitude, _ in pairs]).sort(descending=True)
    sizes = torch.cat([size for _, size in pairs])[order]
    num_nonzero_groups = (sizes.cumsum(0) <= nnz).sum()
    magnitudes = torch.cat([torch.full_like(magnitudes[:1], torch.inf), magnitudes])
    # Gather, since an index by a tensor's value would wait for the device.
    index = num_nonzero_groups.view(1)
    return magnitudes.gather(0, index + 1).squeeze(0), magnitudes.gather(0, index).squeeze(0)


def _group_magnitudes(optimizer: BregmanOptimizer, group: Group) -> tuple[Tensor, Tensor]:
    """Return the lambda at which each weight, or group of weights, becomes zero, and its number of weights."""
    magnitudes, sizes = [], []
    for dual in optimizer.duals(group):
        granularity = granularity_of(group)
        values = zero_lambdas(dual, group["penalty"], granularity)
        size = group_size(dual, granularity) if group["penalty"] == "group" else 1
        magnitudes.append(values.flatten() / group["lambda_scale"])
        sizes.append(torch.full_like(magnitudes[-1], size, dtype=torch.int64))
    return torch.cat(magnitudes), torch.cat(sizes)
