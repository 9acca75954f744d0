"""Controllers that set the sparsity instead of steering it: by the quantile of the duals, or by masks."""

import torch
from torch import Tensor

from sv_sparse.optim.control import Controller
from sv_sparse.optim.optimizer import BregmanOptimizer
from sv_sparse.optim.prox import group_norms, group_size
from sv_sparse.optim.proxsgd import ProxSGD
from sv_sparse.optim.quantile import bracket


class QuantileController(Controller):
    """Lambda goes to the quantile of ``|v|`` at the target: exact to the weight (the group) after every update.

    Args:
        optimizer: LinBreg or AdaBreg; see Controller.
        target_sparsity: see Controller.
        total_steps: see Controller.
        every: updates from one exact lambda to the next; in between lambda stands.
        settle: see Controller.
        ramp: see Controller.
        initial_sparsity: see Controller.

    Raises:
        ValueError: as Controller; or the optimizer has no duals.
    """

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        every: int = 1,
        settle: float = 0.0,
        ramp: tuple[float, float] | None = None,
        initial_sparsity: float = 0.99,
    ) -> None:
        if isinstance(optimizer, ProxSGD):
            raise ValueError("QuantileController orders duals, and ProxSGD has none; use LinBreg or AdaBreg")
        super().__init__(
            optimizer, target_sparsity, total_steps, settle=settle, ramp=ramp, initial_sparsity=initial_sparsity
        )
        if every < 1:
            raise ValueError(f"every must be 1 or more, got {every}")
        self.every = every

    def _adapt(self) -> None:
        if self.steps % self.every == 0:
            self._threshold(self.target)


class MagnitudeController(Controller):
    """Gradual magnitude pruning, the baseline: the smallest weights become zero, for good.

    The regulated groups have ``regularizer="mask"``, so the optimizer trains them like dense ones; what is masked stays
    zero. ``lambda_`` is the largest weight that was masked; of whole channels, their largest root mean square.

    Of all layers together, layers with many inputs, whose weights are small from the start, lose theirs first, and at
    99 % some lose all; ``layerwise`` takes the same share of each.

    Zhu and Gupta, "To prune, or not to prune", 2017.

    Args:
        optimizer: see Controller.
        target_sparsity: see Controller.
        total_steps: see Controller.
        updates: how often, at most, the masks grow while the ramp lasts.
        layerwise: whether the smallest of each weight tensor fall, not those of all together.
        whole: whether channels (or kernels: the groups' ``grouping``) fall as a whole, those of the smallest norm in
            their layer; of each layer the nearest number to the target, and one stays.
        ramp: see Controller; pruning needs the weights trained a little before, and training after. None: the first
            masks, at the first of ``updates``, stand at the target.
        settle: see Controller.
        initial_sparsity: see Controller.

    Raises:
        ValueError: as Controller; or ``whole`` without ``layerwise``.
    """

    regularizers = ("mask",)

    def __init__(
        self,
        optimizer: BregmanOptimizer,
        target_sparsity: float,
        total_steps: int,
        *,
        updates: int = 100,
        layerwise: bool = False,
        whole: bool = False,
        settle: float = 0.01,
        ramp: tuple[float, float] | None = (0.1, 0.6),
        initial_sparsity: float = 0.0,
    ) -> None:
        if whole and not layerwise:
            raise ValueError("whole=True compares channels within their layer, and needs layerwise=True")
        self.layerwise, self.whole = layerwise, whole
        super().__init__(
            optimizer, target_sparsity, total_steps, settle=settle, ramp=ramp, initial_sparsity=initial_sparsity
        )
        if updates < 1:
            raise ValueError(f"updates must be 1 or more, got {updates}")
        self.span = ramp or (0.0, 1.0)
        self.every = max(1, int((self.span[1] - self.span[0]) * total_steps) // updates)
        if not any("mask" in optimizer.state.get(param, {}) for param in self.params):
            self._set_lambda(torch.zeros_like(self.lambda_))

    def _adapt(self) -> None:
        begun, over = (share * self.total_steps for share in self.span)
        if self.steps >= begun and (self.steps % self.every == 0 or self.steps >= over > self.steps - 1):
            self._threshold(self.target)

    def _threshold(self, target: float) -> None:
        common = None if self.layerwise else bracket(self.optimizer, self.groups, self._kept(target))[0]
        lambdas = []
        for group in self.groups:
            for param, dual in zip(group["params"], self.optimizer.duals(group), strict=True):
                sizes = group_norms(dual, group["grouping"]) if self.whole else dual.abs()
                limit = group["lambda_scale"] * common if common is not None else _largest_to_fall(sizes, target)
                self.optimizer.state[param]["mask"] = (sizes > limit).expand_as(param).clone()
                lambdas.append(limit / group["lambda_scale"])
        self._set_lambda(common if common is not None else torch.stack(lambdas).max())
        self.optimizer.read_out()

    def _missed(self) -> bool:
        if not self.layerwise:
            return super()._missed()
        sizes = [group_size(p, g["grouping"]) if self.whole else 1 for g in self.groups for p in g["params"]]
        return abs(int(self._alive()) - self._kept(self.target_sparsity)) > sum(sizes)


def _largest_to_fall(sizes: Tensor, target: float) -> Tensor:
    """Up to which size those of one layer fall, 0-dim: the nearest number to the target, all but one at most."""
    fallen = sizes.numel() - max(1, round((1 - target) * sizes.numel()))
    return sizes.flatten().kthvalue(fallen).values if fallen else torch.zeros_like(sizes.flatten()[0])
