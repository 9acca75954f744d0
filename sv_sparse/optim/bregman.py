"""Linearized Bregman iterations as functions: linbreg(), adabreg() and proxsgd(); the classes are in methods.py.

Bungert, Roith, Tenbrinck, Burger, "A Bregman Learning Framework for Sparse Neural Networks", JMLR 23(192), 2022.

The optimizer's true state is the dual variable v, a subgradient of the elastic net
``J(w) = lambda * penalty(w) + ||w||^2 / (2 delta)`` at the weights w. A step moves v against the gradient, then
reads the weights off v::

    LinBreg:  v <- v - lr * d                  d: the direction of torch.optim.SGD
    AdaBreg:  v <- v - lr * m / (sqrt(u) + eps)   m, u: Adam's bias-corrected moments
    both:     w <- delta * prox(v, lambda)     prox: the soft threshold, of weights or of groups

An edit of such weights from outside makes a new dual (optimizer.py). A weight that nothing regularizes is its own
dual: then the step is torch's SGD or Adam with learning rate ``delta * lr``. ``lambda_`` is a 0-dim tensor on the
parameters' device that a controller may change in place at any time.

The functions here are written in torch's operations: the update by torch's own kernels for SGD and Adam, then the
read-out. native.py has the same in one pass over memory for the CPU, compiled.py for other devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from sv_sparse.optim.memory import is_plain
from sv_sparse.optim.prox import group_shrink, shrink

_FUSED_DEVICES = {"cpu", "cuda"}
_TOGETHER = 32  # weights that are read out by one operation on a list


@dataclass
class ReadOut:
    """How weights follow from duals: ``delta`` times the proximal operator of ``lambda_`` times the penalty."""

    lambda_: Tensor
    delta: float
    regularizer: str = "l1"
    grouping: str = "output"

    def __call__(self, dual: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the weight of a dual; in ``out``, where that fits and saves memory."""
        if self.regularizer == "l1":
            weight = shrink(dual, self.lambda_, out=out)
        elif self.regularizer == "group":
            weight = group_shrink(dual, self.lambda_, self.grouping)
        else:
            weight = dual
        return weight if self.delta == 1 else self.delta * weight

    def at(self, lambda_: Tensor) -> "ReadOut":
        """Return the same with another lambda."""
        return replace(self, lambda_=lambda_)

    def write(self, params: Sequence[Tensor], duals: Sequence[Tensor], masks: Sequence[Tensor] = ()) -> None:
        """Set ``params`` from ``duals``, in place. ``masks`` hold zeros in both, where there are any."""
        for dual, mask in zip(duals, masks, strict=False):
            dual.masked_fill_(~mask, 0)
        pairs = [(param, dual) for param, dual in zip(params, duals, strict=True) if param is not dual]
        if pairs and self.regularizer == "l1" and all(self._launches_cost(*pair) for pair in pairs):
            self._write_together([param for param, _ in pairs], [dual for _, dual in pairs])
            return
        for param, dual in pairs:
            # a group may lie on several devices
            here = self if dual.device == self.lambda_.device else self.at(self.lambda_.to(dual.device))
            weight = here(dual, out=param if _takes_output(param, dual) else None)
            if weight is not param:
                param.copy_(weight)

    def _launches_cost(self, param: Tensor, dual: Tensor) -> bool:
        """Return whether operations on lists take this weight, and are faster."""
        return param.device == dual.device == self.lambda_.device and param.device.type not in {"cpu", "meta"}

    def _write_together(self, params: list[Tensor], duals: list[Tensor]) -> None:
        """Set all weights by a few operations on lists: on a GPU a launch for each tensor costs more than the work.

        The same bits as one after the other: ``sign(v) * max(|v| - lambda, 0)``, where the last addition makes a
        positive zero of a negative one.
        """
        for first in range(0, len(params), _TOGETHER):  # in turns, for the memory of what lies in between
            part = duals[first : first + _TOGETHER]
            weights = list(torch._foreach_abs(part))
            torch._foreach_add_(weights, self.lambda_, alpha=-1)
            torch._foreach_clamp_min_(weights, 0.0)
            torch._foreach_mul_(weights, torch._foreach_sign(part))
            torch._foreach_add_(weights, 0.0)
            if self.delta != 1:
                torch._foreach_mul_(weights, self.delta)
            torch._foreach_copy_(params[first : first + _TOGETHER], weights)


