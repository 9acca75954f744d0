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

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.optimizer import BregmanOptimizer, Group
from sv_sparse.optim.prox import group_size
from sv_sparse.optim.quantile import nearest


class Controller:
    """What every controller shares: the groups it regulates, the measurement, ramp, settling and landing.

    Args:
        optimizer: its groups with a regularizer are regulated, with one common lambda.
        target_sparsity: fraction of exact zeros wanted in those groups, in [0, 1). At 0 nothing may be regularized.
        total_steps: length of the run in updates.
        settle: share of the run, at its end, during which lambda is left alone, in [0, 1).
        ramp: shares of the run between which the target moves from ``initial_sparsity`` to ``target_sparsity``,
            along ``1 - (1 - p)**3``; None: the target stands from the start.
        initial_sparsity: where a ramp starts, in [0, 1).

    Raises:
        ValueError: a setting is out of its bounds, or target and regularizers contradict each other.
    """

    regularizers: tuple[str, ...] = ("l1", "group")
    lands = True

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        settle: float = 0.01,
        ramp: tuple[float, float] | None = None,
        initial_sparsity: float = 0.99,
    ) -> None:
        for name, share in (
            ("target_sparsity", target_sparsity),
            ("settle", settle),
            ("initial_sparsity", initial_sparsity),
        ):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be 1 or more, got {total_steps}")
        if ramp is not None and not 0 <= ramp[0] < ramp[1] <= 1:
            raise ValueError(f"ramp must be two rising shares of the run, from 0 to 1, got {ramp}")
        self.optimizer = optimizer
        self.target_sparsity = target_sparsity
        self.total_steps = total_steps
        self.settles_at = total_steps - round(settle * total_steps)
        self.ramp = ramp
        self.initial_sparsity = initial_sparsity
        self.steps = 0
        self._check_groups()

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
        return [group for group in self.optimizer.param_groups if group["regularizer"] in self.regularizers]

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
        if self.groups and self.steps <= self.settles_at:
            self._adapt()

    def take_over(self) -> None:
        """Say that the network is trained already: a ramp begins at the sparsity that it has."""
        self.initial_sparsity = float(self.sparsity())

    def rearm(self) -> None:
        """Say that the regime has changed (learning rate, margin, data): the lambda that holds the target moves."""

    def _adapt(self) -> None:
        raise NotImplementedError

    def _set_lambda(self, value: Tensor) -> None:
        for group in self.groups:
            self.optimizer.lambda_of(group).copy_(value)

    def _threshold(self, target: float) -> None:
        """Set lambda to the quantile of the duals at a target, and read the weights out."""
        self._set_lambda(nearest(self.optimizer, self.groups, self._kept(target)))
        self.optimizer.read_out()

    @torch.no_grad()
    def land(self) -> None:
        """Make the sparsity exact: set lambda to the quantile of the duals at the target and read the weights out.

        The threshold is strict: with lambda from the (K + 1)-th largest ``|v|`` up to the K-th, K weights survive. Of
        these, lambda becomes the one nearest to where it is. In a network that had landed before that interval is wide,
        and each weight shifts by what lambda does. Groups of weights survive whole: then it is exact to within a group.
        Batch-norm statistics need a refresh afterwards.

        Warns:
            UserWarning: fewer survive, since more duals than that are exactly zero (their weights never had a
                gradient) or equal to the last bit.
        """
        if not self.groups:
            return
        self._threshold(self.target_sparsity)
        if self._missed():
            kept, reason = int(self._alive()), "too many duals are zero or equal"
            warnings.warn(f"landed on {kept} weights instead of {self._wanted()}: {reason}", stacklevel=2)

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
                yield from (group_size(param, group["grouping"]) for param in group["params"])

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the optimizer's state (where lambda is): tensors and numbers."""
        return {"steps": self.steps, "initial_sparsity": self.initial_sparsity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.steps = state["steps"]
        self.initial_sparsity = state.get("initial_sparsity", self.initial_sparsity)  # saved before there was the other


class FixedController(Controller):
    """Leaves lambda where it is, and the network as sparse as that makes it: the baseline that has to be swept.

    ``target_sparsity`` is only what the result is compared with; at 0, with nothing regularized, it is dense training.
    """

    lands = False

    def _adapt(self) -> None:
        pass

    def land(self) -> None:
        """Nothing: the sparsity is what lambda made it."""
