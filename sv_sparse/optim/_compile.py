"""Steps of LinBreg and AdaBreg under torch.compile: update, proximal map and count in a few kernels, on any device.

Every hyperparameter is a 0-dim tensor here, so that a change of its value compiles nothing again. Only flags
(nesterov, maximize, whether weights decay) are part of the code. The first step of each set of parameters compiles,
which takes from seconds to a minute.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim import functional
from sv_sparse.optim.functional import ProximalMap

ProxArgs = tuple[Tensor, float, str]  # lambda, delta and penalty of a ProximalMap: what the compiler takes


def compiled_adabreg() -> Callable[..., Tensor]:
    """Return a step of AdaBreg, which is compiled at its first call.

    It takes the lists of ``functional.adabreg`` and its hyperparameters as tensors, ``prox_args``, and ``has_decay``:
    whether ``weight_decay`` is not 0. It returns the nonzero weights of each parameter, int64 [len(params)].
    """
    return _compile(_adabreg_step)


def compiled_linbreg() -> Callable[..., Tensor]:
    """Return a step of LinBreg, likewise; its list of momentum buffers is empty without momentum."""
    return _compile(_linbreg_step)


def as_tensor(value: float | Tensor, template: Tensor) -> Tensor:
    """Return a hyperparameter as a 0-dim tensor, in the template's precision and on its device."""
    if isinstance(value, Tensor):
        return value.to(template.device, template.dtype).reshape(())
    return torch.full((), value, dtype=template.dtype, device=template.device)


def _adabreg_step(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    *state: list[Tensor],
    prox_args: ProxArgs,
    weight_decay: Tensor,
    has_decay: bool,
    **hyperparameters: Any,
) -> Tensor:
    decay = weight_decay if has_decay else 0.0
    functional.adabreg(params, grads, duals, *state, fused=False, weight_decay=decay, **hyperparameters)
    return _apply_prox_and_count(params, duals, prox_args)


def _linbreg_step(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    buffers: list[Tensor],
    *,
    prox_args: ProxArgs,
    lr: Tensor,
    momentum: Tensor,
    dampening: Tensor,
    weight_decay: Tensor,
    nesterov: bool,
    maximize: bool,
    has_decay: bool,
) -> Tensor:
    # torch's sgd takes numbers where these are tensors, so its formula is repeated here
    directions = tuple(torch._foreach_neg(grads) if maximize else grads)
    if has_decay:
        weights = [param.to(grad.dtype) for param, grad in zip(params, grads, strict=True)]
        directions = torch._foreach_add(directions, torch._foreach_mul(weights, weight_decay))
    if buffers:
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, torch._foreach_mul(directions, 1 - dampening))
        if nesterov:
            directions = torch._foreach_add(directions, torch._foreach_mul(buffers, momentum))
        else:
            directions = tuple(buffers)
    torch._foreach_add_(duals, torch._foreach_mul(directions, -lr))
    return _apply_prox_and_count(params, duals, prox_args)


def _apply_prox_and_count(params: list[Tensor], duals: list[Tensor], prox_args: ProxArgs) -> Tensor:
    ProximalMap(*prox_args).apply_(params, duals)
    return torch.stack([torch.count_nonzero(param) for param in params])


def _compile(function: Any) -> Callable[..., Tensor]:
    # with a code object of its own: the compiler counts recompilations by code object, and allows few
    code = function.__code__.replace()
    copied = FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    return torch.compile(copied, fullgraph=True)
