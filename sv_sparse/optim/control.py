"""Controllers: measured sparsity to the next lambda.

A controller's ``step()`` is called after ``optimizer.step()``. It counts the zeros and changes ``lambda_`` in the
optimizer's groups, all on the device: nothing waits for the device. At the end of a run ``land()`` makes the sparsity
exact.

Aloradi, Roith, Habets, Tenbrinck, "Adaptive Regularization for Sparsity Control in Bregman-Based Optimizers",
arXiv 2605.07892, 2026.
"""

from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.optimizer import BregmanOptimizer
from sv_sparse.optim.partition import sparsity

_SMALLEST_LAMBDA = 1e-10  # of a rule that multiplies: at 0 it could never come back
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
        for group in self.groups:
            if float(group["lambda_"]) <= 0:
                raise ValueError(f"lambda_ of a regulated group must start above 0, got {float(group['lambda_'])}")

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
        """Count one update and adapt lambda; in the settling part of the run, only count."""
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
        survive (fewer only where duals are equal to the last bit). Weights shift by the change of lambda, so
        batch-norm statistics need a refresh afterwards.
        """
        if not self.groups:
            return
        magnitudes = torch.cat([self.optimizer.state[param]["dual"].abs().flatten() for param in self.params])
        kept = round((1 - self.target_sparsity) * magnitudes.numel())
        self._set_lambda(magnitudes.kthvalue(magnitudes.numel() - kept).values)
        self.optimizer.read_out()

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
      last did: each such change moves the lambda that holds the target.
    - The pace follows the length of the run: every step in short runs, at most ``updates`` updates in long ones.

    Args:
        optimizer: see Controller.
        target_sparsity: see Controller.
        total_steps: see Controller.
        settle: see Controller.
        alpha: gain before any crossing, above 0.
        gamma: factor on the gain for each crossing after the first, in (0, 1].
        floor: smallest gain, at least 0.
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
        if gamma > 1:
            raise ValueError(f"gamma must be at most 1, got {gamma}")
        self.alpha, self.gamma, self.floor, self.band, self.trend = alpha, gamma, floor, band, trend
        self.every = -(-total_steps // updates)
        self.armed_lr = self._lr()
        self.crossings = torch.zeros((), device=self.lambda_.device)
        self.side = torch.zeros((), device=self.lambda_.device)
        self.drift = torch.zeros((), device=self.lambda_.device)

    def rearm(self) -> None:
        """Forget the crossings, so that the gain is whole again: the regime has changed."""
        self.crossings.zero_()

    def _lr(self) -> float | None:
        """The learning rate, or None where it is a tensor: reading that would wait for the device."""
        lr = self.optimizer.param_groups[0]["lr"]
        return None if isinstance(lr, Tensor) else lr

    def _adapt(self) -> None:
        lr = self._lr()
        if lr and self.armed_lr and not 0.5 < lr / self.armed_lr < 2:
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
        self._set_lambda((self.lambda_ * move.exp()).clamp(min=_SMALLEST_LAMBDA))

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
