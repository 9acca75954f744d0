"""Closed loops: lambda follows the gap between the measured and the target sparsity.

Aloradi, Roith, Habets, Tenbrinck, "Adaptive Regularization for Sparsity Control in Bregman-Based Optimizers",
arXiv 2605.07892, 2026. With the gap e = target - sparsity, at every ``every``-th update::

    lambda <- lambda * (1 + a |e|)  if e > 0
    lambda <- lambda / (1 + a |e|)  if e < 0

an integral controller in log lambda, so that the start of lambda may be wrong by orders of magnitude. The classes
differ in the gain a.
"""

from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.checks import check_number, whole_number
from sv_sparse.optim.control import Controller, Ramp
from sv_sparse.optim.optimizer import BregmanOptimizer

_SMALLEST_LAMBDA = 1e-10  # of a rule that multiplies: at 0 it could never come back
_LARGEST_LAMBDA = 1e10
_FASTEST_DRIFT = 0.3  # of log lambda per update


class _Feedback(Controller):
    """The common part: measure, move log lambda, keep tensors of state."""

    _state: tuple[str, ...] = ()
    every = 1

    def _check_groups(self) -> None:
        super()._check_groups()
        if self.groups and not self.lambda_ > 0:
            raise ValueError(f"lambda_ of a regulated group must start above 0, got {float(self.lambda_)}")

    def _adapt(self) -> None:
        if self.steps % self.every == 0:
            gap = self.target - self.sparsity()
            self._set_lambda((self.lambda_ * self._move(gap).exp()).clamp(_SMALLEST_LAMBDA, _LARGEST_LAMBDA))

    def _move(self, gap: Tensor) -> Tensor:
        """What to add to log lambda."""
        raise NotImplementedError

    def _follow(self) -> None:
        like = self.lambda_
        for name in self._state:
            tensor = getattr(self, name)
            if tensor.device != like.device or tensor.dtype != like.dtype:
                setattr(self, name, tensor.to(like))

    def _lr(self) -> float:
        """The regulated groups' learning rate; 0 where it is a tensor, since reading that would wait for the device."""
        lr = self.groups[0]["lr"] if self.groups else 0.0
        return 0.0 if isinstance(lr, Tensor) else lr

    def state_dict(self) -> dict[str, Any]:
        """See Controller."""
        return super().state_dict() | {name: getattr(self, name).clone() for name in self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Controller."""
        super().load_state_dict(state)
        for name in self._state:
            setattr(self, name, torch.as_tensor(state[name]).to(self.lambda_, copy=True))

    def _state_names(self) -> tuple[str, ...]:
        return (*super()._state_names(), *self._state)


def _check(above: dict[str, float], at_least: dict[str, float], at_most: tuple[tuple[str, float, float], ...]) -> None:
    for name, value in above.items():
        check_number(name, value, "above 0", above=0)
    for name, value in at_least.items():
        check_number(name, value, "0 or more", at_least=0)
    for name, value, most in at_most:
        check_number(name, value, f"at most {most}", at_most=most)


class FeedbackController(_Feedback):
    """The loop to use: the paper's, without what makes it miss.

    With C the crossings of the target, of which the first is free, since a run starts sparse and comes down::

        a = max(floor, alpha * gamma ** max(C - 1, 0)),  and lambda is multiplied by exp(drift) as well

    - The lambda that holds a target grows as the weights grow, and the paper's rule follows such a ramp from a
      constant distance. ``drift`` learns the ramp: it sums ``trend * a * e``, at most 0.3, and starts from 0 at each
      crossing.
    - A crossing counts once e has left a dead band on the other side, so that noise around the target, or a gap of
      exactly zero, neither adds nor hides one.
    - The gain has a floor, and C starts anew (``rearm``) whenever the learning rate has halved or doubled since it
      last did: each such change moves the lambda that holds the target. A learning rate that is a tensor is not
      read, since that would wait for the device: call ``rearm`` yourself.
    - Lambda moves at every update: held still for four, in a long run, it falls behind what it should follow.

    Channels are few and their norms lie close together, so that the smallest move of lambda switches many at once and
    no gain is right: for them take QuantileController.

    Args:
        optimizer: see Controller.
        target_sparsity: see Controller.
        total_steps: see Controller.
        alpha: gain before any crossing, above 0.
        gamma: factor on the gain for each crossing after the first, in (0, 1].
        floor: smallest gain, at least 0 and at most ``alpha``.
        band: half width of the dead band, a fraction (0.001 is 0.1 points).
        trend: how fast the drift is learnt, at least 0; 0 for none.
        settle: see Controller. Where the learning rate does not fall towards the end, weights go on growing, and a
            lambda that stands still loses the target.
        ramp: see Controller.
        initial_sparsity: see Controller.
    """

    _state = ("crossings", "side", "drift")

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        alpha: float = 1.0,
        gamma: float = 0.95,
        floor: float = 0.05,
        band: float = 0.001,
        trend: float = 0.05,
        settle: float = 0.0,
        ramp: Ramp = "auto",
        initial_sparsity: float | None = None,
    ) -> None:
        super().__init__(
            optimizer, target_sparsity, total_steps, settle=settle, ramp=ramp, initial_sparsity=initial_sparsity
        )
        _check(
            {"alpha": alpha, "gamma": gamma},
            {"floor": floor, "band": band, "trend": trend},
            (("gamma", gamma, 1), ("floor", floor, alpha)),
        )
        self.alpha, self.gamma, self.floor, self.band, self.trend = alpha, gamma, floor, band, trend
        self.armed_lr = self._lr()
        self.crossings = torch.zeros_like(self.lambda_)
        self.side = torch.zeros_like(self.lambda_)
        self.drift = torch.zeros_like(self.lambda_)

    def rearm(self) -> None:
        """Forget the crossings, so that the gain is whole again: the regime has changed."""
        self.crossings.zero_()

    def _adapt(self) -> None:
        lr = self._lr()
        if lr and not 0.5 < self.armed_lr / lr < 2:
            self.rearm()
            self.armed_lr = lr
        super()._adapt()

    def _move(self, gap: Tensor) -> Tensor:
        side = torch.where(gap.abs() > self.band, gap.sign(), 0.0)
        crossed = side * self.side < 0
        self.crossings += crossed
        self.side.copy_(torch.where(side == 0, self.side, side))
        gain = (self.alpha * self.gamma ** (self.crossings - 1).clamp(min=0)).clamp(min=self.floor)
        self.drift.add_(self.trend * gain * gap).clamp_(-_FASTEST_DRIFT, _FASTEST_DRIFT).mul_(~crossed)
        return gap.sign() * (gain * gap.abs()).log1p() + self.drift

    def state_dict(self) -> dict[str, Any]:
        """See Controller."""
        return super().state_dict() | {"armed_lr": self.armed_lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Controller."""
        super().load_state_dict(state)
        self.armed_lr = state["armed_lr"]

    def _state_names(self) -> tuple[str, ...]:
        return (*super()._state_names(), "armed_lr")


class DecayingFeedbackController(_Feedback):
    """The authors' newest rule: ``a = alpha * gamma ** max(C - 1, 0)``, C the sign changes of the gap.

    Args:
        optimizer: see Controller.
        target_sparsity: see Controller.
        total_steps: see Controller.
        alpha: gain before any crossing, above 0.
        gamma: factor on the gain for each crossing after the first, in (0, 1].
        every: updates from one change of lambda to the next.
        settle: see Controller.
        ramp: see Controller.
        initial_sparsity: see Controller.
    """

    _state = ("crossings", "side")

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        alpha: float = 1.0,
        gamma: float = 0.95,
        every: int = 50,
        settle: float = 0.01,
        ramp: Ramp = "auto",
        initial_sparsity: float | None = None,
    ) -> None:
        super().__init__(
            optimizer, target_sparsity, total_steps, settle=settle, ramp=ramp, initial_sparsity=initial_sparsity
        )
        _check({"alpha": alpha, "gamma": gamma}, {}, (("gamma", gamma, 1),))
        self.alpha, self.gamma = alpha, gamma
        self.every = whole_number("every", every)
        self.crossings = torch.zeros_like(self.lambda_)
        self.side = torch.zeros_like(self.lambda_)

    def _move(self, gap: Tensor) -> Tensor:
        self.crossings += gap.sign() * self.side < 0
        self.side.copy_(gap.sign())
        gain = self.alpha * self.gamma ** (self.crossings - 1).clamp(min=0)
        return gap.sign() * (gain * gap.abs()).log1p()


