"""ProxSGD: proximal stochastic gradient descent, the baseline without a dual variable."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim import functional
from sv_sparse.optim.bregman_optimizer import BregmanOptimizer, Group, Tensors
from sv_sparse.optim.validation import require


class ProxSGD(BregmanOptimizer):
    """Proximal stochastic gradient descent: ``w_{t+1} = prox(w_t - lr * g_t, lr * lambda_t)``.

    It has no dual variable: lambda shrinks the weights at every step, which biases nonzero weights towards zero. It is
    the baseline of "A Bregman Learning Framework for Sparse Neural Networks", JMLR 23(192), 2022.

    Args:
        params: parameters, (name, parameter) pairs, or groups of them such as ``param_groups(model)`` returns.
        lr: step size, a number or a 0-dim tensor, 0 or more. Default: 0.1.
        lambda_init: strength of the penalty at the start, 0 or more. A controller changes it. Default: 0.1.
        lambda_scale: factor on lambda in a group, above 0. Default: 1.
        penalty: ``"l1"`` (zeros single weights), ``"group"`` (zeros groups of weights) or ``"none"``. Default: l1.
        granularity: groups of the group penalty: ``"out_channel"``, ``"in_channel"`` or ``"kernel"``. Default:
            out_channel.
        maximize: ascend instead of descend. Default: False.

    Raises:
        ValueError: an argument is out of its bounds; names the argument, the bounds and the value.

    >>> weight = torch.nn.Parameter(torch.tensor([0.5, 0.0]))
    >>> optimizer = ProxSGD([weight], lr=0.1, lambda_init=1.0)
    >>> weight.grad = torch.tensor([1.0, -0.5])
    >>> optimizer.step()
    >>> weight.data
    tensor([0.3000, 0.0000])
    """

    has_duals = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        *,
        lambda_init: float = 0.1,
        lambda_scale: float = 1.0,
        penalty: str = "l1",
        granularity: str = "out_channel",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lambda_": lambda_init,
            "lambda_scale": lambda_scale,
            "penalty": penalty,
            "granularity": granularity,
            "maximize": maximize,
            # keys that the base class reads of every group; they have no other value here
            "backend": "foreach",
            "delta": 1.0,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        require(group["backend"] == "foreach", "backend", group["backend"], "foreach")
        require(group["penalty"] != "l0", "penalty", group["penalty"], "l1, group or none: l0 needs a dual variable")
        require(group["delta"] == 1, "delta", group["delta"], "1, since there is no dual variable")

    def _update_group(self, group: Group, params: Tensors, grads: Tensors, *, same_memory: bool) -> None:
        functional.proxsgd(params, grads, lr=group["lr"], prox=self.prox_of(group), maximize=group["maximize"])

    def _apply_prox_to(self, group: Group, params: Sequence[Tensor]) -> None:
        """Do nothing: there is no dual variable to compute weights from."""

    def duals(self, group: Group) -> Tensors:
        """Return the weights themselves, so that finalize() orders them by magnitude."""
        return list(group["params"])

    @torch.no_grad()
    def apply_prox(self, *, include_frozen: bool = False) -> None:
        """Zero weights that are not above lambda, and leave the others as they are, so that a run ends exactly."""
        self._nnz_counts.clear()
        for group in self.param_groups:
            prox = self.prox_of(group)
            for param in group["params"]:
                if param.requires_grad or include_frozen:
                    param.masked_fill_(prox(param) == 0, 0)
