"""The functions of bregman.py under torch.compile: update, read-out and count in a few kernels, for any device.

Every hyperparameter is a 0-dim tensor here, so that a change of it compiles nothing again. Only flags (nesterov,
maximize, whether weights decay) are part of the code. The first step of each set of parameters compiles, which takes
from seconds to a minute.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim import bregman
from sv_sparse.optim.bregman import ReadOut


def _adabreg(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    *state: list[Tensor],
    read_out: tuple[Tensor, float, str],
    weight_decay: Tensor,
    decays: bool,
    **settings: Any,
) -> Tensor:
    decay = weight_decay if decays else 0.0
    bregman.adabreg(params, grads, duals, *state, fused=False, weight_decay=decay, **settings)
    return _finish(params, duals, read_out)


def _linbreg(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    buffers: list[Tensor],
    *,
    read_out: tuple[Tensor, float, str],
    lr: Tensor,
    momentum: Tensor,
    dampening: Tensor,
    weight_decay: Tensor,
    nesterov: bool,
    maximize: bool,
    decays: bool,
) -> Tensor:
    """Torch's SGD takes numbers where these are tensors, so it is written out here."""
    directions = tuple(torch._foreach_neg(grads) if maximize else grads)
    if decays:
        weights = [param.to(grad.dtype) for param, grad in zip(params, grads, strict=True)]
        directions = torch._foreach_add(directions, torch._foreach_mul(weights, weight_decay))
    if buffers:  # momentum is not zero
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, torch._foreach_mul(directions, 1 - dampening))
        looked_ahead = torch._foreach_add(directions, torch._foreach_mul(buffers, momentum))
        directions = looked_ahead if nesterov else tuple(buffers)
    torch._foreach_add_(duals, torch._foreach_mul(directions, -lr))
    return _finish(params, duals, read_out)


def _finish(params: list[Tensor], duals: list[Tensor], read_out: tuple[Tensor, float, str]) -> Tensor:
    ReadOut(*read_out).write(params, duals)
    return torch.stack([torch.count_nonzero(param) for param in params])


def adabreg() -> Callable[..., Tensor]:
    """Return a step of AdaBreg, to be compiled at its first call.

    It takes the lists of ``bregman.adabreg`` and its settings as tensors; ``read_out``, the first three of ReadOut; and
    ``decays``, whether weight decay is not zero. It returns the nonzero weights of each parameter, int64.
    """
    return _compiled(_adabreg)


def linbreg() -> Callable[..., Tensor]:
    """Return a step of LinBreg, likewise; it takes momentum buffers where momentum is not zero."""
    return _compiled(_linbreg)


def _compiled(function: Any) -> Callable[..., Tensor]:
    """Compile with a code object of its own: the compiler counts recompilations per code object, and allows few."""
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    return torch.compile(own, fullgraph=True)
