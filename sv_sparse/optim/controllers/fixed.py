"""Fixed lambda: the baseline that has to be swept, and dense training."""

from sv_sparse.optim.controllers.base import Controller


class FixedController(Controller):
    """Controller that leaves lambda where it is, and the network as sparse as that makes it.

    ``target_sparsity`` is only what the result is compared with. At 0, with no penalty, it is dense training.

    Args:
        optimizer: its groups with a penalty have one common lambda, ``lambda_init``.
        target_sparsity: fraction of zeros that the result is compared with, in [0, 1).
        total_steps: length of the run in updates, a whole number of 1 or more.

    Raises:
        ValueError: an argument is out of its bounds, or target and penalties contradict each other.

    >>> import torch
    >>> from sv_sparse.optim import LinBreg
    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 2.0], [0.9, 0.8]]))
    >>> optimizer = LinBreg([weight], lr=1.0, lambda_init=0.4)
    >>> controller = FixedController(optimizer, target_sparsity=0.5, total_steps=1)
    >>> weight.grad = torch.ones(2, 2)
    >>> optimizer.step()
    >>> controller.step()
    >>> controller.sparsity(), controller.lambda_
    (tensor(0.5000), tensor(0.4000))
    """

    has_target = False

    def _update(self) -> None:
        """Do nothing."""

    def finalize(self) -> None:
        """Do nothing: the sparsity is what lambda has made it."""
