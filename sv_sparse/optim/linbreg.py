"""LinBreg: linearized Bregman iterations with the momentum of torch.optim.SGD."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim import functional
from sv_sparse.optim.bregman_optimizer import BregmanOptimizer, Group, TensorLists
from sv_sparse.optim.cpp import bindings
from sv_sparse.optim.functional import ProximalMap
from sv_sparse.optim.memory import match_layout
from sv_sparse.optim.validation import NONNEGATIVE, require, require_flag, require_number


class LinBreg(BregmanOptimizer):
    r"""Linearized Bregman iterations with the momentum of torch.optim.SGD.

    With the weights w_t, the gradients g_t of the loss at w_t, the momentum buffers b_t and the dual variables v_t,
    one step computes::

        b_t     = momentum * b_{t-1} + (1 - dampening) * (g_t + weight_decay * w_t)       b_1 = g_1 + weight_decay * w_1
        v_{t+1} = v_t - lr * b_t
        w_{t+1} = delta * prox(v_{t+1}, lambda_t)

    BregmanOptimizer has the formulas of prox. With ``maximize`` the sign of g_t is turned.
    With ``nesterov`` the step is
    ``lr * (g_t + weight_decay * w_t + momentum * b_t)``.

    v_1 is ``w_1 / delta + lambda * sign(w_1)``, so that the first weights are those of the model; under l0 it is
    ``w_1 / delta``, and a weight of at most ``delta * lambda`` becomes zero.
    With ``lambda_init=0`` this is torch.optim.SGD with the learning rate ``delta * lr``.

    Sources: Bungert, Roith, Tenbrinck, Burger, "A Bregman Learning Framework for Sparse Neural Networks", JMLR 23(192),
    2022; its code, github.com/TimRoith/BregmanLearning; arXiv 2605.07892 for the control of lambda.

    Args:
        params: parameters, (name, parameter) pairs, or groups of them such as ``param_groups(model)`` returns. Keys
            of groups: see BregmanOptimizer.
        lr: step size, a number or a 0-dim tensor, 0 or more. Default: 0.1.
        lambda_init: strength of the penalty at the start, 0 or more, which becomes the key ``lambda_`` of each
            group. A controller changes it, and lowers it at once if it is large beside the weights. Default: 0.1.
        delta: elastic-net parameter, above 0. A larger one makes larger weights. Default: 1.
        momentum: factor on the buffer, 0 or more. Default: 0.
        dampening: fraction of the gradient that does not enter the buffer. Default: 0.
        nesterov: use Nesterov's momentum; needs momentum above 0 and dampening 0. Default: False.
        weight_decay: factor on the weights in the gradient, 0 or more. Default: 0.
        lambda_scale: factor on lambda in a group, above 0. Default: 1.
        penalty: ``"l1"`` (zeros single weights; for a sparse start), ``"l0"`` (too, and leaves the others as they are;
            for pretrained weights), ``"group"`` (zeros groups of weights) or ``"none"``. Default: l1.
        granularity: groups of the group penalty: ``"out_channel"``, ``"in_channel"`` or ``"kernel"``. Default:
            out_channel.
        backend: ``"auto"``, ``"cpp"`` or ``"foreach"``, see BregmanOptimizer. Default: auto.
        maximize: ascend instead of descend. Default: False.

    Raises:
        ValueError: an argument is out of its bounds; names the argument, the bounds and the value.
        OSError: ``backend="cpp"`` and the kernels cannot be compiled; says how to do without.

    >>> weight = torch.nn.Parameter(torch.tensor([0.5, 0.0]))
    >>> optimizer = LinBreg([weight], lr=1.0, lambda_init=1.0)
    >>> weight.grad = torch.tensor([0.1, -1.5])
    >>> optimizer.step()  # the dual variables [1.5, 0] become [1.4, 1.5]
    >>> weight.data
    tensor([0.4000, 0.5000])
    """

    _hyperparameters = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize")
    _saved_group_keys = (*BregmanOptimizer._saved_group_keys, "momentum", "dampening", "nesterov")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        *,
        lambda_init: float = 0.1,
        delta: float = 1.0,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        lambda_scale: float = 1.0,
        penalty: str = "l1",
        granularity: str = "out_channel",
        backend: str = "auto",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lambda_": lambda_init,
            "delta": delta,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "lambda_scale": lambda_scale,
            "penalty": penalty,
            "granularity": granularity,
            "backend": backend,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        require_number("weight_decay", group["weight_decay"], NONNEGATIVE, at_least=0)
        require_number("momentum", group["momentum"], NONNEGATIVE, at_least=0)
        require_number("dampening", group["dampening"], "a finite number")
        require_flag("nesterov", group["nesterov"])
        allows_nesterov = group["momentum"] > 0 and group["dampening"] == 0
        require(
            allows_nesterov or not group["nesterov"], "nesterov", True, "used with momentum above 0 and dampening 0"
        )

    def _init_state(self, param: Tensor, dual: Tensor) -> None:
        # torch.optim.SGD's buffer is the first gradient itself, so it is made in the step
        state = self.state[param]
        if "momentum_buffer" in state:
            state["momentum_buffer"] = match_layout(state["momentum_buffer"], dual)

    def _update_foreach(self, tensors: TensorLists, hyperparameters: dict[str, Any]) -> None:
        buffers = self._momentum_buffers(tensors.params)
        functional.linbreg(*tensors, buffers, fused=not torch.compiler.is_compiling(), **hyperparameters)
        if hyperparameters["momentum"]:
            for param, buffer in zip(tensors.params, buffers, strict=True):
                self.state[param]["momentum_buffer"] = buffer

    def _update_cpp(self, tensors: TensorLists, hyperparameters: dict[str, Any], prox: ProximalMap) -> Tensor:
        arguments = hyperparameters | {
            "lr": float(hyperparameters["lr"]),
            "penalty": prox.penalty,
            "lambda_": float(prox.lambda_),
            "delta": prox.delta,
        }
        if not hyperparameters["momentum"]:
            return bindings.linbreg(*tensors, tensors.duals, is_first=False, **arguments)
        buffers = self._momentum_buffers(tensors.params)
        new = [index for index, buffer in enumerate(buffers) if buffer is None]
        existing = [index for index, buffer in enumerate(buffers) if buffer is not None]
        for index in new:
            self.state[tensors.params[index]]["momentum_buffer"] = torch.zeros_like(tensors.duals[index])
        counts = torch.empty(len(tensors.params), dtype=torch.int64, device="cpu")
        for indices, is_first in ((new, True), (existing, False)):
            if indices:
                batch = tensors.select(indices)
                batch_buffers = [self.state[param]["momentum_buffer"] for param in batch.params]
                counts[indices] = bindings.linbreg(*batch, batch_buffers, is_first=is_first, **arguments)
        return counts

    def _momentum_buffers(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        return [self.state[param].get("momentum_buffer") for param in params]
