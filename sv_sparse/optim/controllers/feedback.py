"""Closed loop: lambda follows the gap between the target and the measured sparsity."""

from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.bregman_optimizer import BregmanOptimizer
from sv_sparse.optim.controllers.base import RampBound
from sv_sparse.optim.controllers.log_lambda import LogLambdaController, check_gain
from sv_sparse.optim.validation import require_number

# Largest change of log lambda by the drift in one update: while a target is out of reach, the drift must not grow on
# and on.
_MAX_DRIFT = 0.3


class FeedbackController(LogLambdaController):
    """Closed loop with a dead band, a drift term and a smallest gain: the controller to use.

    With the measured sparsity s_t after update t, its target s*_t, and C_t the crossings of the target so far, each
    update computes::

        e_t          = s*_t - s_t
        a_t          = max(min_gain, alpha * gamma ** max(C_t - 1, 0))
        r_t          = clamp(r_{t-1} + drift_gain * a_t * e_t, -0.3, 0.3), or 0 at a crossing
        lambda_{t+1} = lambda_t * (1 + a_t * |e_t|) ** sign(e_t) * exp(r_t)

    It differs from the rule of arXiv 2605.07892 (PaperController), which can miss the target, in four ways
    (DECISIONS 9):

    - The lambda that holds a target grows as the weights grow, and the paper's rule follows from a constant distance.
      The drift r_t learns that growth.
    - A crossing counts once e_t has left the dead band on the other side, so that noise around the target, or a gap
      of exactly 0, neither adds nor hides one. The first crossing is free, since a sparse start always makes it.
    - The gain has a smallest value. C_t is set to 0 (``reset_gain``) when the learning rate has halved or doubled
      since C_t was last 0, because another learning rate needs another lambda. A learning rate that is a tensor is
      not read, since that would wait for the device: call ``reset_gain`` yourself.
    - Lambda changes at every update: with an interval of four it falls behind in a long run.

    Channels are few and their norms nearly equal, so that a small change of lambda switches many at once, and no gain
    is right. For them take QuantileController (DECISIONS 25).

    Args:
        optimizer: its groups with a penalty are regularized, with one common lambda above 0.
        target_sparsity: fraction of exact zeros that those groups have in the end, in [0, 1).
        total_steps: length of the run in updates, a whole number of 1 or more.
        alpha: gain before any crossing, above 0. Default: 1.
        gamma: factor on the gain for each crossing after the first, in (0, 1]. Default: 0.95.
        min_gain: smallest gain, at least 0 and at most ``alpha``. Default: 0.05.
        deadband: half width of the dead band as a fraction, 0 or more (0.001 is 0.1 points). Default: 0.001.
        drift_gain: gain of the drift, 0 or more; 0: no drift. Default: 0.05.
        freeze_fraction: fraction of the run, at its end, with lambda left alone, in [0, 1). Where the learning rate
            does not fall towards the end, weights go on growing, and a constant lambda loses the target (DECISIONS
            84). Default: 0.
        ramp_start: fraction of the run at which the target leaves ``initial_sparsity``, or None, or ``"auto"``: see
            Controller. Default: auto.
        ramp_end: fraction of the run at which the target is reached, or None, or ``"auto"``. Default: auto.
        initial_sparsity: where a ramp starts, in [0, 1); None: the sparsity of the network as it is. Default: None.
        allocation: ``"global"`` (one lambda for all weights), ``"uniform"`` (the target of each weight) or ``"erk"``
            (small layers keep more): see Controller. Default: global.

    Raises:
        ValueError: an argument is out of its bounds, or target and penalties contradict each other.

    >>> from sv_sparse.optim import AdaBreg, param_groups, sparse_init_
    >>> model = torch.nn.Linear(20, 10)
    >>> groups = param_groups(model)
    >>> sparse_init_(groups)
    >>> optimizer = AdaBreg(groups)
    >>> controller = FeedbackController(optimizer, target_sparsity=0.9, total_steps=100)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 20)).square().mean().backward()
    ...     optimizer.step()
    ...     controller.step()
    >>> controller.finalize()
    >>> int(model.weight.count_nonzero())
    20
    """

    _state_tensors = ("crossings", "sign", "drift")

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        alpha: float = 1.0,
        gamma: float = 0.95,
        min_gain: float = 0.05,
        deadband: float = 0.001,
        drift_gain: float = 0.05,
        freeze_fraction: float = 0.0,
        ramp_start: RampBound = "auto",
        ramp_end: RampBound = "auto",
        initial_sparsity: float | None = None,
        allocation: str = "global",
    ) -> None:
        super().__init__(
            optimizer,
            target_sparsity,
            total_steps,
            freeze_fraction=freeze_fraction,
            ramp_start=ramp_start,
            ramp_end=ramp_end,
            initial_sparsity=initial_sparsity,
            allocation=allocation,
        )
        check_gain(alpha, gamma)
        for name, value in (("min_gain", min_gain), ("deadband", deadband), ("drift_gain", drift_gain)):
            require_number(name, value, "0 or more", at_least=0)
        require_number("min_gain", min_gain, f"at most {alpha}", at_most=alpha)
        self.alpha = alpha
        self.gamma = gamma
        self.min_gain = min_gain
        self.deadband = deadband
        self.drift_gain = drift_gain
        # The learning rate when the gain was last full.
        self.reference_lr = self._lr()
        self.crossings = torch.zeros_like(self._lambdas())
        # Sign of the last gap outside of the dead band.
        self.sign = torch.zeros_like(self._lambdas())
        self.drift = torch.zeros_like(self._lambdas())

    def reset_gain(self) -> None:
        """Forget the crossings, so that the gain is full again."""
        # Sign and drift stay: they are what has been learned of lambda, and only the gain was spent.
        self.crossings.zero_()

    def _update(self) -> None:
        lr = self._lr()
        # The lambda of a target moves with the learning rate: the gain has to be large enough to follow.
        if lr and not 0.5 < self.reference_lr / lr < 2:
            self.reset_gain()
            self.reference_lr = lr
        super()._update()

    def _log_lambda_step(self, gap: Tensor) -> Tensor:
        # All of it are operations on 0-dim tensors of the device, without a branch: a branch would wait for the device.
        sign = torch.where(gap.abs() > self.deadband, gap.sign(), 0.0)
        is_crossing = sign * self.sign < 0
        self.crossings += is_crossing
        # Inside of the dead band the last side counts, so that noise around the target is no crossing.
        self.sign.copy_(torch.where(sign == 0, self.sign, sign))
        gain = (self.alpha * self.gamma ** (self.crossings - 1).clamp(min=0)).clamp(min=self.min_gain)
        self.drift.add_(self.drift_gain * gain * gap).clamp_(-_MAX_DRIFT, _MAX_DRIFT).mul_(~is_crossing)
        return gap.sign() * (gain * gap.abs()).log1p() + self.drift

    def _lr(self) -> float:
        """Return the regularized groups' learning rate; 0 for a tensor, whose reading would wait for the device."""
        lr = self.groups[0]["lr"] if self.groups else 0.0
        return 0.0 if isinstance(lr, Tensor) else lr

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs beside the optimizer's state: tensors and plain data."""
        return super().state_dict() | {"reference_lr": self.reference_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; see Controller for what is refused."""
        super().load_state_dict(state_dict)
        self.reference_lr = state_dict["reference_lr"]

    def _state_keys(self) -> tuple[str, ...]:
        return (*super()._state_keys(), "reference_lr")
