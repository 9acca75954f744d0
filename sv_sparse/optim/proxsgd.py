"""The baseline without a dual."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim import bregman
from sv_sparse.optim.checks import check
from sv_sparse.optim.optimizer import BregmanOptimizer, Group, Tensors, check_common


class ProxSGD(BregmanOptimizer):
    """Proximal stochastic gradient descent, the baseline: ``w <- prox(w - lr * g, lr * lambda_)``.

    It has no dual: what lambda has shrunk is gone, at every step, which biases what survives towards zero.

    Args:
        params: parameters, named parameters, or groups of them.
        lr: see the top of methods.py, as for all that follows.
        lambda_: see there.
        lambda_scale: see there.
        regularizer: see there.
        grouping: see there.
        maximize: see there.

    Raises:
        ValueError: a setting is out of its bounds; names the setting, the bounds and the value.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        *,
        lambda_: float = 0.1,
        lambda_scale: float = 1.0,
        regularizer: str = "l1",
        grouping: str = "output",
        maximize: bool = False,
    ) -> None:
        defaults = {key: value for key, value in locals().items() if key not in {"self", "params", "__class__"}}
        super().__init__(params, defaults | {"implementation": "foreach", "delta": 1.0})

    def _check_group(self, group: Group) -> None:
        check_common(group)
        check(group["implementation"] == "foreach", "implementation", group["implementation"], "foreach")
        check(group["delta"] == 1, "delta", group["delta"], "1, since there is no dual")
        check(
            group["regularizer"] != "mask",
            "regularizer",
            "mask",
            "one of l1, group, none; AdaBreg and LinBreg take masks",
        )

    def _move(self, group: Group, params: Tensors, grads: Tensors, *, lie_still: bool) -> None:
        how = self._how(group)
        bregman.proxsgd(params, grads, lr=group["lr"], how=how, maximize=group["maximize"])

    def _read_out(self, group: Group, params: Sequence[Tensor]) -> None:
        """There is no dual to read."""

    def duals(self, group: Group) -> Tensors:
        """The weights themselves: landing orders them by size."""
        return list(group["params"])

    @torch.no_grad()
    def read_out(self, *, frozen: bool = False) -> None:
        """Zero what is not above lambda, and leave the rest as it is: how a run lands."""
        self._counts.clear()
        for group in self.param_groups:
            how = self._how(group)
            for param in group["params"]:
                if param.requires_grad or frozen:
                    param.masked_fill_(how(param) == 0, 0)
