"""The optimizers LinBreg and AdaBreg: thin classes around the functions in bregman.py.

These and ProxSGD take these settings, in the constructor or in a parameter group:

- ``lr``: step size (tau in the literature), a float or a 0-dim tensor.
- ``lambda_``: strength of the regularizer; kept in each group as a 0-dim tensor that a controller writes.
- ``lambda_scale``: factor on ``lambda_`` in one group, so that groups under one controller differ in strength.
- ``regularizer``: ``"l1"``, zeros single weights; ``"group"``, zeros groups of a weight; ``"mask"``, holds the zeros
  that a MagnitudeController sets; ``"none"``, for parameters that stay dense whatever lambda is.
- ``grouping``: of ``"group"``: ``"output"`` and ``"input"`` channels (rows and columns of a linear layer), or
  ``"kernel"``, one pair of both.
- ``implementation``: ``"fused"`` touches each byte once: ``"native"``, kernels compiled by g++, on a CPU, and
  ``"compile"``, torch.compile, elsewhere. ``"foreach"`` is torch's own operations and needs no compiler. What the
  kernels do not know (groups, masks, weights in 16 bits or with gaps in memory) always goes the last way.
- ``maximize``: ascend instead of descend.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim import bregman, compiled, native
from sv_sparse.optim.optimizer import BregmanOptimizer, Group, Tensors, check, check_common, like_dual

Shape = tuple[Tensor, float, str]  # what reads weights off duals: lambda, delta, regularizer


class _WithDuals(BregmanOptimizer):
    """LinBreg and AdaBreg: the update of the dual is theirs, the way to the weights is common."""

    _settings: tuple[str, ...]

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_common(group)
        check(group["delta"] > 0, "delta", group["delta"], "above 0")
        check(group["weight_decay"] >= 0, "weight_decay", group["weight_decay"], "0 or more")

    def _start(self, group: Group, param: Tensor, dual: Tensor) -> None:
        """Make the parameter's further state, at its first step."""
        raise NotImplementedError

    def _native(self, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def _compiled(
        self, group: Group, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any], read_out: Shape
    ) -> Tensor:
        raise NotImplementedError

    def _plain(self, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any]) -> None:
        raise NotImplementedError

    def _step_of(self, group: Group, make: Callable[[], Callable[..., Tensor]]) -> Callable[..., Tensor]:
        """The group's own compiled step, made at its first."""
        index = next(i for i, other in enumerate(self.param_groups) if other is group)
        if index not in self._steps:
            self._steps[index] = make()
        return self._steps[index]

    def _lay_out(self, param: Tensor, dual: Tensor, *names: str) -> None:
        """Bring state into the dual's memory layout, where the parameter's has changed since."""
        state = self.state[param]
        for name in names:
            if name in state:
                state[name] = like_dual(state[name], dual)

    def _move(self, group: Group, params: Tensors, grads: Tensors) -> None:
        duals = [self._dual(group, param) for param in params]
        grads = [like_dual(grad, dual) for grad, dual in zip(grads, duals, strict=True)]
        ways: dict[str, tuple[Tensors, Tensors, Tensors]] = {}
        for param, grad, dual in zip(params, grads, duals, strict=True):
            self._start(group, param, dual)
            lists = ways.setdefault(_way(group, param, dual), ([], [], []))
            for entry, tensor in zip(lists, (param, grad, dual), strict=True):
                entry.append(tensor)
        how = self._how(group)
        settings = {key: group[key] for key in self._settings}
        if how.regularizer in {"mask", "none"}:
            settings["lr"] = settings["lr"] * group["delta"]
        for way, lists in ways.items():
            if way == "foreach":
                self._plain(lists, settings)
                how.write(lists[0], lists[2], self._masks(group, lists[0]))
                continue
            if way == "native":
                counts = self._native(lists, settings | {"lambda_": float(how.lambda_), "delta": how.delta})
            else:
                settings["lr"] = _on_device(settings["lr"], how.lambda_)
                counts = self._compiled(group, lists, settings, (how.lambda_, how.delta, how.regularizer))
            if how.regularizer == "l1":
                versions = [param._version for param in lists[0]]
                self._counts.update(zip(lists[0], zip(versions, counts.unbind(), strict=True), strict=True))


def _way(group: Group, param: Tensor, dual: Tensor) -> str:
    """Which implementation this parameter's step takes."""
    asked: str = group["implementation"]
    if torch.compiler.is_compiling() or asked == "foreach" or group["regularizer"] in {"group", "mask"}:
        return "foreach"
    if asked == "compile" or (asked == "fused" and param.device.type != "cpu"):
        return "compile"
    return "native" if native.fits(param, dual) else "foreach"


def _on_device(lr: float | Tensor, like: Tensor) -> Tensor:
    return lr if isinstance(lr, Tensor) else torch.full((), lr, dtype=like.dtype, device=like.device)


