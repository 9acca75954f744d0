"""Program of a network: a list of steps over planes of activations, for the kernels of sparse_kernels.cpp.

A plane is one channel of an image. A resolution is a size of images: a fixed number of rows, and as many
columns as the utterance has frames, halved some times. Resolution 0 has planes of a single value: vectors.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sv_sparse.runtime.engine.bindings import ACTIVATIONS, ENTRY, MAX_CHANNELS, MAX_TAPS, OPERATIONS, PlaneLayout

# Values; the same as in sparse_kernels.cpp. A vector of AVX-512 has as many.
_ALIGNMENT = 16


class NoProgramError(ValueError):
    """Error for a network that the kernels cannot compute."""


@dataclass(frozen=True)
class BufferView:
    """Range of ``count`` planes of a resolution, from ``plane`` on."""

    resolution: int
    plane: int
    count: int

    def part(self, start: int, count: int) -> "BufferView":
        """Return a range of these planes."""
        # A mistake in a lowering would overwrite other planes, without an error of the kernels.
        assert 0 <= start <= start + count <= self.count, (self, start, count)
        return BufferView(self.resolution, self.plane + start, count)


@dataclass(frozen=True)
class Epilogue:
    """Operations after a product: ``post(scale * pre(product + bias + dynamic_bias) + shift + add)``."""

    # Bias [C].
    bias: Tensor | None = None
    # Vector [C] of an earlier step.
    dynamic_bias: BufferView | None = None
    # One of ACTIVATIONS, as is the other.
    pre_activation: str = "none"
    # Scale and shift of a folded norm, each [C].
    norm: tuple[Tensor, Tensor] | None = None
    # Planes of the output's resolution.
    add: BufferView | None = None
    post_activation: str = "none"
    # Planes that are added to the result; the sum is written to next_input, which the next step reads.
    add_to_next: BufferView | None = None
    next_input: BufferView | None = None


class Resolution(NamedTuple):
    """Size of images, for utterances of any length."""

    rows: int
    # Number of times that the frames are halved, rounded up; -1 for vectors.
    num_downsamplings: int
    # Rows and columns of zeros that a convolution reads beyond the ends.
    halo: tuple[int, int]


@dataclass
class Layer:
    """Convolution of a program; pairs are of rows and columns."""

    # Name of its weight in the network.
    name: str
    # [C_out, C_in, rows, columns] as it is multiplied: with the scale of the norm behind it.
    weight: Tensor
    # Planes that a dense product reads. With stride two the sparse kernel reads the phases of these.
    source: BufferView
    # Planes that a dense product is left in for the epilogue.
    product: BufferView
    stride: int
    # Index in the program.
    step: int
    dilation: tuple[int, int]
    # [rows, columns]: tap and phase that each weight reads, as _taps codes them.
    codes: NDArray[np.int64]

    @property
    def density(self) -> float:
        """Fraction of nonzero weights."""
        return float(self.weight.count_nonzero()) / self.weight.numel()

    @cached_property
    def entries(self) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Entries of the sparse kernel: the start of each output channel's entries, [C_out + 1], and all entries."""
        # The channels of one tap come one after the other, so that the kernel walks planes in the order of memory.
        rows = self.weight.permute(0, 2, 3, 1).flatten(1).numpy()
        is_nonzero = rows != 0
        positions = np.flatnonzero(is_nonzero)
        tap, channel = np.divmod(positions % rows.shape[1], self.weight.shape[1])
        entries = np.empty(len(positions), ENTRY)
        # With stride two each channel has four phases, side by side.
        entries["code"] = self.stride**2 * channel + self.codes.ravel()[tap]
        entries["weight"] = rows.ravel()[positions]
        starts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(is_nonzero.sum(axis=1), out=starts[1:])
        return starts, entries


