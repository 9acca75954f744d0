"""What the support does: births, deaths, turnover, and how the duals lie around lambda."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.control import Controller
from sv_sparse.optim.prox import group_norms, grouping_of

Figures = dict[str, Tensor]

HISTOGRAM_END = 4.0  # in units of lambda


class SupportDiagnostics:
    """Looks at the regulated weights of a run where it is asked to; nothing waits for the device.

    ``mark()`` before an optimizer step, ``read()`` after it. Two passes over the weights each, so that once in some
    steps is as good as free::

        diagnostics = SupportDiagnostics(controller)
        if step % 50 == 0:
            diagnostics.mark()
        optimizer.step()
        controller.step()
        if step % 50 == 0:
            figures = diagnostics.read()

    Args:
        controller: whose weights to look at.
    """

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._marked: Sequence[Tensor] = ()
        self._seen: Sequence[Tensor] = ()

    @torch.no_grad()
    def mark(self) -> None:
        """Remember which weights are nonzero."""
        self._marked = _support(self.controller.params)

    @torch.no_grad()
    def read(self) -> Figures:
        """What happened since ``mark()``, and since the ``read()`` before; 0-dim tensors on the device.

        Returns:
            ``births`` and ``deaths``, shares of all regulated weights; ``turnover``, the share of the nonzero weights
            that were zero at the last ``read()`` (0 at the first). Empty where nothing is regulated or marked, or where
            other weights are regulated than at the mark.
        """
        before, now = self._marked, _support(self.controller.params)
        if not before or not _alike(before, now):
            self._marked = ()
            return {}
        if not _alike(self._seen, now):
            self._seen = ()
        size = sum(param.numel() for param in self.controller.params)
        alive = _total(now).clamp(min=1)
        kept = _total([old & new for old, new in zip(self._seen or now, now, strict=True)])
        figures = {
            "births": _total([new & ~old for old, new in zip(before, now, strict=True)]) / size,
            "deaths": _total([old & ~new for old, new in zip(before, now, strict=True)]) / size,
            "turnover": 1 - kept / alive,
        }
        self._seen, self._marked = now, ()
        return figures

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to report the turnover as an uninterrupted one does."""
        return {"seen": list(self._seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        devices = [param.device for param in self.controller.params]
        self._seen = [mask.to(device) for mask, device in zip(state["seen"], devices, strict=False)]

    @torch.no_grad()
    def histogram(self, bins: int = 64) -> Tensor | None:
        """How many duals have which ``|v| / lambda``: [bins] from 0 to ``HISTOGRAM_END``, what is above in the last.

        A weight is zero below 1; a crowd close to 1 is what a small move of lambda switches. For groups, their norms
        over the square root of their size. None where there are no duals.
        """
        groups = [group for group in self.controller.groups if group["regularizer"] != "mask"]
        counts = []
        for group in groups:
            lambda_ = group["lambda_scale"] * group["lambda_"]
            for dual in self.controller.optimizer.duals(group):
                sizes = group_norms(dual, grouping_of(group)) if group["regularizer"] == "group" else dual.abs()
                counts.append(torch.histc((sizes.float() / lambda_).clamp_(max=HISTOGRAM_END), bins, 0, HISTOGRAM_END))
        return torch.stack(counts).sum(0) if counts else None


def _support(params: Sequence[Tensor]) -> list[Tensor]:
    return [param != 0 for param in params]


def _alike(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Return whether masks are of the same weights, as far as shapes tell."""
    return [(mask.shape, mask.device) for mask in left] == [(mask.shape, mask.device) for mask in right]


def _total(masks: Sequence[Tensor]) -> Tensor:
    return torch.stack([mask.sum() for mask in masks]).sum()
