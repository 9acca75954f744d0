"""AdaBreg: linearized Bregman iterations with the moments of torch.optim.Adam."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim import functional
from sv_sparse.optim.bregman_optimizer import BregmanOptimizer, Group, TensorLists, Tensors
from sv_sparse.optim.cpp import bindings
from sv_sparse.optim.functional import ProximalMap
from sv_sparse.optim.memory import match_layout
from sv_sparse.optim.validation import NONNEGATIVE, require, require_number


class AdaBreg(BregmanOptimizer):
    r"""Linearized Bregman iterations with the moments of torch.optim.Adam.

    With the weights w_t, the gradients g_t of the loss at w_t, the moments m_t and u_t and the dual variables v_t, one
    step computes::

        m_t     = beta1 * m_{t-1} + (1 - beta1) * g_t                                             m_0 = 0
        u_t     = beta2 * u_{t-1} + (1 - beta2) * g_t^2                                           u_0 = 0
        d_t     = (m_t / (1 - beta1^t)) / (sqrt(u_t / (1 - beta2^t)) + eps)
        v_{t+1} = v_t - lr * (d_t + weight_decay * w_t)
        w_{t+1} = delta * prox(v_{t+1}, lambda_t)

    BregmanOptimizer has the formulas of prox. With ``maximize`` the sign of g_t is turned. Of torch's Adam there are no
    ``amsgrad``, ``fused``, ``capturable`` and ``differentiable``.

    v_1 is ``w_1 / delta + lambda * sign(w_1)``, so that the first weights are those of the model; under l0 it is
    ``w_1 / delta``, and a weight of at most ``delta * lambda`` becomes zero.
    With ``lambda_init=0`` this is torch.optim.Adam with the learning rate ``delta * lr`` (AdamW with weight decay).

    Sources: Bungert, Roith, Tenbrinck, Burger, "A Bregman Learning Framework for Sparse Neural Networks", JMLR 23(192),
    2022; its code, github.com/TimRoith/BregmanLearning; arXiv 2605.07892 for the control of lambda.

    Args:
        params: parameters, (name, parameter) pairs, or groups of them such as ``param_groups(model)`` returns. Keys
            of groups: see BregmanOptimizer.
        lr: step size, a number or a 0-dim tensor, 0 or more. Default: 0.01, which suits a sparse start; pretrained
            weights need about 0.001 under l0 and 0.003 under l1.
        lambda_init: strength of the penalty at the start, 0 or more, which becomes the key ``lambda_`` of each
            group. A controller changes it, and lowers it at once if it is large beside the weights. Default: 0.1.
        betas: decay rates of the two moments, each in [0, 1). Default: (0.9, 0.999).
        eps: added to the denominator, 0 or more. Default: 1e-8.
        delta: elastic-net parameter, above 0. A larger one makes larger weights. Default: 1.
        weight_decay: decoupled decay of the weights in the dual variable, 0 or more. Default: 0.
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
    >>> optimizer = AdaBreg([weight], lr=0.1, lambda_init=1.0)
    >>> weight.grad = torch.tensor([0.2, -0.2])
    >>> optimizer.step()  # the dual variables [1.5, 0] become [1.4, 0.1], which is below lambda
    >>> weight.data
    tensor([0.4000, 0.0000])
    """

    _hyperparameters = ("lr", "betas", "eps", "weight_decay", "maximize")
    _saved_group_keys = (*BregmanOptimizer._saved_group_keys, "betas", "eps")
    _saved_state_keys = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        *,
        lambda_init: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        delta: float = 1.0,
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
            "betas": betas,
            "eps": eps,
            "delta": delta,
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
        betas = group["betas"]
        require(isinstance(betas, Sequence) and len(betas) == 2, "betas", betas, "two numbers in [0, 1)")
        for beta in betas:
            require_number("betas", beta, "two numbers in [0, 1)", at_least=0, below=1, or_tensor=True)
        # torch.load(weights_only=True) refuses OmegaConf's lists.
        group["betas"] = tuple(betas)
        require_number("eps", group["eps"], NONNEGATIVE, at_least=0)

    def _init_state(self, param: Tensor, dual: Tensor) -> None:
        state = self.state[param]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=dual.device)
            state["exp_avg"] = torch.zeros_like(dual)
            state["exp_avg_sq"] = torch.zeros_like(dual)
        state["step"] = state["step"].to(dual.device)
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = match_layout(state[key], dual)

    def _update_foreach(self, tensors: TensorLists, hyperparameters: dict[str, Any]) -> None:
        fused = not torch.compiler.is_compiling()
        functional.adabreg(*tensors, *self._moments(tensors.params), fused=fused, **hyperparameters)

    def _update_cpp(self, tensors: TensorLists, hyperparameters: dict[str, Any], prox: ProximalMap) -> Tensor:
        arguments = hyperparameters | {
            "lr": float(hyperparameters["lr"]),
            "penalty": prox.penalty,
            "lambda_": float(prox.lambda_),
            "delta": prox.delta,
        }
        return bindings.adabreg(*tensors, *self._moments(tensors.params), **arguments)

    def _moments(self, params: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        """Return first moments, second moments and numbers of steps."""
        states = [self.state[param] for param in params]
        exp_avgs = [state["exp_avg"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        state_steps = [state["step"] for state in states]
        return exp_avgs, exp_avg_sqs, state_steps
