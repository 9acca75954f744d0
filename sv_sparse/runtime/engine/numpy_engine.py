"""Programs computed by numpy, for machines without the kernels and as a reference for them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sv_sparse.runtime.engine.bindings import FUSED_CONSTANTS, REDUCTIONS
from sv_sparse.runtime.engine.program import Float32Array, Layer, Planes, Program, Step
from sv_sparse.runtime.engine.program_codec import check_frames

_UNARY: dict[str, Callable[[Float32Array], Any]] = {
    "relu": lambda x: np.where(x < 0, np.float32(0), x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "square": np.square,
    "square_root": np.sqrt,
    "exponential": np.exp,
    "logarithm": np.log,
    "reciprocal": np.reciprocal,
}
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "minimum": np.minimum,
    "maximum": np.maximum,
}
_REDUCTIONS: dict[str, Callable[..., Float32Array]] = {"mean": np.mean, "sum": np.sum, "largest": np.max}


class NumpyEngine:
    """Filterbank [B, F, T] to embedding [B, E], float32, every product dense.

    Args:
        program: Program of the network.
    """

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, filterbank: Float32Array) -> Float32Array:
        """Map filterbank [B, F, T] to embedding [B, E]; raise ValueError for too few frames."""
        self.program.require_shape(filterbank.shape)
        frames = filterbank.shape[2]
        check_frames(self.program, frames)
        # Raises for too much memory.
        self.program.plane_layouts(frames)
        with np.errstate(all="ignore"):
            embeddings = [_Run(self.program, frames).embedding(utterance) for utterance in filterbank]
        return np.stack(embeddings) if embeddings else np.empty((0, self.program.embedding_dim), np.float32)


class _Run:
    """One utterance: planes [N, rows, columns] of each resolution, with zeros around them."""

    def __init__(self, program: Program, frames: int) -> None:
        self.program = program
        self.images: list[Float32Array] = []
        self.halos = []
        for resolution, num_planes in zip(program.resolutions, program.num_planes, strict=True):
            rows, columns = program.halo.get(resolution.columns.divisor, (0, 0))
            self.halos.append((rows, columns))
            size = (resolution.rows + 2 * rows, resolution.columns(frames) + 2 * columns)
            self.images.append(np.zeros((num_planes, *size), np.float32))

    def embedding(self, filterbank: Float32Array) -> Float32Array:
        """Run all steps; return the embedding [E]."""
        embedding = np.empty(0, np.float32)
        for step in self.program.steps:
            if step.op == "load":
                self._view(step.target)[:, 0] = filterbank
            elif step.op == "store":
                embedding = self._view(step.source)[:, 0, 0].copy()
            elif step.layer is not None:
                self._apply(step, self._convolution(step.layer, step.target))
            elif step.op == "elementwise":
                self._apply(step, self._view(step.source).copy())
            elif step.op != "phases":
                # Phases are for the kernels alone.
                _STEPS[step.op](self, step)
        return embedding

    def _view(self, planes: Planes) -> Float32Array:
        """Return the images of planes without what is around them."""
        rows, columns = self.halos[planes.resolution]
        images = self.images[planes.resolution][planes.first : planes.first + planes.size]
        return images[:, rows : images.shape[1] - rows, columns : images.shape[2] - columns]

    def _convolution(self, layer: Layer, target: Planes) -> Float32Array:
        images = self.images[layer.source.resolution]
        images = images[layer.source.first : layer.source.first + layer.source.size]
        shape = self._view(target).shape[1:]
        halo = self.halos[layer.source.resolution]
        out_channels, group_channels, *kernel = layer.weight.shape
        grouped = layer.weight.reshape(layer.groups, -1, group_channels, *kernel)
        product = np.zeros((layer.groups, out_channels // layer.groups, shape[0] * shape[1]), np.float32)
        for row, column in np.ndindex(*kernel):
            index = []
            for axis, tap in enumerate((row, column)):
                first = halo[axis] + tap * layer.dilation[axis] - layer.padding[axis]
                index.append(slice(first, first + (shape[axis] - 1) * layer.strides[axis] + 1, layer.strides[axis]))
            source = images[:, index[0], index[1]].reshape(layer.groups, group_channels, -1)
            product += grouped[..., row, column] @ source
        return product.reshape(out_channels, *shape)

    def _apply(self, step: Step, values: Float32Array) -> None:
        """Compute what follows on [C, rows, columns]."""
        for code, argument in step.actions:
            kind, _, operand = code.rpartition("_")
            if code == "store_plane":
                self._view(Planes(step.target.resolution, argument, step.rows))[...] = values
            elif code in FUSED_CONSTANTS or operand == "constant":
                size = step.rows * FUSED_CONSTANTS.get(code, 1)
                constants = step.constants[argument : argument + size].reshape(-1, step.rows, 1, 1)
                values = _with_constants(code, kind, values, constants)
            elif operand in ("vector", "scalar", "plane"):
                resolution = step.target.resolution if operand == "plane" else 0
                planes = Planes(resolution, argument, 1 if operand == "scalar" else step.rows)
                values = _BINARY[kind](values, self._view(planes))
            else:
                values = _UNARY[code](values)

    def _copy(self, step: Step) -> None:
        skip, repeats, *_ = step.parameters
        source = self.images[step.source.resolution][step.source.first :]
        rows, columns = self.halos[step.source.resolution]
        source = source[:, rows : source.shape[1] - rows, columns : source.shape[2] - columns]
        lines = source.reshape(-1, source.shape[2])[step.sources]
        target = self._view(step.target)
        if step.source.resolution != 0:
            lines = lines[:, (np.arange(target.shape[2]) + skip) // repeats]
        target[...] = np.broadcast_to(lines, (len(lines), target.shape[2])).reshape(target.shape)

    def _extend(self, step: Step) -> None:
        left, right, is_edge, *_ = step.parameters
        rows, columns = self.halos[step.source.resolution]
        padded = np.pad(self._view(step.source), ((0, 0), (0, 0), (left, right)), mode="edge" if is_edge else "reflect")
        images = self.images[step.source.resolution][step.source.first : step.source.first + step.source.size]
        width = padded.shape[2]
        images[:, rows : images.shape[1] - rows, columns - left : columns - left + width] = padded

    def _reduce(self, step: Step) -> None:
        kind = step.parameters[0]
        source = self._view(step.source)
        # Each row of each plane, or all rows of a plane.
        lines = source.reshape(step.rows, -1)
        name = REDUCTIONS[kind]
        if name == "variance":
            squares = np.square(lines - lines.mean(axis=1, keepdims=True)).sum(axis=1)
            result = squares / np.float32(lines.shape[1] - step.numbers[0])
        else:
            result = _REDUCTIONS[name](lines, axis=1)
        self._view(step.target)[:, 0, 0] = result

    def _softmax(self, step: Step) -> None:
        view = self._view(step.target)
        view[...] = _softmax(view)

    def _attend(self, step: Step) -> None:
        values = self._view(step.source)[:, 0]
        weights = _softmax(self._view(Planes(step.source.resolution, step.parameters[0], step.rows)))[:, 0]
        mean = (weights * values).sum(axis=1)
        variance = (weights * np.square(values - mean[:, None])).sum(axis=1)
        self._view(step.target)[:, 0, 0] = np.concatenate([mean, variance])

    def _segments(self, step: Step) -> None:
        length = step.parameters[0]
        source = self._view(step.source)
        target = self._view(step.target)
        for column in range(target.shape[2]):
            target[:, :, column] = source[:, :, column * length : (column + 1) * length].mean(axis=2)

    def _scalar(self, step: Step) -> None:
        n = self._view(step.source).shape[2]
        a, b, c, d = step.numbers
        self._view(step.target)[...] = (a * n + b) / (c * n + d)


def _with_constants(code: str, kind: str, values: Float32Array, constants: Float32Array) -> Float32Array:
    if code == "multiply_add":
        return values * constants[0] + constants[1]
    if code.startswith("add_relu"):
        values = _UNARY["relu"](values + constants[0])
        return values if len(constants) == 1 else values * constants[1] + constants[2]
    return _BINARY[kind](values, constants[0])


def _softmax(scores: Float32Array) -> Float32Array:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


_STEPS: dict[str, Callable[[_Run, Step], None]] = {
    "copy": _Run._copy,
    "extend": _Run._extend,
    "reduce": _Run._reduce,
    "softmax": _Run._softmax,
    "attend": _Run._attend,
    "segments": _Run._segments,
    "scalar": _Run._scalar,
}
