"""What all Bregman optimizers share: groups with a lambda tensor, duals in float32, the frame of a step."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from sv_sparse.optim import native
from sv_sparse.optim.bregman import ReadOut
from sv_sparse.optim.checks import check, check_flag, check_number
from sv_sparse.optim.native import same_layout
from sv_sparse.optim.prox import GROUPINGS, REGULARIZERS, subgradient
from sv_sparse.optim.state_checks import (
    Group,
    check_parameter,
    check_saved_state,
    check_shape,
    is_plain,
    name_of,
)

Tensors = list[Tensor]

IMPLEMENTATIONS = ("auto", "fused", "native", "compile", "foreach")
_WITH_DUAL = ("l1", "group")  # elsewhere a weight is its own dual
# Relative to the weight and to delta * lambda, which were subtracted to make it. Devices round differently.
_TOLERANCE = {torch.float64: (1e-12, 1e-14), torch.float32: (1e-5, 1e-6)}
_TOLERANCE_16_BIT = 1e-2, 1e-6
_SAMPLE_ROWS, _SAMPLE_COLUMNS = 8, 64  # of a weight, where looking at all of it would cost a pass over memory


class _Written(NamedTuple):
    """A weight as the optimizer left it: what tells that somebody else has written to it since."""

    version: int
    address: int
    dtype: torch.dtype


def check_common(group: Mapping[str, Any]) -> None:
    """Check the hyperparameters that every Bregman optimizer has."""
    check_number("lr", group["lr"], "a finite number, 0 or more", at_least=0, or_tensor=True)
    check_number("lambda_", group["lambda_"], "a finite number, 0 or more", at_least=0, or_tensor=True)
    check_number("lambda_scale", group["lambda_scale"], "a finite number above 0", above=0, or_tensor=True)
    check_flag("maximize", group["maximize"])
    choices = {"regularizer": REGULARIZERS, "grouping": GROUPINGS, "implementation": IMPLEMENTATIONS}
    for name, allowed in choices.items():
        check(group[name] in allowed, name, group[name], f"one of {', '.join(allowed)}")
    thin = [tuple(param.shape) for param in group["params"] if param.ndim < 2 and group["regularizer"] == "group"]
    check(not thin, 'parameters with regularizer="group"', thin, "of two axes or more")


class BregmanOptimizer(Optimizer):
    """A torch optimizer whose groups have a ``lambda_``; see LinBreg, AdaBreg and ProxSGD.

    The weights of regularized groups are read off their duals. A change of such weights from outside is noticed at the
    next step, which makes their duals anew from the weights and warns once; ``adopt_weights()`` does so without a
    warning. Three changes go unnoticed: through ``.data`` in place on another device than the CPU, through ``.data`` of
    single weights, and under torch.compile.
    """

    _counts: dict[Tensor, tuple[int, Tensor]]  # nonzero weights, with the version of the parameter that was counted
    _by_kernel: dict[Tensor, Tensor]  # duals of the weights that the CPU's kernels have read out, as they lay then
    _steps: dict[int, dict[Any, Callable[..., Tensor]]]  # compiled steps, by group
    _written: dict[Tensor, _Written]
    _settings_before: dict[int, tuple[Group, tuple[str, str, float]]]  # regularizer, grouping, delta of the last step
    _saved_settings: tuple[str, ...] = ("lambda_", "regularizer", "grouping")  # which a state of this class has
    _saved_state: tuple[str, ...] = ()  # keys of a parameter's state; see check_saved_state

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._reset()
        super().__init__(params, defaults | {"weights_lambda": None})
        self._constructed = True

    def _reset(self) -> None:
        """Forget what is remembered from one step to the next, and is not part of the state."""
        self._counts, self._steps, self._written, self._settings_before = {}, {}, {}, {}
        self._by_kernel = {}
        self._warned = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, as loading, copying and unpickling do."""
        super().__setstate__(state)
        self._reset()
        self._constructed = True
        for group in self.param_groups:
            group.setdefault("weights_lambda", None)  # of a state that an earlier version saved

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; the caller's dict stays as it is.

        ``lambda_`` becomes a 0-dim tensor of the group's own. Where the optimizer has been made already and the group
        does not say, it is the present lambda of the regularized groups, so that a controller goes on as before.

        Raises:
            ValueError: a setting is out of its bounds, or a parameter cannot be trained; the group is not added.
            OSError: the kernels cannot be compiled; says how to do without.
        """
        group = dict(param_group)
        if getattr(self, "_constructed", False) and "lambda_" not in group:
            group["lambda_"] = self._common_lambda(self.defaults["lambda_"])
        self._steps = {}
        super().add_param_group(group)
        try:
            for position, param in enumerate(group["params"]):
                name = name_of(group, position, len(self.param_groups) - 1)
                check_parameter(param, name, type(self).__name__)
            self._check_group(group)
            _check_implementation(group)
        except Exception:  # whatever it is: a refused group is not kept
            self.param_groups.pop()
            raise
        group["lambda_"] = self._lambda_tensor(group)

    def _common_lambda(self, default: Any) -> Any:
        """Return the lambda of the first regularized group, or ``default`` where there is none."""
        for group in self.param_groups:
            if group["regularizer"] in _WITH_DUAL:
                return group["lambda_"]
        return default

    def lambda_of(self, group: Group) -> Tensor:
        """Return the group's lambda, 0-dim, in the precision of its duals and on their device.

        A number that was set from outside, as one sets lr, becomes a tensor; after ``model.to`` so does a lambda of
        another device or precision.
        """
        lambda_ = group["lambda_"]
        if not isinstance(lambda_, Tensor):
            check_number("lambda_", lambda_, "a finite number, 0 or more", at_least=0, or_tensor=True)
            group["lambda_"] = self._lambda_tensor(group)
        elif group["params"]:
            first = group["params"][0]
            dtype = torch.promote_types(first.dtype, torch.float32)
            if lambda_.device != first.device or lambda_.dtype != dtype:
                group["lambda_"] = lambda_.to(first.device, dtype)
        return group["lambda_"]

    def _lambda_tensor(self, group: Mapping[str, Any]) -> Tensor:
        """Return a new tensor of the group's lambda, in the precision of its duals, on their device."""
        first = group["params"][0] if group["params"] else torch.zeros(())
        dtype = torch.promote_types(first.dtype, torch.float32)
        lambda_ = group["lambda_"]
        if isinstance(lambda_, Tensor):  # whose value need not come to the host
            return lambda_.detach().to(first.device, dtype, copy=True).reshape(())
        return torch.full((), float(lambda_), dtype=dtype, device=first.device)

    def _check_group(self, group: Group) -> None:
        raise NotImplementedError

    def _move(self, group: Group, params: Tensors, grads: Tensors) -> None:
        """Update the parameters' state and weights, and keep what was counted on the way."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update of every parameter that has a gradient.

        Weights without a gradient follow a change of lambda; those that are frozen (``requires_grad=False``) do not.

        Args:
            closure: reevaluates the model and returns the loss, as in torch.optim.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: a parameter was resized after its state was made.
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._counts.clear()
        for number, group in enumerate(self.param_groups):
            moving = [param for param in group["params"] if param.grad is not None]
            resting = [param for param in group["params"] if param.grad is None and param.requires_grad]
            if not torch.compiler.is_compiling():
                self._check_shapes(group, number)
                self._follow_settings(group)
                self._adopt_edits(group, [*moving, *resting])
            for param in moving:
                self._by_kernel.pop(param, None)
            if moving:
                self._move(group, moving, [_gradient(param) for param in moving])
            self._read_out(group, resting)
            self._remember(group, [*moving, *resting])
        return loss

    @torch.no_grad()
    def read_out(self) -> None:
        """Read the weights off the duals again, after lambda or masks were changed in between two steps."""
        self._counts.clear()
        for group in self.param_groups:
            self._read_out(group, group["params"])
            self._remember(group, group["params"])

    def _read_out(self, group: Group, params: Sequence[Tensor]) -> None:
        """Read out those that have begun to move."""
        started = [param for param in params if self.state.get(param)]
        duals = [self._dual(group, param) for param in started]
        self._how(group).write(started, duals, self._masks(group, started))

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
            elif self.state[param]["mask"].device != param.device:
                self.state[param]["mask"] = self.state[param]["mask"].to(param.device)
        return [self.state[param]["mask"] for param in params]

    @torch.no_grad()
    def count_nonzero(self, params: Sequence[Tensor]) -> Tensor:
        """Count the nonzero weights of each parameter, [len(params)] int64 on the device of the first.

        The kernels count in the same pass as the update; otherwise it is counted here.
        """
        stale = self._edited_since_counted(params)
        counts = [self._count_nonzero(param, fresh=param in stale) for param in params]
        device = counts[0].device
        return torch.stack([count if count.device == device else count.to(device) for count in counts])

    def _count_nonzero(self, param: Tensor, *, fresh: bool) -> Tensor:
        if param in self._counts and not fresh:
            version, count = self._counts[param]
            if version == param._version:
                return count
        return torch.count_nonzero(param)

    def _edited_since_counted(self, params: Sequence[Tensor]) -> set[Tensor]:
        """Return those whose count is of a step, and whose weights were changed through ``.data`` since."""
        if not self._counts:
            return set()
        counted = {param for param in params if param in self._counts}
        edited: set[Tensor] = set()
        for group in self.param_groups:
            own = [param for param in group["params"] if param in counted]
            edited.update(param for param in own if self._address_changed(param))
            edited.update(self._differing_samples(group, [param for param in own if param not in edited]))
        return edited

    @torch.no_grad()
    def duals(self, group: Group) -> Tensors:
        """Return the duals of a group's parameters; those that never had a gradient get theirs now."""
        if not torch.compiler.is_compiling():
            self._follow_settings(group)
            self._adopt_edits(group, group["params"])
        return [self._dual(group, param) for param in group["params"]]

    def _dual(self, group: Group, param: Tensor) -> Tensor:
        """Return the parameter's dual, created at its first step so that the read-out reproduces the weights.

        A float32 weight that nothing regularizes is its own dual; one in 16 bits has its float32 copy.
        """
        state = self.state[param]
        precise = torch.promote_types(param.dtype, torch.float32)
        if group["regularizer"] not in _WITH_DUAL and precise == param.dtype:
            state.pop("dual", None)  # of the time when the group was regularized, or in 16 bits
            return param
        if "dual" not in state:
            state["dual"] = self._new_dual(group, param, self._how(group).lambda_)
        elif not _matches(state["dual"], param, precise):
            self._by_kernel.pop(param, None)
            state["dual"] = torch.empty_like(param, dtype=precise).copy_(state["dual"])
        return state["dual"]

    def _new_dual(self, group: Group, param: Tensor, lambda_: Tensor) -> Tensor:
        """Return a dual of which ``lambda_`` makes the weights as they are."""
        precise = torch.promote_types(param.dtype, torch.float32)
        weight = param.detach().to(precise)
        if group["regularizer"] not in _WITH_DUAL:
            return weight
        grouping = group["grouping"] if group["regularizer"] == "group" else None
        return subgradient(weight, lambda_.to(param.device, precise), group["delta"], grouping=grouping)

    @torch.no_grad()
    def adopt_weights(self) -> None:
        """Take the weights over as they are, after a deliberate change from outside: their duals are made anew.

        For instance after restoring the best weights. The step that follows goes on from them; momentum and moments
        stay. Where weights are as the optimizer left them, nothing changes.
        """
        for group in self.param_groups:
            self._follow_settings(group)
            for param in self._with_dual(group, group["params"]):
                self._adopt(group, param)
            self._remember(group, group["params"], moved=False)

    def _adopt_edits(self, group: Group, params: Sequence[Tensor]) -> None:
        """Make the duals anew of weights that somebody else has changed, and warn once."""
        unsure, sampled, silent = [], [], set()
        for param in self._with_dual(group, params):
            written = self._written.get(param)
            if written is None or written.dtype != param.dtype:
                unsure.append(param)  # loaded, copied, unfrozen or in another precision: nobody's fault
                silent.add(param)
            elif written.version != param._version or self._address_changed(param):
                unsure.append(param)
            else:
                sampled.append(param)
        unsure += self._differing_samples(group, sampled)
        edited = [param for param in unsure if self._adopt(group, param) and param not in silent]
        if edited and not self._warned:
            self._warned = True
            position = next(index for index, param in enumerate(group["params"]) if param is edited[0])
            number = next(index for index, other in enumerate(self.param_groups) if other is group)
            warnings.warn(
                f"weights were changed outside the optimizer ({name_of(group, position, number)} and perhaps others); "
                f"{type(self).__name__} goes on from them as they are now. Call optimizer.adopt_weights() after a "
                f"deliberate change",
                stacklevel=4,
            )

    def _with_dual(self, group: Group, params: Sequence[Tensor]) -> Tensors:
        """Return those that are not their own dual."""
        return [param for param in params if "dual" in self.state.get(param, {})]

    def _adopt(self, group: Group, param: Tensor) -> bool:
        """Make the dual anew where the weights are not those read off it; return whether there were any."""
        lambda_ = group["weights_lambda"]
        if lambda_ is None:  # a state of an earlier version: nothing is known
            return False
        dual = self._dual(group, param)
        if dual is param:
            return False
        lambda_ = lambda_.to(dual.device, dual.dtype)
        same = _close(param, dual, self._how(group).at(lambda_))
        if bool(same.all()):
            return False
        fresh = self._new_dual(group, param, lambda_)
        in_groups = group["regularizer"] == "group"
        dual.copy_(fresh if in_groups else torch.where(same, dual, fresh))
        return True

    def _address_changed(self, param: Tensor) -> bool:
        written = self._written.get(param)
        return written is not None and written.address != _address(param)

    def _differing_samples(self, group: Group, params: Sequence[Tensor]) -> Tensors:
        """Return those of which a sample is not what their dual says: an edit through ``.data`` leaves no other trace.

        On the CPU only; elsewhere it would wait for the device.
        """
        lambda_ = group["weights_lambda"]
        if lambda_ is None or lambda_.device.type != "cpu" or group["regularizer"] not in _WITH_DUAL:
            return []
        by_kernel = [(param, self._by_kernel[param]) for param in params if param in self._by_kernel]
        same = native.samples_match(by_kernel, float(lambda_), group["delta"]) if by_kernel else []
        differing = [param for (param, _), equal in zip(by_kernel, same, strict=True) if not equal]
        read = self._how(group).at(lambda_)
        others = [param for param in params if param not in self._by_kernel]
        others = [param for param in others if is_plain(param) and param.device.type == "cpu"]
        return differing + [param for param in others if not _sample_matches(param, self._dual(group, param), read)]

    def _follow_settings(self, group: Group) -> None:
        """Leave the weights as they are where regularizer, grouping or delta were changed since the last step."""
        settings = (group["regularizer"], group["grouping"], group["delta"])
        _, before = self._settings_before.setdefault(id(group), (group, settings))
        if before == settings:
            return
        self._settings_before[id(group)] = (group, settings)
        if before[0] not in _WITH_DUAL and settings[0] in _WITH_DUAL and isinstance(group["lambda_"], Tensor):
            others = [other for other in self.param_groups if other is not group and other["regularizer"] in _WITH_DUAL]
            if others:  # whose lambda a controller has moved while this group was not regularized
                self.lambda_of(group).copy_(self.lambda_of(others[0]))
        lambda_ = self._how(group).lambda_
        group["weights_lambda"] = lambda_.clone()
        for param in group["params"]:
            state = self.state.get(param, {})
            if "mask" in state:
                state["mask"].logical_or_(param != 0)
            if "dual" in state:
                self._by_kernel.pop(param, None)
                del state["dual"]  # made anew from the weights

    def _check_shapes(self, group: Group, number: int) -> None:
        for position, param in enumerate(group["params"]):
            state = self.state.get(param)
            if state or param.grad is not None:
                check_shape(name_of(group, position, number), param, state or {})

    def _remember(self, group: Group, params: Sequence[Tensor], *, moved: bool = True) -> None:
        """Remember how the weights were left, and with which lambda they were read out."""
        if moved:
            lambda_ = self._how(group).lambda_
            if torch.compiler.is_compiling() and group["weights_lambda"] is not None:
                group["weights_lambda"].copy_(lambda_)
            else:
                group["weights_lambda"] = lambda_.clone()
        if torch.compiler.is_compiling():
            return
        left = set(params)
        for param in group["params"]:
            if param in left:
                self._written[param] = _Written(param._version, _address(param), param.dtype)
            else:
                self._written.pop(param, None)  # frozen: what happens to it meanwhile is nobody's fault

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load; everything goes to the parameters' device and memory layout, in the precision of the duals.

        Groups keep their own ``implementation``: it belongs to the machine, not to the state. Hooks are called as
        torch.optim does.

        Raises:
            ValueError: the state is of another optimizer, other shapes, another order of parameters, or was regularized
                in another way. The optimizer is as it was.
        """
        own = [group["implementation"] for group in self.param_groups]
        loaded: dict[str, Any] = {}

        def refuse(_: Optimizer, saved: dict[str, Any]) -> None:
            check_saved_state(
                saved,
                self.param_groups,
                optimizer=type(self).__name__,
                settings=self._saved_settings,
                keys=self._saved_state,
            )
            loaded.update(saved)

        def restore(_: Optimizer) -> None:
            self._restore(loaded, own)

        last_before = self.register_load_state_dict_pre_hook(refuse)
        first_after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            last_before.remove()
            first_after.remove()

    def _restore(self, saved: Mapping[str, Any], implementations: Sequence[str]) -> None:
        """Put back what torch has cast to the parameters' precision."""
        for group, implementation in zip(self.param_groups, implementations, strict=True):
            group["implementation"] = implementation
            group["lambda_"] = self._lambda_tensor(group)
            if group["weights_lambda"] is not None:
                group["weights_lambda"] = group["weights_lambda"].to(group["lambda_"].device)
        order = [index for group in saved["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(order, params, strict=True):
            for key, value in saved["state"].get(index, {}).items():
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
    if param.grad is None or param.grad.layout != torch.strided:
        raise RuntimeError("Bregman optimizers do not support sparse gradients")
    return param.grad


def _address(param: Tensor) -> int:
    """Return where the weights lie; 0 for a subclass, which may have no memory of its own."""
    return param.data_ptr() if is_plain(param) else 0


def _matches(state: Tensor, param: Tensor, dtype: torch.dtype) -> bool:
    return state.dtype == dtype and state.device == param.device and same_layout(param, state)


def _close(weight: Tensor, dual: Tensor, read: ReadOut) -> Tensor:
    """Return where a weight is what its dual says, but for rounding, as a mask."""
    relative, of_lambda = _TOLERANCE.get(weight.dtype, _TOLERANCE_16_BIT)
    expected = read(dual).to(weight.dtype)
    allowed = relative * expected.abs() + of_lambda * read.delta * read.lambda_
    return ((weight - expected).abs() <= allowed) | (weight.isnan() & expected.isnan())


def _sample_matches(weight: Tensor, dual: Tensor, read: ReadOut) -> bool:
    """Return whether a weight, or some places of a large one, are what the dual says."""
    walks_alike = native.fills_memory(weight) and same_layout(weight, dual)
    if read.regularizer == "l1" and walks_alike and weight.numel() > _SAMPLE_ROWS * _SAMPLE_COLUMNS:
        shape, stride = (_SAMPLE_ROWS, _SAMPLE_COLUMNS), (weight.numel() // _SAMPLE_ROWS, 1)
        weight, dual = weight.as_strided(shape, stride), dual.as_strided(shape, stride)
    return bool(_close(weight, dual, read).all())


def like_dual(grad: Tensor, dual: Tensor) -> Tensor:
    """Return a gradient in the dual's precision and memory layout: fused kernels walk both in storage order."""
    if grad.dtype == dual.dtype and grad.device == dual.device and same_layout(grad, dual):
        return grad
    return torch.empty_like(dual).copy_(grad)


def _like_param(value: Tensor, param: Tensor) -> Tensor:
    """Return a copy of saved state in the parameter's memory layout and the dual's precision.

    Counters and masks keep their type.
    """
    if value.shape != param.shape or value.ndim == 0:
        return value.to(param.device, copy=True)
    precise = value.dtype if value.dtype == torch.bool else torch.promote_types(param.dtype, torch.float32)
    return torch.empty_like(param, dtype=precise).copy_(value)
