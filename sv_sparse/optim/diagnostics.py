"""Diagnostics of the support (the nonzero weights): what enters it, what leaves it, how dual variables are spread."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.controllers.base import Controller
from sv_sparse.optim.prox import granularity_of, group_norms

# Largest value of the histogram, in units of lambda.
HISTOGRAM_MAX = 4.0


class SupportDiagnostics:
    """Measurements of the regularized weights of a run, at the steps where they are asked for.

    Call ``snapshot()`` before an optimizer step and ``compute()`` after it. Each passes over the weights twice, so that
    once in some steps costs next to nothing (DECISIONS 27). Nothing waits for the device.

    Args:
        controller: whose weights to measure.

    >>> from sv_sparse.optim import AdaBreg, FeedbackController
    >>> weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
    >>> diagnostics = SupportDiagnostics(FeedbackController(AdaBreg([weight]), 0.5, total_steps=10))
    >>> diagnostics.snapshot()
    >>> weight.data = torch.tensor([[0.0, 2.0, 3.0, 4.0]])  # in a training loop, the optimizer's step
    >>> diagnostics.compute()
    {'activated': tensor(0.5000), 'deactivated': tensor(0.2500), 'turnover': tensor(0.)}
    """

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        # Supports as masks.
        self._snapshot: list[Tensor] = []
        # At the last compute().
        self._last_support: list[Tensor] = []

    @torch.no_grad()
    def snapshot(self) -> None:
        """Remember which weights are nonzero."""
        self._snapshot = _support(self.controller.params)

    @torch.no_grad()
    def compute(self) -> dict[str, Tensor]:
        """Return what has changed since the snapshot, as 0-dim tensors on the device.

        Returns:
            ``activated`` and ``deactivated``: fractions of all regularized weights that became nonzero, or zero;
            ``turnover``: fraction of the nonzero weights that were zero at the last ``compute()`` (0 at the first).
            Empty where nothing is regularized, there is no snapshot, or it is of other weights.
        """
        before = self._snapshot
        support = _support(self.controller.params)
        self._snapshot = []
        if not before or not _are_of_same_weights(before, support):
            return {}
        if not _are_of_same_weights(self._last_support, support):
            self._last_support = support
        size = sum(mask.numel() for mask in support)
        nnz = _count(support).clamp(min=1)
        num_activated = _count([new & ~old for old, new in zip(before, support, strict=True)])
        num_deactivated = _count([old & ~new for old, new in zip(before, support, strict=True)])
        num_common = _count([old & new for old, new in zip(self._last_support, support, strict=True)])
        self._last_support = support
        return {
            "activated": num_activated / size,
            "deactivated": num_deactivated / size,
            "turnover": 1 - num_common / nnz,
        }

    @torch.no_grad()
    def dual_histogram(self, num_bins: int = 64) -> Tensor | None:
        """Return the number of dual variables by ``|v| / lambda``; a weight is zero below 1.

        Many values close to 1 are weights that a small change of lambda switches. For groups of weights, their norms
        over the square root of their size take the place of ``|v|``.

        Args:
            num_bins: number of bins from 0 to ``HISTOGRAM_MAX``. Default: 64.

        Returns:
            Counts [num_bins]; larger values are in the last bin. None where there are no dual variables.
        """
        optimizer = self.controller.optimizer
        if not optimizer.has_duals:
            return None
        counts = []
        for group in self.controller.groups:
            # Masks prune without dual variables.
            if group["penalty"] == "none":
                continue
            lambda_ = optimizer.prox_of(group).lambda_
            for dual in optimizer.duals(group):
                is_grouped = group["penalty"] == "group"
                magnitudes = group_norms(dual, granularity_of(group)) if is_grouped else dual.abs()
                # At lambda = 0 a zero is at the threshold: 0 / 0 counts as 1.
                ratios = (magnitudes.float() / lambda_).nan_to_num_(nan=1.0).clamp_(max=HISTOGRAM_MAX)
                counts.append(torch.histc(ratios, num_bins, 0, HISTOGRAM_MAX))
        return torch.stack(counts).sum(0) if counts else None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to report the turnover of an uninterrupted one."""
        return {"last_support": list(self._last_support)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._last_support = []
        for mask, param in zip(state_dict["last_support"], self.controller.params, strict=False):
            self._last_support.append(mask.to(param.device))


def _support(params: Sequence[Tensor]) -> list[Tensor]:
    return [param != 0 for param in params]


def _are_of_same_weights(masks: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether masks are of the same weights, as far as shapes and devices tell."""
    return [(mask.shape, mask.device) for mask in masks] == [(mask.shape, mask.device) for mask in others]


def _count(masks: Sequence[Tensor]) -> Tensor:
    return torch.stack([mask.sum() for mask in masks]).sum()
