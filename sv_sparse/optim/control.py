"""Controllers: measured sparsity to the next lambda.

A controller's ``step()`` is called after ``optimizer.step()``. It counts the zeros and changes ``lambda_`` in the
optimizer's groups, all on the device: nothing waits for the device. At the end of a run ``land()`` makes the sparsity
exact.

Aloradi, Roith, Habets, Tenbrinck, "Adaptive Regularization for Sparsity Control in Bregman-Based Optimizers",
arXiv 2605.07892, 2026.
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.optimizer import BregmanOptimizer
from sv_sparse.optim.partition import count_zeros, sparsity

_SMALLEST_LAMBDA = 1e-10  # of a rule that multiplies: at 0 it could never come back
_LARGEST_LAMBDA = 1e10
_FASTEST_DRIFT = 0.3  # of log lambda per update
_FEEDBACK_STATE = ("crossings", "side", "drift")


class Controller:
    """What every controller shares: the groups it regulates, the measurement, the settling and the landing.

    Args:
        optimizer: its groups with a regularizer other than ``"none"`` are regulated, with one common lambda.
        target_sparsity: fraction of exact zeros wanted in those groups, in [0, 1). At 0 nothing may be regularized.
        total_steps: length of the run in updates.
        settle: share of the run, at its end, during which lambda is left alone, in [0, 1).

    Raises:
        ValueError: a setting is out of its bounds, or target and regularizers contradict each other.
    """

    def __init__(
        self, optimizer: BregmanOptimizer, target_sparsity: float, total_steps: int, *, settle: float = 0.05
    ) -> None:
        if not 0 <= target_sparsity < 1:
            raise ValueError(f"target_sparsity must be at least 0 and below 1, got {target_sparsity}")
        if not 0 <= settle < 1:
            raise ValueError(f"settle must be at least 0 and below 1, got {settle}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be 1 or more, got {total_steps}")
        self.optimizer = optimizer
        self.target_sparsity = target_sparsity
        self.total_steps = total_steps
        self.settles_at = total_steps - round(settle * total_steps)
        self.steps = 0
        self._check_groups()

    def _check_groups(self) -> None:
        if self.target_sparsity == 0 and self.groups:
            names = [group.get("name") for group in self.groups]
            raise ValueError(f"target_sparsity=0 is dense training: groups {names} need regularizer='none'")
        if self.target_sparsity > 0 and not self.groups:
            raise ValueError(f"target_sparsity={self.target_sparsity} needs a group with a regularizer, got none")
        lambdas = {float(group["lambda_"]) for group in self.groups}
        if len(lambdas) > 1:
            raise ValueError(f"regulated groups share one lambda_, got {sorted(lambdas)}")
        if lambdas and min(lambdas) <= 0:
            raise ValueError(f"lambda_ of a regulated group must start above 0, got {min(lambdas)}")
        frozen = sum(not param.requires_grad for param in self.params)
        if frozen:
            raise ValueError(
                f"{frozen} regulated parameters are frozen (requires_grad=False), so target_sparsity="
                f"{self.target_sparsity} may be out of reach; leave them out of the optimizer"
            )
        size = sum(param.numel() for param in self.params)
        if self.groups and not 0 < self._kept() < size:
            raise ValueError(f"target_sparsity={self.target_sparsity} of {size} weights keeps {self._kept()} of them")

    def _kept(self) -> int:
        """Weights that survive at the target."""
        return round((1 - self.target_sparsity) * sum(param.numel() for param in self.params))

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The regulated parameter groups."""
        return [group for group in self.optimizer.param_groups if group["regularizer"] != "none"]

    @property
    def params(self) -> list[Tensor]:
        """The regulated parameters."""
        return [param for group in self.groups for param in group["params"]]

    @property
    def lambda_(self) -> Tensor:
        """The common lambda, 0-dim on the device; 0 where nothing is regulated."""
        return self.groups[0]["lambda_"] if self.groups else torch.zeros(())

    @torch.no_grad()
    def step(self) -> None:
        """Count one update and adapt lambda; in the settling part of the run, only count.

        Call it where an update was made, not where a GradScaler skipped it: lambda would move with nothing to show.
        """
        self.steps += 1
        if self.groups and self.steps <= self.settles_at:
            self._adapt()

    def _adapt(self) -> None:
        raise NotImplementedError

    def _set_lambda(self, value: Tensor) -> None:
        for group in self.groups:
            group["lambda_"].copy_(value)

    @torch.no_grad()
    def land(self) -> None:
        """Make the sparsity exact: set lambda to the quantile of the duals at the target and read the weights out.

        With K weights to keep, lambda becomes the (K + 1)-th largest ``|v|``; the threshold is strict, so K weights
        survive. Weights shift by the change of lambda, so batch-norm statistics need a refresh afterwards.

        Warns:
            UserWarning: fewer survive, since more duals than that are exactly zero (their weights never had a
                gradient) or equal to the last bit.
        """
        if not self.groups:
            return
        magnitudes = torch.cat([d.abs().flatten() for group in self.groups for d in self.optimizer.duals(group)])
        self._set_lambda(magnitudes.kthvalue(magnitudes.numel() - self._kept()).values)
        self.optimizer.read_out()
        kept = magnitudes.numel() - int(count_zeros(self.params))
        if kept != self._kept():
            warnings.warn(f"landed on {kept} weights instead of {self._kept()}: too many duals are equal", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the optimizer's state (where lambda is): tensors and numbers."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.steps = state["steps"]


class Feedback(Controller):
    """The paper's closed loop: lambda grows while the network is too dense, shrinks while it is too sparse.

    With the gap e = target - sparsity, at every ``every``-th update::

        lambda <- lambda * (1 + a |e|) * exp(drift)   if e > 0
        lambda <- lambda / (1 + a |e|) * exp(drift)   if e < 0
        a = max(floor, alpha * gamma ** max(C - 1, 0))

    C counts the sign changes of e; the first is free, since a run starts sparse and comes down through its target.
    Without drift this is the paper's rule. What is done beyond it:

    - The lambda that holds a target grows as the weights grow, and the paper's rule follows such a ramp from a
      constant distance. ``drift`` learns the ramp: it sums ``trend * a * e`` and starts from 0 at each crossing.
    - A crossing counts once e has left a dead band on the other side, so that noise around the target, or a gap of
      exactly zero, neither adds nor hides one.
    - The gain has a floor, and C starts anew (``rearm``) whenever the learning rate has halved or doubled since it
      last did: each such change moves the lambda that holds the target. A learning rate that is a tensor is not
      read, since that would wait for the device: call ``rearm`` yourself.
    - The pace follows the length of the run: every step in short runs, at most ``updates`` updates in long ones.

    Args:
        optimizer: see Controller.
        target_sparsity: see Controller.
        total_steps: see Controller.
        settle: see Controller.
        alpha: gain before any crossing, above 0.
        gamma: factor on the gain for each crossing after the first, in (0, 1].
        floor: smallest gain, at least 0 and at most ``alpha``.
        band: half width of the dead band, a fraction (0.001 is 0.1 points).
        trend: how fast the drift is learnt, at least 0; 0 is the paper's rule.
        updates: most lambda updates in a run.
    """

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        settle: float = 0.05,
        alpha: float = 1.0,
        gamma: float = 0.95,
        floor: float = 0.05,
        band: float = 0.001,
        trend: float = 0.05,
        updates: int = 2000,
    ) -> None:
        super().__init__(optimizer, target_sparsity, total_steps, settle=settle)
        positive = {"alpha": alpha, "gamma": gamma, "updates": updates}
        for name, value in positive.items():
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name, value in {"floor": floor, "band": band, "trend": trend}.items():
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        for name, value, most in (("gamma", gamma, 1), ("floor", floor, alpha)):
            if value > most:
                raise ValueError(f"{name} must be at most {most}, got {value}")
        self.alpha, self.gamma, self.floor, self.band, self.trend = alpha, gamma, floor, band, trend
        self.every = -(-total_steps // updates)
        self.armed_lr = self._lr()
        self.crossings = torch.zeros_like(self.lambda_)
        self.side = torch.zeros_like(self.lambda_)
        self.drift = torch.zeros_like(self.lambda_)

    def rearm(self) -> None:
        """Forget the crossings, so that the gain is whole again: the regime has changed."""
        self.crossings.zero_()

    def _lr(self) -> float:
        """The regulated groups' learning rate; 0 where it is a tensor, since reading that would wait for the device."""
        lr = self.groups[0]["lr"] if self.groups else 0.0
        return 0.0 if isinstance(lr, Tensor) else lr

    def _adapt(self) -> None:
        lr = self._lr()
        if lr and not 0.5 < self.armed_lr / lr < 2:
            self.rearm()
            self.armed_lr = lr
        if self.steps % self.every:
            return
        gap = self.target_sparsity - sparsity(self.params)
        side = torch.where(gap.abs() > self.band, gap.sign(), 0.0)
        crossed = side * self.side < 0
        self.crossings += crossed
        self.side.copy_(torch.where(side == 0, self.side, side))
        gain = (self.alpha * self.gamma ** (self.crossings - 1).clamp(min=0)).clamp(min=self.floor)
        self.drift.add_(self.trend * gain * gap).clamp_(-_FASTEST_DRIFT, _FASTEST_DRIFT).mul_(~crossed)
        move = gap.sign() * (gain * gap.abs()).log1p() + self.drift
        self._set_lambda((self.lambda_ * move.exp()).clamp(_SMALLEST_LAMBDA, _LARGEST_LAMBDA))

    def state_dict(self) -> dict[str, Any]:
        """See Controller."""
        tensors = {name: getattr(self, name).clone() for name in _FEEDBACK_STATE}
        return super().state_dict() | tensors | {"armed_lr": self.armed_lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Controller."""
        super().load_state_dict(state)
        for name in _FEEDBACK_STATE:
            getattr(self, name).copy_(state[name])
        self.armed_lr = state["armed_lr"]
