"""Which parameters are sparse, how a sparse run starts, and how sparsity is counted.

Every parameter lands in exactly one group, decided by the type of the module that holds it. A type in neither list
is an error, never a guess.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

SPARSE_TYPES: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
DENSE_TYPES: tuple[type[nn.Module], ...] = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


def partition(
    module: nn.Module,
    *,
    sparse_types: Sequence[type[nn.Module]] = SPARSE_TYPES,
    dense_types: Sequence[type[nn.Module]] = DENSE_TYPES,
    regularizer: str = "l1",
) -> list[dict[str, Any]]:
    """Parameter groups for LinBreg and AdaBreg: ``sparse`` (regularized) and ``dense`` (never touched by lambda).

    Weights of ``sparse_types`` with two or more axes are sparse; their biases, and everything in ``dense_types``,
    are dense. Shared parameters appear once.

    Args:
        module: the network.
        sparse_types: module types whose weights may become zero.
        dense_types: module types whose parameters stay dense.
        regularizer: of the sparse group; ``"none"`` trains the whole network dense.

    Returns:
        Groups with ``name``, ``params`` as (name, parameter) pairs, and ``regularizer``; empty groups are left out.

    Raises:
        ValueError: a module that holds parameters is of a type in neither list.

    >>> groups = partition(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    >>> [(group["name"], [name for name, _ in group["params"]]) for group in groups]
    [('sparse', ['0.weight']), ('dense', ['0.bias', '1.weight', '1.bias'])]
    """
    sparse: dict[str, nn.Parameter] = {}
    dense: dict[str, nn.Parameter] = {}
    seen: set[nn.Parameter] = set()
    for prefix, child in module.named_modules():
        for name, param in child.named_parameters(prefix, recurse=False):
            if param in seen:
                continue
            seen.add(param)
            if isinstance(child, tuple(sparse_types)):
                (sparse if param.ndim > 1 else dense)[name] = param
            elif isinstance(child, tuple(dense_types)):
                dense[name] = param
            else:
                raise ValueError(
                    f"cannot tell whether {name} is sparse or dense: {type(child).__name__} is in neither list; "
                    f"pass partition(..., dense_types=(*DENSE_TYPES, {type(child).__name__})), or sparse_types likewise"
                )
    groups = [
        {"name": "sparse", "params": list(sparse.items()), "regularizer": regularizer},
        {"name": "dense", "params": list(dense.items()), "regularizer": "none"},
    ]
    return [group for group in groups if group["params"]]


def describe(groups: Iterable[dict[str, Any]]) -> str:
    """The partition as a Markdown table; ``groups`` as partition() returns them, or an optimizer's ``param_groups``."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for group in groups:
        params = [param[1] if isinstance(param, tuple) else param for param in group["params"]]
        sizes.setdefault((group.get("name", ""), group["regularizer"]), []).extend(param.numel() for param in params)
    rows = ["| group | tensors | parameters | regularizer |", "|---|---:|---:|---|"]
    rows += [f"| {name} | {len(each)} | {sum(each):,} | {kind} |" for (name, kind), each in sizes.items()]
    return "\n".join(rows)


@torch.no_grad()
def sparse_init_(
    params: Iterable[Tensor],
    *,
    density: float = 0.01,
    rescale: bool = True,
    generator: torch.Generator | None = None,
) -> None:
    """Zero each weight with probability ``1 - density``, in place: a Bregman run starts sparse.

    Every output channel (row of the first axis) keeps at least one weight: a channel of zeros behind batch
    normalization and ReLU would pass no gradient, so none of its weights could ever come alive.

    Args:
        params: the sparse parameters, [output channels, ...], on the device of ``generator``.
        density: probability that a weight stays, in (0, 1].
        rescale: multiply what stays by ``1 / sqrt(share that stays)``, so that the variance of each layer's output,
            and with it the forward signal, is kept.
        generator: source of the mask.

    Raises:
        ValueError: ``density`` is out of bounds, or a parameter has fewer than two axes.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density}")
    for param in params:
        if param.ndim < 2:
            raise ValueError(f"sparse parameters have two axes or more, got one of shape {tuple(param.shape)}")
        kept = torch.empty(param.shape, device=param.device).bernoulli_(density, generator=generator)
        rows = kept.view(len(kept), -1)
        one = torch.randint(rows.shape[1], (len(rows), 1), generator=generator, device=param.device)
        rows.scatter_(1, one, torch.where(rows.any(1, keepdim=True), rows.gather(1, one), 1.0))
        param.mul_(kept / kept.mean().sqrt() if rescale else kept)


def count_zeros(params: Sequence[Tensor]) -> Tensor:
    """Number of exact zeros, a 0-dim int64 tensor on the device: nothing waits for the device."""
    counts = torch.stack([torch.count_nonzero(param) for param in params])
    return sum(param.numel() for param in params) - counts.sum()


def sparsity(params: Sequence[Tensor]) -> Tensor:
    """Fraction of exact zeros pooled over ``params``, a 0-dim float32 tensor on the device.

    >>> sparsity([torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 0.0]])])
    tensor(0.7500)
    """
    return count_zeros(params).float() / sum(param.numel() for param in params)
