"""The rule of arXiv 2605.07892: a closed loop whose gain falls with each crossing of the target."""

import torch
from torch import Tensor

from sv_sparse.optim.bregman_optimizer import BregmanOptimizer
from sv_sparse.optim.controllers.base import RampBound
from sv_sparse.optim.controllers.log_lambda import LogLambdaController, check_gain
from sv_sparse.optim.validation import positive_int


class PaperController(LogLambdaController):
    """Closed loop whose gain falls with each crossing of the target, as its authors publish it.

    With the measured sparsity s_t after update t, its target s*_t, and C_t the changes of sign of e so far, every
    ``update_interval``-th update computes::

        e_t          = s*_t - s_t
        a_t          = alpha * gamma ** max(C_t - 1, 0)
        lambda_{t+1} = lambda_t * (1 + a_t * |e_t|)    if e_t > 0
        lambda_{t+1} = lambda_t / (1 + a_t * |e_t|)    if e_t < 0

    That is an integral controller in log lambda, so that lambda may start wrong by orders of magnitude.

    Source: Aloradi, Roith, Habets, Tenbrinck, "Adaptive Regularization for Sparsity Control in Bregman-Based
    Optimizers", arXiv 2605.07892, 2026.

    Args:
        optimizer: its groups with a penalty are regularized, with one common lambda above 0.
        target_sparsity: fraction of exact zeros that those groups have in the end, in [0, 1).
        total_steps: length of the run in updates, a whole number of 1 or more.
        alpha: gain before any crossing, above 0. Default: 1.
        gamma: factor on the gain for each crossing after the first, in (0, 1]. Default: 0.95.
        update_interval: updates from one change of lambda to the next, a whole number of 1 or more. Default: 50.
        freeze_fraction: fraction of the run, at its end, with lambda left alone, in [0, 1). Default: 0.01.
        ramp_start: fraction of the run at which the target leaves ``initial_sparsity``, or None, or ``"auto"``: see
            Controller. Default: auto.
        ramp_end: fraction of the run at which the target is reached, or None, or ``"auto"``. Default: auto.
        initial_sparsity: where a ramp starts, in [0, 1); None: the sparsity of the network as it is. Default: None.
        allocation: ``"global"`` (one lambda for all weights), ``"uniform"`` (the target of each weight) or ``"erk"``
            (small layers keep more): see Controller. Default: global.

    Raises:
        ValueError: an argument is out of its bounds, or target and penalties contradict each other.

    >>> from sv_sparse.optim import LinBreg
    >>> weight = torch.nn.Parameter(torch.zeros(4, 5))
    >>> optimizer = LinBreg([weight], lambda_init=0.1)
    >>> controller = PaperController(optimizer, target_sparsity=0.5, total_steps=100, update_interval=1)
    >>> controller.step()  # the sparsity is 1, so that lambda is divided by 1.5
    >>> controller.lambda_
    tensor(0.0667)
    """

    _state_tensors = ("crossings", "sign")

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        alpha: float = 1.0,
        gamma: float = 0.95,
        update_interval: int = 50,
        freeze_fraction: float = 0.01,
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
        self.alpha = alpha
        self.gamma = gamma
        self.update_interval = positive_int("update_interval", update_interval)
        self.crossings = torch.zeros_like(self._lambdas())
        # Sign of the last gap.
        self.sign = torch.zeros_like(self._lambdas())

    def _log_lambda_step(self, gap: Tensor) -> Tensor:
        self.crossings += gap.sign() * self.sign < 0
        self.sign.copy_(gap.sign())
        gain = self.alpha * self.gamma ** (self.crossings - 1).clamp(min=0)
        return gap.sign() * (gain * gap.abs()).log1p()
