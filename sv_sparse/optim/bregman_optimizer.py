"""Base class of LinBreg, AdaBreg and ProxSGD: parameter groups, dual variables, the frame of a step, saved states."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from sv_sparse.optim.cpp import bindings
from sv_sparse.optim.functional import ProximalMap
from sv_sparse.optim.memory import PLAIN_TYPES, has_same_strides, match_layout
from sv_sparse.optim.prox import GRANULARITIES, PENALTIES, granularity_of, subgradient
from sv_sparse.optim.state_dict_checks import Group, check_parameter, check_shapes, check_state_dict, param_name
from sv_sparse.optim.validation import NONNEGATIVE, require, require_flag, require_number, warn
from sv_sparse.optim.weight_edits import EditTracker

Tensors = list[Tensor]

BACKENDS = ("auto", "cpp", "foreach")
# torch's own subclasses, with which nothing is computed.
_TRACING_TYPES = {"FakeTensor", "FunctionalTensor"}


class TensorLists(NamedTuple):
    """Parameters of a group that a step updates, their gradients and dual variables, in one order."""

    params: Tensors
    grads: Tensors
    duals: Tensors

    def select(self, indices: Sequence[int]) -> "TensorLists":
        """Return the entries at some indices."""
        return TensorLists(
            [self.params[index] for index in indices],
            [self.grads[index] for index in indices],
            [self.duals[index] for index in indices],
        )


class BregmanOptimizer(Optimizer):
    """Torch optimizer whose parameter groups have a penalty and its strength lambda.

    A subclass updates dual variables v. This class computes the weights from them, w = delta * prox(v, lambda), with
    the proximal operator of the penalty, where lambda' = lambda_scale * lambda::

        l1:     prox(v) = sign(v) * max(|v| - lambda', 0)                  each weight
        l0:     prox(v) = v where |v| > lambda', else 0                    each weight
        group:  prox(v) = v * max(1 - lambda' * sqrt(n) / norm(v), 0)      each group of n weights
        none:   w = v

    All groups have these keys, beside those of the subclass:

    - ``lr``: step size, a number or a 0-dim tensor, 0 or more.
    - ``lambda_``: strength of the penalty, a 0-dim tensor on the group's device, which a controller changes in place.
      A number that is set from outside, as one sets ``lr``, becomes a tensor at the next step.
    - ``lambda_scale``: factor on ``lambda_`` in this group, above 0.
    - ``delta``: elastic-net parameter, above 0; ProxSGD has 1 only.
    - ``penalty``: ``"l1"`` (zeros single weights), ``"l0"`` (too, and leaves the others as they are: for weights that
      start dense), ``"group"`` (zeros groups of weights), or ``"none"`` (stays dense).
    - ``granularity``: groups of ``penalty="group"``: ``"out_channel"``, ``"in_channel"`` (rows and columns of a linear
      layer), or ``"kernel"`` (one pair of both).
    - ``transposed``: the weights are [input channels, output channels, ...]; False where it is missing.
    - ``backend``: ``"auto"`` takes ``"cpp"`` if it can be had and ``"foreach"`` elsewhere. ``"cpp"``: kernels that g++
      compiles once and that touch each byte once; for parameters on a CPU. ``"foreach"``: torch's fused and foreach
      operations, which need no compiler. What cpp does not support (groups of weights, 16 bits, gaps in memory) goes
      by foreach. Without a compiler ``"cpp"`` raises.
    - ``maximize``: ascend instead of descend.
    - ``weights_lambda``: ``lambda_scale * lambda_`` at the last step, None before the first. It tells after loading
      whether weights were edited (DECISIONS 79).

    A change of weights from outside is noticed at the next step, which continues from the weights as they are and
    warns once; ``adopt_weights()`` does so without a warning. Two changes are not noticed: of few weights through
    ``.data`` in place, and of any weights through ``.data`` in place on another device than the CPU.
    """

    # False: the weights are computed without dual variables.
    has_duals = True
    # Keys of a group that the update of dual variables takes.
    _hyperparameters: tuple[str, ...] = ()
    _saved_group_keys: tuple[str, ...] = ("lambda_", "penalty", "granularity")
    # Keys of a parameter's state after its first step.
    _saved_state_keys: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        require_number("lambda_init", defaults["lambda_"], NONNEGATIVE, at_least=0, or_tensor=True)
        self._reset_caches()
        super().__init__(params, defaults | {"weights_lambda": None})
        self._is_constructed = True

    def _reset_caches(self) -> None:
        """Forget what is remembered from one step to the next and is not part of the state."""
        # Nonzero weights, with the parameter's version then.
        self._nnz_counts: dict[Tensor, tuple[int, Tensor]] = {}
        # Plans of the steps by the group's id.
        self._plans: dict[int, StepPlan] = {}
        self._edits = EditTracker(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state, as loading, copying and unpickling do."""
        super().__setstate__(state)
        self._reset_caches()
        self._is_constructed = True

    # --- parameter groups ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; the caller's dict stays as it is.

        A group that is added later and has no ``lambda_`` gets that of the other groups with a penalty, so that a
        controller continues as before.

        Raises:
            ValueError: a hyperparameter is unknown or out of its bounds, or a parameter cannot be trained; nothing is
                added.
            OSError: the kernels cannot be compiled; says how to do without.
        """
        group = dict(param_group)
        if "lambda_init" in group:
            # It would be one more key that nobody reads, as torch keeps all keys.
            raise ValueError("lambda_init is an argument of the optimizer; the key of a group is lambda_")
        if getattr(self, "_is_constructed", False) and "lambda_" not in group:
            regularized = [other for other in self.param_groups if other["penalty"] != "none"]
            group["lambda_"] = regularized[0]["lambda_"] if regularized else self.defaults["lambda_"]
        super().add_param_group(group)
        try:
            for index, param in enumerate(group["params"]):
                check_parameter(param, param_name(group, index, len(self.param_groups) - 1), type(self).__name__)
            self._check_group(group)
        except Exception:
            # After an error of any kind: a refused group is not kept.
            self.param_groups.pop()
            raise
        group["lambda_"] = _lambda_tensor(group)

    def _check_group(self, group: Group) -> None:
        """Raise a ValueError if a hyperparameter is out of its bounds, an OSError if its backend cannot be had."""
        require_number("lr", group["lr"], NONNEGATIVE, at_least=0, or_tensor=True)
        require_number("lambda_", group["lambda_"], NONNEGATIVE, at_least=0, or_tensor=True)
        require_number("lambda_scale", group["lambda_scale"], "a finite number above 0", above=0)
        require_number("delta", group["delta"], "a finite number above 0", above=0)
        require_flag("maximize", group["maximize"])
        for name, choices in (("penalty", PENALTIES), ("granularity", GRANULARITIES), ("backend", BACKENDS)):
            require(group[name] in choices, name, group[name], f"one of {', '.join(choices)}")
        if group["penalty"] == "group":
            too_few_axes = [tuple(param.shape) for param in group["params"] if param.ndim < 2]
            require(not too_few_axes, 'parameters with penalty="group"', too_few_axes, "of two axes or more")
        if group["backend"] == "cpp":
            devices = sorted({param.device.type for param in group["params"]})
            require(set(devices) <= {"cpu"}, 'parameters with backend="cpp"', devices, "on the CPU")
            # Before the first step, so that a missing compiler is told at once.
            bindings.library()

    def lambda_of(self, group: Group) -> Tensor:
        """Return the group's lambda, 0-dim, in the precision of its dual variables and on their device.

        It becomes such a tensor where somebody has set a number, or the model has moved.
        """
        lambda_ = group["lambda_"]
        if not isinstance(lambda_, Tensor):
            require_number("lambda_", lambda_, NONNEGATIVE, at_least=0)
            group["lambda_"] = _lambda_tensor(group)
        elif group["params"]:
            first = group["params"][0]
            dtype = dual_dtype(first)
            if lambda_.device != first.device or lambda_.dtype != dtype:
                group["lambda_"] = lambda_.to(first.device, dtype)
        return group["lambda_"]

    # --- steps --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update of every parameter that has a gradient.

        Weights without a gradient follow a change of lambda; frozen ones (``requires_grad=False``) do not.

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
        self._nnz_counts.clear()
        is_compiling = torch.compiler.is_compiling()
        if not is_compiling:
            # All groups, before any weight changes.
            for group_index, group in enumerate(self.param_groups):
                self._check_params(group, group_index)
        for group in self.param_groups:
            with_grad = [param for param in group["params"] if param.grad is not None]
            without_grad = [param for param in group["params"] if param.grad is None and param.requires_grad]
            same_memory = not is_compiling and self._edits.follow(group, [*with_grad, *without_grad])
            if with_grad:
                self._update_group(group, with_grad, [param.grad for param in with_grad], same_memory=same_memory)
            self._apply_prox_to(group, without_grad)
            self._record_step(group, [*with_grad, *without_grad], same_memory=same_memory)
        if not is_compiling and self._edits.forget_removed():
            self._plans = {}
        return loss

    def _check_params(self, group: Group, group_index: int) -> None:
        """Raise an error if a parameter was resized, or its gradient is sparse or of another shape."""
        for index, param in enumerate(group["params"]):
            record = self._edits.records.get(param)
            if param in self.state and (record is None or record.shape != param.shape):
                check_shapes(param_name(group, index, group_index), param, self.state[param])
            grad = param.grad
            if grad is None:
                continue
            if grad.shape != param.shape:
                name = param_name(group, index, group_index)
                raise ValueError(f"{name} has shape {tuple(param.shape)} and its gradient {tuple(grad.shape)}")
            if grad.layout != torch.strided:
                name = param_name(group, index, group_index)
                raise RuntimeError(
                    f"the gradient of {name} is sparse; Bregman optimizers do not support sparse gradients"
                )

    def _update_group(self, group: Group, params: Tensors, grads: Tensors, *, same_memory: bool) -> None:
        """Update dual variables and weights.

        Args:
            group: of the parameters.
            params: those that have a gradient.
            grads: their gradients.
            same_memory: nothing but values has changed since the last step: no address, type, device or setting.
        """
        plan = self._plans.get(id(group)) if same_memory else None
        if plan is None or not plan.is_valid(group, params, self.state):
            plan = self._make_plan(group, params)
            # The compiler cannot keep an id() beyond its graph.
            if not torch.compiler.is_compiling():
                self._plans[id(group)] = plan
        grads = [match_layout(grad, dual) for grad, dual in zip(grads, plan.duals, strict=True)]
        tensors = TensorLists(params, grads, plan.duals)
        prox = self.prox_of(group)
        hyperparameters = {key: group[key] for key in self._hyperparameters}
        # The weight is its own dual variable, and its step delta times as long.
        if prox.penalty == "none":
            hyperparameters["lr"] = hyperparameters["lr"] * group["delta"]
        for backend, indices in plan.by_backend:
            batch = tensors if len(indices) == len(params) else tensors.select(indices)
            if backend == "foreach":
                self._update_foreach(batch, hyperparameters)
                prox.apply_(batch.params, batch.duals)
                continue
            counts = self._update_cpp(batch, hyperparameters, prox)
            if prox.penalty != "none":
                for param, count in zip(batch.params, counts.unbind(), strict=True):
                    self._nnz_counts[param] = (param._version, count)

    def _make_plan(self, group: Group, params: Tensors) -> "StepPlan":
        """Make the state that the step needs, and select the backend of each parameter."""
        duals = [self.dual_of(group, param) for param in params]
        by_backend: dict[tuple[str, torch.device], list[int]] = {}
        for index, (param, dual) in enumerate(zip(params, duals, strict=True)):
            self._init_state(param, dual)
            by_backend.setdefault((_backend_of(group, param, dual), param.device), []).append(index)
        states = [self.state[param] for param in params]
        state_ids = [_value_ids(state) for state in states]
        indices_by_backend = [(backend, indices) for (backend, _), indices in by_backend.items()]
        return StepPlan(group["backend"], list(params), duals, states, state_ids, indices_by_backend)

    def _init_state(self, param: Tensor, dual: Tensor) -> None:
        """Make the parameter's state beside its dual variable, and bring it to the dual variable's layout."""
        raise NotImplementedError

    def _update_foreach(self, tensors: TensorLists, hyperparameters: dict[str, Any]) -> None:
        """Update dual variables by torch's operations."""
        raise NotImplementedError

    def _update_cpp(self, tensors: TensorLists, hyperparameters: dict[str, Any], prox: ProximalMap) -> Tensor:
        """Update dual variables and weights by the C++ kernels; return the nonzero weights of each parameter."""
        raise NotImplementedError

    def _record_step(self, group: Group, params: Sequence[Tensor], *, same_memory: bool = False) -> None:
        """Record how the weights were left, and with which lambda they were computed."""
        lambda_ = self.prox_of(group).lambda_
        if torch.compiler.is_compiling() and group["weights_lambda"] is not None:
            group["weights_lambda"].copy_(lambda_)
            return
        lambda_ = lambda_.clone()
        group["weights_lambda"] = lambda_
        if not torch.compiler.is_compiling():
            self._edits.record_step(group, params, lambda_, same_memory=same_memory)

    # --- dual variables and weights -----------------------------------------------------------------------------------

    def prox_of(self, group: Group) -> ProximalMap:
        """Return the map from the group's dual variables to its weights."""
        lambda_ = self.lambda_of(group)
        if group["lambda_scale"] != 1:
            lambda_ = group["lambda_scale"] * lambda_
        delta = 1.0 if group["penalty"] == "none" else group["delta"]
        return ProximalMap(lambda_, delta, group["penalty"], granularity_of(group))

    @torch.no_grad()
    def duals(self, group: Group) -> Tensors:
        """Return the dual variables of a group's parameters; those that never had a gradient get theirs now."""
        if not torch.compiler.is_compiling():
            self._edits.follow(group, group["params"])
        return [self.dual_of(group, param) for param in group["params"]]

    def dual_of(self, group: Group, param: Tensor) -> Tensor:
        """Return the parameter's dual variable, made at its first step so that it gives the weight as it is.

        A float32 weight without a penalty is its own dual variable; a weight in 16 bits has a float32 copy.
        """
        state = self.state[param]
        dtype = dual_dtype(param)
        if group["penalty"] == "none" and dtype == param.dtype:
            # It is left from the time when the group had a penalty, or was in 16 bits.
            state.pop("dual", None)
            return param
        if "dual" not in state:
            lambda_ = self.prox_of(group).lambda_
            state["dual"] = self.new_dual(group, param, lambda_)
            if not torch.compiler.is_compiling():
                self._edits.add_record(group, param, lambda_.clone())
            return state["dual"]
        dual = state["dual"]
        if dual.dtype != dtype or dual.device != param.device or not has_same_strides(param, dual):
            state["dual"] = torch.empty_like(param, dtype=dtype).copy_(dual)
        return state["dual"]

    def new_dual(self, group: Group, param: Tensor, lambda_: Tensor) -> Tensor:
        """Return a new dual variable that gives the weight as it is under ``lambda_``.

        The penalty l0 has none for a nonzero weight of at most ``delta * lambda_``: there the weight becomes zero.
        """
        dtype = dual_dtype(param)
        weight = param.detach().to(dtype)
        if group["penalty"] == "none":
            return weight
        if group["penalty"] == "l0":
            return weight / group["delta"]
        granularity = granularity_of(group) if group["penalty"] == "group" else None
        return subgradient(weight, lambda_.to(param.device, dtype), group["delta"], granularity=granularity)

    @torch.no_grad()
    def apply_prox(self, *, include_frozen: bool = False) -> None:
        """Compute the weights from the dual variables again, after lambda was changed between two steps.

        Args:
            include_frozen: compute weights that are frozen (``requires_grad=False``) too.
        """
        self._nnz_counts.clear()
        for group in self.param_groups:
            params = [param for param in group["params"] if include_frozen or param.requires_grad]
            self._apply_prox_to(group, params)
            self._record_step(group, params)

    def _apply_prox_to(self, group: Group, params: Sequence[Tensor]) -> None:
        """Compute those weights that have made a step."""
        started = [param for param in params if self.state.get(param)]
        self.prox_of(group).apply_(started, [self.dual_of(group, param) for param in started])

    @torch.no_grad()
    def adopt_weights(self) -> None:
        """Continue from the weights as they are, after a deliberate change from outside.

        For instance after restoring the best weights. Dual variables are made anew where weights differ from them.
        Momentum and moments stay.
        """
        for group in self.param_groups:
            self._edits.adopt_weights(group)

    @torch.no_grad()
    def count_nonzero(self, params: Sequence[Tensor]) -> Tensor:
        """Return the number of nonzero weights of each parameter, int64 [len(params)] on the device of the first.

        The kernels count in the same pass as the update; otherwise it is counted here.
        """
        has_counts = any(param in self._nnz_counts for param in params)
        counts = []
        if has_counts and self._may_be_edited():
            counts = [torch.count_nonzero(param) for param in params]
        else:
            counts = [self._count_nonzero(param) for param in params]
        device = counts[0].device
        return torch.stack([count.to(device) for count in counts])

    def _count_nonzero(self, param: Tensor) -> Tensor:
        if param in self._nnz_counts:
            version, count = self._nnz_counts[param]
            if version == param._version and self._edits.records[param].is_same_memory(param):
                return count
        return torch.count_nonzero(param)

    def _may_be_edited(self) -> bool:
        """Return whether weights that were counted may have been changed through ``.data`` since."""
        if not all(self._edits.records[param].is_same_memory(param) for param in self._nnz_counts):
            return True
        return self._edits.differs(self.param_groups)

    # --- saved states -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch.optim does; lambdas in it are copies."""
        state_dict: dict[str, Any] = super().state_dict()
        # Controllers change lambda in place: a state that is kept in memory would follow the run.
        for group in state_dict["param_groups"]:
            for name, value in group.items():
                if isinstance(value, Tensor):
                    group[name] = value.clone()
        return state_dict

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; it goes to the parameters' device and memory layout, in the precision of the dual variables.

        Groups keep their own ``backend``: it belongs to the machine, not to the state. Hooks are called as torch.optim
        does.

        Raises:
            ValueError: the state is of another optimizer, other shapes, another order of parameters, or another
                penalty. The optimizer is as it was.
        """
        backends = [group["backend"] for group in self.param_groups]
        loaded: dict[str, Any] = {}

        def check(_: Optimizer, hooked_state_dict: dict[str, Any]) -> None:
            check_state_dict(
                hooked_state_dict,
                self.param_groups,
                optimizer=type(self).__name__,
                group_keys=self._saved_group_keys,
                state_keys=self._saved_state_keys,
            )
            loaded.update(hooked_state_dict)

        def restore(_: Optimizer) -> None:
            self._restore_precision(loaded)
            for group, backend in zip(self.param_groups, backends, strict=True):
                group["backend"] = backend

        # the check sees what the user's hooks have made of the state, and the user's hooks see the restored state
        pre_hook = self.register_load_state_dict_pre_hook(check)
        post_hook = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            pre_hook.remove()
            post_hook.remove()

    def _restore_precision(self, state_dict: Mapping[str, Any]) -> None:
        """Restore state that torch's loading has cast to the parameters' precision."""
        for group in self.param_groups:
            group["lambda_"] = _lambda_tensor(group)
            if group["weights_lambda"] is not None:
                group["weights_lambda"] = group["weights_lambda"].to(group["lambda_"].device)
        saved_indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved_indices, params, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if value is not None:
                    self.state[param][key] = _copy_of_state(value, param)


class StepPlan(NamedTuple):
    """Tensors and backends of a group's step, valid for as long as weights and state stay where they are."""

    backend: str
    # Parameters that have a gradient.
    params: Tensors
    # Their dual variables.
    duals: Tensors
    # Their states.
    states: list[dict[str, Any]]
    # Identities of the values in each state.
    state_ids: list[list[int]]
    # Each backend that is used, with the indices of its parameters.
    by_backend: list[tuple[str, list[int]]]

    def is_valid(self, group: Group, params: Tensors, state: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Return whether nothing has changed that the plan depends on, beside the memory of the weights."""
        if group["backend"] != self.backend or len(params) != len(self.params):
            return False
        for index, param in enumerate(params):
            param_state = self.states[index]
            if param is not self.params[index] or state.get(param) is not param_state:
                return False
            if _value_ids(param_state) != self.state_ids[index]:
                return False
            if param_state.get("dual", param) is not self.duals[index]:
                return False
        return True


def _backend_of(group: Group, param: Tensor, dual: Tensor) -> str:
    """Return the backend of one parameter's step, cpp or foreach."""
    backend: str = group["backend"]
    if torch.compiler.is_compiling() or backend == "foreach" or group["penalty"] == "group":
        return "foreach"
    if type(param) not in PLAIN_TYPES:
        _warn_of_subclass(type(param).__name__)
        return "foreach"
    return "cpp" if bindings.supports_pair(param, dual) and bindings.is_selected(backend) else "foreach"


@functools.cache
def _warn_of_subclass(name: str) -> None:
    if name not in _TRACING_TYPES:
        warn(
            f"parameters of type {name}, a tensor subclass, are stepped by backend='foreach': on a CPU a step takes "
            f"about twice as long as by the kernels"
        )


def dual_dtype(param: Tensor) -> torch.dtype:
    """Return the precision of a parameter's dual variable and lambda: float32, or its own if that is higher."""
    return torch.promote_types(param.dtype, torch.float32)


def _value_ids(state: Mapping[str, Any]) -> list[int]:
    return [id(value) for value in state.values()]


def _lambda_tensor(group: Mapping[str, Any]) -> Tensor:
    """Return a new tensor of the group's lambda, in the precision of its dual variables and on their device."""
    first = group["params"][0] if group["params"] else torch.zeros(())
    dtype = dual_dtype(first)
    lambda_ = group["lambda_"]
    # A tensor's value need not come to the host.
    if isinstance(lambda_, Tensor):
        return lambda_.detach().to(first.device, dtype, copy=True).reshape(())
    return torch.full((), float(lambda_), dtype=dtype, device=first.device)


def _copy_of_state(value: Tensor, param: Tensor) -> Tensor:
    """Return a copy of saved state in the parameter's memory layout and the dual variable's precision.

    Counters keep their type.
    """
    if value.shape != param.shape or value.ndim == 0:
        return value.to(param.device, copy=True)
    dtype = dual_dtype(param)
    return torch.empty_like(param, dtype=dtype).copy_(value)
