"""External edits of weights: dual variables follow what happens to weights between two steps.

An optimizer leaves each weight as its dual variable says. Afterwards somebody may write to the weight, freeze it, or
give its group other settings. A record of each weight, as the optimizer left it, tells which of these has happened:
torch's version counter and the address of most edits, copies of a few values of edits through ``.data``
(DECISIONS 79). The law: the weights stay as they are, and their dual variables are made anew. Penalty l0 has no dual
variable for a nonzero weight of at most ``delta * lambda``: such a weight becomes zero at the next step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sv_sparse.optim.cpp import bindings
from sv_sparse.optim.functional import ProximalMap
from sv_sparse.optim.memory import is_non_overlapping_and_dense, is_plain
from sv_sparse.optim.prox import STRICTLY_BELOW, reduce_groups, zero_lambdas
from sv_sparse.optim.state_dict_checks import Group, param_name
from sv_sparse.optim.validation import warn

if TYPE_CHECKING:
    from sv_sparse.optim.bregman_optimizer import BregmanOptimizer

# Values that are copied from each weight: comparing all of them would cost an eighth of the step.
_NUM_SAMPLE_ROWS, _NUM_SAMPLE_COLUMNS = 3, 64
# Differences that a change of device or precision may make: relative to the weight, and to delta * lambda, which
# were subtracted.
_TOLERANCES = {torch.float64: (1e-12, 1e-14), torch.float32: (1e-5, 1e-6)}
_TOLERANCES_16_BIT = 1e-2, 1e-6

# Penalty, granularity, delta: what a dual variable depends on beside lambda.
_DualSettings = tuple[str, str, float]


@dataclass(slots=True)
class Record:
    """Record of a weight as the optimizer left it."""

    group: Group
    # Penalty, granularity and delta of the group.
    settings: _DualSettings
    # Strength of the penalty that the weight was computed with, or its dual variable was made with.
    lambda_: Tensor
    # torch's count of changes in place.
    version: int
    # Address of its memory; 0 for a tensor subclass, which may have none.
    address: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    # A later step has left the weight out: it is frozen, and lambda may have moved without it.
    was_skipped: bool = False

    def is_same_memory(self, param: Tensor) -> bool:
        """Return whether the weight occupies the same memory as it did; False for a tensor subclass."""
        return (
            self.address != 0
            and self.address == param.data_ptr()
            and self.shape == param.shape
            and self.dtype == param.dtype
        )


class EditTracker:
    """Watcher of one optimizer's weights, which makes the dual variables of edited weights anew.

    Args:
        optimizer: whose weights to watch.
    """

    def __init__(self, optimizer: "BregmanOptimizer") -> None:
        self.optimizer = optimizer
        self.records: dict[Tensor, Record] = {}
        self._samples = SampledValues()
        # Group, penalty, lambda and lambda's version by the group's id.
        self._lambdas: dict[int, tuple[Group, str, Tensor, int]] = {}
        self._has_warned = False

    def follow(self, group: Group, params: Sequence[Tensor], *, warns: bool = True) -> bool:
        """Make dual variables anew of weights that were edited, frozen or got other settings since the last step.

        Returns:
            Whether nothing but values has changed: all weights occupy the same memory, with the same settings.
        """
        self._follow_lambda(group)
        settings = _dual_settings(group)
        suspects = []
        same_memory = True
        for param in params:
            record = self.records.get(param)
            is_unchanged = (
                record is not None
                and record.group is group
                and record.settings == settings
                and not record.was_skipped
                and record.is_same_memory(param)
            )
            if not is_unchanged:
                same_memory = False
                if self._may_be_edited(group, param):
                    suspects.append(param)
            elif record is not None and record.version != param._version:
                suspects.append(param)
        if same_memory and self._samples.differ(group):
            suspects = list(params)
        edited = []
        for param in suspects:
            if "dual" in self.optimizer.state.get(param, {}) and self._renew_dual(group, param):
                edited.append(param)
        if edited and warns and not self._has_warned and group["penalty"] != "none":
            self._has_warned = True
            self._warn_of_edit(group, edited[0])
        return same_memory

    def adopt_weights(self, group: Group) -> None:
        """Make dual variables anew of all weights of a group that differ from them, without a warning."""
        self.follow(group, group["params"], warns=False)
        for param in group["params"]:
            if "dual" in self.optimizer.state.get(param, {}):
                self._renew_dual(group, param)
            if param in self.records:
                self.add_record(group, param, self.records[param].lambda_)
        self._take_samples(group)

    def add_record(self, group: Group, param: Tensor, lambda_: Tensor) -> None:
        """Record a weight as it is."""
        self.records[param] = Record(
            group,
            _dual_settings(group),
            lambda_,
            param._version,
            _address(param),
            param.shape,
            param.dtype,
            param.device,
        )

    def record_step(
        self, group: Group, params: Sequence[Tensor], lambda_: Tensor, *, same_memory: bool = False
    ) -> None:
        """Record how a step left the weights, and the lambda that they were computed with.

        Args:
            group: of the weights.
            params: weights that the step has written.
            lambda_: with the group's scale.
            same_memory: nothing but values has changed since the last record, as ``follow`` has returned it.
        """
        group_lambda = self.optimizer.lambda_of(group)
        self._lambdas[id(group)] = (group, group["penalty"], group_lambda, group_lambda._version)
        for param in params:
            record = self.records.get(param) if same_memory else None
            if record is None:
                self.add_record(group, param, lambda_)
            else:
                record.version = param._version
                record.lambda_ = lambda_
        if len(params) < len(group["params"]):
            for param in set(group["params"]) - set(params):
                if param in self.records:
                    self.records[param].was_skipped = True
        if same_memory:
            self._samples.renew(group)
        else:
            self._take_samples(group)

    def differs(self, groups: Sequence[Group]) -> bool:
        """Return whether sampled values have changed since the last step; waits for nothing on other devices."""
        return any(self._samples.differ(group) for group in groups)

    def forget_removed(self) -> bool:
        """Forget parameters and groups that the optimizer does not have any more; return whether there were any."""
        groups = self.optimizer.param_groups
        has_removed = False
        if len(self.records) > sum(len(group["params"]) for group in groups):
            params = {param for group in groups for param in group["params"]}
            self.records = {param: record for param, record in self.records.items() if param in params}
            has_removed = True
        if len(self._lambdas) > len(groups):
            group_ids = {id(group) for group in groups}
            self._lambdas = {key: value for key, value in self._lambdas.items() if key in group_ids}
            self._samples.keep_only(groups)
            has_removed = True
        return has_removed

    def _may_be_edited(self, group: Group, param: Tensor) -> bool:
        """Return whether a weight may have been edited; changes of another kind are followed here."""
        has_dual = "dual" in self.optimizer.state.get(param, {})
        record = self.records.get(param)
        # The optimizer was loaded or copied.
        if record is None:
            if has_dual:
                self._renew_dual(group, param, tolerant=True)
            return False
        if record.settings != _dual_settings(group):
            # dual_of makes it anew from the weight.
            self.optimizer.state.get(param, {}).pop("dual", None)
            self.add_record(group, param, self.optimizer.prox_of(group).lambda_.clone())
            return False
        if not has_dual:
            return False
        if record.was_skipped or record.group is not group:
            self._keep_weight(group, param)
            return False
        if record.dtype != param.dtype or record.device != param.device:
            self._renew_dual(group, param, tolerant=True)
            return False
        return record.version != param._version or record.address != _address(param)

    def _keep_weight(self, group: Group, param: Tensor) -> None:
        """Change the dual variable so that the weight stays as it is, where lambda has moved without it."""
        prox = self.optimizer.prox_of(group)
        dual = self.optimizer.dual_of(group, param)
        if dual is param:
            return
        prox = prox.with_lambda(prox.lambda_.to(dual.device, dual.dtype))
        new_dual = self.optimizer.new_dual(group, param, prox.lambda_)
        dual.copy_(_dual_of_same_weight(param, dual, new_dual, prox))
        was_skipped = self.records[param].was_skipped
        self.add_record(group, param, prox.lambda_.clone())
        self.records[param].was_skipped = was_skipped

    def _renew_dual(self, group: Group, param: Tensor, *, tolerant: bool = False) -> bool:
        """Make the dual variable anew where the weight is not the one computed from it; return whether there was any.

        Args:
            group: of the weight.
            param: the weight.
            tolerant: accept the rounding of another device or precision.
        """
        record = self.records.get(param)
        lambda_ = group["weights_lambda"] if record is None else record.lambda_
        dual = self.optimizer.dual_of(group, param)
        # Without a lambda the group has made no step.
        if lambda_ is None or dual is param:
            return False
        lambda_ = lambda_.to(dual.device, dual.dtype)
        prox = self.optimizer.prox_of(group).with_lambda(lambda_)
        unchanged = _is_weight_of_dual(param, dual, prox, tolerant=tolerant)
        if group["penalty"] != "none" and bool(unchanged.all()):
            return False
        dual.copy_(torch.where(unchanged, dual, self.optimizer.new_dual(group, param, lambda_)))
        return True

    def _follow_lambda(self, group: Group) -> None:
        """Take the other groups' lambda where this group has a penalty from now on and nobody has set its lambda."""
        if id(group) not in self._lambdas:
            return
        recorded_group, penalty, lambda_, version = self._lambdas[id(group)]
        if recorded_group is not group:
            return
        is_untouched = group["lambda_"] is lambda_ and lambda_._version == version
        if penalty != "none" or group["penalty"] == "none" or not is_untouched:
            return
        for other in self.optimizer.param_groups:
            if other is not group and other["penalty"] != "none":
                # a controller has moved it while this group had no penalty
                self.optimizer.lambda_of(group).copy_(self.optimizer.lambda_of(other))
                return

    def _take_samples(self, group: Group) -> None:
        if group["penalty"] != "none":
            state = self.optimizer.state
            self._samples.take(group, [param for param in group["params"] if "dual" in state.get(param, {})])

    def _warn_of_edit(self, group: Group, param: Tensor) -> None:
        index = next(index for index, other in enumerate(group["params"]) if other is param)
        group_index = next(index for index, other in enumerate(self.optimizer.param_groups) if other is group)
        warn(
            f"weights were changed outside the optimizer ({param_name(group, index, group_index)} and perhaps others); "
            f"{type(self.optimizer).__name__} continues from them as they are now. Call optimizer.adopt_weights() "
            f"after a deliberate change"
        )


