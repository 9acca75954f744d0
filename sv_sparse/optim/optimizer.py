"""What all Bregman optimizers share: groups with a lambda tensor, duals in float32, the frame of a step."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sv_sparse.optim import native
from sv_sparse.optim.bregman import ReadOut
from sv_sparse.optim.native import same_layout
from sv_sparse.optim.prox import GROUPINGS, REGULARIZERS, subgradient

Tensors = list[Tensor]
Group = dict[str, Any]

IMPLEMENTATIONS = ("fused", "native", "compile", "foreach")
_WITH_DUAL = ("l1", "group")  # elsewhere a weight is its own dual


def check(allowed: bool, name: str, value: object, meaning: str) -> None:
    """Refuse a setting: ValueError with its name, what is allowed and what came."""
    if not allowed:
        raise ValueError(f"{name} must be {meaning}, got {value!r}")


def check_common(group: Mapping[str, Any]) -> None:
    """Check the hyperparameters that every Bregman optimizer has."""
    check(group["lr"] >= 0, "lr", group["lr"], "0 or more")
    check(0 <= float(group["lambda_"]) < inf, "lambda_", float(group["lambda_"]), "0 or more, and finite")
    check(0 < group["lambda_scale"] < inf, "lambda_scale", group["lambda_scale"], "above 0, and finite")
    choices = {"regularizer": REGULARIZERS, "grouping": GROUPINGS, "implementation": IMPLEMENTATIONS}
    for name, allowed in choices.items():
        check(group[name] in allowed, name, group[name], f"one of {', '.join(allowed)}")
    thin = [tuple(param.shape) for param in group["params"] if param.ndim < 2 and group["regularizer"] == "group"]
    check(not thin, 'parameters with regularizer="group"', thin, "of two axes or more")


class BregmanOptimizer(Optimizer):
    """A torch optimizer whose groups have a ``lambda_``; see LinBreg, AdaBreg and ProxSGD."""

    _counts: dict[Tensor, tuple[int, Tensor]]  # nonzero weights, with the version of the parameter that was counted
    _steps: dict[int, Callable[..., Tensor]]  # compiled steps, by group

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, as copying and unpickling do."""
        super().__setstate__(state)
        self._counts, self._steps = {}, {}

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its ``lambda_`` becomes a 0-dim tensor of its own on the parameters' device.

        Raises:
            ValueError: a setting is out of its bounds; the group is not added.
            OSError: the kernels cannot be compiled; says how to do without.
        """
        self._counts, self._steps = {}, {}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_group(group)
            _check_implementation(group)
        except Exception:  # whatever it is: a refused group is not kept
            self.param_groups.pop()
            raise
        group["lambda_"] = self._lambda_tensor(group)

    def lambda_of(self, group: Group) -> Tensor:
        """The group's lambda; a number that was set from outside, as one sets lr, becomes a tensor."""
        if not isinstance(group["lambda_"], Tensor):
            group["lambda_"] = self._lambda_tensor(group)
        return group["lambda_"]

    def _lambda_tensor(self, group: Mapping[str, Any]) -> Tensor:
        """The group's lambda in the precision of its duals, on their device."""
        first = group["params"][0] if group["params"] else torch.zeros(())
        dtype = torch.promote_types(first.dtype, torch.float32)
        return torch.full((), float(group["lambda_"]), dtype=dtype, device=first.device)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _move(self, group: Group, params: Tensors, grads: Tensors) -> None:
        """Update the parameters' state and weights, and keep what was counted on the way."""
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
        self._counts.clear()
        for group in self.param_groups:
            moving = [param for param in group["params"] if param.grad is not None]
            if moving:
                self._move(group, moving, [_gradient(param) for param in moving])
            self._read_out(group, [param for param in group["params"] if param.grad is None])
        return loss

    @torch.no_grad()
    def read_out(self) -> None:
        """Read the weights off the duals again, after lambda or masks were changed in between two steps."""
        self._counts.clear()
        for group in self.param_groups:
            self._read_out(group, group["params"])

    def _read_out(self, group: Group, params: Sequence[Tensor]) -> None:
        """Read out those that have begun to move."""
        known = [param for param in params if self.state.get(param)]
        self._how(group).write(known, [self._dual(group, param) for param in known], self._masks(group, known))

    def _how(self, group: Group) -> ReadOut:
        scale = group["lambda_scale"]
        lambda_ = self.lambda_of(group) if scale == 1 else scale * self.lambda_of(group)
        regularizer = group["regularizer"]
        return ReadOut(lambda_, group["delta"] if regularizer in _WITH_DUAL else 1.0, regularizer, group["grouping"])

    def _masks(self, group: Group, params: Sequence[Tensor]) -> Tensors:
        if group["regularizer"] != "mask":
            return []
        for param in params:
            if "mask" not in self.state[param]:
                self.state[param]["mask"] = torch.ones_like(param, dtype=torch.bool)
        return [self.state[param]["mask"] for param in params]

    @torch.no_grad()
    def count_nonzero(self, params: Sequence[Tensor]) -> Tensor:
        """Nonzero weights of each parameter, [len(params)] int64 on the device.

        The fused kernels count in the same pass as the update; otherwise it is counted here.
        """
        return torch.stack([self._count_nonzero(param) for param in params])

    def _count_nonzero(self, param: Tensor) -> Tensor:
        if param in self._counts:
            version, count = self._counts[param]
            if version == param._version:
                return count
        return torch.count_nonzero(param)

    @torch.no_grad()
    def duals(self, group: Group) -> Tensors:
        """The duals of a group's parameters; those that never had a gradient get theirs now."""
        return [self._dual(group, param) for param in group["params"]]

    def _dual(self, group: Group, param: Tensor) -> Tensor:
        """The parameter's dual, created at its first step so that the first read-out reproduces the weights.

        A float32 weight that nothing regularizes is its own dual; one in 16 bits has its float32 copy.
        """
        precise = torch.promote_types(param.dtype, torch.float32)
        apart = group["regularizer"] in _WITH_DUAL
        if not apart and precise == param.dtype:
            return param
        state = self.state[param]
        if "dual" not in state:
            weight = param.detach().to(precise)
            how = self._how(group)
            grouping = how.grouping if how.regularizer == "group" else None
            lambda_ = how.lambda_.to(precise)
            state["dual"] = subgradient(weight, lambda_, how.delta, grouping=grouping) if apart else weight
        elif not same_layout(param, state["dual"]):
            state["dual"] = torch.empty_like(param, dtype=precise).copy_(state["dual"])
        return state["dual"]

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load; everything goes to the parameters' device and memory layout, in the precision of the duals.

        Groups keep their own ``implementation``: it belongs to the machine, not to the state.

        Raises:
            ValueError: a saved group was regularized in another way.
        """
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=False):
            for key in ("regularizer", "grouping"):
                check(
                    saved[key] == group[key], f"a saved group's {key}", saved[key], f"the group's own, {group[key]!r}"
                )
        own = [group["implementation"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, implementation in zip(self.param_groups, own, strict=True):
            group["implementation"] = implementation
        self._counts.clear()
        order = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for group in self.param_groups:
            group["lambda_"] = self._lambda_tensor(group)
        for index, param in zip(order, params, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if value is not None:
                    self.state[param][key] = _like_param(value, param)


def _check_implementation(group: Mapping[str, Any]) -> None:
    """Say before the first step what cannot be had."""
    devices = {param.device.type for param in group["params"]}
    if group["implementation"] == "native":
        check(devices <= {"cpu"}, 'implementation="native"', sorted(devices), "for parameters on the CPU")
    if group["implementation"] in {"fused", "native"} and "cpu" in devices:
        native.library()


def _gradient(param: Tensor) -> Tensor:
    if param.grad is None or param.grad.is_sparse:
        raise RuntimeError("Bregman optimizers do not support sparse gradients")
    return param.grad


def like_dual(grad: Tensor, dual: Tensor) -> Tensor:
    """The gradient in the dual's precision and memory layout: fused kernels walk both in storage order."""
    if grad.dtype == dual.dtype and same_layout(grad, dual):
        return grad
    return torch.empty_like(dual).copy_(grad)


def _like_param(value: Tensor, param: Tensor) -> Tensor:
    """A copy of saved state in the parameter's memory layout and the dual's precision; counters and masks as saved."""
    if value.shape != param.shape or value.ndim == 0:
        return value.to(param.device, copy=True)
    precise = value.dtype if value.dtype == torch.bool else torch.promote_types(param.dtype, torch.float32)
    return torch.empty_like(param, dtype=precise).copy_(value)
