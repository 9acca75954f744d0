"""Proximal operators of the sparsity penalties, and the subgradients that start a dual variable.

The penalty ``l1`` is ``lambda * sum |w|`` and makes single weights zero. The penalty ``l0`` is
``lambda^2 / 2 * number of nonzero weights`` and makes single weights zero, too. The penalty ``group`` is
``lambda * sum over groups of sqrt(size) * norm`` and makes groups of a weight [output channels, input channels, ...]
zero: a group is an output channel, an input channel, or a kernel (one pair of both).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

PENALTIES = ("l1", "l0", "group", "none")
GRANULARITIES = ("out_channel", "in_channel", "kernel")
# Factor that makes a float32 a few bits smaller. One bit would not do: lambda is multiplied by lambda_scale and rounded
# again before it is compared.
STRICTLY_BELOW = 1 - 2**-20
_TRANSPOSED = {"out_channel": "in_channel", "in_channel": "out_channel", "kernel": "kernel"}
# Axes that number the groups.
_CHANNEL_AXES = {"out_channel": (0,), "in_channel": (1,), "kernel": (0, 1)}


def shrink(v: Tensor, lambda_: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the soft threshold, the proximal operator of ``lambda_ * ||.||_1``.

    Computed as ``v - clamp(v, -lambda_, lambda_)`` (Moreau's identity). That is exactly zero where ``|v| <= lambda_``,
    nonzero elsewhere, and never a negative zero.

    Args:
        v: tensor of any shape.
        lambda_: threshold of 0 or more, 0-dim, on the device of ``v``.
        out: tensor for the result, shaped like ``v`` but not ``v`` itself; None: a new tensor.

    >>> shrink(torch.tensor([-2.0, 0.5, 3.0]), torch.tensor(1.0))
    tensor([-1.,  0.,  2.])
    """
    # The compiler takes no output whose axes are in another order.
    if torch.compiler.is_compiling():
        out = None
    clamped = torch.clamp(v, -lambda_, lambda_, out=out)
    return torch.sub(v, clamped, out=out)


def hard_threshold(v: Tensor, lambda_: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``v`` where ``|v| > lambda_`` and 0 elsewhere, the proximal operator of ``lambda_^2 / 2 * ||.||_0``.

    Args:
        v: tensor of any shape.
        lambda_: threshold of 0 or more, 0-dim, on the device of ``v``.
        out: tensor for the result, shaped like ``v`` but not ``v`` itself; None: a new tensor.

    >>> hard_threshold(torch.tensor([-2.0, 0.5, 3.0]), torch.tensor(1.0))
    tensor([-2.,  0.,  3.])
    """
    # This way round NaN stays NaN.
    is_zero = v.abs() <= lambda_
    # The compiler takes no output whose axes are in another order.
    if out is None or torch.compiler.is_compiling():
        return torch.where(is_zero, 0.0, v)
    return torch.where(is_zero, v.new_zeros(()), v, out=out)


def group_shrink(v: Tensor, lambda_: Tensor, granularity: str) -> Tensor:
    """Return ``v * max(1 - lambda_ * sqrt(size) / norm, 0)`` of each group: the group penalty's proximal operator.

    Args:
        v: tensor [output channels, input channels, ...].
        lambda_: threshold of 0 or more, 0-dim, on the device of ``v``.
        granularity: ``"out_channel"``, ``"in_channel"`` or ``"kernel"``.

    >>> group_shrink(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.tensor(1.0), "out_channel")
    tensor([[2.1515, 2.8686],
            [0.0000, 0.0000]])
    """
    norms = group_norms(v, granularity)
    # This way round NaN stays NaN.
    return torch.where(norms <= lambda_, 0.0, v * (1 - lambda_ / norms))


def group_norms(v: Tensor, granularity: str) -> Tensor:
    """Return the norm of each group over the square root of its size, with axes of size 1 where the group extends.

    A group is nonzero after ``group_shrink`` where this is above lambda, as a single weight is where ``|v|`` is.

    Args:
        v: tensor [output channels, input channels, ...].
        granularity: ``"out_channel"``, ``"in_channel"`` or ``"kernel"``.

    >>> group_norms(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), "in_channel").shape
    torch.Size([1, 2])
    """
    axes = _group_axes(v.ndim, granularity)
    # A kernel of size 1.
    if not axes:
        return v.abs()
    return torch.linalg.vector_norm(v, dim=axes, keepdim=True) / math.sqrt(group_size(v, granularity))


def zero_lambdas(v: Tensor, penalty: str, granularity: str) -> Tensor:
    """Return the smallest lambda at which each weight, or with penalty group each group of weights, is zero.

    Args:
        v: dual variable [output channels, input channels, ...].
        penalty: ``"l1"``, ``"l0"`` or ``"group"``.
        granularity: groups of the group penalty.

    >>> zero_lambdas(torch.tensor([[3.0, -4.0]]), "l1", "out_channel")
    tensor([[3., 4.]])
    """
    return group_norms(v, granularity) if penalty == "group" else v.abs()


def group_size(v: Tensor, granularity: str) -> int:
    """Return the number of weights in a group.

    >>> group_size(torch.zeros(8, 4, 3), "out_channel")
    12
    """
    return math.prod(v.shape[axis] for axis in _group_axes(v.ndim, granularity))


def reduce_groups(mask: Tensor, granularity: str, reduce: Callable[..., Tensor]) -> Tensor:
    """Return a mask of the same shape with the same value in a group: that of ``reduce`` (torch.all, torch.any).

    >>> reduce_groups(torch.tensor([[True, False], [True, True]]), "out_channel", torch.all)
    tensor([[False, False],
            [ True,  True]])
    """
    axes = _group_axes(mask.ndim, granularity)
    return reduce(mask, dim=axes, keepdim=True).expand_as(mask) if axes else mask


def granularity_of(group: Mapping[str, Any]) -> str:
    """Return the granularity of a parameter group by the axes of its tensors.

    A group with ``transposed=True`` has weights [input channels, output channels, ...].

    >>> granularity_of({"granularity": "out_channel", "transposed": True})
    'in_channel'
    """
    granularity: str = group["granularity"]
    return _TRANSPOSED[granularity] if group.get("transposed") else granularity


def subgradient(weight: Tensor, lambda_: Tensor, delta: float, *, granularity: str | None = None) -> Tensor:
    """Return the subgradient of ``lambda_ * penalty(w) + ||w||^2 / (2 * delta)`` that a dual variable starts from.

    Where a weight (with ``granularity``, its group) is zero, there are many subgradients; this is zero there.

    Args:
        weight: tensor; with ``granularity`` [output channels, input channels, ...].
        lambda_: strength of the penalty, 0-dim, on the device of ``weight``.
        delta: elastic-net parameter, above 0.
        granularity: groups of the group penalty; None: the l1 penalty.

    >>> subgradient(torch.tensor([-2.0, 0.0, 3.0]), torch.tensor(0.5), delta=1.0)
    tensor([-2.5000,  0.0000,  3.5000])
    """
    if granularity is None:
        return weight / delta + lambda_ * weight.sign()
    norms = group_norms(weight, granularity)
    return weight / delta + torch.where(norms > 0, lambda_ * weight / norms, 0.0)


def _group_axes(ndim: int, granularity: str) -> tuple[int, ...]:
    """Return the axes along which a group extends."""
    channel_axes = _CHANNEL_AXES[granularity]
    return tuple(axis for axis in range(ndim) if axis not in channel_axes)
