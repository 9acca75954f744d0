"""A network as a row of steps over planes of activations, for the kernels of kernel.cpp.

A level is a resolution: the images of its planes have some rows, which are fixed, and as many columns as the utterance
has frames, halved some times. An area is a range of planes of a level. Level 0 has planes of a single value: vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sv_sparse.runtime.engine.bindings import ACTIVATIONS, ENTRY, MOST_CHANNELS, MOST_TAPS, OPERATIONS, Level

_ROOM = 16  # values: as kernel.cpp's


class NoProgramError(ValueError):
    """The kernels cannot compute a network."""


@dataclass(frozen=True)
class Area:
    """Planes of a level, from one on."""

    level: int
    plane: int
    count: int

    def part(self, start: int, count: int) -> "Area":
        """Some of its planes."""
        assert 0 <= start <= start + count <= self.count, (self, start, count)
        return Area(self.level, self.plane + start, count)


@dataclass(frozen=True)
class After:
    """What follows a product: ``outer(scale * inner(product + bias + bias_of) + shift + add)``.

    Attributes:
        bias: [C].
        bias_of: a vector that is computed, [C], added to the bias; what else an operation multiplies by.
        inner: activation, one of ACTIVATIONS.
        norm: scale and shift, each [C].
        add: planes of the target's level.
        outer: activation.
        more: planes that are added to the result, the sum written to ``onward``.
        onward: planes.
    """

    bias: Tensor | None = None
    bias_of: Area | None = None
    inner: str = "none"
    norm: tuple[Tensor, Tensor] | None = None
    add: Area | None = None
    outer: str = "none"
    more: Area | None = None
    onward: Area | None = None


class Shape(NamedTuple):
    """What images of a level look like, whatever the length of the utterance.

    Attributes:
        rows: of an image.
        halvings: how often the number of frames is halved, rounded up, to give its columns; -1 for vectors.
        reach: rows and columns of zeros that a convolution reads beyond its ends.
    """

    rows: int
    halvings: int
    reach: tuple[int, int]

    def cols(self, frames: int) -> int:
        """Columns of an image for an utterance of so many frames; of a vector, one."""
        return -(-frames // 2**self.halvings) if self.halvings >= 0 else 1


@dataclass
class Layer:
    """A convolution of a program.

    Attributes:
        name: of its weight in the network.
        weight: [C_out, C_in, rows, columns], as it is multiplied, scale of a norm behind it included.
        source: area that a dense product reads; with a stride, not the area that the sparse kernel reads.
        product: area that a dense product is left in for the step that finishes it.
        stride: of the convolution.
        step: number of its step in the program.
        reach: rows and columns that it reads beyond an end.
        dilation: in rows and columns.
        offsets: [taps, 2], rows and columns of each tap for the sparse kernel.
        phase: [rows, columns] of the kernel to number of the input's phase; None without stride.
        tap: [rows, columns] of the kernel to number of the tap.
    """

    name: str
    weight: Tensor
    source: Area
    product: Area
    stride: int
    step: int
    reach: tuple[int, int]
    dilation: tuple[int, int]
    offsets: NDArray[np.int32]
    phase: NDArray[np.int64] | None
    tap: NDArray[np.int64]

    @property
    def density(self) -> float:
        """Share of its weights that are not zero."""
        return float(self.weight.count_nonzero()) / self.weight.numel()

    @cached_property
    def entries(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """What the sparse kernel walks: where each output channel's entries start, [C_out + 1], and all entries."""
        rows = self.weight.permute(0, 2, 3, 1).flatten(1).numpy()  # the channels of one tap side by side
        alive = rows != 0
        places = np.flatnonzero(alive)
        tap, channel = np.divmod(places % rows.shape[1], self.weight.shape[1])
        if self.phase is not None:
            channel = 4 * channel + self.phase.ravel()[tap]
        found = np.empty(len(places), ENTRY)
        found["code"] = channel + (self.tap.ravel()[tap] << 16)
        found["weight"] = rows.ravel()[places]
        starts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(alive.sum(axis=1), out=starts[1:])
        return starts, found


@dataclass
class Layout:
    """Where planes lie, for an utterance of any length.

    Attributes:
        shapes: of the levels; the first is that of vectors.
        planes: of each level.
        least_frames: that an utterance must have.
    """

    shapes: list[Shape] = field(default_factory=lambda: [Shape(1, -1, (0, 0))])
    planes: list[int] = field(default_factory=lambda: [0])
    least_frames: int = 2

    def levels(self, frames: int) -> tuple[Any, int]:
        """The native levels for an utterance of so many frames, and the values of the memory they span."""
        found, base = (Level * len(self.shapes))(), 0
        for level, shape, planes in zip(found, self.shapes, self.planes, strict=True):
            level.rows, level.cols, level.base = shape.rows, shape.cols(frames), base
            level.stride = level.cols + shape.reach[1]
            level.lead = _rounded(shape.reach[0] * level.stride + shape.reach[1])
            level.plane = 2 * level.lead + _rounded(shape.rows * level.stride)
            if level.plane // _ROOM % 2 == 0:  # else planes would share few sets of the cache
                level.plane += _ROOM
            base += planes * level.plane
        return found, base


