"""Controllers that set the sparsity instead of steering it: by the quantile of the duals, or by masks."""

import torch
from torch import Tensor

from sv_sparse.optim.checks import whole_number
from sv_sparse.optim.control import Controller, Ramp
from sv_sparse.optim.optimizer import BregmanOptimizer, Group
from sv_sparse.optim.prox import group_norms, grouping_of
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
        ramp: Ramp = "auto",
        initial_sparsity: float | None = None,
    ) -> None:
        if isinstance(optimizer, ProxSGD):
            raise ValueError("QuantileController orders duals, and ProxSGD has none; use LinBreg or AdaBreg")
        super().__init__(
            optimizer, target_sparsity, total_steps, settle=settle, ramp=ramp, initial_sparsity=initial_sparsity
        )
        self.every = whole_number("every", every)
        self.exact = self.every == 1 and self.settles_at == self.total_steps

    def _adapt(self) -> None:
        if self.steps % self.every == 0:
            self._threshold(self.target)


class MagnitudeController(Controller):
    """Gradual magnitude pruning, the baseline: the smallest weights become zero, for good.

    The regulated groups have ``regularizer="mask"``, so the optimizer trains them like dense ones; what is masked stays
    zero. ``lambda_`` says up to which size weights (of whole channels: norms) fell when masks were last made; that is 0
    once none fall any more.

    Of all layers together, layers with many inputs, whose weights are small from the start, lose theirs first, and at
    99 % some lose all; ``layerwise`` takes the same share of each.

    Zhu and Gupta, "To prune, or not to prune", 2017.

    Args:
        optimizer: see Controller.
        target_sparsity: see Controller.
        total_steps: see Controller.
        updates: how often the masks grow while the ramp lasts: up to twice as often, where it has not so many times a
            whole number of steps, and at most at every step.
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
        updates = whole_number("updates", updates)
        self.span = self.ramp or (0.0, 1.0)
        self.every = max(1, int((self.span[1] - self.span[0]) * self.total_steps) // updates)
        if not any("mask" in optimizer.state.get(param, {}) for param in self.params):
            self._set_lambda(torch.zeros_like(self.lambda_))

    def _adapt(self) -> None:
        begun, over = (share * self.total_steps for share in self.span)
        if self.steps >= begun and (self.steps % self.every == 0 or self.steps >= over > self.steps - 1):
            self._threshold(self.target)

    @torch.no_grad()
    def take_over(self) -> None:
        """As Controller, of what falls together; and what is zero already stays zero."""
        kept = 0
        for param, sizes in self._layers():
            alive = (sizes > 0).expand_as(param)
            self.optimizer.state[param]["mask"] = alive.clone()
            kept += int(alive.sum())
        self.initial_sparsity = 1 - kept / self._size() if self.groups else 0.0

    def _threshold(self, target: float, *, frozen: bool = False) -> None:
        common = None if self.layerwise else bracket(self.optimizer, self.groups, self._kept(target))[0]
        fallen = []
        for group in self.groups:
            for param, dual in zip(group["params"], self.optimizer.duals(group), strict=True):
                sizes = self._sizes(dual, group)
                if common is not None:
                    alive = sizes > group["lambda_scale"] * common
                else:
                    alive = _largest(sizes, target)
                    fallen.append(torch.where(alive, 0, sizes).max() / group["lambda_scale"])
                self.optimizer.state[param]["mask"] = alive.expand_as(param).clone()
        self._set_lambda(common if common is not None else torch.stack(fallen).max())
        self.optimizer.read_out(frozen=frozen)

    def _sizes(self, weight: Tensor, group: Group) -> Tensor:
        """Of what falls together."""
        return group_norms(weight, grouping_of(group)) if self.whole else weight.abs()

    def _missed(self) -> bool:
        if not self.layerwise:
            return super()._missed()
        return any(int(sizes.count_nonzero()) != _survivors(sizes, self.target_sparsity) for _, sizes in self._layers())

    def _wanted(self) -> int:
        if not self.layerwise:
            return super()._wanted()
        layers = self._layers()
        return sum(_survivors(sizes, self.target_sparsity) * (p.numel() // sizes.numel()) for p, sizes in layers)

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Each weight, and the sizes of what falls together in it."""
        return [(param, self._sizes(param, group)) for group in self.groups for param in group["params"]]


def _survivors(sizes: Tensor, target: float) -> int:
    """How many of one layer survive: the nearest number to the target, and one at least."""
    return max(1, round((1 - target) * sizes.numel()))


def _largest(sizes: Tensor, target: float) -> Tensor:
    """Which of one layer survive, as a mask; of equal ones some, and none that is zero."""
    flat = sizes.flatten()
    alive = torch.zeros_like(flat, dtype=torch.bool)
    alive.scatter_(0, flat.topk(_survivors(sizes, target), sorted=False).indices, True)
    return alive.view_as(sizes) & (sizes > 0)
