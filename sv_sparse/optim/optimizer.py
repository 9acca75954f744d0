"""The optimizers LinBreg and AdaBreg: plumbing around the functions in bregman.py."""

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sv_sparse.optim.bregman import adabreg, linbreg, read_out
from sv_sparse.optim.prox import REGULARIZERS, subgradient

Tensors = list[Tensor]


def _check(allowed: bool, name: str, value: object, meaning: str) -> None:
    if not allowed:
        raise ValueError(f"{name} must be {meaning}, got {value!r}")


def _check_common(group: Mapping[str, Any]) -> None:
    """Check the hyperparameters that every Bregman optimizer has; ValueError names the setting and its bounds."""
    _check(group["lr"] >= 0, "lr", group["lr"], "0 or more")
    _check(0 <= float(group["lambda_"]) < inf, "lambda_", float(group["lambda_"]), "0 or more, and finite")
    _check(group["delta"] > 0, "delta", group["delta"], "above 0")
    _check(group["weight_decay"] >= 0, "weight_decay", group["weight_decay"], "0 or more")
    known = group["regularizer"] in REGULARIZERS
    _check(known, "regularizer", group["regularizer"], f"one of {', '.join(REGULARIZERS)}")


class BregmanOptimizer(Optimizer):
    """What LinBreg and AdaBreg share: groups with a lambda tensor, float32 duals, the step's frame."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its ``lambda_`` becomes a 0-dim tensor of its own on the parameters' device.

        Raises:
            ValueError: a setting is out of its bounds; the group is not added.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
        except ValueError:
            self.param_groups.pop()
            raise
        group["lambda_"] = self._lambda_tensor(group)

    def _lambda_tensor(self, group: Mapping[str, Any]) -> Tensor:
        """The group's lambda in the precision of its duals, on their device."""
        first = group["params"][0] if group["params"] else torch.zeros(())
        dtype = torch.promote_types(first.dtype, torch.float32)
        return torch.full((), float(group["lambda_"]), dtype=dtype, device=first.device)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _start(self, param: Tensor, dual: Tensor) -> dict[str, Tensor]:
        """Further state of a parameter beside its dual, at its first step."""
        raise NotImplementedError

    def _update(self, group: dict[str, Any], params: Tensors, grads: Tensors, duals: Tensors) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss, as in torch.optim.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if not isinstance(group["lambda_"], Tensor):  # set from outside, as one sets lr
                group["lambda_"] = self._lambda_tensor(group)
            moving = [param for param in group["params"] if param.grad is not None]
            if moving:
                duals = [self._dual(group, param) for param in moving]
                grads = [_like_dual(param.grad, dual) for param, dual in zip(moving, duals, strict=True)]
                if group["maximize"]:
                    grads = [-grad for grad in grads]
                self._update(group, moving, grads, duals)
            self._read_out(group, [param for param in group["params"] if param.grad is None])
        return loss

    @torch.no_grad()
    def read_out(self) -> None:
        """Read the weights off the duals again, after lambda was changed in between two steps."""
        for group in self.param_groups:
            self._read_out(group, group["params"])

    def _read_out(self, group: dict[str, Any], params: Tensors) -> None:
        started = [param for param in params if "dual" in self.state.get(param, {})]
        duals = [self.state[param]["dual"] for param in started]
        read_out(started, duals, **{key: group[key] for key in ("lambda_", "delta", "regularizer")})

    @torch.no_grad()
    def duals(self, group: dict[str, Any]) -> Tensors:
        """The duals of a group's parameters; those that never had a gradient get theirs now."""
        return [self._dual(group, param) for param in group["params"]]

    def _dual(self, group: dict[str, Any], param: Tensor) -> Tensor:
        """The parameter's dual, created at its first step so that the first read-out reproduces the weights."""
        state = self.state[param]
        if "dual" not in state:
            weight = param.detach().to(torch.promote_types(param.dtype, torch.float32))
            strength = group["lambda_"] * (group["regularizer"] != "none")
            state["dual"] = subgradient(weight, strength.to(weight.dtype), group["delta"])
            state.update(self._start(param, state["dual"]))
        return state["dual"]

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load; everything goes to the parameters' device and memory layout, in the precision of the duals."""
        super().load_state_dict(state_dict)
        order = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for group in self.param_groups:
            group["lambda_"] = self._lambda_tensor(group)
        for index, param in zip(order, params, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if value is not None:
                    self.state[param][key] = _like_param(value, param)


def _like_dual(grad: Tensor, dual: Tensor) -> Tensor:
    """The gradient in the dual's precision and memory layout: fused kernels walk both in storage order."""
    if grad.is_sparse:
        raise RuntimeError("Bregman optimizers do not support sparse gradients")
    if grad.dtype == dual.dtype and grad.stride() == dual.stride():
        return grad
    return torch.empty_like(dual).copy_(grad)


def _like_param(value: Tensor, param: Tensor) -> Tensor:
    """A copy of saved state in the parameter's memory layout and the dual's precision; counters stay float32."""
    if value.shape != param.shape or value.ndim == 0:
        return value.to(param.device, copy=True)
    return torch.empty_like(param, dtype=torch.promote_types(param.dtype, torch.float32)).copy_(value)


class LinBreg(BregmanOptimizer):
    """Linearized Bregman iterations with torch.optim.SGD's momentum.

    With ``lambda_=0`` this is torch.optim.SGD with learning rate ``delta * lr``.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: dual step size (tau in the literature), float or 0-dim tensor.
        lambda_: l1 strength; of groups with ``regularizer="l1"``. Kept in each group as a tensor.
        delta: elastic-net scale; the weights are ``delta * shrink(v, lambda_)``.
        momentum: as in torch.optim.SGD.
        dampening: as in torch.optim.SGD.
        nesterov: as in torch.optim.SGD.
        weight_decay: added to the gradient as ``weight_decay * w``, as in torch.optim.SGD.
        regularizer: ``"l1"``, or ``"none"`` for parameters that stay dense whatever lambda is.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a setting is out of its bounds; names the setting, the bounds and the value.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        *,
        lambda_: float = 0.1,
        delta: float = 1.0,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        regularizer: str = "l1",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lambda_": lambda_,
            "delta": delta,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "regularizer": regularizer,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        _check_common(group)
        _check(group["momentum"] >= 0, "momentum", group["momentum"], "0 or more")
        plain = group["momentum"] > 0 and group["dampening"] == 0
        _check(plain or not group["nesterov"], "nesterov", True, "used with momentum above 0 and dampening 0")

    def _start(self, param: Tensor, dual: Tensor) -> dict[str, Tensor]:
        return {}

    def _update(self, group: dict[str, Any], params: Tensors, grads: Tensors, duals: Tensors) -> None:
        states = [self.state[param] for param in params]
        buffers = [state.get("momentum_buffer") for state in states]
        keys = ("lr", "lambda_", "delta", "momentum", "dampening", "nesterov", "weight_decay", "regularizer")
        linbreg(params, grads, duals, buffers, **{key: group[key] for key in keys})
        if group["momentum"]:
            for state, buffer in zip(states, buffers, strict=True):
                state["momentum_buffer"] = buffer


class AdaBreg(BregmanOptimizer):
    """Linearized Bregman iterations with Adam's moments.

    With ``lambda_=0`` this is torch.optim.Adam with learning rate ``delta * lr`` (AdamW with weight decay).

    Args:
        params: parameters, named parameters, or groups of them.
        lr: dual step size (tau in the literature), float or 0-dim tensor.
        lambda_: l1 strength; of groups with ``regularizer="l1"``. Kept in each group as a tensor.
        betas: decay rates of Adam's moments.
        eps: added to the denominator.
        delta: elastic-net scale; the weights are ``delta * shrink(v, lambda_)``.
        weight_decay: decoupled, in the dual: ``v <- v - lr * weight_decay * w``.
        regularizer: ``"l1"``, or ``"none"`` for parameters that stay dense whatever lambda is.
        maximize: ascend instead of descend.

    Raises:
        ValueError: a setting is out of its bounds; names the setting, the bounds and the value.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        *,
        lambda_: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        delta: float = 1.0,
        weight_decay: float = 0.0,
        regularizer: str = "l1",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lambda_": lambda_,
            "betas": tuple(betas),
            "eps": eps,
            "delta": delta,
            "weight_decay": weight_decay,
            "regularizer": regularizer,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        _check_common(group)
        _check(all(0 <= beta < 1 for beta in group["betas"]), "betas", group["betas"], "in [0, 1)")
        _check(group["eps"] >= 0, "eps", group["eps"], "0 or more")

    def _start(self, param: Tensor, dual: Tensor) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), dtype=torch.float32, device=dual.device),
            "exp_avg": torch.zeros_like(dual),
            "exp_avg_sq": torch.zeros_like(dual),
        }

    def _update(self, group: dict[str, Any], params: Tensors, grads: Tensors, duals: Tensors) -> None:
        exp_avgs = [self.state[param]["exp_avg"] for param in params]
        exp_avg_sqs = [self.state[param]["exp_avg_sq"] for param in params]
        steps = [self.state[param]["step"] for param in params]
        keys = ("lr", "lambda_", "delta", "betas", "eps", "weight_decay", "regularizer")
        adabreg(params, grads, duals, exp_avgs, exp_avg_sqs, steps, **{key: group[key] for key in keys})