class DampedFeedbackController(_Feedback):
    """The authors' earlier rule: a constant gain, damped near the target, in a trust region that closes.

    Where ``|e| < zone`` the gain is a tenth and lambda moves half as often; a move is at most
    ``lambda0 * lr / lr0 * (1 - step / total_steps)``, with ``lambda0`` and ``lr0`` as they were when it was made.

    Args:
        optimizer: see Controller.
        target_sparsity: see Controller.
        total_steps: see Controller.
        alpha: gain, above 0.
        zone: where damping begins, a fraction.
        every: updates from one change of lambda to the next.
        settle: see Controller.
        ramp: see Controller.
        initial_sparsity: see Controller.
    """

    _state = ("first_lambda",)

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        alpha: float = 1.0,
        zone: float = 0.005,
        every: int = 10,
        settle: float = 0.01,
        ramp: Ramp = "auto",
        initial_sparsity: float | None = None,
    ) -> None:
        super().__init__(
            optimizer, target_sparsity, total_steps, settle=settle, ramp=ramp, initial_sparsity=initial_sparsity
        )
        _check({"alpha": alpha}, {"zone": zone}, ())
        self.alpha, self.zone = alpha, zone
        self.every = whole_number("every", every)
        self.first_lambda = self.lambda_.clone()
        self.first_lr = self._lr()

    def _move(self, gap: Tensor) -> Tensor:
        near = gap.abs() < self.zone
        gain = torch.where(near, self.alpha / 10, self.alpha)
        move = gap.sign() * (gain * gap.abs()).log1p()
        if self.steps // self.every % 2:
            move = torch.where(near, 0.0, move)
        pace = self._lr() / self.first_lr if self.first_lr else 1.0
        most = self.first_lambda * pace * (1 - self.steps / self.total_steps)
        lambda_ = self.lambda_ + (self.lambda_ * move.expm1()).clamp(-most, most)
        return (lambda_.clamp(min=_SMALLEST_LAMBDA) / self.lambda_).log()

    def state_dict(self) -> dict[str, Any]:
        """See Controller."""
        return super().state_dict() | {"first_lr": self.first_lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Controller."""
        super().load_state_dict(state)
        self.first_lr = state["first_lr"]

    def _state_names(self) -> tuple[str, ...]:
        return (*super()._state_names(), "first_lr")
