"""Program of a network: a list of steps over planes of activations, for the kernels of sparse_kernels.cpp.

A plane is one channel of an image. A resolution is a size of images: a fixed number of rows, and columns whose number
depends on the frames of the utterance. Resolution 0 has planes of a single value: vectors.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sv_sparse.runtime.engine.bindings import ENTRY, PlaneLayout

# Values; the same as in sparse_kernels.cpp. A vector of AVX-512 has as many.
_ALIGNMENT = 16
# That planes may have together.
_MAX_VALUES = 1 << 30

Float32Array = NDArray[np.float32]


class NoProgramError(ValueError):
    """Error for a network that the kernels cannot compute."""


class Columns(NamedTuple):
    """Number of columns for an utterance of any length: ``(frames + offset) // divisor``; of a vector 1."""

    offset: int = 0
    # 0: a vector.
    divisor: int = 1

    def __call__(self, frames: int) -> int:
        """Return the number for an utterance of so many frames."""
        return (frames + self.offset) // self.divisor if self.divisor else 1


VECTOR = Columns(0, 0)


class Resolution(NamedTuple):
    """Size of images."""

    rows: int
    columns: Columns


class Planes(NamedTuple):
    """Range of ``size`` planes of a resolution, from ``first`` on."""

    resolution: int
    first: int
    size: int


@dataclass
class Step:
    """One operation; see sparse_kernels.cpp."""

    # One of OPERATIONS.
    op: str
    # Planes, or rows of planes, that are written.
    rows: int
    source: Planes
    target: Planes
    # Pairs of a code, one of ACTIONS, and its argument.
    actions: list[tuple[str, int]] = field(default_factory=list)
    # That actions read.
    constants: Float32Array = field(default_factory=lambda: np.empty(0, np.float32))
    parameters: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    # Source row of each row that is copied.
    sources: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    # Of a convolution.
    layer: "Layer | None" = None


