"""Gradual magnitude pruning, the baseline: masks make the smallest weights zero, for good."""

from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.bregman_optimizer import BregmanOptimizer
from sv_sparse.optim.controllers._order_statistics import magnitudes_around
from sv_sparse.optim.controllers.base import Controller
from sv_sparse.optim.state_dict_checks import Group
from sv_sparse.optim.validation import positive_int, require


class GradualMagnitudePruning(Controller):
    """Controller that prunes: masks grow along a ramp, and what they cover stays zero.

    It has no lambda. It prunes the groups with ``prunable=True``, such as ``param_groups(model, penalty="none")``
    makes; the optimizer trains them like dense ones, and ``step()`` zeroes what is masked after each update. With the
    weights w_{t+1} after update t and the target s*_t, a mask update computes::

        threshold = the (n_t + 1)-th largest |w_{t+1}|        n_t = round((1 - s*_t) * size) weights left
        masked    = |w_{t+1}| <= threshold

    Over all layers together, layers with many inputs, whose weights are small from the start, lose theirs first; at
    99 % some lose all. ``allocation="uniform"`` prunes the same fraction of each (DECISIONS 66).

    Source: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    arXiv 1710.01878, 2017.

    Args:
        optimizer: its groups with ``prunable=True`` are pruned; they have ``penalty="none"``.
        target_sparsity: fraction of exact zeros that those groups have in the end, in [0, 1). At 0 nothing is pruned.
        total_steps: length of the run in updates, a whole number of 1 or more.
        num_mask_updates: number of times that the masks grow during the ramp, a whole number of 1 or more. Up to twice
            as many, where the ramp's steps are no multiple of it; at most one at each step. Default: 100.
        freeze_fraction: fraction of the run, at its end, with the masks left alone, in [0, 1). Default: 0.01.
        ramp_start: fraction of the run at which pruning begins: weights should be trained a little before. None, with
            ``ramp_end`` None: the first masks, at the first mask update, stand at the target. Default: 0.1.
        ramp_end: fraction of the run at which the target is reached: weights should be trained after. Default: 0.6.
        initial_sparsity: target before the ramp, in [0, 1). Default: 0.
        allocation: ``"global"`` prunes the smallest weights of all layers together; ``"uniform"`` and ``"erk"`` prune
            the smallest of each, as many as Controller says. Default: global.

    Raises:
        ValueError: an argument is out of its bounds, there is nothing to prune, or a group to prune has a penalty.

    >>> from sv_sparse.optim import AdaBreg
    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 1.0], [-2.0, 0.5]]))
    >>> optimizer = AdaBreg([{"params": [weight], "prunable": True}], penalty="none")
    >>> controller = GradualMagnitudePruning(optimizer, target_sparsity=0.5, total_steps=100)
    >>> controller.finalize()
    >>> weight.data
    tensor([[ 3.,  0.],
            [-2.,  0.]])
    """

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        num_mask_updates: int = 100,
        freeze_fraction: float = 0.01,
        ramp_start: float | None = 0.1,
        ramp_end: float | None = 0.6,
        initial_sparsity: float = 0.0,
        allocation: str = "global",
    ) -> None:
        # True where a weight is pruned; empty before the first mask update.
        self._masked: dict[Tensor, Tensor] = {}
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
        num_mask_updates = positive_int("num_mask_updates", num_mask_updates)
        start, end = self.ramp or (0.0, 1.0)
        self.update_interval = max(1, int((end - start) * self.total_steps) // num_mask_updates)

    def _check_groups(self) -> None:
        if self.target_sparsity > 0 and not self.groups:
            raise ValueError(
                f"target_sparsity={self.target_sparsity} needs a group with prunable=True, which "
                f"param_groups(model, penalty='none') makes, got none"
            )
        for group in self.optimizer.param_groups:
            require(group["penalty"] == "none", "penalty", group["penalty"], "none under GradualMagnitudePruning")
        self._check_params()

    @property
    def groups(self) -> list[Group]:
        """Parameter groups that are pruned."""
        if self.target_sparsity == 0:
            return []
        return [group for group in self.optimizer.param_groups if group.get("prunable") and group["params"]]

    @property
    def lambda_(self) -> Tensor:
        """Zero: pruning has no lambda."""
        params = self.params
        return torch.zeros((), device=params[0].device if params else None)

    @torch.no_grad()
    def step(self) -> None:
        """Count one update, zero the masked weights again, and let the masks grow where it is time."""
        self._apply_masks()
        super().step()

    def _update(self) -> None:
        ramp_start, ramp_end = self.ramp or (0.0, 1.0)
        first_step, last_step = ramp_start * self.total_steps, ramp_end * self.total_steps
        is_last_update = self.steps >= last_step > self.steps - 1
        if self.steps >= first_step and (self.steps % self.update_interval == 0 or is_last_update):
            self._make_exact(self._ramp_distance())

    @torch.no_grad()
    def start_from_current_sparsity(self) -> None:
        """Start the ramp at the sparsity that the network has, and keep its zeros pruned (DECISIONS 67)."""
        for param in self.params:
            self._masked[param] = param == 0
        super().start_from_current_sparsity()

    def _make_exact(self, distance: float, *, is_end: bool = False) -> None:
        """Make the masks of the target, or of one on the way to it, and apply them."""
        magnitudes = self._magnitudes()
        if self.allocation != "global":
            counts = self._layer_nnz_on_the_way(distance)
            for (param, magnitude), nnz in zip(magnitudes.items(), counts, strict=True):
                self._masked[param] = _mask_of_layer(magnitude, nnz)
        else:
            threshold = self._threshold(list(magnitudes.values()), self._nnz_at(self._target_at(distance)))
            for param, magnitude in magnitudes.items():
                # NaN is pruned.
                self._masked[param] = ~(magnitude > threshold)
        self._apply_masks(include_frozen=is_end)

    def _magnitudes(self) -> dict[Tensor, Tensor]:
        """Return the absolute values of the weights to prune, of weights in 16 bits those of their float32 copies."""
        magnitudes: dict[Tensor, Tensor] = {}
        for group in self.groups:
            for param, weight in zip(group["params"], self.optimizer.duals(group), strict=True):
                magnitudes[param] = weight.detach().abs()
        return magnitudes

    def _threshold(self, magnitudes: list[Tensor], nnz: int) -> Tensor:
        """Return the magnitude up to which weights are pruned, so that ``nnz`` of all layers stay."""
        if nnz >= self._size():
            return magnitudes[0].new_zeros(())
        backends = [group["backend"] for group in self.groups]
        threshold, _ = magnitudes_around([(magnitude, 1.0) for magnitude in magnitudes], nnz, backends)
        return threshold

    def _apply_masks(self, *, include_frozen: bool = False) -> None:
        """Zero the masked weights, and their float32 copies."""
        if not self._masked:
            return
        for group in self.groups:
            for param, weight in zip(group["params"], self.optimizer.duals(group), strict=True):
                masked = self._masked.get(param)
                if masked is None or not (param.requires_grad or include_frozen):
                    continue
                # The model has moved.
                if masked.device != param.device:
                    masked = self._masked[param] = masked.to(param.device)
                weight.masked_fill_(masked, 0)
                if weight is not param:
                    param.masked_fill_(masked, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs beside the optimizer's state: masks (True where pruned) and plain data."""
        masks = [self._masked[param].clone() for param in self.params if param in self._masked]
        return super().state_dict() | {"masks": masks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; see Controller for what is refused."""
        super().load_state_dict(state_dict)
        self._masked = {}
        if state_dict["masks"]:
            for param, mask in zip(self.params, state_dict["masks"], strict=True):
                self._masked[param] = mask.to(param.device, copy=True)

    def _state_keys(self) -> tuple[str, ...]:
        return (*super()._state_keys(), "masks")


def _mask_of_layer(magnitude: Tensor, nnz: int) -> Tensor:
    """Return the mask of one layer: by number, not by a threshold, so that equal weights are not pruned together."""
    flat = magnitude.flatten()
    masked = torch.ones_like(flat, dtype=torch.bool)
    masked.scatter_(0, flat.topk(nnz, sorted=False).indices, False)
    return masked.view_as(magnitude) | (magnitude == 0)
