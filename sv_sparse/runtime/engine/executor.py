"""Sparse engine: runs the program of a network on a CPU, each layer by the kernel that a plan names."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sv_sparse.optim.memory import empty_float32
from sv_sparse.runtime.engine import bindings
from sv_sparse.runtime.engine.bindings import Step
from sv_sparse.runtime.engine.plan import USE_DENSE, Plan
from sv_sparse.runtime.engine.program import BufferView, Layer, Program

# Ten seconds.
SHORT_FRAMES = 1000
# Where nothing was measured: the density above which torch's product is faster, and the tile of all others in vectors.
# Against a measured plan this costs 1 to 11 % of the time.  DECISIONS 56
_MIN_DENSE_DENSITY = 0.5
_DEFAULT_TILE = 8

# Runs some steps for an utterance [F, T] and its embedding [E].
Segment = Callable[[Tensor, Tensor], None]


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
        # Not the program: of sparse layers only the nonzero weights stay in memory.
        self._layout = program.layout
        self._current_threads = threads
        self._keepalive: list[Any] = []
        self._layer_segments: dict[str, list[Segment]] = {}
        self._segments = self._make_segments(program)
        self._frames = 0
        self._memory = empty_float32(0)
        self._plane_layouts: Any = None
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E]; raise ValueError for too few frames."""
        frames = filterbank.shape[2]
        min_frames = self._layout.min_frames
        if frames < min_frames:
            raise ValueError(f"expected at least {min_frames} frames, got {frames}; use longer utterances")
        filterbank = filterbank.float().contiguous()
        output = empty_float32(len(filterbank), self.embedding_dim)
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
        unused = empty_float32(0)

        def run() -> None:
            for segment in self._layer_segments[name]:
                segment(unused, unused)

        return run

    def view(self, view: BufferView, halo: tuple[int, int] = (0, 0)) -> Tensor:
        """Return images [C, rows, columns] in memory, with so many rows and columns around them."""
        layout = self._plane_layouts[view.resolution]
        shape = (view.count, layout.rows + 2 * halo[0], layout.cols + 2 * halo[1])
        start = layout.base + view.plane * layout.plane_stride + layout.margin
        start -= halo[0] * layout.stride + halo[1]
        return self._memory.as_strided(shape, (layout.plane_stride, layout.stride, 1), start)

    def _resize(self, frames: int) -> None:
        """Lay the planes out for utterances of so many frames."""
        if frames == self._frames:
            return
        # 0 until all is done: an error or Ctrl-C in between must not leave half a layout behind.
        self._frames = 0
        layouts, size = self._layout.plane_layouts(frames)
        # Memory of one long utterance is not held for all short ones after it.
        if size > len(self._memory) or size < len(self._memory) // 8:
            self._memory = empty_float32(size)
        bindings.clear_margins(layouts, self._layout.num_planes, self._memory)
        self._plane_layouts = layouts
        self._frames = frames

    def _make_segments(self, program: Program) -> list[Segment]:
        """Return the calls of one utterance: dense products, and runs of steps between them."""
        layers = {layer.step: layer for layer in program.layers}
        segments: list[Segment] = []
        # One call for all steps between two dense products.
        pending: list[Step] = []
        for index, fields in enumerate(program.steps):
            layer = layers.get(index)
            step = self._make_step(fields, layer)
            if layer is not None:
                self._layer_segments[layer.name] = [self._native_segment([step])]
                if self.plan.layers[layer.name] == USE_DENSE:
                    product = self._dense_segment(layer)
                    self._layer_segments[layer.name].insert(0, product)
                    if pending:
                        segments.append(self._native_segment(pending))
                        pending = []
                    segments.append(product)
            pending.append(step)
        segments.append(self._native_segment(pending))
        return segments

    def _make_step(self, fields: Mapping[str, Any], layer: Layer | None) -> Step:
        """Return a native step; that of a dense layer is only the epilogue of torch's product."""
        fields = dict(fields)
        if layer is not None:
            fields["tile"] = self.plan.layers[layer.name]
            if fields["tile"] == USE_DENSE:
                fields["op"] = bindings.OPERATIONS.index("epilogue")
                fields["in_resolution"] = layer.product.resolution
                fields["in_plane"] = layer.product.plane
                fields["taps"] = 0
                fields["tile"] = _DEFAULT_TILE
            else:
                fields["starts"], fields["entries"] = layer.entries
        for name, value in fields.items():
            if isinstance(value, np.ndarray):
                # A Step holds only the address, so the array must outlive it.
                self._keepalive.append(value)
                fields[name] = value.ctypes.data
        return Step(**fields)

    def _native_segment(self, steps: Sequence[Step]) -> Segment:
        array = (Step * len(steps))(*steps)

        def run(utterance: Tensor, embedding: Tensor) -> None:
            bindings.run_steps(array, self._plane_layouts, self._memory, self._current_threads, utterance, embedding)

        return run

    def _dense_segment(self, layer: Layer) -> Segment:
        """Return the product of a layer by torch, written where the step after it reads it."""
        weight = layer.weight
        halo = (weight.shape[2] // 2 * layer.dilation[0], weight.shape[3] // 2 * layer.dilation[1])
        is_pointwise = weight.shape[2:] == (1, 1) and layer.stride == 1

        def run(_utterance: Tensor, _embedding: Tensor) -> None:
            source = self.view(layer.source, halo)
            target = self.view(layer.product)
            # Most layers of ECAPA-TDNN are plain matrix products, which torch writes in place without a copy.
            if is_pointwise and source.shape[1] == 1:
                torch.mm(weight.flatten(1), source.flatten(1), out=target.flatten(1))
            else:
                target.copy_(F.conv2d(source[None], weight, stride=layer.stride, dilation=layer.dilation)[0])

        return run
