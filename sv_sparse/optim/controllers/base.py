"""Base class of the controllers: regularized groups, measured sparsity, ramp of the target, the exact end.

A controller's ``step()`` is called after ``optimizer.step()``. It counts the zeros and changes ``lambda_`` in the
optimizer's groups, all on the device: nothing waits for the device. At the end of a run ``finalize()`` makes the
sparsity exact.

Convergence (Bungert et al., JMLR 23(192), 2022, for the first sentence): with lambda fixed and a small enough step
the loss falls, in expectation for stochastic gradients. A change of lambda by d moves each nonzero weight by at most
``delta * lambda_scale * |d|`` (penalty l1; with penalty group, the norm of each group by at most ``sqrt(size)`` times
that), and the dual variables not at all. (With penalty l0, nonzero weights do not move, and those between the two
lambdas jump: functional.py.) So where the changes have a finite sum, the iteration is one of
fixed lambda plus a vanishing disturbance; the frozen end of a run makes that so. Nothing says that the closed loop
converges to the target, or to a better network than another path of lambda; that is measured
(scripts/benchmark/controller.py).
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from sv_sparse.optim.allocation import ALLOCATIONS, layer_nnz, round_to_sum
from sv_sparse.optim.bregman_optimizer import BregmanOptimizer, dual_dtype
from sv_sparse.optim.controllers._order_statistics import lambda_for_nnz, separate_ties
from sv_sparse.optim.groups import sparsity
from sv_sparse.optim.prox import granularity_of, group_size
from sv_sparse.optim.reminders import Reminders
from sv_sparse.optim.state_dict_checks import Group
from sv_sparse.optim.validation import positive_int, require, require_fraction, warn

# Fraction of the run, "auto", or None for no ramp.
RampBound = float | Literal["auto"] | None

# Ramp of a network that starts dense: DECISIONS 84.
_AUTO_RAMP = (0.0, 0.5)
# A start counts as dense up to this sparsity.
_MAX_DENSE_SPARSITY = 0.5
# Lambda of a dense start beside the root mean square of the weights: DECISIONS 65.
_DENSE_LAMBDA_FACTOR = 0.01
# Lambda of a sparse network beside the root mean square of its nonzero weights, from which it is lowered to that.
_SPARSE_LAMBDA_TOLERANCE = 10.0
# Under l0, a weight as large as lambda is zero.
_BELOW = 0.999


def largest_initial_lambda(params: Sequence[Tensor], *, delta: float = 1.0, penalty: str = "l1") -> float:
    """Return the largest lambda that a controller should start from with these weights; waits for the device.

    Under l1, weights start as they are, with dual variables lambda beyond them, and each then moves by at most
    ``delta`` times what lambda does. A lambda above their size would make them as large as itself on its way down, and
    few would become zero afterwards. Under l0, weights smaller than lambda would be zero after the first step.

    - Where the weights start dense, a controller, which finds lambda from anywhere, starts at a hundredth of their root
      mean square (DECISIONS 65). Under l1, a weight on its way to the other sign is zero for 2 lambda.
    - Where most are zero, it is the root mean square of the others, and under l0 a lambda just below the smallest.

    Args:
        params: regularized weights.
        delta: elastic-net parameter of their optimizer, above 0, times the largest ``lambda_scale`` of their groups.
        penalty: ``"l0"``, or any other. Default: l1.

    Returns:
        The largest lambda; infinity where all weights are zero.

    >>> largest_initial_lambda([torch.tensor([2.0, -2.0, 2.0])])
    0.02
    >>> largest_initial_lambda([torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0])], penalty="l0")
    0.999
    """
    nnz = sum(float(param.count_nonzero()) for param in params)
    if not nnz:
        return math.inf
    root_mean_square = math.sqrt(sum(float(param.detach().square().sum()) for param in params) / nnz)
    size = sum(param.numel() for param in params)
    if nnz >= (1 - _MAX_DENSE_SPARSITY) * size:
        return _DENSE_LAMBDA_FACTOR * root_mean_square / delta
    if penalty == "l0":
        smallest = math.inf
        for param in filter(torch.numel, params):
            magnitudes = param.detach().abs()
            smallest = min(smallest, float(torch.where(magnitudes > 0, magnitudes, math.inf).min()))
        return _BELOW * smallest / delta
    return root_mean_square / delta


class Controller:
    """Base class: a subclass says in ``_update`` what one update changes.

    A controller warns (UserWarning, once each) of what a training loop forgets: ``step()``, ``finalize()``, a
    ``total_steps`` that is not the length of the run, groups that ``param_groups`` has not made. Set
    ``reminders.active`` to False to switch that off.

    Args:
        optimizer: its groups with a penalty are regularized, with one common lambda.
        target_sparsity: fraction of exact zeros that those groups have in the end, in [0, 1). At 0, training is dense,
            and no group may have a penalty.
        total_steps: length of the run in updates, a whole number of 1 or more.
        freeze_fraction: fraction of the run, at its end, during which lambda is left alone, in [0, 1). Default: 0.01.
        ramp_start: fraction of the run, in [0, 1], at which the target leaves ``initial_sparsity``. None, with
            ``ramp_end`` None: the target holds from the start. ``"auto"``, with ``ramp_end`` ``"auto"``: a ramp from 0
            to 0.5 where at most half of the regularized weights are zero at the start (a pretrained network), else no
            ramp. Default: auto.
        ramp_end: fraction of the run, above ``ramp_start`` and at most 1, at which the target is reached. With the
            progress p from 0 to 1 in between, the target is
            ``target_sparsity + (initial_sparsity - target_sparsity) * (1 - p)**3``. Default: auto.
        initial_sparsity: where a ramp starts, in [0, 1). None: the sparsity of the network as it is; then ``lambda_``
            is lowered to ``largest_initial_lambda`` where it is above that (under l1 where most weights are zero, ten
            times above), unless the optimizer has made updates. Under l0 it is lowered in any case. Default: None.
        allocation: how the target is divided among the regularized weights. ``"global"``: one lambda for all, which
            decides. ``"uniform"``: each weight has the target's sparsity. ``"erk"``: small layers keep more, see
            ``sv_sparse.optim.allocation``. With these two each weight is a group of its own, with a lambda of its own
            (``param_groups(model, per_weight=True)``), and the total is the target all the same. Default: global.

    Raises:
        TypeError: ``optimizer`` is none of this package.
        ValueError: an argument is out of its bounds, or target and penalties contradict each other.
    """

    # False: no target is led to, finalize() changes nothing, and the run is not reminded of anything.
    has_target = True
    # True: every update ends at the target, so that finalize() changes nothing.
    is_exact = False

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        freeze_fraction: float = 0.01,
        ramp_start: RampBound = "auto",
        ramp_end: RampBound = "auto",
        initial_sparsity: float | None = None,
        allocation: str = "global",
    ) -> None:
        if not isinstance(optimizer, BregmanOptimizer):
            name = type(optimizer).__name__
            raise TypeError(f"optimizer must be AdaBreg, LinBreg or another BregmanOptimizer, got {name}")
        require_fraction("target_sparsity", target_sparsity)
        require_fraction("freeze_fraction", freeze_fraction)
        if initial_sparsity is not None:
            require_fraction("initial_sparsity", initial_sparsity)
        require(allocation in ALLOCATIONS, "allocation", allocation, f"one of {', '.join(ALLOCATIONS)}")
        divides = self.has_target or allocation == "global"
        require(divides, f"allocation of a {type(self).__name__}", allocation, "global: it leads to no target")
        self.optimizer = optimizer
        self.allocation = allocation
        self.target_sparsity = target_sparsity
        self.total_steps = positive_int("total_steps", total_steps)
        self.freeze_step = self.total_steps - round(freeze_fraction * self.total_steps)
        self.steps = 0
        self._has_auto_ramp = isinstance(ramp_start, str) and ramp_start == ramp_end == "auto"
        self.ramp = None if self._has_auto_ramp else _checked_ramp(ramp_start, ramp_end)
        self._check_groups()
        self.initial_sparsity = 0.0 if initial_sparsity is None else initial_sparsity
        # Nonzero weights of each layer before the ramp; empty where one lambda decides.
        self._initial_nnz = self._layer_nnz_at(self.initial_sparsity)
        # The same and those at the target, [2, layers], and the sizes [layers], on the device; None: to be made.
        self._ramp_nnz: Tensor | None = None
        self._sizes: Tensor | None = None
        if self.has_target and self.groups:
            self._fit_to_start(initial_sparsity)
        self.reminders = Reminders(self)
        self.reminders.check_groups()

    def _fit_to_start(self, initial_sparsity: float | None) -> None:
        """Set ramp, initial sparsity and lambda by the network as it is, where the caller has not set them."""
        if self._has_auto_ramp and float(self.sparsity()) <= _MAX_DENSE_SPARSITY:
            self.ramp = _AUTO_RAMP
        if initial_sparsity is None:
            self.start_from_current_sparsity()
        has_updates = any(self.optimizer.state.get(param) for param in self.params)
        # Without dual variables no weight lies lambda below one.
        if has_updates or not self.optimizer.has_duals:
            return
        for groups in [self.groups] if self.allocation == "global" else [[group] for group in self.groups]:
            # Weights that masks make zero have no penalty.
            penalties = {group["penalty"] for group in groups} - {"none"}
            if "l0" in penalties or (penalties and initial_sparsity is None):
                self._lower_lambda(groups, "l0" if "l0" in penalties else "l1")

    def _lower_lambda(self, groups: Sequence[Group], penalty: str) -> None:
        """Lower the lambda of groups that share one to ``largest_initial_lambda``, where it is above that."""
        params = [param for group in groups for param in group["params"]]
        # The group whose weights lambda moves farthest decides.
        max_factor = max(group["delta"] * group["lambda_scale"] for group in groups)
        max_lambda = largest_initial_lambda(params, delta=max_factor, penalty=penalty)
        # The lambda of a network that was finalized under l1 is up to a few times the size of its weights: it is left.
        is_dense = float(sparsity(params)) <= _MAX_DENSE_SPARSITY
        tolerance = 1.0 if is_dense or penalty == "l0" else _SPARSE_LAMBDA_TOLERANCE
        if float(self.optimizer.lambda_of(groups[0])) > tolerance * max_lambda:
            for group in groups:
                self.optimizer.lambda_of(group).fill_(max_lambda)

    def _check_groups(self) -> None:
        """Raise a ValueError if target and penalties contradict each other."""
        groups = self.groups
        if self.target_sparsity == 0 and groups:
            names = [group.get("name") for group in groups]
            raise ValueError(f"target_sparsity=0 is dense training: groups {names} need penalty='none'")
        if self.target_sparsity > 0 and not groups:
            raise ValueError(f"target_sparsity={self.target_sparsity} needs a group with a penalty, got none")
        self._check_params()
        if self.allocation != "global":
            too_large = [group.get("name", index) for index, group in enumerate(groups) if len(group["params"]) > 1]
            if too_large:
                raise ValueError(
                    f"allocation={self.allocation!r} needs a group for each regularized weight, as "
                    f"param_groups(model, per_weight=True) makes them; groups {too_large} have more"
                )
            return
        lambdas = {float(group["lambda_"]) for group in groups}
        if len(lambdas) > 1:
            raise ValueError(f"regularized groups share one lambda_ and differ by lambda_scale, got {sorted(lambdas)}")

    def _check_params(self) -> None:
        """Raise a ValueError if the target cannot be reached by these weights."""
        num_frozen = sum(not param.requires_grad for param in self.params)
        if num_frozen:
            raise ValueError(
                f"{num_frozen} regularized parameters are frozen (requires_grad=False), so target_sparsity="
                f"{self.target_sparsity} may be out of reach; leave them out of the optimizer"
            )
        size = self._size()
        nnz = self._nnz_at(self.target_sparsity)
        if self.groups and not 0 < nnz < size:
            raise ValueError(f"target_sparsity={self.target_sparsity} of {size} weights keeps {nnz} of them")
        if self.allocation != "global" and nnz < len(self.params):
            raise ValueError(
                f"target_sparsity={self.target_sparsity} of {size} weights keeps {nnz} of them, and allocation="
                f"{self.allocation!r} leaves at least one in each of {len(self.params)} layers; choose a lower target"
            )

    @property
    def groups(self) -> list[Group]:
        """Parameter groups that are regularized."""
        return [group for group in self.optimizer.param_groups if group["penalty"] != "none" and group["params"]]

    @property
    def params(self) -> list[Tensor]:
        """Parameters that are regularized, whose zeros are counted."""
        return [param for group in self.groups for param in group["params"]]

    @property
    def lambda_(self) -> Tensor:
        """Common lambda, 0-dim on the device; 0 where nothing has a penalty.

        Where each weight has its own, their mean over all regularized values.
        """
        lambdas = self._lambdas()
        if not lambdas.ndim:
            return lambdas
        return (lambdas * self._layer_sizes()).sum() / self._size()

    def _lambdas(self) -> Tensor:
        """Return what ``_set_lambda`` takes: the common lambda, 0-dim, or that of each weight, as a vector."""
        groups = self.groups
        if not groups:
            return torch.zeros(())
        if self.allocation == "global":
            return self.optimizer.lambda_of(groups[0])
        return torch.stack([self.optimizer.lambda_of(group) for group in groups])

    @property
    def target(self) -> float:
        """Target at this step: ``target_sparsity``, or on the way to it during a ramp."""
        return self._target_at(self._ramp_distance())

    def _target_at(self, distance: float) -> float:
        """Return the target where a part of the ramp's way to it is left."""
        return self.target_sparsity + (self.initial_sparsity - self.target_sparsity) * distance

    def _ramp_distance(self) -> float:
        """Return the part of the way to the target that is left at this step: 1 before the ramp, 0 after it."""
        if self.ramp is None:
            return 0.0
        start, end = self.ramp
        # Zhu and Gupta's cubic ramp (arXiv 1710.01878): fast where many weights can go, slow near the target.
        progress = min(1.0, max(0.0, (self.steps / self.total_steps - start) / (end - start)))
        return (1 - progress) ** 3

    def sparsity(self) -> Tensor:
        """Return the fraction of exact zeros in the regularized parameters, 0-dim on the device."""
        if not self.params:
            return torch.zeros(())
        return 1 - self._nnz().to(self.lambda_.dtype) / self._size()

    def gap(self) -> Tensor:
        """Return target minus measured sparsity: 0-dim, or of each weight, as a vector, where each has its own lambda.

        All on the device: the way from the first to the last target of each weight is that of their total.
        """
        if self.allocation == "global":
            return self.target - self.sparsity()
        counts = self.optimizer.count_nonzero(self.params)
        sizes = self._layer_sizes()
        if self._ramp_nnz is None or self._ramp_nnz.device != counts.device:
            rows = [self._initial_nnz, self._layer_nnz_at(self.target_sparsity)]
            self._ramp_nnz = torch.tensor(rows, dtype=sizes.dtype, device=counts.device)
        initial, final = self._ramp_nnz.unbind()
        return (counts - torch.lerp(final, initial, self._ramp_distance())) / sizes

    @torch.no_grad()
    def step(self) -> None:
        """Count one update and adapt lambda; in the frozen end of the run, only count.

        Call it where an update was made, not where a GradScaler skipped it.
        """
        self._check_layers()
        self.steps += 1
        self.reminders.count_step()
        # In the frozen end lambda stands still, so that the weights settle before finalize() (DECISIONS 9).
        if self.groups and self.steps <= self.freeze_step:
            self._update()

    def _check_layers(self) -> None:
        """Raise a ValueError where each weight has a lambda of its own and weights were added or removed."""
        if self.allocation != "global" and len(self.params) != len(self._initial_nnz):
            raise ValueError(
                f"allocation={self.allocation!r} divides the target among the {len(self._initial_nnz)} weights that "
                f"the controller was made with, and now there are {len(self.params)}: make a new controller"
            )

    def _update(self) -> None:
        """Adapt lambda after an update."""
        raise NotImplementedError

    def start_from_current_sparsity(self) -> None:
        """Start the ramp at the sparsity that the network has: for a network that is trained already."""
        self.initial_sparsity = float(self.sparsity())
        if self.allocation != "global":
            self._initial_nnz = self.optimizer.count_nonzero(self.params).tolist()
        self._ramp_nnz = None

    def reset_gain(self) -> None:
        """Take the full gain again, since a change of learning rate, margin or data moves the lambda of the target."""

    @torch.no_grad()
    def finalize(self) -> None:
        """Make the sparsity exact: set lambda by the dual variables, and compute the weights from them.

        With n weights left at the target, lambda lies between the (n + 1)-th largest ``|v|`` and the n-th. Of these
        values, the one nearest to the present lambda is taken: a network that was finalized before has a wide gap
        there, and each weight shifts by what lambda does. Of equal dual variables as many stay as are needed. Groups of
        weights are zeroed as a whole: then the sparsity is exact to within a group. Refresh batch-norm statistics
        afterwards (``torch.optim.swa_utils.update_bn``).

        Warns:
            UserWarning: more dual variables than that are exactly zero (their weights never had a gradient); or the
                run was no more than half over, or its sparsity further than half a point from
                the target.
        """
        if not self.groups:
            return
        self._check_layers()
        # Before anything changes: it compares the tracked sparsity with the target.
        self.reminders.before_finalize(int(self._nnz()), self._target_nnz(), self._size(), max(self._group_sizes()))
        self._make_exact(0.0, is_end=True)
        if self._is_off_target():
            warn(
                f"finalized with {int(self._nnz())} nonzero weights instead of {self._target_nnz()}: other dual "
                f"variables are zero, as of weights that never had a gradient, or whole groups of weights are equal"
            )

    def _make_exact(self, distance: float, *, is_end: bool = False) -> None:
        """Set lambda so that the weights have the target's sparsity, and compute them.

        Args:
            distance: part of the way from the initial sparsity to the target that is left, 0 at the target.
            is_end: of the run: weights that are not trained are computed too, and ties are separated.
        """
        if self.allocation == "global":
            self._set_lambda(self._lambda_for_nnz(self.groups, self._nnz_at(self._target_at(distance)), is_end=is_end))
        else:
            lambdas = []
            for group, nnz in zip(self.groups, self._layer_nnz_on_the_way(distance), strict=True):
                lambdas.append(self._lambda_for_nnz([group], nnz, is_end=is_end))
            self._set_lambda(torch.stack(lambdas))
        self.optimizer.apply_prox(include_frozen=is_end)

    def _lambda_for_nnz(self, groups: Sequence[Group], nnz: int, *, is_end: bool) -> Tensor:
        """Return the lambda of groups that share one at which so many of their weights are nonzero."""
        has_single_weights = all(group["penalty"] != "group" for group in groups)
        if is_end and has_single_weights and self.optimizer.has_duals:
            separate_ties(self.optimizer, groups, nnz)
        return lambda_for_nnz(self.optimizer, groups, nnz)

    def _set_lambda(self, value: Tensor) -> None:
        """Set the common lambda, 0-dim, or that of each weight, a vector."""
        groups = self.groups
        for group, lambda_ in zip(groups, value.expand(len(groups)), strict=True):
            self.optimizer.lambda_of(group).copy_(lambda_)

    def _nnz(self) -> Tensor:
        """Return the number of nonzero weights, 0-dim on the device."""
        return self.optimizer.count_nonzero(self.params).sum()

    def _size(self) -> int:
        return sum(param.numel() for param in self.params)

    def _nnz_at(self, target: float) -> int:
        """Return the number of nonzero weights at a target."""
        return round((1 - target) * self._size())

    def _layer_nnz_at(self, target: float) -> list[int]:
        """Return the number of nonzero weights of each layer at a target; empty where one lambda decides."""
        params = self.params
        if self.allocation == "global" or not params:
            return []
        nnz = max(len(params), self._nnz_at(target))
        return layer_nnz([param.shape for param in params], nnz, self.allocation)

    def _layer_nnz_on_the_way(self, distance: float) -> list[int]:
        """Return the number of nonzero weights of each layer where a part of the ramp's way to the target is left."""
        final = self._layer_nnz_at(self.target_sparsity)
        values = []
        for initial_nnz, final_nnz in zip(self._initial_nnz, final, strict=True):
            values.append(final_nnz + (initial_nnz - final_nnz) * distance)
        # A layer that starts with zeros alone keeps one weight.
        total = max(len(values), round(sum(values)))
        return round_to_sum(values, total, [param.numel() for param in self.params])

    def _layer_sizes(self) -> Tensor:
        """Return the number of weights of each layer, a vector on the device."""
        params = self.params
        if self._sizes is None or self._sizes.device != params[0].device or len(self._sizes) != len(params):
            sizes = [param.numel() for param in params]
            dtype = dual_dtype(params[0])
            self._sizes = torch.tensor(sizes, dtype=dtype, device=params[0].device)
        return self._sizes

    def _target_nnz(self) -> int:
        """Return the number of nonzero weights that finalize() leaves."""
        return self._nnz_at(self.target_sparsity)

    def _is_off_target(self) -> bool:
        """Return whether finalize() has missed the target by a group of weights or more."""
        nnz, target_nnz = int(self._nnz()), self._target_nnz()
        sizes = self._group_sizes()
        tolerance = max(sizes) if self.allocation == "global" else sum(sizes)
        return not target_nnz - tolerance < nnz <= target_nnz

    def _group_sizes(self) -> list[int]:
        """Return how many weights become zero together in each parameter."""
        sizes = [1]
        for group in self.groups:
            if group["penalty"] == "group":
                granularity = granularity_of(group)
                sizes += [group_size(param, granularity) for param in group["params"]]
        return sizes

    # --- saved states -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs beside the optimizer's state, which has lambda: tensors and plain data."""
        self.reminders.state_was_saved()
        return {
            "controller": type(self).__name__,
            "steps": self.steps,
            "initial_sparsity": self.initial_sparsity,
            "ramp": None if self.ramp is None else list(self.ramp),
            "allocation": self.allocation,
            "initial_nnz": list(self._initial_nnz),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Args:
            state_dict: of a controller of this class. A ramp that is ``"auto"`` becomes the saved one.

        Raises:
            ValueError: the state is of another class, or lacks what this class needs; nothing is restored.
        """
        self._check_state_dict(state_dict)
        steps = state_dict["steps"]
        is_count = isinstance(steps, int) and not isinstance(steps, bool) and steps >= 0
        require(is_count, "steps of a saved controller", steps, "a whole number, 0 or more")
        ramp = None if state_dict["ramp"] is None else _checked_ramp(*state_dict["ramp"])
        # From here on nothing is refused.
        self.steps = steps
        self.initial_sparsity = state_dict["initial_sparsity"]
        self._initial_nnz = list(state_dict.get("initial_nnz", self._initial_nnz))
        self._ramp_nnz = None
        if self._has_auto_ramp:
            self.ramp = ramp
        self.reminders.state_was_loaded()

    def _state_keys(self) -> tuple[str, ...]:
        """Return the entries that a saved state must have."""
        return ("steps", "initial_sparsity", "ramp")

    def _check_state_dict(self, state_dict: Any) -> None:
        name = type(self).__name__
        if not isinstance(state_dict, Mapping):
            raise ValueError(f"the state of a {name} must be a dict, got {type(state_dict).__name__}")
        # A dict without the name is no controller's state; its keys say what it is instead.
        saved_name = state_dict.get("controller", name)
        if saved_name != name:
            raise ValueError(f"the state is of a {saved_name}, expected that of a {name}")
        # States of version 0.2 have none.
        allocation = state_dict.get("allocation", self.allocation)
        require(allocation == self.allocation, "allocation of a saved controller", allocation, self.allocation)
        missing = [key for key in self._state_keys() if key not in state_dict]
        if missing:
            keys = ", ".join(map(str, state_dict)) or "nothing"
            raise ValueError(f"the state of a {name} must have {', '.join(missing)}, got one with {keys}")

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: all but the reminders, which watch one controller and its optimizer."""
        state = {name: value for name, value in self.__dict__.items() if name != "reminders"}
        state["_reminder_state"] = self.reminders.active, self.reminders.issued
        # The copy may be finalized instead.
        self.reminders.state_was_saved()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state, as copying and unpickling do."""
        state = dict(state)
        active, issued = state.pop("_reminder_state")
        self.__dict__.update(state)
        self.reminders = Reminders(self, active=active, issued=issued)


def _checked_ramp(start: Any, end: Any) -> tuple[float, float] | None:
    """Return a ramp as two numbers; None without a ramp."""
    if start is None and end is None:
        return None
    bounds = (start, end)
    are_numbers = all(isinstance(bound, Real) and not isinstance(bound, bool) for bound in bounds)
    if are_numbers and 0 <= start < end <= 1:
        return bounds
    raise ValueError(
        f'ramp_start and ramp_end must be two rising fractions of the run, from 0 to 1, or both "auto", or both None, '
        f"got {start!r} and {end!r}"
    )