@dataclass
class MemoryLayout:
    """Memory layout of all planes, for an utterance of any length."""

    # The first is that of vectors.
    resolutions: list[Resolution] = field(default_factory=lambda: [Resolution(1, -1, (0, 0))])
    # Number of planes of each resolution.
    num_planes: list[int] = field(default_factory=lambda: [0])
    # That an utterance must have.
    min_frames: int = 2

    def plane_layouts(self, frames: int) -> tuple[Any, int]:
        """Return the native layouts for an utterance of so many frames, and the number of values in memory."""
        layouts = (PlaneLayout * len(self.resolutions))()
        base = 0
        for layout, resolution, num_planes in zip(layouts, self.resolutions, self.num_planes, strict=True):
            halo_rows, halo_cols = resolution.halo
            layout.rows = resolution.rows
            layout.cols = 1
            if resolution.num_downsamplings >= 0:
                layout.cols = -(-frames // 2**resolution.num_downsamplings)
            layout.base = base
            # The zeros behind a row are those before the next one.
            layout.stride = layout.cols + halo_cols
            layout.margin = _round_up(halo_rows * layout.stride + halo_cols)
            layout.plane_stride = 2 * layout.margin + _round_up(layout.rows * layout.stride)
            # An odd multiple, or planes at powers of two would compete for few sets of the cache.
            if layout.plane_stride // _ALIGNMENT % 2 == 0:
                layout.plane_stride += _ALIGNMENT
            base += num_planes * layout.plane_stride
        return layouts, base


@dataclass
class Program:
    """Steps, layers and memory layout of a network; ``lowering.lower`` makes it."""

    # Made once for all utterances: nothing in it depends on their lengths.  DECISIONS 55
    mel_bins: int
    embedding_dim: int
    layout: MemoryLayout = field(default_factory=MemoryLayout)
    # Fields of a native Step by name, with arrays in the place of addresses.
    steps: list[dict[str, Any]] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    def add_resolution(self, resolution: Resolution) -> int:
        """Add a resolution and return its index."""
        self.layout.resolutions.append(resolution)
        self.layout.num_planes.append(0)
        return len(self.layout.resolutions) - 1

    def new_planes(self, resolution: int, count: int) -> BufferView:
        """Return new planes of a resolution."""
        self.layout.num_planes[resolution] += count
        return BufferView(resolution, self.layout.num_planes[resolution] - count, count)

    def new_vector(self, count: int) -> BufferView:
        """Return new planes of a single value."""
        return self.new_planes(0, count)

    def add_step(
        self,
        op: str,
        source: BufferView,
        target: BufferView,
        epilogue: Epilogue | None = None,
        *,
        rows: int | None = None,
        **fields: float | NDArray[Any],
    ) -> None:
        """Add a step that reads ``source`` and writes ``target``.

        Args:
            op: One of OPERATIONS.
            source: Planes of one resolution.
            target: Planes of one resolution; some steps work in place.
            epilogue: Operations after a product; for other steps, what else they read.
            rows: Number of planes or rows that it works on. Default: the planes of ``target``.
            fields: Further fields of a native Step.
        """
        epilogue = epilogue or Epilogue()
        step: dict[str, Any] = {
            "op": OPERATIONS.index(op),
            "rows": target.count if rows is None else rows,
            "in_resolution": source.resolution,
            "in_plane": source.plane,
            "out_resolution": target.resolution,
            "out_plane": target.plane,
            "add_plane": _first_plane(epilogue.add),
            "add_to_next_plane": _first_plane(epilogue.add_to_next),
            "next_input_plane": _first_plane(epilogue.next_input),
            "bias_plane": _first_plane(epilogue.dynamic_bias),
            "pre_activation": ACTIVATIONS.index(epilogue.pre_activation),
            "post_activation": ACTIVATIONS.index(epilogue.post_activation),
            "tile": 1,
        }
        scale, shift = epilogue.norm or (None, None)
        for name, values in {"bias": epilogue.bias, "scale": scale, "shift": shift}.items():
            if values is not None:
                step[name] = values.detach().float().contiguous().numpy()
        self.steps.append(step | fields)

    def add_convolution(
        self,
        name: str,
        weight: Tensor,
        source: BufferView,
        target: BufferView,
        epilogue: Epilogue,
        *,
        dilation: tuple[int, int] = (1, 1),
        phases: BufferView | None = None,
        product: BufferView | None = None,
    ) -> None:
        """Add a convolution with a centered kernel; with ``phases`` it has stride two.

        Args:
            name: Name of the weight.
            weight: [C_out, C_in, rows, columns], both odd; or [C_out, C_in].
            source: C_in planes.
            target: C_out planes.
            epilogue: Operations after the product.
            dilation: In rows and columns.
            phases: The four phases of the source, 4·C_in planes of the target's resolution.
            product: C_out planes of the target's resolution in which a dense product waits for its epilogue. Default:
                the target.

        Raises:
            NoProgramError: It has more channels or taps than the kernels can number.
        """
        if weight.ndim == 2:
            weight = weight[:, :, None, None]
        stride = 1 if phases is None else 2
        offsets, codes = _taps(tuple(weight.shape[2:]), dilation, stride)
        kernel_source = source if phases is None else phases
        # The kernels check nothing: what is wrong here would be read from outside the planes.
        halo = self.layout.resolutions[kernel_source.resolution].halo
        is_inside = (np.abs(offsets) <= halo).all()
        has_shape = weight.shape[:2] == (target.count, source.count)
        is_small = kernel_source.count <= MAX_CHANNELS and len(offsets) <= MAX_TAPS
        if not (has_shape and is_small and is_inside):
            raise NoProgramError(f"{name} of shape {list(weight.shape)} is too large for the sparse kernels")
        layer = Layer(
            name=name,
            weight=weight.detach(),
            source=source,
            product=product or target,
            stride=stride,
            step=len(self.steps),
            dilation=dilation,
            codes=codes,
        )
        self.layers.append(layer)
        self.add_step("convolve", kernel_source, target, epilogue, taps=len(offsets), offsets=offsets)


def _first_plane(view: BufferView | None) -> int:
    return -1 if view is None else view.plane


def _round_up(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


def _taps(
    kernel_size: tuple[int, ...], dilation: tuple[int, int], stride: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the offsets of all taps, [taps, 2], and for each weight ``phase + (tap << 16)``, [rows, columns]."""
    center = np.array(kernel_size) // 2
    offsets = (np.moveaxis(np.indices(kernel_size), 0, -1) - center) * dilation
    # With stride two, offset 2k + p is offset k in phase p; % and // round down, also below zero.
    phase = offsets % stride @ [2, 1]
    distinct_offsets, tap = np.unique((offsets // stride).reshape(-1, 2), axis=0, return_inverse=True)
    return distinct_offsets.astype(np.int32), phase + (tap.reshape(kernel_size) << 16)