class LinBreg(_WithDuals):
    """Linearized Bregman iterations with torch.optim.SGD's momentum.

    With ``lambda_=0`` this is torch.optim.SGD with learning rate ``delta * lr``.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: see the top of this module, as for all that is not listed here.
        lambda_: see there.
        delta: elastic-net scale; the weights are ``delta * prox(v, lambda_)``.
        momentum: as in torch.optim.SGD.
        dampening: as in torch.optim.SGD.
        nesterov: as in torch.optim.SGD.
        weight_decay: added to the gradient as ``weight_decay * w``, as in torch.optim.SGD.
        lambda_scale: see there.
        regularizer: see there.
        grouping: see there.
        implementation: see there.
        maximize: see there.

    Raises:
        ValueError: a setting is out of its bounds; names the setting, the bounds and the value.
        OSError: the kernels cannot be compiled; says how to do without.
    """

    _settings = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize")

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
        lambda_scale: float = 1.0,
        regularizer: str = "l1",
        grouping: str = "output",
        implementation: str = "fused",
        maximize: bool = False,
    ) -> None:
        defaults = {key: value for key, value in locals().items() if key not in {"self", "params", "__class__"}}
        super().__init__(params, defaults)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        check(group["momentum"] >= 0, "momentum", group["momentum"], "0 or more")
        plain = group["momentum"] > 0 and group["dampening"] == 0
        check(plain or not group["nesterov"], "nesterov", True, "used with momentum above 0 and dampening 0")

    def _start(self, group: Group, param: Tensor, dual: Tensor) -> None:
        self._lay_out(param, dual, "momentum_buffer")

    def _buffers(self, params: Tensors) -> list[Tensor | None]:
        return [self.state[param].get("momentum_buffer") for param in params]

    def _keep(self, params: Tensors, buffers: Sequence[Tensor | None]) -> None:
        for param, buffer in zip(params, buffers, strict=True):
            if buffer is not None:
                self.state[param]["momentum_buffer"] = buffer

    def _native(self, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any]) -> Tensor:
        settings |= {"lr": float(settings["lr"])}
        if not settings["momentum"]:
            return native.linbreg(*lists, lists[2], fresh=False, **settings)
        counts = torch.empty(len(lists[0]), dtype=torch.int64, device="cpu")
        found = self._buffers(lists[0])
        for fresh in (True, False):
            chosen = [index for index, buffer in enumerate(found) if (buffer is None) == fresh]
            if not chosen:
                continue
            params, grads, duals = ([entry[index] for index in chosen] for entry in lists)
            if fresh:
                self._keep(params, [torch.zeros_like(dual) for dual in duals])
            buffers = [self.state[param]["momentum_buffer"] for param in params]
            counts[chosen] = native.linbreg(params, grads, duals, buffers, fresh=fresh, **settings)
        return counts

    def _compiled(
        self, group: Group, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any], read_out: Shape
    ) -> Tensor:
        buffers = self._buffers(lists[0])
        if settings["momentum"] and any(buffer is None for buffer in buffers):
            self._plain(lists, settings)  # a first step makes the buffers; the one after it compiles
            bregman.ReadOut(*read_out).write(lists[0], lists[2])
            return torch.stack([torch.count_nonzero(param) for param in lists[0]])
        return self._step_of(group, compiled.linbreg)(*lists, buffers, read_out=read_out, **settings)

    def _plain(self, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any]) -> None:
        buffers = self._buffers(lists[0])
        bregman.linbreg(*lists, buffers, fused=not torch.compiler.is_compiling(), **settings)
        if settings["momentum"]:
            self._keep(lists[0], buffers)


class AdaBreg(_WithDuals):
    """Linearized Bregman iterations with Adam's moments.

    With ``lambda_=0`` this is torch.optim.Adam with learning rate ``delta * lr`` (AdamW with weight decay).

    Args:
        params: parameters, named parameters, or groups of them.
        lr: see the top of this module, as for all that is not listed here.
        lambda_: see there.
        betas: decay rates of Adam's moments.
        eps: added to the denominator.
        delta: elastic-net scale; the weights are ``delta * prox(v, lambda_)``.
        weight_decay: decoupled, in the dual: ``v <- v - lr * weight_decay * w``.
        lambda_scale: see there.
        regularizer: see there.
        grouping: see there.
        implementation: see there.
        maximize: see there.

    Raises:
        ValueError: a setting is out of its bounds; names the setting, the bounds and the value.
        OSError: the kernels cannot be compiled; says how to do without.
    """

    _settings = ("lr", "betas", "eps", "weight_decay", "maximize")

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
        lambda_scale: float = 1.0,
        regularizer: str = "l1",
        grouping: str = "output",
        implementation: str = "fused",
        maximize: bool = False,
    ) -> None:
        betas = (betas[0], betas[1])
        defaults = {key: value for key, value in locals().items() if key not in {"self", "params", "__class__"}}
        super().__init__(params, defaults)

    def _check_group(self, group: Mapping[str, Any]) -> None:
        super()._check_group(group)
        check(all(0 <= beta < 1 for beta in group["betas"]), "betas", group["betas"], "in [0, 1)")
        check(group["eps"] >= 0, "eps", group["eps"], "0 or more")

    def _start(self, group: Group, param: Tensor, dual: Tensor) -> None:
        state = self.state[param]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=dual.device)
            state["exp_avg"] = torch.zeros_like(dual)
            state["exp_avg_sq"] = torch.zeros_like(dual)
        self._lay_out(param, dual, "exp_avg", "exp_avg_sq")

    def _moments(self, params: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        keys = ("exp_avg", "exp_avg_sq", "step")
        states = [self.state[param] for param in params]
        exp_avgs, exp_avg_sqs, steps = ([state[key] for state in states] for key in keys)
        return exp_avgs, exp_avg_sqs, steps

    def _native(self, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any]) -> Tensor:
        return native.adabreg(*lists, *self._moments(lists[0]), **settings | {"lr": float(settings["lr"])})

    def _compiled(
        self, group: Group, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any], read_out: Shape
    ) -> Tensor:
        settings["betas"] = tuple(_on_device(beta, read_out[0]) for beta in settings["betas"])
        step = self._step_of(group, compiled.adabreg)
        return step(*lists, *self._moments(lists[0]), read_out=read_out, **settings)

    def _plain(self, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any]) -> None:
        bregman.adabreg(*lists, *self._moments(lists[0]), fused=not torch.compiler.is_compiling(), **settings)