class SampledValues:
    """Copies of a few values of each weight: an edit through ``.data`` changes neither version nor address.

    On the CPU only; elsewhere a comparison would wait for the device.
    """

    def __init__(self) -> None:
        self._by_group: dict[int, _Sample] = {}

    def take(self, group: Group, params: Sequence[Tensor]) -> None:
        """Copy a few values of each of these weights of a group."""
        on_cpu = [param for param in params if param.device.type == "cpu" and is_plain(param)]
        by_kernel: list[Tensor] = []
        if bindings.is_loaded() or bindings.is_selected(group["backend"]):
            by_kernel = [param for param in on_cpu if bindings.supports(param)]
        sampled = set(by_kernel)
        others = [param for param in on_cpu if param not in sampled]
        addresses = [param.data_ptr() for param in (*by_kernel, *others)]
        self._by_group[id(group)] = _Sample(by_kernel, others, addresses, _sampled_values(by_kernel, others))

    def renew(self, group: Group) -> None:
        """Copy the values of the same weights again."""
        sample = self._by_group.get(id(group))
        if sample is None:
            return
        if sample.is_same_memory():
            values = _sampled_values(sample.by_kernel, sample.others)
            self._by_group[id(group)] = sample._replace(values=values)
        else:
            # A frozen weight has moved.
            self.take(group, [*sample.by_kernel, *sample.others])

    def differ(self, group: Group) -> bool:
        """Return whether a value has changed; weights in other memory do not count, since the records tell of them."""
        sample = self._by_group.get(id(group))
        if sample is None or not sample.is_same_memory():
            return False
        values = _sampled_values(sample.by_kernel, sample.others)
        return not all(_is_equal(*pair) for pair in zip(values, sample.values, strict=True))

    def keep_only(self, groups: Sequence[Group]) -> None:
        """Forget all other groups."""
        group_ids = {id(group) for group in groups}
        self._by_group = {key: sample for key, sample in self._by_group.items() if key in group_ids}


