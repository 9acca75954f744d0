"""The optimizers LinBreg and AdaBreg: thin classes around the functions in bregman.py.

These and ProxSGD take these settings, in the constructor or in a parameter group:

- ``lr``: step size (tau in the literature), a float or a 0-dim tensor.
- ``lambda_``: strength of the regularizer; kept in each group as a 0-dim tensor that a controller writes.
- ``lambda_scale``: factor on ``lambda_`` in one group, so that groups under one controller differ in strength.
- ``regularizer``: ``"l1"``, zeros single weights; ``"group"``, zeros groups of a weight; ``"mask"``, holds the zeros
  that a MagnitudeController sets; ``"none"``, for parameters that stay dense whatever lambda is.
- ``grouping``: of ``"group"``: ``"output"`` and ``"input"`` channels (rows and columns of a linear layer), or
  ``"kernel"``, one pair of both.
- ``implementation``: ``"auto"`` takes the first that can be had of ``"native"``, kernels compiled by g++ that touch
  each byte once, for parameters on a CPU, and ``"foreach"``, torch's own fused and foreach operations, which need no
  compiler. ``"compile"`` is torch.compile; ``"fused"`` is ``"native"`` on a CPU and ``"compile"`` elsewhere. All but
  ``"auto"`` raise where they cannot be had. What the kernels do not know (groups, masks, weights in 16 bits, with gaps
  in memory or of a tensor subclass) always goes the foreach way.
- ``maximize``: ascend instead of descend.

Edits of weights from outside: see ``BregmanOptimizer``.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sv_sparse.optim import bregman, compiled, native
from sv_sparse.optim.checks import check, check_flag, check_number, warn
from sv_sparse.optim.memory import PLAIN_TYPES
from sv_sparse.optim.optimizer import BregmanOptimizer, Group, Tensors, check_common, like_dual

Shape = tuple[Tensor, float, str]  # what reads weights off duals: lambda, delta, regularizer
_TORCHS_OWN = {"FakeTensor", "FunctionalTensor"}  # of tracing, where nothing is computed
_MOST_COMPILED = 8  # steps of one group, each for another set of parameters that have a gradient


class _WithDuals(BregmanOptimizer):
    """LinBreg and AdaBreg: the update of the dual is theirs, the way to the weights is common."""

    _settings: tuple[str, ...]

    def _check_group(self, group: Group) -> None:
        check_common(group)
        check_number("delta", group["delta"], "a finite number above 0", above=0)
        check_number("weight_decay", group["weight_decay"], "a finite number, 0 or more", at_least=0)

    def _start(self, group: Group, param: Tensor, dual: Tensor) -> None:
        """Make the parameter's further state, at its first step."""
        raise NotImplementedError

    def _native(self, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def _compiled(
        self, group: Group, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any], read_out: Shape
    ) -> Tensor | None:
        """Return the nonzero weights of each parameter; None where nothing is done, and torch has to."""
        raise NotImplementedError

    def _plain(self, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any]) -> None:
        raise NotImplementedError

    def _step_of(
        self, group: Group, params: Tensors, flags: tuple[Any, ...], make: Callable[[], Callable[..., Tensor]]
    ) -> Callable[..., Tensor] | None:
        """Return the compiled step for these parameters, made at its first; None where there are too many already.

        The compiler makes code for one list of tensors, and layers that are skipped at random make many lists.

        Args:
            group: whose parameters have a gradient.
            params: those that have one.
            flags: settings that the code depends on; others are tensors in it.
            make: returns a step to be compiled at its first call.
        """
        own = self._steps.setdefault(id(group), {})
        key = (flags, tuple(id(param) for param in params))
        if key not in own:
            if len(own) == _MOST_COMPILED:
                _warn_of_many_steps()
                return None
            own[key] = make()
        return own[key]

    def _lay_out(self, param: Tensor, dual: Tensor, *names: str) -> None:
        """Bring state to the dual's device, precision and memory layout, where the parameter's have changed since."""
        state = self.state[param]
        for name in names:
            if name in state:
                state[name] = like_dual(state[name], dual)
        if "step" in state and state["step"].device != dual.device:
            state["step"] = state["step"].to(dual.device)

    def _move(self, group: Group, params: Tensors, grads: Tensors, *, lie_still: bool) -> None:
        plan = self._plans.get(id(group)) if lie_still else None
        if plan is None or not plan.holds(group, params, self.state):
            plan = self._plans[id(group)] = self._plan(group, params)
        grads = [like_dual(grad, dual) for grad, dual in zip(grads, plan.duals, strict=True)]
        how = self._how(group)
        settings = {key: group[key] for key in self._settings}
        if how.regularizer in {"mask", "none"}:
            settings["lr"] = settings["lr"] * group["delta"]
        for way, places in plan.ways:
            lists = params, grads, plan.duals
            if len(places) < len(params):
                lists = tuple([entry[place] for place in places] for entry in lists)  # type: ignore[assignment]
            counts = None
            if way == "native":
                counts = self._native(lists, settings | {"lambda_": float(how.lambda_), "delta": how.delta})
            elif way == "compile":
                counts = self._compiled(group, lists, settings, (how.lambda_, how.delta, how.regularizer))
            if counts is None:
                self._plain(lists, settings)
                how.write(lists[0], lists[2], self._masks(group, lists[0]))
            elif how.regularizer == "l1":
                versions = [param._version for param in lists[0]]
                self._counts.update(zip(lists[0], zip(versions, counts.unbind(), strict=True), strict=True))

    def _plan(self, group: Group, params: Tensors) -> "_Plan":
        """Make what the step needs, and choose the implementation of each parameter."""
        duals = [self._dual(group, param) for param in params]
        ways: dict[tuple[str, torch.device], list[int]] = {}
        for place, (param, dual) in enumerate(zip(params, duals, strict=True)):
            self._start(group, param, dual)
            ways.setdefault((_way(group, param, dual), param.device), []).append(place)
        states = [self.state[param] for param in params]
        entries = [list(map(id, state.values())) for state in states]
        by_way = [(way, places) for (way, _), places in ways.items()]
        return _Plan(group["implementation"], list(params), duals, states, entries, by_way)


