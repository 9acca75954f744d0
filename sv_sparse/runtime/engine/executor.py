"""Sparse engine: runs the program of a network on a CPU, each layer by the kernel that a plan names."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch.nn import functional as F

from sv_sparse.runtime.engine import bindings
from sv_sparse.runtime.engine.plan import USE_DENSE, Plan
from sv_sparse.runtime.engine.program import Float32Array, Layer, Planes, Program, Step
from sv_sparse.runtime.engine.program_codec import check_frames

# Ten seconds.
SHORT_FRAMES = 1000
# Where nothing was measured: the density above which torch's product is faster, and the tile of all others in vectors.
# Against a measured plan this costs 1 to 11 % of the time.  DECISIONS 56
_MIN_DENSE_DENSITY = 0.5
_DEFAULT_TILE = 8

# Bytes.
_CACHE_LINE = 64

# Runs some steps for an utterance [F, T] and its embedding [E].
Segment = Callable[[Float32Array, Float32Array], None]


def uniform_plan(program: Program, tile: int) -> Plan:
    """Return a plan with one kernel for all layers: a width of tiles, or USE_DENSE."""
    return Plan({layer.name: _allowed_tile(layer, tile) for layer in program.layers})


def default_plan(program: Program) -> Plan:
    """Return a plan by the density of each layer alone."""
    layers = {}
    for layer in program.layers:
        tile = USE_DENSE if layer.density > _MIN_DENSE_DENSITY else _DEFAULT_TILE
        layers[layer.name] = _allowed_tile(layer, tile)
    return Plan(layers)


def _allowed_tile(layer: Layer, tile: int) -> int:
    # A product with a single vector takes less time than the call of torch for it.
    is_vector = layer.source.resolution == 0
    return 1 if tile == USE_DENSE and is_vector else tile


def _aligned_zeros(size: int) -> Float32Array:
    """Return memory that begins with a cache line: numpy's may begin anywhere, which costs a third."""
    values = np.zeros(size + _CACHE_LINE // 4, np.float32)
    first = -values.ctypes.data % _CACHE_LINE // 4
    return values[first : first + size]


class SparseEngine:
    """Filterbank [B, F, T] to embedding [B, E], float32, with zeros left out.

    It may be called from several threads, which wait for each other.

    Args:
        program: Program of the network.
        threads: Threads that share an utterance.
        short_threads: Threads that share an utterance of up to ``SHORT_FRAMES``. Default: ``threads``.
        plan: Kernel of each layer. Default: by their density.

    Raises:
        ValueError: The plan is one of another network.
        OSError: The kernels cannot be compiled; the message says how to do without.
    """

    def __init__(
        self, program: Program, *, threads: int = 1, short_threads: int | None = None, plan: Plan | None = None
    ) -> None:
        # A missing compiler is an error here, not at the first utterance.
        bindings.library()
        self.plan = default_plan(program) if plan is None else plan
        if set(self.plan.layers) != {layer.name for layer in program.layers}:
            raise ValueError("the plan is one of another network: it names other layers")
        self.threads = threads
        self.short_threads = threads if short_threads is None else short_threads
        self.embedding_dim = program.embedding_dim
        # Of sparse layers only the nonzero weights stay in memory.
        self._program = program.without_weights()
        self._current_threads = threads
        self._keepalive: list[Any] = []
        self._layer_segments: dict[str, list[Segment]] = {}
        self._segments = self._make_segments(program)
        self._frames = 0
        self._memory = np.empty(0, np.float32)
        self._plane_layouts: Any = None
        self._lock = threading.Lock()

    def __call__(self, filterbank: Float32Array) -> Float32Array:
        """Map filterbank [B, F, T] to embedding [B, E]; raise ValueError for too few frames."""
        self._program.require_shape(filterbank.shape)
        frames = filterbank.shape[2]
        filterbank = np.ascontiguousarray(filterbank, np.float32)
        output = np.empty((len(filterbank), self.embedding_dim), np.float32)
        # All calls share the planes in memory.
        with self._lock:
            self._resize(frames)
            # DECISIONS 76
            self._current_threads = self.short_threads if frames <= SHORT_FRAMES else self.threads
            # One after the other, each by all threads: a batch needs no more memory than an utterance.
            for utterance, embedding in zip(filterbank, output, strict=True):
                for segment in self._segments:
                    segment(utterance, embedding)
        return output

    def bench_layer(self, name: str) -> Callable[[], None]:
        """Return a function that computes one layer, on whatever the last utterance has left in memory."""
        unused = np.empty(0, np.float32)

        def run() -> None:
            for segment in self._layer_segments[name]:
                segment(unused, unused)

        return run

    def _images(self, planes: Planes, shape: tuple[int, int], start: tuple[int, int] = (0, 0)) -> Float32Array:
        """Return images [C, rows, columns] in memory, from a row and column on, which may be those of zeros."""
        layout = self._plane_layouts[planes.resolution]
        first = layout.base + planes.first * layout.plane_stride + layout.margin
        first += start[0] * layout.stride + start[1]
        strides = [4 * layout.plane_stride, 4 * layout.stride, 4]
        return as_strided(self._memory[first:], (planes.size, *shape), strides)

    def _resize(self, frames: int) -> None:
        """Lay the planes out for utterances of so many frames."""
        if frames == self._frames:
            return
        # 0 until all is done: an error or Ctrl-C in between must not leave half a layout behind.
        self._frames = 0
        check_frames(self._program, frames)
        layouts, size = self._program.plane_layouts(frames)
        # Memory of one long utterance is not held for all short ones after it.
        if size > len(self._memory) or size < len(self._memory) // 8:
            self._memory = _aligned_zeros(size)
        bindings.clear_margins(layouts, self._program.num_planes, self._memory)
        self._plane_layouts = layouts
        self._frames = frames

    def _make_segments(self, program: Program) -> list[Segment]:
        """Return the calls of one utterance: dense products, and runs of steps between them."""
        segments: list[Segment] = []
        # One call for all steps between two dense products.
        pending: list[bindings.Step] = []
        for step in program.steps:
            native = self._native_step(step)
            layer = step.layer
            if layer is not None:
                self._layer_segments[layer.name] = [self._native_segment([native])]
                if self.plan.layers[layer.name] == USE_DENSE:
                    product = self._dense_segment(layer, step.target)
                    self._layer_segments[layer.name].insert(0, product)
                    if pending:
                        segments.append(self._native_segment(pending))
                        pending = []
                    segments.append(product)
            pending.append(native)
        segments.append(self._native_segment(pending))
        return segments

    def _native_step(self, step: Step) -> bindings.Step:
        """Return a native step; that of a dense layer is only what follows the product."""
        actions = np.empty(len(step.actions), bindings.ACTION)
        for index, (code, argument) in enumerate(step.actions):
            actions[index] = (bindings.ACTIONS.index(code), argument)
        arrays = {"sources": step.sources, "actions": actions, "constants": step.constants}
        op = step.op
        source = step.source
        tile = 1
        num_taps = 0
        if step.layer is not None:
            tile = self.plan.layers[step.layer.name]
            if tile == USE_DENSE:
                op = "elementwise"
                source = step.target
            else:
                taps = step.layer.taps
                num_taps = len(taps)
                starts, entries = step.layer.entries
                arrays |= {"offsets": taps, "starts": starts, "entries": entries}
        if op == "elementwise":
            tile = 1 if step.target.resolution == 0 else bindings.MAX_TILE
        native = bindings.Step(
            op=bindings.OPERATIONS.index(op),
            rows=step.rows,
            in_resolution=source.resolution,
            in_plane=source.first,
            out_resolution=step.target.resolution,
            out_plane=step.target.first,
            tile=tile,
            num_taps=num_taps,
            num_actions=len(actions),
        )
        native.parameters[: len(step.parameters)] = step.parameters
        native.numbers[: len(step.numbers)] = step.numbers
        for name, array in arrays.items():
            # A native step holds only the address, so the array must outlive it.
            self._keepalive.append(array)
            setattr(native, name, array.ctypes.data)
        return native

    def _native_segment(self, steps: Sequence[bindings.Step]) -> Segment:
        array = (bindings.Step * len(steps))(*steps)

        def run(utterance: Float32Array, embedding: Float32Array) -> None:
            bindings.run_steps(array, self._plane_layouts, self._memory, self._current_threads, utterance, embedding)

        return run

    def _dense_segment(self, layer: Layer, target: Planes) -> Segment:
        """Return the product of a layer by torch, written where the step after it reads it."""
        weight = torch.from_numpy(layer.weight)
        kernel = weight.shape[2:]
        start = (-layer.padding[0], -layer.padding[1])
        is_pointwise = kernel == (1, 1) and layer.strides == (1, 1) and layer.groups == 1

        def run(_utterance: Float32Array, _embedding: Float32Array) -> None:
            layout = self._plane_layouts[target.resolution]
            product = torch.from_numpy(self._images(target, (layout.rows, layout.cols)))
            size = []
            for axis, count in enumerate((layout.rows, layout.cols)):
                size.append((count - 1) * layer.strides[axis] + layer.dilation[axis] * (kernel[axis] - 1) + 1)
            source = torch.from_numpy(self._images(layer.source, (size[0], size[1]), start))
            # Most layers of ECAPA-TDNN are plain matrix products, which torch writes in place without a copy.
            if is_pointwise and layout.rows == 1:
                torch.mm(weight.flatten(1), source.flatten(1), out=product.flatten(1))
            else:
                product.copy_(
                    F.conv2d(source[None], weight, stride=layer.strides, dilation=layer.dilation, groups=layer.groups)[
                        0
                    ]
                )

        return run