def _takes_output(param: Tensor, dual: Tensor) -> bool:
    """Return whether operations may write into the weight: subclasses do not take ``out``."""
    return not torch.compiler.is_compiling() and param.dtype == dual.dtype and is_plain(param)


def linbreg(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    momentum_buffers: list[Tensor | None],
    *,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    fused: bool = True,
) -> None:
    """The dual's part of a linearized Bregman iteration, in place on ``duals`` and ``momentum_buffers``.

    LinBreg is SGD on the dual: torch's own kernel moves v. Weight decay adds ``weight_decay * w`` to the gradient,
    as in torch.optim.SGD; it is nothing off the support, where w is zero.
    ``fused`` takes torch's fused kernel where the device has one; it cannot be under torch.compile.
    """
    if weight_decay:
        sign = -1 if maximize else 1
        pairs = zip(grads, params, strict=True)
        grads = [grad.add(param.to(grad.dtype), alpha=sign * weight_decay) for grad, param in pairs]
    fresh = [index for index, buffer in enumerate(momentum_buffers) if buffer is None]
    going = [index for index, buffer in enumerate(momentum_buffers) if buffer is not None]
    for places in filter(None, (fresh, going)):  # torch's fused kernel takes buffers that exist all or not at all
        buffers = [momentum_buffers[index] for index in places]
        sgd(
            [duals[index] for index in places],
            [grads[index] for index in places],
            buffers,
            fused=fused and duals[0].device.type in _FUSED_DEVICES,
            foreach=None if fused else True,
            weight_decay=0.0,
            momentum=momentum,
            lr=lr,  # type: ignore[arg-type]  # a tensor is allowed, the annotation is behind
            dampening=dampening,
            nesterov=nesterov,
            maximize=maximize,
        )
        for index, buffer in zip(places, buffers, strict=True):
            momentum_buffers[index] = buffer


def adabreg(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float | Tensor,
    maximize: bool,
    fused: bool = True,
) -> None:
    """The dual's part of an AdaBreg iteration, in place on ``duals``, both moments and ``steps``.

    AdaBreg is Adam on the dual: torch's own kernel moves v. Weight decay is decoupled and enters the dual,
    ``v <- v - lr * weight_decay * w``; it is nothing off the support, where w is zero.
    ``fused`` takes torch's fused kernel where the device has one; it cannot be under torch.compile.
    """
    if isinstance(weight_decay, Tensor) or weight_decay:  # a tensor's value need not come to the host
        for param, dual in zip(params, duals, strict=True):
            if param is dual:
                dual.mul_(1 - lr * weight_decay)  # as torch.optim.AdamW writes it
            else:
                dual.sub_(lr * weight_decay * param)
    adam(
        duals,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=fused and duals[0].device.type in _FUSED_DEVICES,
        foreach=None if fused else True,
        capturable=not fused,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=0.0,
        eps=eps,
        maximize=maximize,
    )


def proxsgd(params: list[Tensor], grads: list[Tensor], *, lr: float | Tensor, how: ReadOut, maximize: bool) -> None:
    """One proximal gradient step, in place: ``w <- prox(w - lr * g, lr * lambda_)``, the baseline without a dual."""
    scaled = replace(how, lambda_=lr * how.lambda_)
    for param, grad in zip(params, grads, strict=True):
        moved = param.to(how.lambda_.dtype) - (-lr if maximize else lr) * grad
        param.copy_(scaled(moved))
