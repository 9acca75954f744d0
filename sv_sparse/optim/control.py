"""Controllers: measured sparsity to the next lambda. This is what they share, and the one that leaves lambda alone.

A controller's ``step()`` is called after ``optimizer.step()``. It counts the zeros and changes ``lambda_`` in the
optimizer's groups, all on the device: nothing waits for the device. At the end of a run ``land()`` makes the sparsity
exact.

What holds (Bungert et al., JMLR 23(192), 2022, for the first): with lambda fixed and a small enough step the loss
falls, in expectation for stochastic gradients. A change of lambda by d moves each live weight by at most
``delta * |d|``, and the duals not at all. So where the changes sum to a finite amount, the iteration is one of
fixed lambda plus a vanishing disturbance; the settling part of a run, with lambda left alone, makes that so. What
does not hold: nothing says that the closed loop itself converges to the target, or to a better network than another
lambda path; that is measured (scripts/benchmark/controller.py).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.checks import check_number, warn, whole_number
from sv_sparse.optim.optimizer import BregmanOptimizer, Group
from sv_sparse.optim.prox import group_size, grouping_of
from sv_sparse.optim.quantile import nearest
from sv_sparse.optim.reminders import Reminders

Ramp = tuple[float, float] | str | None

AUTO_RAMP = (0.0, 0.5)  # of a network that starts dense
_MOSTLY = 0.5  # of the weights: where more are zero, a start is no dense one
_LOW = 0.01  # of the root mean square of weights that are dense at the start


def largest_start(params: Sequence[Tensor], *, delta: float = 1.0) -> float:
    """Return the largest lambda that a controller should start from beside these weights; waits for the device.

    Weights begin as they are, with duals that lie lambda beyond them, and each then moves by ``delta`` times what
    lambda does. A lambda above their size would make them as large as itself on its way down, after which none of them
    dies or is outgrown. Where weights are dense at the start, one on its way to the other sign is dead for 2 lambda,
    and channels turn slower by what lambda is beside them: there a controller, which finds lambda from anywhere,
    starts at a hundredth of their root mean square.

    Args:
        params: the regulated weights.
        delta: elastic-net scale of their optimizer.

    Returns:
        The largest lambda; infinity where all weights are zero.
    """
    nonzero = sum(float(param.count_nonzero()) for param in params)
    if not nonzero:
        return math.inf
    size = math.sqrt(sum(float(param.detach().square().sum()) for param in params) / nonzero)
    dense = nonzero >= (1 - _MOSTLY) * sum(param.numel() for param in params)
    return (_LOW * size if dense else size) / delta


class Controller:
    """What every controller shares: the groups it regulates, the measurement, ramp, settling and landing.

    A controller warns (UserWarning, once each) of what a training loop forgets: ``step()``, ``land()``, a
    ``total_steps`` that is not the length of the run, groups that ``partition`` has not made. Set ``reminders.active``
    to False to be left alone.

    Args:
        optimizer: its groups with a regularizer are regulated, with one common lambda.
        target_sparsity: fraction of exact zeros wanted in those groups, in [0, 1). At 0 nothing may be regularized.
        total_steps: length of the run in updates, a whole number of 1 or more.
        settle: share of the run, at its end, during which lambda is left alone, in [0, 1).
        ramp: shares of the run between which the target moves from ``initial_sparsity`` to ``target_sparsity``,
            along ``1 - (1 - p)**3``. None: the target stands from the start. ``"auto"``: (0, 0.5) where at most half
            of the regulated weights are zero at the start (a pretrained network), else None.
        initial_sparsity: where a ramp starts, in [0, 1). None: at the sparsity of the network as it is; and where at
            most half of its weights are zero, ``lambda_`` is lowered to a hundredth of their root mean square, unless
            it is lower already or the optimizer has made updates.

    Raises:
        ValueError: a setting is out of its bounds, or target and regularizers contradict each other.
    """

    regularizers: tuple[str, ...] = ("l1", "group")
    lands = True
    exact = False  # whether every update ends at the target, so that there is nothing left to land

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        settle: float = 0.01,
        ramp: Ramp = "auto",
        initial_sparsity: float | None = None,
    ) -> None:
        shares = {"target_sparsity": target_sparsity, "settle": settle}
        if initial_sparsity is not None:
            shares["initial_sparsity"] = initial_sparsity
        for name, share in shares.items():
            check_number(name, share, "at least 0 and below 1", at_least=0, below=1)
        self.optimizer = optimizer
        self.target_sparsity = target_sparsity
        self.total_steps = whole_number("total_steps", total_steps)
        self.settles_at = self.total_steps - round(settle * self.total_steps)
        self.steps = 0
        self._ramp_is_auto = isinstance(ramp, str) and ramp == "auto"
        self.ramp = None if self._ramp_is_auto else _checked_ramp(ramp)
        self._check_groups()
        self.initial_sparsity = 0.0 if initial_sparsity is None else initial_sparsity
        if self.lands and self.groups:
            self._begin(initial_sparsity)
        self.reminders = Reminders(self)
        self.reminders.check_groups()

    def _begin(self, initial_sparsity: float | None) -> None:
        """Start from the network as it is, as far as nobody said otherwise."""
        params = self.params
        present = float(self.sparsity())
        dense = present <= _MOSTLY
        if self._ramp_is_auto and dense:
            self.ramp = AUTO_RAMP
        if initial_sparsity is not None:
            return
        self.initial_sparsity = present
        if not dense or "mask" in self.regularizers or any(self.optimizer.state.get(param) for param in params):
            return
        delta = min(group.get("delta", 1.0) for group in self.groups)
        largest = largest_start(params, delta=delta)
        if float(self.lambda_) > largest:
            self._set_lambda(torch.full_like(self.lambda_, largest))

    def _check_groups(self) -> None:
        kinds = {group["regularizer"] for group in self.optimizer.param_groups} - {"none", *self.regularizers}
        if kinds:
            raise ValueError(f"{type(self).__name__} regulates {self.regularizers}, got groups with {sorted(kinds)}")
        if self.target_sparsity == 0 and self.groups:
            names = [group.get("name") for group in self.groups]
            raise ValueError(f"target_sparsity=0 is dense training: groups {names} need regularizer='none'")
        if self.target_sparsity > 0 and not self.groups:
            raise ValueError(f"target_sparsity={self.target_sparsity} needs a group with a regularizer, got none")
        lambdas = {float(group["lambda_"]) for group in self.groups}
        if len(lambdas) > 1:
            raise ValueError(f"regulated groups share one lambda_ and differ by lambda_scale, got {sorted(lambdas)}")
        frozen = sum(not param.requires_grad for param in self.params)
        if frozen:
            raise ValueError(
                f"{frozen} regulated parameters are frozen (requires_grad=False), so target_sparsity="
                f"{self.target_sparsity} may be out of reach; leave them out of the optimizer"
            )
        size = self._size()
        if self.groups and not 0 < self._kept(self.target_sparsity) < size:
            kept = self._kept(self.target_sparsity)
            raise ValueError(f"target_sparsity={self.target_sparsity} of {size} weights keeps {kept} of them")

    def _size(self) -> int:
        return sum(param.numel() for param in self.params)

    def _kept(self, target: float) -> int:
        """Weights that survive at a target."""
        return round((1 - target) * self._size())

    @property
    def groups(self) -> list[Group]:
        """The regulated parameter groups."""
        return [
            group
            for group in self.optimizer.param_groups
            if group["regularizer"] in self.regularizers and group["params"]
        ]

    @property
    def params(self) -> list[Tensor]:
        """The regulated parameters."""
        return [param for group in self.groups for param in group["params"]]

    @property
    def lambda_(self) -> Tensor:
        """The common lambda, 0-dim on the device; 0 where nothing is regulated."""
        return self.optimizer.lambda_of(self.groups[0]) if self.groups else torch.zeros(())

    @property
    def target(self) -> float:
        """The target at this step: ``target_sparsity``, or on the way to it while a ramp lasts."""
        if self.ramp is None:
            return self.target_sparsity
        start, end = self.ramp
        progress = min(1.0, max(0.0, (self.steps / self.total_steps - start) / (end - start)))
        return self.target_sparsity + (self.initial_sparsity - self.target_sparsity) * (1 - progress) ** 3

    def sparsity(self) -> Tensor:
        """Fraction of exact zeros in the regulated parameters, 0-dim on the device."""
        params = self.params
        if not params:
            return torch.zeros(())
        return 1 - self._alive().to(self.lambda_.dtype) / self._size()

    def _alive(self) -> Tensor:
        """Nonzero weights, 0-dim on the device."""
        return self.optimizer.count_nonzero(self.params).sum()

    @torch.no_grad()
    def step(self) -> None:
        """Count one update and adapt lambda; in the settling part of the run, only count.

        Call it where an update was made, not where a GradScaler skipped it: lambda would move with nothing to show.
        """
        self.steps += 1
        self.reminders.count_step()
        if self.groups and self.steps <= self.settles_at:
            self._follow()
            self._adapt()

    def take_over(self) -> None:
        """Say that the network is trained already: a ramp begins at the sparsity that it has."""
        self.initial_sparsity = float(self.sparsity())

    def rearm(self) -> None:
        """Say that the regime has changed (learning rate, margin, data): the lambda that holds the target moves."""

    def _follow(self) -> None:
        """Take own state to where the model is by now: another device, or another precision."""

    def _adapt(self) -> None:
        raise NotImplementedError

    def _set_lambda(self, value: Tensor) -> None:
        for group in self.groups:
            self.optimizer.lambda_of(group).copy_(value)

    def _threshold(self, target: float, *, frozen: bool = False) -> None:
        """Set lambda to the quantile of the duals at a target, and read the weights out; also those that are frozen."""
        self._set_lambda(nearest(self.optimizer, self.groups, self._kept(target)))
        self.optimizer.read_out(frozen=frozen)

    @torch.no_grad()
    def land(self) -> None:
        """Make the sparsity exact: set lambda to the quantile of the duals at the target and read the weights out.

        The threshold is strict: with lambda from the (K + 1)-th largest ``|v|`` up to the K-th, K weights survive. Of
        these, lambda becomes the one nearest to where it is. In a network that had landed before that interval is wide,
        and each weight shifts by what lambda does. Groups of weights survive whole: then it is exact to within a group.
        Batch-norm statistics need a refresh afterwards.

        Warns:
            UserWarning: fewer survive, since more duals than that are exactly zero (their weights never had a
                gradient) or equal to the last bit; or the run was no more than half over, or its sparsity further than
                half a point from the target.
        """
        if not self.groups:
            return
        self.reminders.before_landing(int(self._alive()), self._wanted(), self._size(), max(self._unit_sizes()))
        self._threshold(self.target_sparsity, frozen=True)
        if self._missed():
            kept, reason = int(self._alive()), "too many duals are zero or equal"
            warn(f"landed on {kept} weights instead of {self._wanted()}: {reason}")

    def _missed(self) -> bool:
        """Whether landing ended elsewhere than it should, but for the size of what becomes zero together."""
        kept, wanted = int(self._alive()), self._wanted()
        return not wanted - max(self._unit_sizes()) < kept <= wanted

    def _wanted(self) -> int:
        """Weights that should survive landing."""
        return self._kept(self.target_sparsity)

    def _unit_sizes(self) -> Iterator[int]:
        """How many weights become zero together."""
        yield 1
        for group in self.groups:
            if group["regularizer"] == "group":
                yield from (group_size(param, grouping_of(group)) for param in group["params"])

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs beside the optimizer's state (where lambda is): tensors and plain data."""
        self.reminders.state_was_saved()
        return {
            "controller": type(self).__name__,
            "steps": self.steps,
            "initial_sparsity": self.initial_sparsity,
            "ramp": None if self.ramp is None else list(self.ramp),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Args:
            state: of a controller of this class. A ramp that is ``"auto"`` becomes the saved one.

        Raises:
            ValueError: the state is of another class, or lacks what this class needs; nothing is restored.
        """
        self._check_state(state)
        self.steps = whole_number("steps of a saved controller", state["steps"] + 1) - 1
        self.initial_sparsity = state.get("initial_sparsity", self.initial_sparsity)  # saved before there was the other
        if self._ramp_is_auto:
            self.ramp = _checked_ramp(state.get("ramp"))  # a state saved before there was "auto" had none
        self.reminders.state_was_loaded()

    def _state_names(self) -> tuple[str, ...]:
        """Return the entries that a saved state must have."""
        return ("steps",)

    def _check_state(self, state: Any) -> None:
        own = type(self).__name__
        if not isinstance(state, Mapping):
            raise ValueError(f"the state of a {own} must be a dict, got {type(state).__name__}")
        name = state.get("controller", own)  # a state saved before it had a name
        if name != own:
            raise ValueError(f"the state is of a {name}, expected that of a {own}")
        missing = [entry for entry in self._state_names() if entry not in state]
        if missing:
            entries = ", ".join(map(str, state)) or "nothing"
            raise ValueError(f"the state of a {own} must have {', '.join(missing)}, got one with {entries}")

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: everything but the reminders, which watch one controller and its optimizer."""
        state = {name: value for name, value in self.__dict__.items() if name != "reminders"}
        state["_reminded"] = self.reminders.active, self.reminders.said
        self.reminders.state_was_saved()  # the copy may land instead
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, as copying and unpickling do."""
        state = dict(state)
        active, said = state.pop("_reminded")
        self.__dict__.update(state)
        self.reminders = Reminders(self, active=active, said=said)


def _checked_ramp(ramp: Any) -> tuple[float, float] | None:
    """Return a ramp as two numbers, or None."""
    if ramp is None:
        return None
    if not isinstance(ramp, str) and isinstance(ramp, Iterable):
        shares = tuple(ramp)
        if len(shares) == 2:
            for share in shares:
                check_number("a share of ramp", share, "from 0 to 1", at_least=0, at_most=1)
            if shares[0] < shares[1]:
                return shares
    raise ValueError(f'ramp must be two rising shares of the run, from 0 to 1, or "auto", or None, got {ramp!r}')


class FixedController(Controller):
    """Leaves lambda where it is, and the network as sparse as that makes it: the baseline that has to be swept.

    ``target_sparsity`` is only what the result is compared with; at 0, with nothing regularized, it is dense training.
    """

    lands = False

    def _adapt(self) -> None:
        pass

    def land(self) -> None:
        """Nothing: the sparsity is what lambda made it."""
