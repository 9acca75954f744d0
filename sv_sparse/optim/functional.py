"""Linearized Bregman iterations as functions: the formulas of LinBreg, AdaBreg and ProxSGD.

The state of a Bregman optimizer is the dual variable v, a subgradient of the elastic net::

    J(w) = lambda * penalty(w) + ||w||^2 / (2 * delta)

at the weights w. Update number t, with the gradient g_t of the loss at w_t, is::

    v_{t+1} = v_t - lr * d_t                       d_t: the direction of an optimizer for dense weights
    w_{t+1} = delta * prox(v_{t+1}, lambda_t)      prox: soft threshold of single weights or of groups

    LinBreg:  d_t = b_t                            b_t: torch.optim.SGD's momentum buffer; g_t without momentum
    AdaBreg:  d_t = m_t / (sqrt(u_t) + eps)        m_t, u_t: Adam's bias-corrected moments of g_t
    ProxSGD:  w_{t+1} = prox(w_t - lr * g_t, lr * lambda_t)         the baseline, which has no v

A controller may change lambda in place after each update. A weight without a penalty is its own dual variable: its
update is that of torch's SGD or Adam with learning rate ``delta * lr``.

With the penalty l0, prox is the hard threshold: ``w = delta * v`` where ``|v| > lambda``, and 0 elsewhere. Nonzero
weights do not move when lambda does, and zeros go on learning in v. What remains of the theory: these weights are a
subgradient of a convex function of v, ``delta / 2 * sum max(v^2 - lambda^2, 0)``. So the iteration is a linearized
Bregman iteration of its convex conjugate, which is ``lambda * |w|`` up to ``|w| = delta * lambda`` and
``w^2 / (2 * delta) + delta * lambda^2 / 2`` from there on, the convex envelope of
``w^2 / (2 * delta) + delta * lambda^2 / 2 * (w != 0)``. What is lost: that envelope is not strongly convex, so a weight
jumps by ``delta * lambda`` where its v crosses lambda, however small the step is, and the proof that the loss falls,
which l1 has, does not hold. Between such jumps the iteration is that of the dense optimizer on the nonzero weights.

The functions use torch's operations. cpp/ has the same formulas in one pass over memory, for CPUs.

Sources:

- L. Bungert, T. Roith, D. Tenbrinck, M. Burger, "A Bregman Learning Framework for Sparse Neural Networks",
  JMLR 23(192), 2022, and its code, github.com/TimRoith/BregmanLearning.
- A. Aloradi, T. Roith, E. Habets, D. Tenbrinck, "Adaptive Regularization for Sparsity Control in Bregman-Based
  Optimizers", arXiv 2605.07892, 2026.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from sv_sparse.optim.memory import is_plain
from sv_sparse.optim.prox import group_shrink, hard_threshold, shrink

_DEVICES_WITH_FUSED_KERNELS = {"cpu", "cuda"}
# Weights that one foreach operation computes; bounds the memory of intermediate results.
_FOREACH_CHUNK_SIZE = 32


@dataclass
class ProximalMap:
    """Map from dual variables to weights: ``delta`` times the proximal operator of ``lambda_`` times the penalty.

    Attributes:
        lambda_: strength of the penalty, 0-dim.
        delta: elastic-net parameter, above 0.
        penalty: ``"l1"``, ``"l0"``, ``"group"`` or ``"none"``.
        granularity: groups of ``penalty="group"``; axes are those of the tensor.
    """

    lambda_: Tensor
    delta: float
    penalty: str = "l1"
    granularity: str = "out_channel"

    def __call__(self, dual: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the weight of a dual variable; in ``out`` where that is possible without a copy."""
        if self.penalty == "l1":
            weight = shrink(dual, self.lambda_, out=out)
        elif self.penalty == "l0":
            weight = hard_threshold(dual, self.lambda_, out=out)
        elif self.penalty == "group":
            weight = group_shrink(dual, self.lambda_, self.granularity)
        else:
            weight = dual
        return weight if self.delta == 1 else self.delta * weight

    def with_lambda(self, lambda_: Tensor) -> "ProximalMap":
        """Return the same map with another lambda."""
        return replace(self, lambda_=lambda_)

    def apply_(self, params: Sequence[Tensor], duals: Sequence[Tensor]) -> None:
        """Set each parameter in place to the weight of its dual variable; one that is its own dual stays."""
        pairs = [(param, dual) for param, dual in zip(params, duals, strict=True) if param is not dual]
        if pairs and self.penalty in {"l1", "l0"} and all(self._suits_foreach(*pair) for pair in pairs):
            self._foreach_apply_([param for param, _ in pairs], [dual for _, dual in pairs])
            return
        for param, dual in pairs:
            prox = self
            # A group may lie on several devices.
            if dual.device != self.lambda_.device:
                prox = self.with_lambda(self.lambda_.to(dual.device))
            weight = prox(dual, out=param if _is_valid_out(param, dual) else None)
            if weight is not param:
                param.copy_(weight)

    def _suits_foreach(self, param: Tensor, dual: Tensor) -> bool:
        """Return whether foreach operations take this pair and save time: where a launch costs more than the work."""
        return param.device == dual.device == self.lambda_.device and param.device.type not in {"cpu", "meta"}

    def _foreach_apply_(self, params: list[Tensor], duals: list[Tensor]) -> None:
        """Threshold all tensors by foreach operations, with the same bits as ``shrink`` or ``hard_threshold``."""
        for start in range(0, len(params), _FOREACH_CHUNK_SIZE):
            chunk = duals[start : start + _FOREACH_CHUNK_SIZE]
            weights = list(torch._foreach_abs(chunk))
            torch._foreach_add_(weights, self.lambda_, alpha=-1)
            torch._foreach_clamp_min_(weights, 0.0)
            if self.penalty == "l0":
                # 1 above the threshold, 0 below.
                torch._foreach_sign_(weights)
                torch._foreach_mul_(weights, chunk)
            else:
                torch._foreach_mul_(weights, torch._foreach_sign(chunk))
            # Makes a positive zero of a negative one.
            torch._foreach_add_(weights, 0.0)
            if self.delta != 1:
                torch._foreach_mul_(weights, self.delta)
            torch._foreach_copy_(params[start : start + _FOREACH_CHUNK_SIZE], weights)


