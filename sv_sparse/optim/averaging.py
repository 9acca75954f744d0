"""Average of several states of one run that keeps its sparsity.

The mean of several checkpoints' weights is denser than each of them: a weight is zero in it only where it is zero in
all. A mean of the dual variables, taken through the proximal map at the mean lambda, is as sparse as the states
(DECISIONS 36).
"""

import torch
from torch import Tensor

from sv_sparse.optim.bregman_optimizer import BregmanOptimizer
from sv_sparse.optim.proxsgd import ProxSGD


class DualAverage:
    """Mean of the dual variables and lambdas of LinBreg or AdaBreg, over the states that were added.

    With the dual variables v_k and lambdas lambda_k of K states::

        v_mean = sum_k v_k / K        lambda_mean = sum_k lambda_k / K        w = delta * prox(v_mean, lambda_mean)

    A weight without a penalty is its own dual variable, so it is averaged as torch.optim.swa_utils.AveragedModel does.
    Means are kept in the precision of the dual variables, on their device: as much memory as the parameters in float32.

    The sparsity is near that of the states, and ``controller.finalize()`` makes it exact. Batch-norm statistics are not
    averaged: refresh them last (``torch.optim.swa_utils.update_bn``). Moments and steps stay the optimizer's own.

    Source: Izmailov, Podoprikhin, Garipov, Vetrov, Wilson, "Averaging Weights Leads to Wider Optima and Better
    Generalization", UAI 2018, for weights; the transfer to dual variables is ours.

    >>> from sv_sparse.optim import LinBreg
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = LinBreg([weight], lr=1.0, lambda_init=1.0)
    >>> average = DualAverage()
    >>> for gradient in ([-0.5, -2.0], [-1.0, -2.0]):  # dual variables [0.5, 2] and [1.5, 4], weights [0, 1], [0.5, 3]
    ...     weight.grad = torch.tensor(gradient)
    ...     optimizer.step()
    ...     average.add(optimizer)
    >>> average.copy_to(optimizer)  # the mean dual variable is [1, 3]
    >>> weight.data
    tensor([0., 2.])
    """

    def __init__(self) -> None:
        self.num_states = 0
        # Means of each group: lambda, then the dual variables.
        self._means: list[list[Tensor]] = []

    @torch.no_grad()
    def add(self, optimizer: BregmanOptimizer) -> None:
        """Add the optimizer's present dual variables and lambdas to the means.

        Raises:
            ValueError: the optimizer has no dual variables, or other parameters than those added before.
        """
        states = _averaged_tensors(optimizer)
        if self.num_states:
            self._check_shapes(states)
        else:
            self._means = [[tensor.clone() for tensor in tensors] for tensors in states]
        self.num_states += 1
        for means, tensors in zip(self._means, states, strict=True):
            for mean, tensor in zip(means, tensors, strict=True):
                # The model may have moved since the first.
                difference = tensor.to(mean.device) - mean
                # The mean of equal states is that state, to the bit.
                mean.add_(difference / self.num_states)

    @torch.no_grad()
    def copy_to(self, optimizer: BregmanOptimizer) -> None:
        """Replace the optimizer's dual variables and lambdas by the means, and compute the weights.

        Raises:
            ValueError: nothing was added, or the optimizer has other parameters than those that were.
        """
        if not self.num_states:
            raise ValueError("DualAverage has no mean before the first add(optimizer)")
        states = _averaged_tensors(optimizer)
        self._check_shapes(states)
        for means, tensors in zip(self._means, states, strict=True):
            for mean, tensor in zip(means, tensors, strict=True):
                tensor.copy_(mean)
        optimizer.apply_prox(include_frozen=True)

    def _check_shapes(self, states: list[list[Tensor]]) -> None:
        expected, shapes = _dual_shapes(self._means), _dual_shapes(states)
        if expected != shapes:
            raise ValueError(f"an average of groups of {expected} takes no other parameters, got {shapes}")


def _averaged_tensors(optimizer: BregmanOptimizer) -> list[list[Tensor]]:
    """Return lambda and the dual variables of each group, the optimizer's own tensors."""
    if isinstance(optimizer, ProxSGD):
        raise ValueError("DualAverage takes the dual variables of LinBreg or AdaBreg, and ProxSGD has none")
    return [[optimizer.lambda_of(group), *optimizer.duals(group)] for group in optimizer.param_groups]


def _dual_shapes(states: list[list[Tensor]]) -> list[list[tuple[int, ...]]]:
    shapes = []
    for tensors in states:
        shapes.append([tuple(dual.shape) for dual in tensors[1:]])
    return shapes