class _Sample(NamedTuple):
    """Values of some weights of a group: those that a kernel copies, then the others."""

    by_kernel: list[Tensor]
    others: list[Tensor]
    addresses: list[int]
    values: list[Tensor]

    def is_same_memory(self) -> bool:
        """Return whether all weights are at their addresses, by which the kernel reads them."""
        return [param.data_ptr() for param in (*self.by_kernel, *self.others)] == self.addresses


def _sampled_values(by_kernel: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    values = []
    if by_kernel:
        values.append(bindings.sample(by_kernel, _NUM_SAMPLE_ROWS, _NUM_SAMPLE_COLUMNS))
    if others:
        rows: list[Tensor] = []
        for param in others:
            rows += _sample_rows(param)
        values.append(torch.cat(rows))
    return values


def _sample_rows(weight: Tensor) -> list[Tensor]:
    """Return a few rows of a large weight, the last at its end, or all of a small one, as vectors."""
    size = weight.numel()
    if size <= _NUM_SAMPLE_ROWS * _NUM_SAMPLE_COLUMNS or not is_non_overlapping_and_dense(weight):
        return [weight.reshape(-1)]
    rows = []
    for row in range(_NUM_SAMPLE_ROWS):
        start = row * (size - _NUM_SAMPLE_COLUMNS) // (_NUM_SAMPLE_ROWS - 1)
        rows.append(weight.as_strided((_NUM_SAMPLE_COLUMNS,), (1,), weight.storage_offset() + start))
    return rows


def _is_equal(values: Tensor, previous: Tensor) -> bool:
    """Return whether two tensors are equal, where NaN equals NaN."""
    return torch.equal(values, previous) or bool(((values == previous) | (values.isnan() & previous.isnan())).all())


def _address(param: Tensor) -> int:
    """Return the address of a weight's memory; 0 for a tensor subclass, which may have no memory of its own."""
    return param.data_ptr() if is_plain(param) else 0


def _dual_settings(group: Group) -> _DualSettings:
    return group["penalty"], group["granularity"], group["delta"]


def _is_weight_of_dual(weight: Tensor, dual: Tensor, prox: ProximalMap, *, tolerant: bool) -> Tensor:
    """Return a mask of the places where a weight is what its dual variable says; the same in each group of weights.

    Args:
        weight: tensor of any shape.
        dual: its dual variable.
        prox: with the lambda that the weight was computed with.
        tolerant: accept the rounding of another device or precision.
    """
    expected = prox(dual).to(weight.dtype)
    same = (weight == expected) | (weight.isnan() & expected.isnan())
    if tolerant:
        relative, of_lambda = _TOLERANCES.get(weight.dtype, _TOLERANCES_16_BIT)
        tolerance = relative * expected.abs() + of_lambda * prox.delta * prox.lambda_
        same |= (weight - expected).abs() <= tolerance
    return reduce_groups(same, prox.granularity, torch.all) if prox.penalty == "group" else same


def _dual_of_same_weight(weight: Tensor, dual: Tensor, new_dual: Tensor, prox: ProximalMap) -> Tensor:
    """Return a dual variable of which another lambda makes the same weight.

    The old dual variables of zero weights stay, if these weights are zero under the new lambda too. Otherwise all of
    them are made smaller by one factor: their order is what finalize() needs, and equal ones would cost it exactness.
    Only a lambda of 0 makes all of them 0.

    Args:
        weight: tensor as it is.
        dual: old dual variable, in float32 or more: the factor is a few bits of that below what it may be.
        new_dual: dual variable made of the weight under the new lambda.
        prox: with the new lambda.
    """
    nonzero = weight != 0
    if prox.penalty == "group":
        nonzero = reduce_groups(nonzero, prox.granularity, torch.any)
    of_zeros = torch.where(nonzero, 0.0, dual)
    # From this lambda on, all of them are zero.
    max_lambda = zero_lambdas(of_zeros, prox.penalty, prox.granularity).max()
    factor = torch.where(max_lambda > prox.lambda_, STRICTLY_BELOW * prox.lambda_ / max_lambda, 1.0)
    return torch.where(nonzero, new_dual, factor * of_zeros)
