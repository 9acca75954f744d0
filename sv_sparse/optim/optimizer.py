"""Base class of the Bregman optimizers: groups with a lambda tensor, duals in float32, the frame of a step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sv_sparse.optim import native
from sv_sparse.optim.bregman import ReadOut
from sv_sparse.optim.checks import check, check_flag, check_number, warn
from sv_sparse.optim.edits import Record, Samples, address_of, anchored, record, settings_of, unchanged
from sv_sparse.optim.memory import is_plain, same_layout
from sv_sparse.optim.prox import GROUPINGS, REGULARIZERS, grouping_of, subgradient
from sv_sparse.optim.state_checks import Group, check_parameter, check_saved_state, check_shapes, name_of

Tensors = list[Tensor]

IMPLEMENTATIONS = ("auto", "fused", "native", "compile", "foreach")
_WITH_DUAL = ("l1", "group")  # elsewhere a weight is its own dual


def check_common(group: Mapping[str, Any]) -> None:
    """Check the hyperparameters that every Bregman optimizer has."""
    check_number("lr", group["lr"], "a finite number, 0 or more", at_least=0, or_tensor=True)
    check_number("lambda_", group["lambda_"], "a finite number, 0 or more", at_least=0, or_tensor=True)
    check_number("lambda_scale", group["lambda_scale"], "a finite number above 0", above=0)
    check_flag("maximize", group["maximize"])
    choices = {"regularizer": REGULARIZERS, "grouping": GROUPINGS, "implementation": IMPLEMENTATIONS}
    for name, allowed in choices.items():
        check(group[name] in allowed, name, group[name], f"one of {', '.join(allowed)}")
    thin = [tuple(param.shape) for param in group["params"] if param.ndim < 2 and group["regularizer"] == "group"]
    check(not thin, 'parameters with regularizer="group"', thin, "of two axes or more")


class BregmanOptimizer(Optimizer):
    """Torch optimizer whose groups have a ``lambda_``; see LinBreg, AdaBreg and ProxSGD.

    The weights of regularized groups are read off their duals. A change of such weights from
    outside is noticed at the next step, which goes on from the weights as they are and warns once.
    ``adopt_weights()`` does so without a warning. Two changes are not noticed: of few weights
    through ``.data`` in place, and of any through ``.data`` in place on another device than the CPU.
    """

    _counts: dict[Tensor, tuple[int, Tensor]]  # nonzero weights, with the version of the parameter that was counted
    _steps: dict[int, dict[Any, Callable[..., Tensor]]]  # compiled steps, by group
    _plans: dict[int, Any]  # of each group: how it is stepped
    _records: dict[Tensor, Record]  # of the weights as they were left
    _lambdas: dict[int, tuple[Group, str, Tensor, int]]  # of each group: regularizer, lambda, its version
    _saved_settings: tuple[str, ...] = ("lambda_", "regularizer", "grouping")  # which a state of this class has
    _saved_state: tuple[str, ...] = ()  # which the state of a parameter has after its first step

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        self._reset()
        super().__init__(params, defaults | {"weights_lambda": None})
        self._constructed = True

    def _reset(self) -> None:
        """Forget what is remembered from one step to the next, and is not part of the state."""
        self._counts, self._steps, self._plans, self._records, self._lambdas = {}, {}, {}, {}, {}
        self._samples = Samples()
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

    def _move(self, group: Group, params: Tensors, grads: Tensors, *, lie_still: bool) -> None:
        """Update the parameters' state and weights, and keep what was counted on the way.

        Args:
            group: whose parameters move.
            params: those that do.
            grads: theirs.
            lie_still: whether all the group's weights lie in the memory where the last step left them.
        """
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
        if not torch.compiler.is_compiling():
            for number, group in enumerate(self.param_groups):  # all, before any weight moves
                self._check_params(group, number)
        for group in self.param_groups:
            moving = [param for param in group["params"] if param.grad is not None]
            resting = [param for param in group["params"] if param.grad is None and param.requires_grad]
            lie_still = not torch.compiler.is_compiling() and self._follow(group, [*moving, *resting])
            if moving:
                self._move(group, moving, [param.grad for param in moving], lie_still=lie_still)
            self._read_out(group, resting)
            self._remember(group, [*moving, *resting], lie_still=lie_still)
        self._forget_removed()
        return loss

    def _check_params(self, group: Group, number: int) -> None:
        """Refuse what the step would stumble over."""
        for position, param in enumerate(group["params"]):
            grad, left = param.grad, self._records.get(param)
            shape = param.shape
            if (left is None or left.shape != shape) and param in self.state:
                check_shapes(name_of(group, position, number), param, self.state[param])
            if grad is None:
                continue
            if grad.shape != shape:
                name = name_of(group, position, number)
                raise ValueError(f"{name} has shape {tuple(shape)} and its gradient {tuple(grad.shape)}")
            if grad.layout != torch.strided:
                name = name_of(group, position, number)
                raise RuntimeError(
                    f"the gradient of {name} is sparse; Bregman optimizers do not support sparse gradients"
                )

    @torch.no_grad()
    def read_out(self, *, frozen: bool = False) -> None:
        """Read the weights off the duals again, after lambda or masks were changed in between two steps.

        Args:
            frozen: whether weights that are frozen (``requires_grad=False``) follow too.
        """
        self._counts.clear()
        for group in self.param_groups:
            params = [param for param in group["params"] if frozen or param.requires_grad]
            self._read_out(group, params)
            self._remember(group, params)

    def _read_out(self, group: Group, params: Sequence[Tensor]) -> None:
        """Read out those that have begun to move."""
        started = [param for param in params if self.state.get(param)]
        duals = [self._dual(group, param) for param in started]
        self._how(group).write(started, duals, self._masks(group, started))

    def _how(self, group: Group) -> ReadOut:
        scale = group["lambda_scale"]
        lambda_ = self.lambda_of(group) if scale == 1 else scale * self.lambda_of(group)
        regularizer = group["regularizer"]
        return ReadOut(lambda_, group["delta"] if regularizer in _WITH_DUAL else 1.0, regularizer, grouping_of(group))

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
        counts = [self._count_nonzero(param) for param in params]
        if any(param in self._counts for param in params) and self._may_be_edited():
            counts = [torch.count_nonzero(param) for param in params]
        device = counts[0].device
        return torch.stack([count if count.device == device else count.to(device) for count in counts])

    def _count_nonzero(self, param: Tensor) -> Tensor:
        if param in self._counts:
            version, count = self._counts[param]
            if version == param._version and self._records[param].lies_still(param):
                return count
        return torch.count_nonzero(param)

    def _may_be_edited(self) -> bool:
        """Return whether weights that were counted may have been changed through ``.data`` since."""
        if not all(self._records[param].lies_still(param) for param in self._counts):
            return True
        return any(self._samples.differ(group) for group in self.param_groups)

    @torch.no_grad()
    def duals(self, group: Group) -> Tensors:
        """Return the duals of a group's parameters; those that never had a gradient get theirs now."""
        if not torch.compiler.is_compiling():
            self._follow(group, group["params"])
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
            lambda_ = self._how(group).lambda_
            state["dual"] = self._new_dual(group, param, lambda_)
            if not torch.compiler.is_compiling():
                self._records[param] = record(group, param, lambda_.clone())
        elif not _matches(state["dual"], param, precise):
            state["dual"] = torch.empty_like(param, dtype=precise).copy_(state["dual"])
        return state["dual"]

    def _new_dual(self, group: Group, param: Tensor, lambda_: Tensor) -> Tensor:
        """Return a dual of which ``lambda_`` makes the weights as they are."""
        precise = torch.promote_types(param.dtype, torch.float32)
        weight = param.detach().to(precise)
        if group["regularizer"] not in _WITH_DUAL:
            return weight
        grouping = grouping_of(group) if group["regularizer"] == "group" else None
        return subgradient(weight, lambda_.to(param.device, precise), group["delta"], grouping=grouping)

    @torch.no_grad()
    def adopt_weights(self) -> None:
        """Go on from the weights as they are, after a deliberate change from outside.

        For instance after restoring the best weights. Duals are made anew where weights differ from them, and masks
        let through what is not zero. Momentum and moments stay.
        """
        for group in self.param_groups:
            self._follow(group, group["params"], warns=False)
            for param in group["params"]:
                state = self.state.get(param, {})
                if "mask" in state:
                    state["mask"].logical_or_(param != 0)
                if "dual" in state:
                    self._adopt(group, param, loose=False)
                if param in self._records:
                    self._records[param] = record(group, param, self._records[param].lambda_)
            self._take_samples(group)

    def _follow(self, group: Group, params: Sequence[Tensor], *, warns: bool = True) -> bool:
        """Make duals anew of weights that were edited, frozen or given other settings since they were left.

        Returns:
            Whether all weights lie in the same memory, and nothing but lambda has happened to them.
        """
        self._follow_lambda(group)
        settings, records = settings_of(group), self._records
        suspects, moved = [], False
        for param in params:
            left = records.get(param)
            if left is None or not left.stands(group, settings, param):
                moved = True
                if self._is_suspect(group, param):
                    suspects.append(param)
            elif left.version != param._version:
                suspects.append(param)
        if not moved and self._samples.differ(group):
            suspects = list(params)
        edited = [param for param in suspects if "dual" in self.state.get(param, {})]
        edited = [param for param in edited if self._adopt(group, param, loose=False)]
        if edited and warns and not self._warned and group["regularizer"] in _WITH_DUAL:
            self._warned = True
            position = next(index for index, param in enumerate(group["params"]) if param is edited[0])
            number = next(index for index, other in enumerate(self.param_groups) if other is group)
            warn(
                f"weights were changed outside the optimizer ({name_of(group, position, number)} and perhaps others); "
                f"{type(self).__name__} goes on from them as they are now. Call optimizer.adopt_weights() after a "
                f"deliberate change"
            )
        return not moved

    def _is_suspect(self, group: Group, param: Tensor) -> bool:
        """Return whether the weight may have been edited; what explains itself is followed at once."""
        state = self.state.get(param, {})
        left = self._records.get(param)
        if left is None:  # loaded or copied
            if "dual" in state:
                self._adopt(group, param, loose=True)
            return False
        if left.settings != settings_of(group):
            self._use_settings(group, param)
            return False
        if "dual" not in state:
            return False
        if left.frozen or left.group is not group:
            self._anchor(group, param)
            return False
        if left.dtype != param.dtype or left.device != param.device:
            self._adopt(group, param, loose=True)
            return False
        return left.version != param._version or left.address != address_of(param)

    def _use_settings(self, group: Group, param: Tensor) -> None:
        """Leave a weight as it is where regularizer, grouping or delta were changed since the last step."""
        state = self.state.get(param, {})
        state.pop("dual", None)  # made anew from the weight
        if "mask" in state:
            state["mask"].logical_or_(param != 0)
        self._records[param] = record(group, param, self._how(group).lambda_.clone())

    def _anchor(self, group: Group, param: Tensor) -> None:
        """Leave a weight as it is where lambda has moved without it."""
        how, dual = self._how(group), self._dual(group, param)
        if dual is not param:
            lambda_ = how.lambda_.to(dual.device, dual.dtype)
            fresh = self._new_dual(group, param, lambda_)
            dual.copy_(anchored(param, dual, fresh, how.at(lambda_)))
            frozen = self._records[param].frozen
            self._records[param] = record(group, param, lambda_.clone())
            self._records[param].frozen = frozen

    def _adopt(self, group: Group, param: Tensor, *, loose: bool) -> bool:
        """Make the dual anew where the weights are not those read off it; return whether there were any."""
        left = self._records.get(param)
        lambda_ = group["weights_lambda"] if left is None else left.lambda_
        dual = self._dual(group, param)
        if lambda_ is None or dual is param:  # a state of an earlier version: nothing is known
            return False
        lambda_ = lambda_.to(dual.device, dual.dtype)
        same = unchanged(param, dual, self._how(group).at(lambda_), loose=loose)
        if group["regularizer"] in _WITH_DUAL and bool(same.all()):
            return False
        dual.copy_(torch.where(same, dual, self._new_dual(group, param, lambda_)))
        return True

    def _follow_lambda(self, group: Group) -> None:
        """Take the lambda of the other groups where this one is regularized from now on, and nobody has set it."""
        seen = self._lambdas.get(id(group))
        if seen is None or seen[0] is not group:
            return
        _, before, lambda_, version = seen
        untouched = group["lambda_"] is lambda_ and lambda_._version == version
        if before not in _WITH_DUAL and group["regularizer"] in _WITH_DUAL and untouched:
            others = [other for other in self.param_groups if other is not group and other["regularizer"] in _WITH_DUAL]
            if others:  # a controller has moved it while this group was not regularized
                self.lambda_of(group).copy_(self.lambda_of(others[0]))

    def _remember(self, group: Group, params: Sequence[Tensor], *, lie_still: bool = False) -> None:
        """Remember how the weights were left, and with which lambda they were read out."""
        lambda_ = self._how(group).lambda_
        if torch.compiler.is_compiling():
            if group["weights_lambda"] is None:
                group["weights_lambda"] = lambda_.clone()
            else:
                group["weights_lambda"].copy_(lambda_)
            return
        lambda_ = lambda_.clone()
        group["weights_lambda"] = lambda_
        own = self.lambda_of(group)
        self._lambdas[id(group)] = (group, group["regularizer"], own, own._version)
        records = self._records
        for param in params:
            left = records.get(param) if lie_still else None
            if left is None:
                records[param] = record(group, param, lambda_)
            else:
                left.version, left.lambda_ = param._version, lambda_
        if len(params) < len(group["params"]):
            left_alone = set(group["params"]) - set(params)
            for param in left_alone & records.keys():
                records[param].frozen = True
        if lie_still:
            self._samples.renew(group)
        else:
            self._take_samples(group)

    def _take_samples(self, group: Group) -> None:
        """Copy a few values of each weight that is read off a dual."""
        if group["regularizer"] in _WITH_DUAL:
            self._samples.take(group, [param for param in group["params"] if "dual" in self.state.get(param, {})])

    def _forget_removed(self) -> None:
        """Let go of parameters and groups that the optimizer does not have any more."""
        if torch.compiler.is_compiling():
            return
        if len(self._records) > sum(len(group["params"]) for group in self.param_groups):
            present = {param for group in self.param_groups for param in group["params"]}
            self._records = {param: left for param, left in self._records.items() if param in present}
            self._plans = {}
        if len(self._lambdas) > len(self.param_groups):
            groups = {id(group) for group in self.param_groups}
            self._lambdas = {key: seen for key, seen in self._lambdas.items() if key in groups}
            self._samples.keep_only(self.param_groups)
            self._plans = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch.optim does; lambdas in it are copies."""
        state: dict[str, Any] = super().state_dict()
        for group in state["param_groups"]:
            for name, value in group.items():
                if isinstance(value, Tensor):
                    group[name] = value.clone()
        return state

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


def _matches(state: Tensor, param: Tensor, dtype: torch.dtype) -> bool:
    return state.dtype == dtype and state.device == param.device and same_layout(param, state)


def like_dual(grad: Tensor, dual: Tensor) -> Tensor:
    """Return a gradient in the dual's precision and memory layout: fused kernels walk both in storage order."""
    walkable = torch.compiler.is_compiling() or is_plain(grad)
    if walkable and grad.dtype == dual.dtype and grad.device == dual.device and same_layout(grad, dual):
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
