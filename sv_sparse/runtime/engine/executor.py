"""Sparse networks on a CPU: their program run by the kernels of kernel.cpp, layer by layer as a plan says."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sv_sparse.optim.memory import empty_float32
from sv_sparse.runtime.engine import bindings as native
from sv_sparse.runtime.engine.bindings import Step, address
from sv_sparse.runtime.engine.plan import DENSE, Plan
from sv_sparse.runtime.engine.program import Area, Layer, Program

_FINISH = native.OPERATIONS.index("finish")
_DENSE_FROM = 0.5  # density from which torch's product is the faster one, where nothing was measured
_TILE = 8  # vectors, where nothing was measured

Segment = Callable[[Tensor, Tensor], None]  # of an utterance [F, T] and its embedding [E]


def uniform_plan(program: Program, tile: int) -> Plan:
    """All layers alike; products of vectors, which torch is not asked for, by the sparse kernel."""
    return Plan({layer.name: tile if tile != DENSE or layer.source.level > 0 else 1 for layer in program.layers})


def default_plan(program: Program) -> Plan:
    """A plan by the density of each layer alone."""
    dense, sparse = uniform_plan(program, DENSE).layers, uniform_plan(program, _TILE).layers
    return Plan(
        {layer.name: (dense if layer.density > _DENSE_FROM else sparse)[layer.name] for layer in program.layers}
    )


SHORT_FRAMES = 1000  # 10 seconds


class SparseEngine:
    """Filterbank [B, F, T] to embedding [B, E], float32, zeros left out.

    Utterances of a batch are computed one after the other, each by all threads. It may be called from several threads,
    which wait for each other. Of the program it keeps what its plan needs: weights that are not zero, and all of those
    layers that are dense.

    Args:
        program: of the network.
        threads: that each utterance is shared by.
        short_threads: that utterances of up to ``SHORT_FRAMES`` are shared by; as many as the others if not given.
        plan: how layers are computed; by their density if not given.

    Raises:
        ValueError: the plan is one of another network.
        OSError: the kernels cannot be compiled; says how to do without.
    """

    def __init__(
        self, program: Program, *, threads: int = 1, short_threads: int | None = None, plan: Plan | None = None
    ) -> None:
        native.library()
        self.plan = default_plan(program) if plan is None else plan
        if set(self.plan.layers) != {layer.name for layer in program.layers}:
            raise ValueError("the plan is one of another network: it names other layers")
        self.threads = self._shared_by = threads
        self.short_threads = threads if short_threads is None else short_threads
        self.mel_bins, self.embedding_dim, self._layout = program.mel_bins, program.embedding_dim, program.layout
        self._held: list[Any] = []  # arrays whose addresses steps hold
        self._alone: dict[str, list[Segment]] = {}
        self._segments = list(self._compiled(program))
        self._frames, self._arena = 0, empty_float32(0)
        self._levels: Any = None
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E].

        Raises:
            ValueError: it has too few frames.
        """
        frames = filterbank.shape[2]
        if frames < self._layout.least_frames:
            raise ValueError(
                f"expected at least {self._layout.least_frames} frames, got {frames}; use longer utterances"
            )
        filterbank = filterbank.float().contiguous()
        output = empty_float32(len(filterbank), self.embedding_dim)
        with self._lock:
            self._make_room(frames)
            self._shared_by = self.short_threads if frames <= SHORT_FRAMES else self.threads
            for utterance, embedding in zip(filterbank, output, strict=True):
                for segment in self._segments:
                    segment(utterance, embedding)
        return output

    def _make_room(self, frames: int) -> None:
        if frames == self._frames:
            return
        self._frames = 0  # of an arena that is whole
        levels, size = self._layout.levels(frames)
        if size > len(self._arena) or size < len(self._arena) // 8:
            self._arena = empty_float32(size)
        native.clear_around(levels, self._layout.planes, self._arena)
        self._levels, self._frames = levels, frames

    def alone(self, name: str) -> Callable[[], None]:
        """A call that computes one layer, on whatever the last utterance has left in memory."""
        nothing = empty_float32(0)

        def run() -> None:
            for segment in self._alone[name]:
                segment(nothing, nothing)

        return run

    def _compiled(self, program: Program) -> Iterator[Segment]:
        """What is called one after the other: dense products, and runs of steps between them."""
        layers = {layer.step: layer for layer in program.layers}
        waiting: list[Step] = []
        for number, fields in enumerate(program.steps):
            layer = layers.get(number)
            step = self._step(fields, layer)
            product = [_Dense(self, layer)] if layer is not None and self._is_dense(layer) else []
            if product and waiting:
                yield self._runner(waiting)
                waiting = []
            yield from product
            waiting.append(step)
            if layer is not None:
                self._alone[layer.name] = [*product, self._runner([step])]
        yield self._runner(waiting)

    def _runner(self, steps: Sequence[Step]) -> Segment:
        array = (Step * len(steps))(*steps)

        def run(utterance: Tensor, embedding: Tensor) -> None:
            native.run_steps(array, self._levels, self._arena, self._shared_by, utterance, embedding)

        return run

    def _is_dense(self, layer: Layer) -> bool:
        return self.plan.layers[layer.name] == DENSE

    def _step(self, fields: Mapping[str, Any], layer: Layer | None) -> Step:
        """A native step; that of a dense layer finishes torch's product where it lies."""
        found = dict(fields)
        if layer is not None and self._is_dense(layer):
            found |= {"op": _FINISH, "in_level": layer.product.level, "in_plane": layer.product.plane, "taps": 0}
            found["tile"] = _TILE
        elif layer is not None:
            found["starts"], found["entries"] = layer.entries
            found["tile"] = self.plan.layers[layer.name]
        for name, value in found.items():
            if isinstance(value, np.ndarray):
                self._held.append(value)
                found[name] = address(value)
        return Step(**found)

    def view(self, area: Area, reach: tuple[int, int] = (0, 0)) -> Tensor:
        """An area's images [C, rows, columns] in memory, with so many rows and columns around them."""
        level = self._levels[area.level]
        rows, cols = level.rows + 2 * reach[0], level.cols + 2 * reach[1]
        start = level.base + area.plane * level.plane + level.lead - reach[0] * level.stride - reach[1]
        return self._arena.as_strided((area.count, rows, cols), (level.plane, level.stride, 1), start)


class _Dense:
    """A layer's product by torch, written where the next step finishes it."""

    def __init__(self, engine: SparseEngine, layer: Layer) -> None:
        self.engine, self.layer = engine, layer

    def __call__(self, _utterance: Tensor, _embedding: Tensor) -> None:
        layer, weight = self.layer, self.layer.weight
        reach = tuple((size // 2) * apart for size, apart in zip(weight.shape[2:], layer.dilation, strict=True))
        source = self.engine.view(layer.source, (reach[0], reach[1]))
        target = self.engine.view(layer.product)
        if weight[0, 0].numel() == 1 and layer.stride == 1 and source.shape[1] == 1:
            torch.mm(weight.flatten(1), source.flatten(1), out=target.flatten(1))
            return
        found = F.conv2d(source[None], weight, stride=layer.stride, dilation=layer.dilation)
        target.copy_(found[0])
