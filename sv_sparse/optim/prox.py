"""Proximal operators of the sparsity penalties, and the subgradients that start a dual variable.

``l1`` makes single weights zero. ``group`` makes whole groups of a weight [output channels, input channels, ...]
zero: a group is an output channel, an input channel or a kernel (one pair of both). Its penalty is
``lambda * sum over groups of sqrt(size) * norm``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

REGULARIZERS = ("l1", "group", "mask", "none")
GROUPINGS = ("output", "input", "kernel")
_SWAPPED = {"output": "input", "input": "output"}


def shrink(v: Tensor, lambda_: Tensor, out: Tensor | None = None) -> Tensor:
    """Proximal operator of ``lambda_ * ||.||_1``: the soft threshold.

    Computed as ``v - clamp(v, -lambda_, lambda_)`` (Moreau's identity), which is exactly zero where
    ``|v| <= lambda_``, nonzero elsewhere, and never a negative zero.

    Args:
        v: any shape.
        lambda_: threshold, 0-dim, on the device of ``v``.
        out: takes the result, shaped like ``v`` but not ``v`` itself; without it, new memory does.

    >>> shrink(torch.tensor([-2.0, 0.5, 3.0]), torch.tensor(1.0))
    tensor([-1.,  0.,  2.])
    """
    if torch.compiler.is_compiling():  # which takes no memory from outside in another order of axes
        out = None
    clamped = torch.clamp(v, -lambda_, lambda_, out=out)
    return torch.sub(v, clamped, out=out)


def group_shrink(v: Tensor, lambda_: Tensor, grouping: str) -> Tensor:
    """Proximal operator of the group penalty: ``v * max(1 - lambda_ * sqrt(size) / norm, 0)`` in each group.

    Args:
        v: [output channels, input channels, ...].
        lambda_: 0-dim, on the device of ``v``.
        grouping: ``"output"``, ``"input"`` or ``"kernel"``.

    >>> group_shrink(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.tensor(1.0), "output")
    tensor([[2.1515, 2.8686],
            [0.0000, 0.0000]])
    """
    norms = group_norms(v, grouping)
    return torch.where(norms <= lambda_, 0.0, v * (1 - lambda_ / norms))  # so that what is not a number stays so


def group_norms(v: Tensor, grouping: str) -> Tensor:
    """Norm of each group over the square root of its size, with axes of size 1 where it ran.

    A group survives where this is above lambda, as a single weight does where ``|v|`` is.

    >>> group_norms(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), "input").shape
    torch.Size([1, 2])
    """
    axes = _axes(v.ndim, grouping)
    if not axes:  # a kernel of size one
        return v.abs()
    return torch.linalg.vector_norm(v, dim=axes, keepdim=True) / math.sqrt(group_size(v, grouping))


def group_size(v: Tensor, grouping: str) -> int:
    """Weights in a group.

    >>> group_size(torch.zeros(8, 4, 3), "output")
    12
    """
    return math.prod(v.shape[axis] for axis in _axes(v.ndim, grouping))


def over_group(mask: Tensor, grouping: str, reduce: Callable[..., Tensor]) -> Tensor:
    """Return a mask that says of every weight what ``reduce`` (torch.all, torch.any) says of its group.

    >>> over_group(torch.tensor([[True, False], [True, True]]), "output", torch.all)
    tensor([[False, False],
            [ True,  True]])
    """
    axes = _axes(mask.ndim, grouping)
    return reduce(mask, dim=axes, keepdim=True).expand_as(mask) if axes else mask


def grouping_of(group: Mapping[str, Any]) -> str:
    """Return the grouping of a parameter group by the axes of its weights.

    A group that ``partition`` calls ``transposed`` has weights [input channels, output channels, ...].

    >>> grouping_of({"grouping": "output", "transposed": True})
    'input'
    """
    grouping: str = group["grouping"]
    return _SWAPPED.get(grouping, grouping) if group.get("transposed") else grouping


def _axes(ndim: int, grouping: str) -> tuple[int, ...]:
    """The axes that a group spans."""
    kept = {"output": (0,), "input": (1,), "kernel": (0, 1)}[grouping]
    return tuple(axis for axis in range(ndim) if axis not in kept)


def subgradient(weight: Tensor, lambda_: Tensor, delta: float, *, grouping: str | None = None) -> Tensor:
    """The subgradient of ``lambda_ * penalty(w) + ||w||^2 / (2 delta)`` that a dual starts from.

    Where the weight (with ``grouping``, its group) is zero there are many; zero is taken.

    >>> subgradient(torch.tensor([-2.0, 0.0, 3.0]), torch.tensor(0.5), delta=1.0)
    tensor([-2.5000,  0.0000,  3.5000])
    """
    if grouping is None:
        return weight / delta + lambda_ * weight.sign()
    norms = group_norms(weight, grouping)
    return weight / delta + torch.where(norms > 0, lambda_ * weight / norms, 0.0)