@dataclass
class Layer:
    """Convolution of a program; pairs are of rows and columns."""

    # Name of its weight in the network.
    name: str
    # [C_out, C_in / groups, rows, columns] as it is multiplied: with the scale of a norm behind it.
    weight: Float32Array
    # Planes that a dense product reads. With strides the sparse kernel reads the phases of these.
    source: Planes
    strides: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    # Zeros before the first row and column.
    padding: tuple[int, int] = (0, 0)
    # And behind the last.
    padding_after: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def density(self) -> float:
        """Fraction of nonzero weights."""
        return float(np.count_nonzero(self.weight)) / self.weight.size

    @property
    def _offsets(self) -> NDArray[np.int64]:
        """Row and column that each weight reads, from that of its output, [rows, columns, 2]."""
        indices = np.moveaxis(np.indices(self.weight.shape[2:]), 0, -1)
        return indices * self.dilation - np.array(self.padding)

    @cached_property
    def taps(self) -> NDArray[np.int32]:
        """Distinct offsets in the phases that the kernel reads, [taps, 2]."""
        # With stride two, offset 2k + p is offset k in phase p; // rounds down, also below zero.
        return np.unique((self._offsets // self.strides).reshape(-1, 2), axis=0).astype(np.int32)

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns that a convolution reads beyond those of its output, at most."""
        offsets: list[NDArray[Any]] = [self.taps, self._offsets.reshape(-1, 2), np.array([self.padding_after])]
        farthest = np.abs(np.concatenate(offsets)).max(axis=0)
        return int(farthest[0]), int(farthest[1])

    @cached_property
    def entries(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Entries of the sparse kernel: the start of each output channel's entries, [C_out + 1], and all entries."""
        out_channels, group_channels, *kernel_size = self.weight.shape
        phase = self._offsets % self.strides @ [self.strides[1], 1]
        num_phases = self.strides[0] * self.strides[1]
        taps = np.unique((self._offsets // self.strides).reshape(-1, 2), axis=0, return_inverse=True)[1]
        codes = (phase + (taps.reshape(kernel_size) << 16)).ravel()
        # The channels of one tap come one after the other, so that the kernel walks planes in the order of memory.
        rows = self.weight.transpose(0, 2, 3, 1).reshape(out_channels, -1)
        is_nonzero = rows != 0
        positions = np.flatnonzero(is_nonzero)
        row, position = np.divmod(positions, rows.shape[1])
        tap, channel = np.divmod(position, group_channels)
        channel += row // (out_channels // self.groups) * group_channels
        entries = np.empty(len(positions), ENTRY)
        # Each channel's phases lie side by side.
        entries["code"] = num_phases * channel + codes[tap]
        entries["weight"] = rows.ravel()[positions]
        starts = np.zeros(out_channels + 1, np.int64)
        np.cumsum(is_nonzero.sum(axis=1), out=starts[1:])
        return starts, entries


@dataclass
class Program:
    """Steps and memory layout of a network; ``sv_sparse.export.operations.lower`` makes it."""

    mel_bins: int
    embedding_dim: int
    # That an utterance must have.
    min_frames: int
    # The first is that of vectors.
    resolutions: list[Resolution]
    # Number of planes of each resolution.
    num_planes: list[int]
    steps: list[Step]

    @property
    def layers(self) -> list[Layer]:
        """All convolutions, in order."""
        return [step.layer for step in self.steps if step.layer is not None]

    def without_weights(self) -> "Program":
        """Return the program with weights that have a shape and take no memory: enough to lay out its planes."""
        steps = []
        for step in self.steps:
            layer = step.layer
            if layer is not None:
                layer = replace(layer, weight=np.broadcast_to(np.float32(0), layer.weight.shape))
            steps.append(replace(step, layer=layer))
        return replace(self, steps=steps)

    def require_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError for filterbanks of another shape than [B, F, T], or of too few frames."""
        if len(shape) != 3 or shape[1] != self.mel_bins:
            raise ValueError(f"expected a filterbank [B, {self.mel_bins}, T], got {list(shape)}")
        frames = shape[2]
        if frames < self.min_frames:
            raise ValueError(f"expected at least {self.min_frames} frames, got {frames}; use longer utterances")

    def plane_layouts(self, frames: int) -> tuple[Any, int]:
        """Return the native layouts for an utterance of so many frames, and the number of values in memory."""
        halo = self.halo
        layouts = (PlaneLayout * len(self.resolutions))()
        # Convolutions address both sides alike, so resolutions of one divisor have rows at the same distance.
        widest: dict[int, int] = {}
        for resolution in self.resolutions:
            divisor = resolution.columns.divisor
            widest[divisor] = max(widest.get(divisor, 0), resolution.columns(frames))
        base = 0
        for layout, resolution, num_planes in zip(layouts, self.resolutions, self.num_planes, strict=True):
            divisor = resolution.columns.divisor
            halo_rows, halo_cols = halo.get(divisor, (0, 0))
            layout.rows = resolution.rows
            layout.cols = resolution.columns(frames)
            layout.base = base
            # The zeros behind a row are those before the next one.
            layout.stride = widest[divisor] + halo_cols
            layout.margin = _round_up(halo_rows * layout.stride + halo_cols)
            layout.plane_stride = 2 * layout.margin + _round_up(layout.rows * layout.stride)
            # An odd multiple, or planes at powers of two would compete for few sets of the cache.
            if layout.plane_stride // _ALIGNMENT % 2 == 0:
                layout.plane_stride += _ALIGNMENT
            base += num_planes * layout.plane_stride
        if base > _MAX_VALUES:
            raise ValueError(f"{frames} frames need {4 * base / 2**30:.1f} GiB of memory, at most 4 GiB are used")
        # The last tile of the last plane may end behind it.
        return layouts, base + _ALIGNMENT

    @cached_property
    def halo(self) -> dict[int, tuple[int, int]]:
        """Rows and columns of zeros around the planes of each divisor."""
        halo: dict[int, tuple[int, int]] = {}
        for step in self.steps:
            if step.layer is not None:
                rows, columns = step.layer.reach
                # Of an output with more rows than the input, all are computed alike.
                for source in (step.source, step.layer.source):
                    added_rows = (
                        self.resolutions[step.target.resolution].rows - self.resolutions[source.resolution].rows
                    )
                    _widen(halo, self._divisor(source), rows + max(0, added_rows), columns)
            elif step.op == "extend":
                _widen(halo, self._divisor(step.source), 0, max(step.parameters[:2]))
        return halo

    def _divisor(self, planes: Planes) -> int:
        return self.resolutions[planes.resolution].columns.divisor


def _widen(halo: dict[int, tuple[int, int]], divisor: int, rows: int, columns: int) -> None:
    before = halo.get(divisor, (0, 0))
    halo[divisor] = (max(before[0], rows), max(before[1], columns))


def _round_up(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT
