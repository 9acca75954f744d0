"""Lambda as a quantile of the dual variables: the sparsity is exact after every update."""

from sv_sparse.optim.bregman_optimizer import BregmanOptimizer
from sv_sparse.optim.controllers.base import Controller, RampBound
from sv_sparse.optim.validation import positive_int


class QuantileController(Controller):
    """Controller that sets lambda so that the sparsity is exact after every update.

    With the dual variables v_{t+1} after update t, and n_t = round((1 - s*_t) * size) weights left at the target
    s*_t, each update computes::

        lambda_{t+1} = the value nearest to lambda_t between the (n_t + 1)-th largest |v_{t+1}| and the n_t-th
        w_{t+1}      = delta * prox(v_{t+1}, lambda_{t+1})

    Groups of weights count with their size, so that the sparsity is exact to within a group.

    Args:
        optimizer: LinBreg or AdaBreg, whose groups with a penalty are regularized, with one common lambda.
        target_sparsity: fraction of exact zeros that those groups have, in [0, 1).
        total_steps: length of the run in updates, a whole number of 1 or more.
        update_interval: updates from one exact lambda to the next, a whole number of 1 or more. Default: 1.
        freeze_fraction: fraction of the run, at its end, with lambda left alone, in [0, 1). Default: 0.
        ramp_start: fraction of the run at which the target leaves ``initial_sparsity``, or None, or ``"auto"``: see
            Controller. Default: auto.
        ramp_end: fraction of the run at which the target is reached, or None, or ``"auto"``. Default: auto.
        initial_sparsity: where a ramp starts, in [0, 1); None: the sparsity of the network as it is. Default: None.
        allocation: ``"global"`` (one lambda for all weights), ``"uniform"`` (the target of each weight) or ``"erk"``
            (small layers keep more): see Controller. Default: global.

    Raises:
        ValueError: an argument is out of its bounds, target and penalties contradict each other, or the optimizer has
            no dual variables.

    >>> import torch
    >>> from sv_sparse.optim import LinBreg
    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 1.0], [-2.0, 0.5]]))
    >>> optimizer = LinBreg([weight], lr=1.0, lambda_init=0.1)
    >>> controller = QuantileController(optimizer, target_sparsity=0.5, total_steps=1, ramp_start=None, ramp_end=None)
    >>> weight.grad = torch.zeros(2, 2)
    >>> optimizer.step()
    >>> controller.step()
    >>> weight != 0
    tensor([[ True, False],
            [ True, False]])
    """

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        update_interval: int = 1,
        freeze_fraction: float = 0.0,
        ramp_start: RampBound = "auto",
        ramp_end: RampBound = "auto",
        initial_sparsity: float | None = None,
        allocation: str = "global",
    ) -> None:
        if not optimizer.has_duals:
            name = type(optimizer).__name__
            raise ValueError(f"QuantileController orders dual variables, and {name} has none; use LinBreg or AdaBreg")
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
        self.update_interval = positive_int("update_interval", update_interval)
        self.is_exact = self.update_interval == 1 and self.freeze_step == self.total_steps

    def _update(self) -> None:
        if self.steps % self.update_interval == 0:
            self._make_exact(self._ramp_distance())