def _is_valid_out(param: Tensor, dual: Tensor) -> bool:
    """Return whether operations may write into the parameter: tensor subclasses do not take ``out``."""
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
    """Update dual variables by one step of SGD, in place; ``ProximalMap.apply_`` then gives the weights.

    Weight decay adds ``weight_decay * w`` to the gradient, as in torch.optim.SGD. It is nothing where w is zero.

    Args:
        params: weights w_t, which are read for weight decay only.
        grads: gradients g_t, in the precision and memory layout of ``duals``.
        duals: dual variables v_t; those of weights without a penalty are the parameters themselves.
        momentum_buffers: buffers b_t, updated in place; None where there is none yet, which is replaced.
        lr: step size, 0 or more.
        momentum: factor on the buffer, 0 or more.
        dampening: fraction of the gradient that does not enter the buffer.
        nesterov: use Nesterov's momentum.
        weight_decay: factor on w_t, 0 or more.
        maximize: ascend instead of descend.
        fused: use torch's fused kernel where the device has one; must be False under torch.compile.
    """
    if weight_decay:
        sign = -1 if maximize else 1
        decayed = []
        for grad, param in zip(grads, params, strict=True):
            decayed.append(grad.add(param.to(grad.dtype), alpha=sign * weight_decay))
        grads = decayed
    # torch's kernels take lists in which either all buffers exist or none does
    new = [index for index, buffer in enumerate(momentum_buffers) if buffer is None]
    existing = [index for index, buffer in enumerate(momentum_buffers) if buffer is not None]
    for indices in (new, existing):
        if not indices:
            continue
        buffers = [momentum_buffers[index] for index in indices]
        sgd(
            [duals[index] for index in indices],
            [grads[index] for index in indices],
            buffers,
            fused=fused and duals[0].device.type in _DEVICES_WITH_FUSED_KERNELS,
            foreach=None if fused else True,
            weight_decay=0.0,
            momentum=momentum,
            lr=lr,  # type: ignore[arg-type]  # a tensor is allowed, the annotation is behind
            dampening=dampening,
            nesterov=nesterov,
            maximize=maximize,
        )
        for index, buffer in zip(indices, buffers, strict=True):
            momentum_buffers[index] = buffer


def adabreg(
    params: list[Tensor],
    grads: list[Tensor],
    duals: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float | Tensor,
    maximize: bool,
    fused: bool = True,
) -> None:
    """Update dual variables by one step of Adam, in place; ``ProximalMap.apply_`` then gives the weights.

    Weight decay is decoupled and enters the dual variable: ``v <- v - lr * weight_decay * w``. It is nothing where w
    is zero.

    Args:
        params: weights w_t, which are read for weight decay only.
        grads: gradients g_t, in the precision and memory layout of ``duals``.
        duals: dual variables v_t; those of weights without a penalty are the parameters themselves.
        exp_avgs: Adam's first moments, without bias correction.
        exp_avg_sqs: Adam's second moments, without bias correction.
        state_steps: numbers of updates made, 0-dim float32 tensors.
        lr: step size, 0 or more.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, 0 or more.
        weight_decay: factor on w_t, 0 or more.
        maximize: ascend instead of descend.
        fused: use torch's fused kernel where the device has one; must be False under torch.compile.
    """
    # A tensor's value need not come to the host.
    if isinstance(weight_decay, Tensor) or weight_decay:
        for param, dual in zip(params, duals, strict=True):
            if param is dual:
                # The expression of torch.optim.AdamW, for the same bits.
                dual.mul_(1 - lr * weight_decay)
            else:
                dual.sub_(lr * weight_decay * param)
    adam(
        duals,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        state_steps,
        fused=fused and duals[0].device.type in _DEVICES_WITH_FUSED_KERNELS,
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


def proxsgd(
    params: list[Tensor], grads: list[Tensor], *, lr: float | Tensor, prox: ProximalMap, maximize: bool
) -> None:
    """Make one proximal gradient step in place: ``w <- prox(w - lr * g, lr * lambda)``.

    Args:
        params: weights.
        grads: gradients of the same shapes.
        lr: step size, 0 or more.
        prox: penalty and lambda, with ``delta=1``.
        maximize: ascend instead of descend.
    """
    scaled_prox = prox.with_lambda(lr * prox.lambda_)
    for param, grad in zip(params, grads, strict=True):
        weight = param.to(prox.lambda_.dtype) - (-lr if maximize else lr) * grad
        param.copy_(scaled_prox(weight))
