"""Linearized Bregman iterations as functions: linbreg() and adabreg(); the classes are in optimizer.py.

Bungert, Roith, Tenbrinck, Burger, "A Bregman Learning Framework for Sparse Neural Networks", JMLR 23(192), 2022.

The optimizer's true state is the dual variable v, a subgradient of the elastic net
``J(w) = lambda ||w||_1 + ||w||^2 / (2 delta)`` at the weights w. A step moves v against the gradient, then
reads the weights off v::

    LinBreg:  v <- v - lr * d                  d: the direction of torch.optim.SGD
    AdaBreg:  v <- v - lr * m / (sqrt(u) + eps)   m, u: Adam's bias-corrected moments
    both:     w <- delta * shrink(v, lambda)

An edit of the weights from outside is overwritten by the next step. ``lambda_`` is a 0-dim tensor on the
parameters' device that a controller may change in place at any time.
"""

from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from sv_sparse.optim.prox import shrink

_FUSED_DEVICES = {"cpu", "cuda"}


def read_out(params: list[Tensor], duals: list[Tensor], *, lambda_: Tensor, delta: float, regularizer: str) -> None:
    """Set ``params`` to ``delta * shrink(dual, lambda_)``, or to ``delta * dual`` where nothing is regularized."""
    for param, dual in zip(params, duals, strict=True):
        if regularizer == "none":
            weight = dual
        else:
            weight = shrink(dual, lambda_, out=param if param.dtype == dual.dtype else None)
        if delta != 1:
            weight = delta * weight
        if weight is not param:
            param.copy_(weight)


def linbreg(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    momentum_buffers: list[Tensor | None],
    *,
    lr: float | Tensor,
    lambda_: Tensor,
    delta: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    regularizer: str,
) -> None:
    """One linearized Bregman iteration, in place on ``params``, ``duals`` and ``momentum_buffers``.

    LinBreg is SGD on the dual: torch's own kernel moves v. Weight decay adds ``weight_decay * w`` to the gradient,
    as in torch.optim.SGD; it is nothing off the support, where w is zero.
    """
    if weight_decay:
        pairs = zip(grads, params, strict=True)
        grads = [grad.add(param.to(grad.dtype), alpha=weight_decay) for grad, param in pairs]
    fresh = [index for index, buffer in enumerate(momentum_buffers) if buffer is None]
    going = [index for index, buffer in enumerate(momentum_buffers) if buffer is not None]
    for chosen in filter(None, (fresh, going)):  # torch's fused kernel takes buffers that exist all or not at all
        buffers = [momentum_buffers[index] for index in chosen]
        sgd(
            [duals[index] for index in chosen],
            [grads[index] for index in chosen],
            buffers,
            fused=duals[0].device.type in _FUSED_DEVICES,
            weight_decay=0.0,
            momentum=momentum,
            lr=lr,  # type: ignore[arg-type]  # a tensor is allowed, the annotation is behind
            dampening=dampening,
            nesterov=nesterov,
            maximize=False,
        )
        for index, buffer in zip(chosen, buffers, strict=True):
            momentum_buffers[index] = buffer
    read_out(params, duals, lambda_=lambda_, delta=delta, regularizer=regularizer)


def adabreg(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float | Tensor,
    lambda_: Tensor,
    delta: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    regularizer: str,
) -> None:
    """One AdaBreg iteration, in place on ``params``, ``duals``, both moments and ``steps``.

    AdaBreg is Adam on the dual: torch's own kernel moves v. Weight decay is decoupled and enters the dual,
    ``v <- v - lr * weight_decay * w``; it is nothing off the support, where w is zero.
    """
    if weight_decay:
        for param, dual in zip(params, duals, strict=True):
            dual.sub_(lr * weight_decay * param)
    adam(
        duals,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=duals[0].device.type in _FUSED_DEVICES,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=0.0,
        eps=eps,
        maximize=False,
    )
    read_out(params, duals, lambda_=lambda_, delta=delta, regularizer=regularizer)
