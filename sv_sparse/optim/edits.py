"""Notice what happens to weights between two steps, so that their duals can follow.

An optimizer leaves each weight as its dual says. Afterwards somebody may write to the weight, freeze it, or give it
other settings. A record of each weight, as the optimizer left it, tells which of these has happened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sv_sparse.optim import native
from sv_sparse.optim.bregman import ReadOut
from sv_sparse.optim.memory import fills_memory, is_plain
from sv_sparse.optim.prox import over_group
from sv_sparse.optim.state_checks import Group

Settings = tuple[str, str, float]  # regularizer, grouping, delta

_SAMPLE_ROWS, _SAMPLE_COLUMNS = 3, 64  # of a weight, where looking at all of it would cost a pass over memory
# After a change of device or precision, relative to the weight and to delta * lambda, which were subtracted.
_LOOSE = {torch.float64: (1e-12, 1e-14), torch.float32: (1e-5, 1e-6)}
_LOOSE_16_BIT = 1e-2, 1e-6


@dataclass(slots=True)
class Record:
    """Record of a weight as the optimizer left it.

    Attributes:
        group: its group.
        settings: of the group.
        lambda_: that the weight was read out with, or its dual made with.
        version: torch's count of changes in place.
        address: of its memory; 0 for a tensor subclass, which may have none.
        shape: of the weight.
        dtype: its precision.
        device: where it was.
        frozen: whether it has stood still since, without a gradient.
    """

    group: Group
    settings: Settings
    lambda_: Tensor
    version: int
    address: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    frozen: bool = False

    def stands(self, group: Group, settings: Settings, param: Tensor) -> bool:
        """Return whether the weight is in the same group, with the same settings, in the same memory, not frozen."""
        return self.group is group and self.settings == settings and not self.frozen and self.lies_still(param)

    def lies_still(self, param: Tensor) -> bool:
        """Return whether the weight is the same stretch of memory as it was; False for a tensor subclass."""
        return (
            self.address != 0
            and self.address == param.data_ptr()
            and self.shape == param.shape
            and self.dtype == param.dtype
        )


def address_of(param: Tensor) -> int:
    """Return where a weight lies; 0 for a tensor subclass, which may have no memory of its own."""
    return param.data_ptr() if is_plain(param) else 0


def settings_of(group: Group) -> Settings:
    """Return what a dual depends on beside lambda."""
    return group["regularizer"], group["grouping"], group["delta"]


def record(group: Group, param: Tensor, lambda_: Tensor) -> Record:
    """Return a record of a weight as it is."""
    now = param._version, address_of(param), param.shape, param.dtype, param.device
    return Record(group, settings_of(group), lambda_, *now)


class Samples:
    """Copies of a few values of each weight: an edit through ``.data`` changes neither version nor address.

    On the CPU only; elsewhere a comparison would wait for the device.
    """

    def __init__(self) -> None:
        self._by_group: dict[int, _Sample] = {}

    def take(self, group: Group, params: Sequence[Tensor]) -> None:
        """Copy a few values of each of these weights of a group."""
        on_cpu = [param for param in params if param.device.type == "cpu" and is_plain(param)]
        by_kernel = [param for param in on_cpu if param.dtype == torch.float32 and fills_memory(param)]
        if not (native.is_loaded() or native.takes_over(group["implementation"])):
            by_kernel = []
        own = set(by_kernel)
        others = [param for param in on_cpu if param not in own]
        addresses = [param.data_ptr() for param in (*by_kernel, *others)]
        self._by_group[id(group)] = _Sample(by_kernel, others, addresses, _values(by_kernel, others))

    def renew(self, group: Group) -> None:
        """Copy the values of the same weights again."""
        sample = self._by_group.get(id(group))
        if sample is None:
            return
        if sample.lies_still():
            self._by_group[id(group)] = sample._replace(values=_values(sample.by_kernel, sample.others))
        else:  # one that is frozen has moved
            self.take(group, [*sample.by_kernel, *sample.others])

    def differ(self, group: Group) -> bool:
        """Return whether any of these values has changed; of weights that lie elsewhere the records tell."""
        sample = self._by_group.get(id(group))
        if sample is None or not sample.lies_still():
            return False
        now = _values(sample.by_kernel, sample.others)
        return not all(_equal(*pair) for pair in zip(now, sample.values, strict=True))

    def keep_only(self, groups: Sequence[Group]) -> None:
        """Forget groups that the optimizer does not have any more."""
        present = {id(group) for group in groups}
        self._by_group = {key: sample for key, sample in self._by_group.items() if key in present}


class _Sample(NamedTuple):
    """Values of some weights of a group: those that a kernel copies, then the others."""

    by_kernel: list[Tensor]
    others: list[Tensor]
    addresses: list[int]
    values: list[Tensor]

    def lies_still(self) -> bool:
        """Return whether all weights are where they were, which the kernel walks by address."""
        return [param.data_ptr() for param in (*self.by_kernel, *self.others)] == self.addresses


def _values(by_kernel: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    values = [native.sample(by_kernel, _SAMPLE_ROWS, _SAMPLE_COLUMNS)] if by_kernel else []
    return [*values, torch.cat([place for param in others for place in _places(param)])] if others else values


def _places(weight: Tensor) -> list[Tensor]:
    """Return a few places of a large weight, the last at its end, or all of a small one, as vectors."""
    size = weight.numel()
    if size <= _SAMPLE_ROWS * _SAMPLE_COLUMNS or not fills_memory(weight):
        return [weight.reshape(-1)]
    starts = [row * (size - _SAMPLE_COLUMNS) // (_SAMPLE_ROWS - 1) for row in range(_SAMPLE_ROWS)]
    first = weight.storage_offset()
    return [weight.as_strided((_SAMPLE_COLUMNS,), (1,), first + start) for start in starts]


def _equal(now: Tensor, before: Tensor) -> bool:
    return torch.equal(now, before) or bool(((now == before) | (now.isnan() & before.isnan())).all())


def unchanged(weight: Tensor, dual: Tensor, read: ReadOut, *, loose: bool) -> Tensor:
    """Return where a weight is what its dual says, as a mask; groups of weights as a whole.

    Args:
        weight: any shape.
        dual: likewise.
        read: with the lambda that the weight was read out with.
        loose: whether a device or a precision may have rounded otherwise.
    """
    expected = read(dual).to(weight.dtype)
    same = (weight == expected) | (weight.isnan() & expected.isnan())
    if loose:
        relative, of_lambda = _LOOSE.get(weight.dtype, _LOOSE_16_BIT)
        allowed = relative * expected.abs() + of_lambda * read.delta * read.lambda_
        same |= (weight - expected).abs() <= allowed
    return over_group(same, read.grouping, torch.all) if read.regularizer == "group" else same


def anchored(weight: Tensor, dual: Tensor, fresh: Tensor, read: ReadOut) -> Tensor:
    """Return a dual of which another lambda makes the same weights.

    What was learnt about zero weights stays, as far as they stay zero under that lambda.

    Args:
        weight: as it is.
        dual: that it had.
        fresh: a dual of the weight under the new lambda.
        read: with the new lambda.
    """
    alive = weight != 0
    if read.regularizer == "group":
        alive = over_group(alive, read.grouping, torch.any)
        stays_zero = over_group(read(dual) == 0, read.grouping, torch.all)
        return torch.where(alive, fresh, torch.where(stays_zero, dual, 0.0))
    return torch.where(alive, fresh, torch.clamp(dual, -read.lambda_, read.lambda_))