@dataclass
class Program:
    """Steps, layers and where their planes lie; `lower` makes it.

    Attributes:
        mel_bins: F.
        embedding_dim: E.
        layout: of the planes.
        steps: fields of a native Step by name; arrays in the place of addresses.
        layers: the convolutions among the steps.
    """

    mel_bins: int
    embedding_dim: int
    layout: Layout = field(default_factory=Layout)
    steps: list[dict[str, Any]] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    def level(self, shape: Shape) -> int:
        """A new level's number."""
        self.layout.shapes.append(shape)
        self.layout.planes.append(0)
        return len(self.layout.shapes) - 1

    def area(self, level: int, count: int) -> Area:
        """New planes."""
        self.layout.planes[level] += count
        return Area(level, self.layout.planes[level] - count, count)

    def vector(self, count: int) -> Area:
        """New planes of a single value."""
        return self.area(0, count)

    def step(
        self, op: str, rows: int, source: Area, target: Area, after: After | None = None, **fields: float | NDArray[Any]
    ) -> None:
        """Add a step.

        Args:
            op: one of OPERATIONS.
            rows: planes that it makes.
            source: what it reads.
            target: what it writes.
            after: what follows a product, or what else it reads.
            fields: further fields of a native Step.
        """
        after = after or After()
        found: dict[str, Any] = {"op": OPERATIONS.index(op), "rows": rows, "tile": 1, "taps": 0}
        found |= {"in_level": source.level, "in_plane": source.plane}
        found |= {"out_level": target.level, "out_plane": target.plane}
        for name, area in (("add", after.add), ("more", after.more), ("onward", after.onward), ("bias", after.bias_of)):
            found[f"{name}_plane"] = -1 if area is None else area.plane
        found |= {"inner": ACTIVATIONS.index(after.inner), "outer": ACTIVATIONS.index(after.outer)}
        scale, shift = after.norm or (None, None)
        for name, value in (("bias", after.bias), ("scale", scale), ("shift", shift)):
            if value is not None:
                found[name] = value.detach().float().contiguous().numpy()
        self.steps.append(found | fields)

    def convolve(
        self,
        name: str,
        weight: Tensor,
        source: Area,
        target: Area,
        after: After,
        *,
        dilation: tuple[int, int] = (1, 1),
        phases: Area | None = None,
        product: Area | None = None,
    ) -> None:
        """Add a convolution and what follows it. Its kernel is centred. With ``phases`` it has stride two.

        Args:
            name: of the weight.
            weight: [C_out, C_in, rows, columns], odd; or [C_out, C_in].
            source: C_in planes.
            target: C_out planes.
            after: what follows.
            dilation: in rows and columns.
            phases: the four phases of the source, 4·C_in planes of the target's level.
            product: where a dense product may wait for what follows, if not in the target: C_out planes of its level.

        Raises:
            NoProgramError: the kernels cannot read it: it has more than 65535 channels, or more than 255 taps.
        """
        weight = (weight if weight.ndim == 4 else weight[:, :, None, None]).detach()
        layer = _layer(name, weight, source, product or target, len(self.steps), dilation, strided=phases is not None)
        read = source if phases is None else phases
        room = self.layout.shapes[read.level].reach
        fits = weight.shape[:2] == (target.count, source.count) and read.count <= MOST_CHANNELS
        fits = fits and len(layer.offsets) <= MOST_TAPS
        if not fits or layer.reach[0] > room[0] or layer.reach[1] > room[1]:  # it would read outside its planes
            raise NoProgramError(f"{name} of shape {list(weight.shape)} is not what the sparse kernels can read")
        self.layers.append(layer)
        self.step("convolve", target.count, read, target, after, taps=len(layer.offsets), offsets=layer.offsets)


def _rounded(count: int) -> int:
    return -(-count // _ROOM) * _ROOM


def _layer(
    name: str, weight: Tensor, source: Area, product: Area, step: int, dilation: Sequence[int], *, strided: bool
) -> Layer:
    places = [
        [(index - size // 2) * apart for index in range(size)]
        for size, apart in zip(weight.shape[2:], dilation, strict=True)
    ]
    phase = None
    if strided:
        assert tuple(dilation) == (1, 1), name
        phase = np.array([[2 * (row % 2) + col % 2 for col in places[1]] for row in places[0]])
        places = [[place // 2 for place in axis] for axis in places]
    distinct = sorted({(row, col) for row in places[0] for col in places[1]})
    tap = np.array([[distinct.index((row, col)) for col in places[1]] for row in places[0]])
    reach = tuple(max(abs(place) for place in axis) for axis in places)
    return Layer(
        name, weight, source, product, 2 if strided else 1, step, (reach[0], reach[1]), (dilation[0], dilation[1]),
        np.array(distinct, np.int32), phase, tap,
    )  # fmt: skip
