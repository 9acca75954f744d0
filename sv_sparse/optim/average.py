"""Averaging several states of one run without losing its sparsity.

The mean of several checkpoints' weights is denser than each of them: a weight is zero in it only where it is zero in
all. A mean of the duals, read out at the mean lambda, is as sparse as what went into it.

Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging Weights Leads to Wider Optima and Better Generalization",
UAI 2018, for the averaging of weights that this transfers to duals.
"""

import torch
from torch import Tensor

from sv_sparse.optim.optimizer import BregmanOptimizer
from sv_sparse.optim.proxsgd import ProxSGD


class DualAverage:
    """The mean of the duals and lambdas of LinBreg or AdaBreg, over the states that were added.

    What nothing regularizes is its own dual, so it is averaged as ``torch.optim.swa_utils.AveragedModel`` does. With
    masks it is the mean of the weights, under the mask that the optimizer has when it receives the mean. Means are kept
    in the duals' precision, on their device: as much memory as the parameters in float32.

    Sparsity is near that of the states, and ``controller.land()`` makes it exact. Batch-norm statistics are not
    averaged: refresh them last (``torch.optim.swa_utils.update_bn``). Moments and steps stay the optimizer's own.

    >>> from sv_sparse.optim import LinBreg
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer, average = LinBreg([weight], lr=1.0, lambda_=1.0), DualAverage()
    >>> for gradient in ([-0.5, -2.0], [-1.0, -2.0]):  # duals [0.5, 2] and [1.5, 4], weights [0, 1] and [0.5, 3]
    ...     weight.grad = torch.tensor(gradient)
    ...     optimizer.step()
    ...     average.add(optimizer)
    >>> average.put_into(optimizer)  # the mean dual is [1, 3]
    >>> weight.data
    tensor([0., 2.])
    """

    def __init__(self) -> None:
        self.added = 0
        self._means: list[list[Tensor]] = []  # of each group: lambda, then the duals

    @torch.no_grad()
    def add(self, optimizer: BregmanOptimizer) -> None:
        """Take the optimizer's present duals and lambdas into the means.

        Raises:
            ValueError: the optimizer has no duals, or other parameters than those added before.
        """
        states = _states(optimizer)
        if self.added:
            self._check(states)
        else:
            self._means = [[tensor.clone() for tensor in group] for group in states]
        self.added += 1
        for means, tensors in zip(self._means, states, strict=True):
            for mean, tensor in zip(means, tensors, strict=True):
                here = tensor.to(mean.device)  # the model may have moved since the first
                mean.add_((here - mean) / self.added)  # of equal states it is that state to the bit

    @torch.no_grad()
    def put_into(self, optimizer: BregmanOptimizer) -> None:
        """Replace the optimizer's duals and lambdas by the means, and read the weights out.

        Raises:
            ValueError: nothing was added, or the optimizer has other parameters than those that were.
        """
        if not self.added:
            raise ValueError("DualAverage has no mean before the first add(optimizer)")
        states = _states(optimizer)
        self._check(states)
        for means, tensors in zip(self._means, states, strict=True):
            for mean, tensor in zip(means, tensors, strict=True):
                tensor.copy_(mean)
        optimizer.read_out(frozen=True)

    def _check(self, states: list[list[Tensor]]) -> None:
        before, now = ([[tuple(dual.shape) for dual in group[1:]] for group in kind] for kind in (self._means, states))
        if before != now:
            raise ValueError(f"an average of groups of {before} takes no other parameters, got {now}")


def _states(optimizer: BregmanOptimizer) -> list[list[Tensor]]:
    """Lambda and duals of each group, the optimizer's own tensors."""
    if isinstance(optimizer, ProxSGD):
        raise ValueError("DualAverage takes the duals of LinBreg or AdaBreg, and ProxSGD has none")
    return [[optimizer.lambda_of(group), *optimizer.duals(group)] for group in optimizer.param_groups]
