"""Controllers that set the sparsity instead of steering it: by the quantile of the duals, or by masks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sv_sparse.optim.control import Controller, unit_size
from sv_sparse.optim.optimizer import BregmanOptimizer, Group
from sv_sparse.optim.proxsgd import ProxSGD
from sv_sparse.optim.quantile import bracket, nearest


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


class LayerwiseQuantileController(QuantileController):
    """The quantile layer by layer: each parameter group, of one weight, is at the target by a lambda of its own.

    For whole channels: under one lambda some layer loses all of its channels long before another loses any, whatever
    their common unit, and a layer without channels ends the network. Of each layer the nearest number of channels to
    the target goes, and one stays at least. ``lambda_`` is the mean over the layers.

    Args:
        optimizer: LinBreg or AdaBreg, with a group for each weight; see Controller.
        target_sparsity: of every layer; see Controller.
        total_steps: see Controller.
        every: see QuantileController.
        settle: see Controller.
        ramp: see Controller.
        initial_sparsity: see Controller.

    Raises:
        ValueError: as QuantileController; or a group has several weights; or a layer would keep less than half a unit.
    """

    common_lambda = False

    def _check_groups(self) -> None:
        super()._check_groups()
        for group in self.groups:
            shapes = [tuple(param.shape) for param in group["params"]]
            if len(shapes) > 1:
                raise ValueError(f"{type(self).__name__} needs a group for each weight, got one of {shapes}")
            size, unit = group["params"][0].numel(), unit_size(group)
            if 2 * _kept([group], self.target_sparsity) < unit:
                most = 1 - unit / (2 * size)
                raise ValueError(
                    f"target_sparsity={self.target_sparsity} leaves nothing of a weight {shapes[0]} whose parts of "
                    f"{unit} become zero together; at most {most:.4g}"
                )

    @property
    def lambda_(self) -> Tensor:
        """The mean of the layers' lambdas, 0-dim on the device."""
        found = [self.optimizer.lambda_of(group) for group in self.groups]
        return torch.stack(found).mean() if found else super().lambda_

    def _threshold(self, target: float) -> None:
        for group in self.groups:
            unit = unit_size(group)
            kept = max(unit, _kept([group], target) + unit // 2)  # the nearest number of units, at least one
            self.optimizer.lambda_of(group).copy_(nearest(self.optimizer, [group], kept))
        self.optimizer.read_out()

    def _missed(self) -> bool:
        for group in self.groups:
            alive = int(self.optimizer.count_nonzero(group["params"]).sum())
            if not alive or abs(alive - _kept([group], self.target_sparsity)) > unit_size(group):
                return True
        return False


class MagnitudeController(Controller):
    """Gradual magnitude pruning, the baseline: the smallest weights become zero, for good.

    The regulated groups have ``regularizer="mask"``, so the optimizer trains them like dense ones; what is masked stays
    zero. ``lambda_`` is the largest weight that was masked.

    Of all layers together, layers with many inputs, whose weights are small from the start, lose theirs first, and at
    99 % some lose all; ``layerwise`` takes the same share of each.

    Zhu and Gupta, "To prune, or not to prune", 2017.

    Args:
        optimizer: see Controller.
        target_sparsity: see Controller.
        total_steps: see Controller.
        updates: how often, at most, the masks grow while the ramp lasts.
        layerwise: whether the smallest of each weight tensor fall, not those of all together.
        ramp: see Controller; pruning needs the weights trained a little before, and training after. None: the first
            masks, at the first of ``updates``, stand at the target.
        settle: see Controller.
        initial_sparsity: see Controller.
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
        settle: float = 0.01,
        ramp: tuple[float, float] | None = (0.1, 0.6),
        initial_sparsity: float = 0.0,
    ) -> None:
        super().__init__(
            optimizer, target_sparsity, total_steps, settle=settle, ramp=ramp, initial_sparsity=initial_sparsity
        )
        if updates < 1:
            raise ValueError(f"updates must be 1 or more, got {updates}")
        self.layerwise = layerwise
        self.span = ramp or (0.0, 1.0)
        self.every = max(1, int((self.span[1] - self.span[0]) * total_steps) // updates)
        if not any("mask" in optimizer.state.get(param, {}) for param in self.params):
            self._set_lambda(torch.zeros_like(self.lambda_))

    def _adapt(self) -> None:
        begun, over = (share * self.total_steps for share in self.span)
        if self.steps >= begun and (self.steps % self.every == 0 or self.steps >= over > self.steps - 1):
            self._threshold(self.target)

    def _threshold(self, target: float) -> None:
        parts = [group | {"params": [param]} for group in self.groups for param in group["params"]]
        together = [[part] for part in parts] if self.layerwise else [self.groups]
        thresholds = [bracket(self.optimizer, own, _kept(own, target))[0] for own in together]
        for part, threshold in zip(parts, thresholds if self.layerwise else thresholds * len(parts), strict=True):
            (param,), (dual,) = part["params"], self.optimizer.duals(part)
            self.optimizer.state[param]["mask"] = dual.abs() > part["lambda_scale"] * threshold
        self._set_lambda(torch.stack(thresholds).max())
        self.optimizer.read_out()

    def _missed(self) -> bool:
        kept, wanted = int(self._alive()), self._kept(self.target_sparsity)
        return abs(kept - wanted) > len(self.params) if self.layerwise else super()._missed()


def _kept(groups: Sequence[Group], target: float) -> int:
    """Weights of some groups that survive at a target."""
    return round((1 - target) * sum(param.numel() for group in groups for param in group["params"]))
