"""Lowering of networks to programs for the sparse kernels."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sv_sparse.export.draft import Action, DraftStep, Float64Array, Storage, View, finish
from sv_sparse.export.tracing import FRAMES, Node, Samples, Size
from sv_sparse.runtime.engine.bindings import MAX_CHANNELS, MAX_TAPS, REDUCTIONS
from sv_sparse.runtime.engine.program import VECTOR, Columns, Layer, NoProgramError, Planes, Program


@dataclass(frozen=True)
class Atom:
    """Part of an axis: how many planes, rows or columns there are, or how often something is repeated."""

    # "plane", "row", "column" or "repeat".
    kind: str
    size: Size
    # Planes from one to the next.
    stride: int = 1
    # How often each column is repeated.
    repeats: int = 1


Axis = tuple[Atom, ...]
Padding = tuple[str, tuple[tuple[int, int], tuple[int, int]]]


@dataclass(frozen=True, eq=False)
class Value:
    """Tensor of a network: a part of a storage, by axes whose atoms say where its elements lie."""

    storage: Storage
    axes: tuple[Axis, ...]
    first: int = 0
    # What a convolution reads beyond the ends: "zeros", "reflect" or "edge", then rows before and after, and columns
    # before and after.
    padding: "Padding | None" = None

    @property
    def planes(self) -> list[Atom]:
        """All atoms of planes, from the slowest to the fastest."""
        return [atom for axis in self.axes for atom in axis if atom.kind == "plane"]

    @property
    def view(self) -> View | None:
        """The planes in the order of the axes; None where they do not lie one after the other in memory."""
        count = 1
        for atom in reversed(self.planes):
            if atom.size != 1 and atom.stride != count:
                return None
            count *= int(atom.size)
        rows = [atom for axis in self.axes for atom in axis if atom.kind == "row"]
        is_plain = all(atom.repeats == 1 and atom.kind != "repeat" for axis in self.axes for atom in axis)
        if not is_plain or self.padding is not None or (self.storage.rows > 1 and len(rows) != 1):
            return None
        return View(self.storage, self.first, count)

    @property
    def is_vector(self) -> bool:
        """True for a value without columns."""
        return self.storage.columns == VECTOR

    def viewed(self, axes: Iterable[Axis], first: int | None = None) -> "Value":
        """Return the same planes, or those from another one on, by other axes."""
        if self.padding is not None:
            raise UnsupportedError("only a convolution can read frames that are continued")
        return Value(self.storage, tuple(axes), self.first if first is None else first)

    def axis_of(self, kind: str) -> int | None:
        """Return the axis that has atoms of a kind; None if there is none."""
        for index, axis in enumerate(self.axes):
            if any(atom.kind == kind for atom in axis):
                return index
        return None


def _size(axis: Axis) -> Size:
    size: Size = 1
    for atom in axis:
        size = size * atom.size
    return size


def _equal(first: Any, second: Any) -> bool:
    return bool(np.all(np.asarray(first) == np.asarray(second)))


def _axis(atoms: Iterable[Atom]) -> Axis:
    """Return an axis of atoms, with those that can be one merged and those of size 1 left out."""
    merged: list[Atom] = []
    for atom in atoms:
        if _equal(atom.size, 1) and atom.kind != "column":
            continue
        before = merged[-1] if merged else None
        if before is not None and before.kind == atom.kind == "plane" and before.stride == atom.stride * atom.size:
            merged[-1] = Atom("plane", before.size * atom.size, atom.stride)
        elif before is not None and before.kind == "column" and atom.kind == "repeat" and isinstance(atom.size, int):
            merged[-1] = Atom("column", before.size * atom.size, repeats=before.repeats * atom.size)
        else:
            merged.append(atom)
    return tuple(merged)


class UnsupportedError(Exception):
    """An operation that has no kernel, and why."""


class Lowering:
    """Program of a network, operation by operation."""

    def __init__(self, source: Node, names: Mapping[int, str]) -> None:
        mel_bins, frames = source.shape[1:]
        assert isinstance(mel_bins, int)
        self.mel_bins = mel_bins
        self.steps: list[DraftStep] = []
        self.values: dict[Node, Value] = {}
        # Names of weights by where they lie in memory, and how often each was used.
        self._names = names
        self._uses: dict[str, int] = {}
        # What was computed once for several readers.
        self._scalars: dict[bytes, Storage] = {}
        self._phases: dict[tuple[Storage, int, int, tuple[int, int]], Storage] = {}
        self._attended: dict[tuple[Node, Node], Value] = {}
        # That all numbers of columns must reach, and columns that must have a mirror image or deviations.
        self._least_columns: dict[Columns, int] = {}

        storage = self._new_storage(1, Columns(), mel_bins)
        self._add("load", mel_bins, target=View(storage, 0, mel_bins))
        self.values[source] = Value(storage, ((), (Atom("plane", mel_bins),), (Atom("column", frames),)))

    def define(self, node: Node, value: Value) -> None:
        """Say what an operation results in."""
        shape = [_size(axis) for axis in value.axes]
        has_shape = len(shape) == len(node.shape) and all(map(_equal, shape, node.shape))
        if not has_shape:
            raise UnsupportedError(f"the result would have the shape {shape} in place of {node.shape}")
        self.values[node] = value

    def program(self, output: Node, least_frames: Callable[[int], int]) -> Program:
        """Return the program of all operations.

        Args:
            output: Embedding [1, E].
            least_frames: Function from the least number of frames of the program to that of the network.
        """
        value = self.values[output]
        view = self._read(value)
        if not value.is_vector:
            raise NoProgramError("the output of the network still has frames")
        self._add("store", view.count, source=view, target=view)
        min_frames = least_frames(next(filter(self._has_enough, range(1, FRAMES[0] + 1))))
        return finish(self.steps, mel_bins=self.mel_bins, embedding_dim=view.count, min_frames=min_frames)

    def _has_enough(self, frames: int) -> bool:
        return all(columns(frames) >= least for columns, least in self._least_columns.items())

    # Steps and storages.

    def _new_storage(self, rows: int, columns: Columns, count: int) -> Storage:
        self._need(columns, 1)
        return Storage(rows, columns, count, index=len(self.steps))

    def _columns_of(self, size: Size) -> Columns:
        """Return the formula that gives these numbers of columns, if it can be one that is known."""
        for columns in self._least_columns:
            if columns != VECTOR and _equal(_counts(columns), size):
                return columns
        return _columns_of(size)

    def _need(self, columns: Columns, least: int) -> None:
        self._least_columns[columns] = max(least, self._least_columns.get(columns, 1))

    def _add(self, op: str, rows: int, **fields: Any) -> DraftStep:
        step = DraftStep(op, rows, len(self.steps), **fields)
        self.steps.append(step)
        return step

    def _read(self, value: Value) -> View:
        """Return a value's planes for a step that reads them, in the order of its axes."""
        view = value.view
        if view is None:
            value = self._copied(value)
            view = value.view
            assert view is not None
        value.storage.is_read = True
        return view

    def _continue(self, step: DraftStep, action: Action | None) -> Storage:
        """Add an operation to what a step does to its registers, and return where the result can be stored."""
        assert step.tail is not None
        storage = Storage(step.tail.rows, step.tail.columns, step.tail.count, step, step.index)
        if action is not None:
            step.actions.append(action)
        step.actions.append(Action("store_plane", View(storage, 0, storage.count)))
        step.tail = storage
        return storage

    def _copied(self, value: Value, row_axis: int | None = None) -> Value:
        """Copy a value to planes that lie one after the other.

        Args:
            value: What is copied.
            row_axis: Axis whose elements become the rows of planes; -1: none. Default: the one that has rows.
        """
        value = value.viewed(value.axes)
        if row_axis is None:
            row_axis = value.axis_of("row")
            if row_axis is not None and any(atom.kind != "row" for atom in value.axes[row_axis]):
                row_axis = None
        column_axis, columns, repeats = self._copied_columns(value)
        sources = _source_rows(value, column_axis)
        axes: list[Axis] = [()] * len(value.axes)
        rows = 1
        count = 1
        for index in reversed(range(len(axes))):
            axis = value.axes[index]
            if index == column_axis:
                axes[index] = (Atom("column", _size(axis)),)
            elif index == row_axis:
                rows = int(_size(axis))
                axes[index] = _axis([Atom("row", rows)])
                if count > 1:
                    raise UnsupportedError("the rows of an image must be behind its channels")
            else:
                axes[index] = _axis([Atom("plane", int(_size(axis)), count)])
                count *= int(_size(axis))
        copy = self._new_storage(rows, columns, count)
        copy.is_read = True
        value.storage.is_read = True
        self._add(
            "copy",
            count * rows,
            source=View(value.storage, value.first, int(sources.max()) // value.storage.rows + 1),
            target=View(copy, 0, count),
            parameters=(0, repeats),
            sources=sources,
        )
        return Value(copy, tuple(axes))

    def _copied_columns(self, value: Value) -> tuple[int | None, Columns, int]:
        """Return the axis of columns in a copy, their number, and how often each one of the original is repeated."""
        column_axis = value.axis_of("column")
        if column_axis is not None:
            if len(value.axes[column_axis]) != 1:
                raise UnsupportedError("frames and channels are mixed in one axis")
            atom = value.axes[column_axis][0]
            columns = value.storage.columns
            # Other formulas may give the same numbers at the frames that were traced.
            if atom.repeats > 1 or not _equal(_counts(columns), atom.size):
                columns = self._columns_of(atom.size)
            return column_axis, columns, atom.repeats
        # A vector that is repeated for each frame.
        repeat_axis = value.axis_of("repeat")
        if repeat_axis is not None and not isinstance(_size(value.axes[repeat_axis]), int):
            return repeat_axis, self._columns_of(_size(value.axes[repeat_axis])), 1
        return None, value.storage.columns, 1

    # Elementwise operations.

    def unary(self, value: Value, code: str, constant: Float64Array | float | None = None) -> Value:
        """Apply an elementwise operation, if need be with a constant for each plane."""
        value = self._contiguous(value)
        view = value.view
        assert view is not None
        operand = None if constant is None else np.broadcast_to(np.asarray(constant, np.float64), view.count)
        return self._apply(value, Action(code, operand), -1)

    def _apply(self, value: Value, action: Action | None, operand_index: int) -> Value:
        """Apply an action to a value, in the registers of the step that computes it if the operand is there by then."""
        view = value.view
        assert view is not None
        step = value.storage.step
        has_all_planes = view.count == value.storage.count
        if step is None or step.tail is not value.storage or not has_all_planes or operand_index > step.index:
            value.storage.is_read = True
            step = self._add("elementwise", view.count, source=view)
            step.tail = Storage(value.storage.rows, value.storage.columns, view.count, step, step.index)
        storage = self._continue(step, action)
        return Value(storage, value.axes)

    def binary(self, kind: str, first: Any, second: Any) -> Value:
        """Return the sum, difference, product or quotient of a value and another one, a constant or a number."""
        if not isinstance(first, Value):
            # The value goes first.
            kind, second = self._exchanged(kind, second)
            first, second = second, first
        if isinstance(second, Value):
            return self._combine(kind, first, second)
        if isinstance(second, np.ndarray):
            return self._with_scalar(kind, first, second)
        constant = second.double().numpy() if isinstance(second, Tensor) else np.asarray(float(second))
        return self._with_constant(kind, first, constant)

    def _exchanged(self, kind: str, second: Value) -> tuple[str, Value]:
        """Return what the second operand must be, and the operation, so that it may be the first."""
        if kind == "subtract":
            return "add", self.unary(second, "multiply_constant", -1.0)
        if kind == "divide":
            return "multiply", self.unary(second, "reciprocal")
        return kind, second

    def _with_scalar(self, kind: str, value: Value, samples: Samples) -> Value:
        if kind == "subtract":
            samples = -samples
        if kind == "divide":
            samples = 1 / samples
        scalar = self._scalar(samples)
        code = "add_scalar" if kind in ("add", "subtract") else "multiply_scalar"
        return self._apply(self._contiguous(value), Action(code, View(scalar, 0, 1)), scalar.index)

    def _contiguous(self, value: Value) -> Value:
        return self._copied(value) if value.view is None else value

    def _with_constant(self, kind: str, value: Value, constant: Float64Array) -> Value:
        value = self._contiguous(value)
        sizes = []
        if constant.ndim > len(value.axes):
            if constant.size > 1:
                raise UnsupportedError("a constant has more axes than what it is combined with")
            constant = constant.reshape(())
        constant = constant.reshape((1,) * (len(value.axes) - constant.ndim) + constant.shape)
        for axis, size in zip(value.axes, constant.shape, strict=True):
            is_of_planes = all(atom.kind == "plane" for atom in axis)
            if size > 1 and not (is_of_planes and _equal(_size(axis), size)):
                raise UnsupportedError("a constant differs between rows or frames")
            sizes.append(int(_size(axis)) if is_of_planes else 1)
        constant = np.broadcast_to(constant, sizes).ravel()
        if kind == "subtract":
            constant = -constant
        if kind == "divide":
            constant = 1 / constant
        code = "add_constant" if kind in ("add", "subtract") else "multiply_constant"
        return self._apply(value, Action(code, constant), -1)

    def _combine(self, kind: str, first: Value, second: Value) -> Value:
        first, second = self._aligned(first, second)
        pairs = list(zip(first.axes, second.axes, strict=True))
        axes = [axis or other_axis for axis, other_axis in pairs]
        # The one in the registers has all axes of the other, and is the one that is computed later if both have.
        first_has_all = all(axis or not other_axis for axis, other_axis in pairs)
        second_has_all = all(other_axis or not axis for axis, other_axis in pairs)
        is_later = self._tail_index(second) > self._tail_index(first)
        if not first_has_all or (second_has_all and is_later):
            kind, second = self._exchanged(kind, second)
            first, second = second, first
        first = self._contiguous(first)
        if not second.is_vector and second.axis_of("plane") is None:
            # The same for all channels.
            second = self._copied(self.expanded(second, [_size(axis) for axis in first.axes]))
        for axis, other_axis in zip(first.axes, second.axes, strict=True):
            kinds = [atom.kind for atom in axis] == [atom.kind for atom in other_axis]
            if other_axis and not (kinds and _equal(_size(axis), _size(other_axis))):
                raise UnsupportedError("what is combined has different axes")
        operand = self._read(second)
        action = Action(f"{kind}_{_operand_kind(first, operand)}", operand)
        if action.code in ("subtract_scalar", "divide_scalar"):
            raise UnsupportedError("one number cannot be subtracted from all, or divide them")
        return self._apply(first, action, second.storage.index).viewed(axes)

    def _tail_index(self, value: Value) -> int:
        """Return the number of the step whose registers hold a value; -1 if none does."""
        view = value.view
        step = value.storage.step
        if view is None or step is None or step.tail is not value.storage or view.count != value.storage.count:
            return -1
        return step.index

    def _aligned(self, first: Value, second: Value) -> tuple[Value, Value]:
        """Return both with as many axes, those that only repeat something left empty."""
        rank = max(len(first.axes), len(second.axes))
        values = []
        for value in (first, second):
            axes: list[Axis] = [()] * (rank - len(value.axes))
            for axis in value.axes:
                axes.append(() if all(atom.kind == "repeat" for atom in axis) else axis)
            values.append(value.viewed(axes))
        return values[0], values[1]

    def _scalar(self, samples: Samples) -> Storage:
        """Return a vector of one number that depends on the number of frames."""
        key = samples.astype(np.float64).tobytes()
        if key not in self._scalars:
            columns, numbers = self._ratio(samples.astype(np.float64))
            storage = self._new_storage(1, VECTOR, 1)
            storage.is_read = True
            # Any planes with so many columns.
            views = [view.storage for step in self.steps for view in step.views()]
            example = next(view for view in views if view.columns == columns)
            self._add("scalar", 1, source=View(example, 0, 1), target=View(storage, 0, 1), numbers=numbers)
            self._scalars[key] = storage
        return self._scalars[key]

    def _ratio(self, samples: Float64Array) -> tuple[Columns, tuple[float, float, float, float]]:
        """Return a number of columns n, and a, b, c, d of (a n + b) / (c n + d), which gives the samples."""
        for columns in self._least_columns:
            numbers = None if columns == VECTOR else _fit_ratio(np.asarray(_counts(columns), np.float64), samples)
            if numbers is not None:
                return columns, numbers
        raise UnsupportedError(f"a number depends on the number of frames in an unknown way: {samples}")

    # Convolutions.

    def convolution(
        self,
        value: Value,
        weight: Tensor,
        bias: Tensor | None,
        *,
        strides: tuple[int, int] = (1, 1),
        padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        mode: str = "zeros",
    ) -> Value:
        """Return the convolution of a value with axes [1, C, rows, T], and of others by axes of no or one element.

        Args:
            value: Its planes are the channels.
            weight: [C_out, C_in / groups, rows, columns].
            bias: [C_out].
            strides: Of rows and columns, as the other pairs.
            padding: Rows before and after, columns before and after.
            dilation: Distance of taps.
            groups: Groups of channels.
            mode: What the padding has: "zeros", "reflect" or "edge".
        """
        value = self._contiguous(value)
        if mode != "zeros" and strides != (1, 1):
            raise UnsupportedError("a convolution with a stride can be continued by zeros only")
        view = self._padded(value, padding, mode)
        rows = _strided_size(view.storage.rows, weight.shape[2], sum(padding[0]), dilation[0], strides[0])
        columns = view.storage.columns
        if columns != VECTOR:
            change = sum(padding[1]) - dilation[1] * (weight.shape[3] - 1) - 1 + strides[1]
            columns = Columns(columns.offset + columns.divisor * change, columns.divisor * strides[1])
        if rows < 1:
            raise UnsupportedError("the image has too few rows")
        layer = Layer(
            name=self._name(weight),
            weight=weight.double().numpy(),
            source=_NO_PLANES,
            strides=strides,
            dilation=dilation,
            padding=(padding[0][0], padding[1][0]),
            padding_after=(padding[0][1], padding[1][1]),
            groups=groups,
        )
        kernel_view = view if strides == (1, 1) else self._strided(view, strides)
        if kernel_view.count > MAX_CHANNELS or len(layer.taps) > MAX_TAPS:
            raise UnsupportedError(f"{layer.name} of shape {list(weight.shape)} is too large for the sparse kernels")
        out_channels = weight.shape[0]
        step = self._add("convolve", out_channels, source=kernel_view, layer=layer, layer_source=view)
        self._need(columns, 1)
        step.tail = Storage(rows, columns, out_channels, step, step.index)
        action = None if bias is None else Action("add_constant", bias.double().numpy())
        return Value(self._continue(step, action), _convolved_axes(value, out_channels, rows, columns))

    def _padded(self, value: Value, padding: tuple[tuple[int, int], tuple[int, int]], mode: str) -> View:
        """Return the planes of a value, beyond whose ends there is what the mode says."""
        view = self._read(value)
        is_extended = mode != "zeros"
        if is_extended and (any(padding[0]) or view.storage.rows > 1):
            raise UnsupportedError("images can be continued by zeros only")
        if not any(any(pair) for pair in padding):
            return view
        # The same planes cannot be continued in two ways.
        root, _ = view.storage.root
        if root.is_zero_padded if is_extended else root.is_extended:
            view = self._read(self._copied(value))
            root = view.storage
        if is_extended:
            self._need(view.storage.columns, max(padding[1]) + (1 if mode == "reflect" else 0))
            self._add("extend", view.count, source=view, target=view, parameters=(*padding[1], int(mode == "edge")))
            root.is_extended = True
        else:
            root.is_zero_padded = True
        return view

    def _name(self, weight: Tensor) -> str:
        name = self._names.get(weight.untyped_storage().data_ptr(), "weight")
        self._uses[name] = self._uses.get(name, 0) + 1
        return name if self._uses[name] == 1 else f"{name}[{self._uses[name]}]"

    def _strided(self, view: View, strides: tuple[int, int]) -> View:
        """Return the phases of planes, which a convolution with these strides reads side by side."""
        storage = view.storage
        key = (storage, view.first, view.count, strides)
        count = view.count * strides[0] * strides[1]
        if key not in self._phases:
            before = storage.columns
            change = before.divisor * (strides[1] - 1)
            columns = Columns(before.offset + change, before.divisor * strides[1])
            phases = self._new_storage(-(-storage.rows // strides[0]), columns, count)
            phases.is_read = True
            phases.is_zero_padded = True
            self._add("phases", view.count, source=view, target=View(phases, 0, count), parameters=strides)
            self._phases[key] = phases
        return View(self._phases[key], 0, count)

    # Reductions.

    def reduction(self, kind: str, value: Value, dims: Sequence[int], keepdim: bool, correction: float = 0) -> Value:
        """Reduce the columns of a value, or its rows and columns, to one number."""
        rank = len(value.axes)
        reduced = {dim % rank for dim in dims} or set(range(rank))
        atoms = {atom.kind for dim in reduced for atom in value.axes[dim]}
        if not atoms and kind != "variance":
            return self._with_axes(value, reduced, keepdim)
        if atoms not in ({"column"}, {"column", "row"}):
            raise UnsupportedError("only frames, or frames and rows together, can be reduced")
        value = self._contiguous(value)
        view = self._read(value)
        storage = view.storage
        reduces_rows = storage.rows == 1 or "row" in atoms
        count = view.count if reduces_rows else view.count * storage.rows
        if kind == "variance":
            self._need(storage.columns, math.ceil((correction + 1) / (storage.rows if reduces_rows else 1)))
        result = self._new_storage(1, VECTOR, count)
        self._add(
            "reduce",
            count,
            source=view,
            target=View(result, 0, count),
            parameters=(REDUCTIONS.index(kind), int(reduces_rows)),
            numbers=(float(correction),),
        )
        factor = 1 if reduces_rows else storage.rows
        axes = []
        for axis in value.axes:
            planes = []
            for atom in axis:
                if atom.kind == "plane":
                    planes.append(Atom("plane", atom.size, atom.stride * factor))
                elif atom.kind == "row" and not reduces_rows:
                    planes.append(Atom("plane", atom.size))
            axes.append(_axis(planes))
        return self._with_axes(Value(result, tuple(axes)), reduced, keepdim)

    def _with_axes(self, value: Value, reduced: set[int], keepdim: bool) -> Value:
        axes = []
        for index, axis in enumerate(value.axes):
            if index not in reduced:
                axes.append(axis)
            elif keepdim:
                axes.append(())
        return value.viewed(axes)

    def softmax(self, value: Value, dim: int) -> Value:
        """Return the softmax over frames."""
        kinds = {atom.kind for atom in value.axes[dim % len(value.axes)]}
        if kinds != {"column"} or value.storage.rows > 1:
            raise UnsupportedError("only the softmax over frames is known")
        copy = self._scratch(value)
        assert copy.view is not None
        self._add("softmax", copy.view.count, source=copy.view, target=copy.view)
        return copy

    def _scratch(self, value: Value) -> Value:
        """Return the same value at a place of its own, which a step may overwrite."""
        copy = self._apply(self._contiguous(value), None, -1)
        copy.storage.is_read = True
        # Nothing can follow in registers once it was overwritten.
        assert copy.storage.step is not None
        copy.storage.step.tail = None
        copy.storage.step = None
        copy.storage.index = len(self.steps)
        return copy

    def attended(
        self,
        value: Value,
        scores: Value,
        key: tuple[Node, Node],
        is_variance: bool,
        dims: Sequence[int],
        keepdim: bool,
    ) -> Value:
        """Return the mean or mean square deviation over frames under the softmax of scores."""
        if key not in self._attended:
            value = self.as_planes(self._contiguous(value))
            view = self._read(value)
            weights = self._scratch(scores).view
            assert weights is not None
            if weights.count != view.count:
                raise UnsupportedError("each channel needs scores of its own")
            result = self._new_storage(1, VECTOR, 2 * view.count)
            target = View(result, 0, 2 * view.count)
            self._add("attend", view.count, source=view, target=target, parameters=(weights,))
            axes = []
            for axis in value.axes:
                axes.append(tuple(atom for atom in axis if atom.kind == "plane"))
            self._attended[key] = Value(result, tuple(axes))
        means = self._attended[key]
        first = means.storage.count // 2 if is_variance else 0
        moment = Value(means.storage, means.axes, first)
        return self._with_axes(moment, {dim % len(means.axes) for dim in dims}, keepdim)

    def segments(self, value: Value, length: int, ceil_mode: bool) -> Value:
        """Return the mean of each segment of so many frames; the last one may be shorter, or is left out."""
        value = self._contiguous(value)
        view = self._read(value)
        before = view.storage.columns
        added = before.divisor * (length - 1) if ceil_mode else 0
        columns = Columns(before.offset + added, before.divisor * length)
        result = self._new_storage(view.storage.rows, columns, view.count)
        result.is_read = True
        self._add("segments", view.count, source=view, target=View(result, 0, view.count), parameters=(length,))
        axes = []
        for axis in value.axes:
            is_column = any(atom.kind == "column" for atom in axis)
            axes.append((Atom("column", _counts(columns)),) if is_column else axis)
        return Value(result, tuple(axes))

    def concatenation(self, values: Sequence[Value], dim: int) -> Value:
        """Return values side by side on an axis of channels; those that lie nowhere yet are put there."""
        dim %= len(values[0].axes)
        values = [self._repeated(value, values) for value in values]
        storages = [value.storage for value in values]
        total = 0
        for value in values:
            kinds = {atom.kind for atom in value.axes[dim]}
            has_others = any(
                atom.kind == "plane" for axis in value.axes if axis is not value.axes[dim] for atom in axis
            )
            if not kinds <= {"plane"} or has_others:
                raise UnsupportedError("only channels can be put side by side")
            if (value.storage.rows, value.storage.columns) != (storages[0].rows, storages[0].columns):
                raise UnsupportedError("what is put side by side has different sizes")
            total += int(_size(value.axes[dim]))
        result = self._new_storage(storages[0].rows, storages[0].columns, total)
        result.is_read = True
        first = 0
        for value in values:
            storage = value.storage
            view = value.view
            is_free = storage.parent is None and not storage.is_extended
            if view is not None and view.count == storage.count and is_free and storage.index > 0:
                storage.parent = (result, first)
                storage.is_read = True
                result.is_zero_padded |= storage.is_zero_padded
                first += view.count
                continue
            count = int(_size(value.axes[dim]))
            self._copy_into(value, View(result, first, count))
            first += count
        axes = list(values[0].axes)
        axes[dim] = _axis([Atom("plane", total)])
        result.index = len(self.steps)
        return Value(result, tuple(axes))

    def _copy_into(self, value: Value, target: View) -> None:
        copy = self._copied(value)
        copy.storage.parent = (target.storage, target.first)

    def _repeated(self, value: Value, others: Sequence[Value]) -> Value:
        """Return a vector that an axis repeats for each frame as planes."""
        if value.is_vector and not all(other.is_vector for other in others):
            return self._copied(value)
        return value

    # Shapes.

    def reshaped(self, value: Value, shape: Sequence[Size]) -> Value:
        """Return a value with its elements in the same order and other axes."""
        atoms = list(_axis(atom for axis in value.axes for atom in axis))
        axes = []
        for size in shape:
            axis: list[Atom] = []
            while not _equal(_size(tuple(axis)), size):
                if not atoms:
                    raise UnsupportedError("frames and channels would be mixed")
                atom = atoms.pop(0)
                if np.all(_size((*axis, atom)) <= size):
                    axis.append(atom)
                    continue
                first, second = _cut(atom, size, _size(tuple(axis)))
                axis.append(first)
                atoms.insert(0, second)
            axes.append(_axis(axis))
        if any(not _equal(atom.size, 1) for atom in atoms):
            raise UnsupportedError("frames and channels would be mixed")
        return value.viewed(axes)

    def expanded(self, value: Value, shape: Sequence[Size]) -> Value:
        """Return a value with axes of one element repeated."""
        axes: list[Axis] = [()] * (len(shape) - len(value.axes)) + list(value.axes)
        for index, size in enumerate(shape):
            if not axes[index] and not _equal(size, 1):
                axes[index] = (Atom("repeat", size),)
        return value.viewed(axes)

    def padded(self, value: Value, pad: Sequence[int], mode: str, shape: Sequence[Size]) -> Value:
        """Return a value that a convolution will read with more rows and columns; ``pad`` begins with the last axis."""
        pads = [(pad[index], pad[index + 1]) for index in range(0, len(pad), 2)] + [(0, 0), (0, 0)]
        if any(any(pair) for pair in pads[2:]) or min(map(min, pads)) < 0 or value.padding is not None:
            raise UnsupportedError("only frames and rows of an image can be continued, and not cut")
        if any(pads[1]):
            value = self.as_channels(value, True)
        axes = list(value.axes)
        column_axis = value.axis_of("column")
        if column_axis != len(axes) - 1:
            raise UnsupportedError("frames must be the last axis")
        axes[column_axis] = (Atom("column", shape[column_axis]),)
        if any(pads[1]):
            axes[2] = (Atom("row", shape[2]),)
        return Value(value.storage, tuple(axes), value.first, (mode, (pads[1], pads[0])))

    def as_channels(self, value: Value, is_image: bool) -> Value:
        """Return a value whose planes are the second axis, whose rows the third of an image, without its padding."""
        if len(value.axes) != (4 if is_image else 3):
            raise UnsupportedError("a batch of one utterance was expected")
        axes = list(value.axes)
        if value.padding is not None:
            axes[-1] = (Atom("column", _counts(value.storage.columns)),)
            if is_image and value.storage.rows > 1:
                axes[2] = (Atom("row", value.storage.rows),)
        value = Value(value.storage, tuple(axes), value.first)
        if any(atom.kind != "column" for atom in axes[-1]) or axes[0]:
            raise UnsupportedError("frames must be the last axis")
        if is_image and any(atom.kind != "row" for atom in axes[2]):
            return self._copied(value, 2)
        if any(atom.kind != "plane" for atom in axes[1]):
            return self._copied(value, -1)
        return value

    def as_planes(self, value: Value) -> Value:
        """Return a value without rows."""
        if value.axis_of("row") is not None:
            return self._copied(value, -1)
        return value

    def sliced(self, value: Value, dim: int, start: Size, stop: Size, step: int = 1) -> Value:
        """Return a range of an axis."""
        dim %= len(value.axes)
        axis = value.axes[dim]
        size = _size(axis)
        start, stop = _bound(start, size), _bound(stop, size)
        if step != 1:
            raise UnsupportedError("only whole ranges can be taken")
        if _equal(start, 0) and _equal(stop, size):
            return value
        if len(axis) != 1:
            raise UnsupportedError("frames and channels are mixed in one axis")
        atom = axis[0]
        if atom.kind == "column" and _equal(start, 0):
            axes = list(value.axes)
            axes[dim] = (Atom("column", stop, repeats=atom.repeats),)
            # The copy has the columns that are asked for.
            return self._copied(value.viewed(axes))
        if atom.kind != "plane":
            raise UnsupportedError("only channels, and frames from the first on, can be cut")
        axes = list(value.axes)
        axes[dim] = _axis([Atom("plane", int(stop) - int(start), atom.stride)])
        return value.viewed(axes, value.first + int(start) * atom.stride)


_NO_PLANES = Planes(0, 0, 0)


def _source_rows(value: Value, column_axis: int | None) -> NDArray[np.int32]:
    """Return the row, of those of all planes from the first on, of each row of a copy."""
    rows = np.zeros(1, np.int32)
    for index, axis in enumerate(value.axes):
        for atom in axis if index != column_axis else ():
            if atom.kind == "column" or not isinstance(atom.size, int):
                raise UnsupportedError("an axis of another kind would have to be copied")
            step = {"plane": atom.stride * value.storage.rows, "row": 1, "repeat": 0}[atom.kind]
            rows = (rows[:, None] + step * np.arange(atom.size, dtype=np.int32)).ravel()
    return rows


def _operand_kind(value: Value, operand: View) -> str:
    """Return as what the kernels read the operand of an operation on a value."""
    view = value.view
    assert view is not None
    storage = operand.storage
    if storage.columns == VECTOR and not value.is_vector:
        if operand.count not in (1, view.count):
            raise UnsupportedError("what is combined has a part of the channels or rows")
        return "vector" if operand.count == view.count else "scalar"
    has_size = (storage.rows, storage.columns) == (value.storage.rows, value.storage.columns)
    if operand.count != view.count or not has_size:
        raise UnsupportedError("what is combined has other rows or frames, or only a part of the channels")
    return "plane"


def _convolved_axes(value: Value, out_channels: int, rows: int, columns: Columns) -> tuple[Axis, ...]:
    """Return the axes of a convolution's output."""
    channel_axis = value.axis_of("plane")
    if channel_axis is None:
        # A single channel, which has no atom.
        channel_axis = 1
    axes: list[Axis] = []
    for index, axis in enumerate(value.axes):
        if index == channel_axis:
            axes.append(_axis([Atom("plane", out_channels)]))
        elif any(atom.kind == "column" for atom in axis):
            axes.append((Atom("column", _counts(columns)),))
        else:
            axes.append(_axis([Atom("row", rows)]) if any(atom.kind == "row" for atom in axis) else ())
    return tuple(axes)


def _cut(atom: Atom, size: Size, taken: Size) -> tuple[Atom, Atom]:
    """Return the part of an atom of planes that fills an axis up to a size, and what is left."""
    is_cut = atom.kind == "plane" and isinstance(size, int) and isinstance(taken, int) and size % taken == 0
    if not is_cut or int(atom.size) % (int(size) // int(taken)):
        raise UnsupportedError("frames and channels, or the rows of an image, would be mixed")
    part = int(size) // int(taken)
    left = int(atom.size) // part
    return Atom("plane", part, atom.stride * left), Atom("plane", left, atom.stride)


def _bound(value: Size, size: Size) -> Size:
    """Return a bound of a range as a number from 0 to the size."""
    value = np.where(np.asarray(value) < 0, np.asarray(value) + np.asarray(size), value)
    value = np.minimum(value, size)
    is_constant = np.size(value) == 1 or bool((value == value.flat[0]).all())
    return int(np.ravel(value)[0]) if is_constant else value


def _strided_size(size: int, kernel: int, padding: int, dilation: int, stride: int) -> int:
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def _counts(columns: Columns) -> Size:
    """Return the numbers of columns at the frames that were traced."""
    return (np.array(FRAMES) + columns.offset) // columns.divisor if columns.divisor else 1


def _columns_of(size: Size) -> Columns:
    """Return the formula that gives these numbers of columns."""
    if isinstance(size, int) or len(set(size)) == 1:
        raise UnsupportedError("an axis has a fixed number of frames")
    # Nearly the same at any two lengths that are far apart.
    estimate = round((FRAMES[-1] - FRAMES[0]) / max(1, int(size[-1]) - int(size[0])))
    for divisor in range(max(1, estimate - 1), estimate + 2):
        # The offset is the same for all where it is right for one.
        for offset in range(divisor * int(size[0]) - FRAMES[0], divisor * int(size[0]) - FRAMES[0] + divisor):
            columns = Columns(offset, divisor)
            if _equal(_counts(columns), size):
                return columns
    raise UnsupportedError(f"the number of frames follows no known formula, {size}")


def _fit_ratio(n: Float64Array, samples: Float64Array) -> tuple[float, float, float, float] | None:
    """Return a, b, c, d of (a n + b) / (c n + d), which gives the samples; None if there are none."""
    for c, d in ((0.0, 1.0), *((1.0, float(shift)) for shift in (0, -1, 1, -2, 2))):
        values = samples * (c * n + d)
        distinct = n != n[0]
        if not distinct.any():
            return None
        last = int(np.flatnonzero(distinct)[-1])
        a = (values[last] - values[0]) / (n[last] - n[0])
        b = values[0] - a * n[0]
        a, b = round(a, 9), round(b, 9)
        if np.allclose(a * n + b, values, rtol=1e-6, atol=1e-9):
            return a, b, c, d
    return None