class _Plan(NamedTuple):
    """Plan of a group's step, for as long as its weights and their state stay where they are.

    Attributes:
        implementation: that was asked for.
        params: that have a gradient.
        duals: theirs.
        states: theirs.
        entries: identities of what is in each state.
        ways: each implementation that is taken, with the places of its parameters in these lists.
    """

    implementation: str
    params: Tensors
    duals: Tensors
    states: list[dict[str, Any]]
    entries: list[list[int]]
    ways: list[tuple[str, list[int]]]

    def holds(self, group: Group, params: Tensors, state: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Return whether nothing has changed that the plan stands on, beside the memory of the weights."""
        if group["implementation"] != self.implementation or len(params) != len(self.params):
            return False
        for param, before, own, dual, entries in zip(
            params, self.params, self.states, self.duals, self.entries, strict=True
        ):
            if param is not before or state.get(param) is not own or list(map(id, own.values())) != entries:
                return False
            if own.get("dual", param) is not dual:
                return False
        return True


def _way(group: Group, param: Tensor, dual: Tensor) -> str:
    """Return which implementation this parameter's step takes."""
    asked: str = group["implementation"]
    if torch.compiler.is_compiling() or asked == "foreach" or group["regularizer"] in {"group", "mask"}:
        return "foreach"
    if type(param) not in PLAIN_TYPES:
        _warn_of_subclass(type(param).__name__)
        return "foreach"
    if asked == "compile" or (asked == "fused" and param.device.type != "cpu"):
        return "compile"
    return "native" if native.fits(param, dual) and native.takes_over(asked) else "foreach"


@functools.cache
def _warn_of_subclass(name: str) -> None:
    if name not in _TORCHS_OWN:
        warn(
            f"parameters of type {name}, a tensor subclass, are stepped by implementation='foreach': on a CPU a step "
            f"takes about twice as long as by the kernels"
        )


@functools.cache
def _warn_of_many_steps() -> None:
    warn(
        f"more than {_MOST_COMPILED} sets of parameters have had a gradient (layers that are skipped at random?) or "
        f"settings have changed: the others are stepped by implementation='foreach', in more and smaller kernels; "
        f"choose it from the start to save the time to compile"
    )


def _on_device(number: float | Tensor, like: Tensor) -> Tensor:
    """Return a number as a 0-dim tensor, a change of which compiles nothing again."""
    if isinstance(number, Tensor):
        return number.to(like.device, like.dtype).reshape(())
    return torch.full((), number, dtype=like.dtype, device=like.device)


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
    _saved_settings = (*BregmanOptimizer._saved_settings, "momentum", "dampening", "nesterov")

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
        implementation: str = "auto",
        maximize: bool = False,
    ) -> None:
        defaults = {key: value for key, value in locals().items() if key not in {"self", "params", "__class__"}}
        super().__init__(params, defaults)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_number("momentum", group["momentum"], "a finite number, 0 or more", at_least=0)
        check_number("dampening", group["dampening"], "a finite number")
        check_flag("nesterov", group["nesterov"])
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
        present = self._buffers(lists[0])
        for fresh in (True, False):
            places = [index for index, buffer in enumerate(present) if (buffer is None) == fresh]
            if not places:
                continue
            params, grads, duals = ([entry[index] for index in places] for entry in lists)
            if fresh:
                self._keep(params, [torch.zeros_like(dual) for dual in duals])
            buffers = [self.state[param]["momentum_buffer"] for param in params]
            counts[places] = native.linbreg(params, grads, duals, buffers, fresh=fresh, **settings)
        return counts

    def _compiled(
        self, group: Group, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any], read_out: Shape
    ) -> Tensor | None:
        lambda_, *rest = read_out
        buffers = self._buffers(lists[0]) if settings["momentum"] else []
        if any(buffer is None for buffer in buffers):
            return None  # a first step makes the buffers; the one after it compiles
        flags = {name: settings[name] for name in ("nesterov", "maximize")} | {"decays": settings["weight_decay"] != 0}
        step = self._step_of(group, lists[0], (*flags.values(), *rest, len(buffers) > 0), compiled.linbreg)
        if step is None:
            return None
        names = ("lr", "momentum", "dampening", "weight_decay")
        numbers = {name: _on_device(settings[name], lambda_) for name in names}
        return step(*lists, buffers, read_out=read_out, **numbers, **flags)

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
    _saved_settings = (*BregmanOptimizer._saved_settings, "betas", "eps")
    _saved_state = ("step", "exp_avg", "exp_avg_sq")

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
        implementation: str = "auto",
        maximize: bool = False,
    ) -> None:
        defaults = {key: value for key, value in locals().items() if key not in {"self", "params", "__class__"}}
        super().__init__(params, defaults)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        betas = group["betas"]
        check(isinstance(betas, Sequence) and len(betas) == 2, "betas", betas, "two numbers in [0, 1)")
        for beta in betas:
            check_number("betas", beta, "two numbers in [0, 1)", at_least=0, below=1, or_tensor=True)
        group["betas"] = tuple(betas)  # plain data, which a state can be saved with
        check_number("eps", group["eps"], "a finite number, 0 or more", at_least=0)

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
    ) -> Tensor | None:
        lambda_, *rest = read_out
        flags = {"maximize": settings["maximize"], "decays": settings["weight_decay"] != 0}
        step = self._step_of(group, lists[0], (*flags.values(), *rest), compiled.adabreg)
        if step is None:
            return None
        numbers = {name: _on_device(settings[name], lambda_) for name in ("lr", "eps", "weight_decay")}
        betas = tuple(_on_device(beta, lambda_) for beta in settings["betas"])
        return step(*lists, *self._moments(lists[0]), read_out=read_out, betas=betas, **numbers, **flags)

    def _plain(self, lists: tuple[Tensors, Tensors, Tensors], settings: dict[str, Any]) -> None:
        bregman.adabreg(*lists, *self._moments(lists[0]), fused=not torch.compiler.is_compiling(), **settings)
