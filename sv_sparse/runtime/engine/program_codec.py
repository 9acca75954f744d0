"""Programs as integers and tensors, and the checks of those that come from a file.

The kernels check nothing, so a program is read only if all that its steps read and write lies inside its planes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sv_sparse.runtime.engine.bindings import (
    ACTIONS,
    FUSED_CONSTANTS,
    MAX_CHANNELS,
    MAX_TAPS,
    NUM_PARAMETERS,
    OPERATIONS,
    REDUCTIONS,
)
from sv_sparse.runtime.engine.program import VECTOR, Columns, Float32Array, Layer, Planes, Program, Resolution, Step

# Fields of a step before its lists; -1 as the layer: none.
_FIXED_FIELDS = 14
_MAX_STEPS = 10_000
# Of all resolutions together; and of one row, column, tap distance or divisor.
_MAX_PLANES = 1 << 20
_MAX_SIZE = 1 << 14
# Of a layer's taps, padding and dilation, in rows or columns.
_MAX_REACH = 1 << 10
_MAX_RESOLUTIONS = 1000


class ProgramParts(NamedTuple):
    """A program in parts that a file holds."""

    # Plain data.
    about: dict[str, Any]
    # All steps, int32.
    steps: NDArray[np.int32]
    constants: Float32Array
    # By the names of the layers.
    weights: dict[str, Float32Array]


def split_program(program: Program) -> ProgramParts:
    """Return the parts of a program."""
    layers = program.layers
    numbers: list[int] = []
    constants: list[Float32Array] = []
    for step in program.steps:
        layer = -1 if step.layer is None else layers.index(step.layer)
        source = (0, 0, 0) if step.layer is None else step.layer.source
        fixed = [OPERATIONS.index(step.op), step.rows, *step.source, *step.target, layer, *source]
        lists = [len(step.actions), len(step.constants)]
        assert len(fixed) + len(lists) == _FIXED_FIELDS
        numbers += [*fixed, *lists]
        parameters = np.zeros(NUM_PARAMETERS, np.int32)
        parameters[: len(step.parameters)] = step.parameters
        factors = np.zeros(NUM_PARAMETERS, np.float32)
        factors[: len(step.numbers)] = step.numbers
        numbers += [*parameters.tolist(), *factors.view(np.int32).tolist()]
        for code, argument in step.actions:
            numbers += [ACTIONS.index(code), argument]
        if step.op == "copy":
            numbers += step.sources.tolist()
        constants.append(step.constants)
    resolutions = []
    for resolution, num_planes in zip(program.resolutions, program.num_planes, strict=True):
        resolutions.append([resolution.rows, *resolution.columns, num_planes])
    about = {
        "embedding_dim": program.embedding_dim,
        "min_frames": program.min_frames,
        "resolutions": resolutions,
        "layers": [_describe(layer) for layer in layers],
    }
    weights = {layer.name: layer.weight for layer in layers}
    return ProgramParts(
        about, np.array(numbers, np.int32), np.concatenate([*constants, np.empty(0, np.float32)]), weights
    )


def _describe(layer: Layer) -> list[Any]:
    return [layer.name, layer.strides, layer.dilation, layer.padding, layer.padding_after, layer.groups]


def join_program(parts: ProgramParts, mel_bins: int) -> Program:
    """Return the program of parts that come from a file.

    Raises:
        ValueError: They contradict each other, or a step would read or write outside its planes.
    """
    about = parts.about
    _require(set(about) == {"embedding_dim", "min_frames", "resolutions", "layers"}, "program lacks a part")
    resolutions = []
    num_planes = []
    _require(_is_list(about["resolutions"], _MAX_RESOLUTIONS), "program has no resolutions")
    for fields in about["resolutions"]:
        _require(_are_ints(fields, 4), f"a resolution is {str(fields)[:60]}")
        rows, offset, divisor, count = fields
        is_small = 1 <= rows <= _MAX_SIZE and abs(offset) <= _MAX_PLANES and 0 <= divisor <= _MAX_SIZE
        _require(is_small and 0 <= count <= _MAX_PLANES, f"a resolution is {fields}")
        resolutions.append(Resolution(rows, Columns(offset, divisor)))
        num_planes.append(count)
    _require(resolutions[:1] == [Resolution(1, VECTOR)], "the first resolution is not that of vectors")
    _require(all(r.columns.divisor > 0 for r in resolutions[1:]), "a resolution has no columns")
    _require(sum(num_planes) <= _MAX_PLANES, f"it has {sum(num_planes)} planes, at most {_MAX_PLANES} are read")
    steps = _Reader(parts).steps()
    sizes = [about["embedding_dim"], about["min_frames"]]
    _require(_are_ints(sizes, 2) and min(sizes) >= 1, f"program has the sizes {str(sizes)[:60]}")
    program = Program(mel_bins, about["embedding_dim"], about["min_frames"], resolutions, num_planes, steps)
    for step in steps:
        _check_step(step, program)
    _require(bool(steps) and steps[-1].op == "store", "the last step does not store the embedding")
    return program


class _Reader:
    """Reads steps from the integers of a file."""

    def __init__(self, parts: ProgramParts) -> None:
        self._numbers = parts.steps
        self._constants = parts.constants
        self._layers = []
        _require(_is_list(parts.about["layers"], _MAX_STEPS), "program has no list of layers")
        for fields in parts.about["layers"]:
            _require(isinstance(fields, list) and len(fields) == 6, f"a layer is {str(fields)[:60]}")
            name, *pairs, groups = fields
            _require(isinstance(name, str) and name in parts.weights, f"{str(name)[:60]} has no weight")
            weight = parts.weights[name]
            is_good = all(_are_ints(pair, 2) for pair in pairs) and _are_ints([groups], 1)
            _require(is_good and weight.ndim == 4 and weight.size > 0, f"{name} is described by {str(fields)[:60]}")
            strides, dilation, *paddings = [tuple(pair) for pair in pairs]
            is_small = all(1 <= size <= _MAX_SIZE for size in (*strides, *dilation, groups, *weight.shape[2:]))
            is_small = is_small and all(0 <= size <= _MAX_REACH for padding in paddings for size in padding)
            _require(is_small, f"{name} has {fields[1:]}")
            reach = max((size - 1) * step for size, step in zip(weight.shape[2:], dilation, strict=True))
            num_taps = weight.shape[2] * weight.shape[3]
            _require(reach <= _MAX_REACH and num_taps <= MAX_TAPS, f"{name} has {num_taps} taps, too many or too far")
            _require(weight.shape[0] % groups == 0, f"{name} has {groups} groups of {weight.shape[0]} channels")
            self._layers.append((name, weight, strides, dilation, *paddings, groups))
        self._place = 0

    def steps(self) -> list[Step]:
        """Return all steps."""
        steps: list[Step] = []
        used = []
        first_constant = 0
        while self._place < len(self._numbers):
            _require(len(steps) < _MAX_STEPS, f"it has more than {_MAX_STEPS} steps")
            op, rows, *fields = self._take(_FIXED_FIELDS)
            source, target, layer_source = Planes(*fields[:3]), Planes(*fields[3:6]), Planes(*fields[7:10])
            layer_index, num_actions, num_constants = fields[6], fields[10], fields[11]
            _require(0 <= op < len(OPERATIONS), f"step {len(steps)} has no operation {op}")
            parameters = tuple(self._take(NUM_PARAMETERS))
            factors = np.array(self._take(NUM_PARAMETERS), np.int32).view(np.float32)
            _require(bool(np.isfinite(factors).all()), f"step {len(steps)} has a number that is not finite")
            actions = []
            _require(num_actions >= 0 and num_constants >= 0, f"step {len(steps)} is damaged")
            for code, argument in np.reshape(self._take(2 * num_actions), (-1, 2)).tolist():
                _require(0 <= code < len(ACTIONS), f"step {len(steps)} has no action {code}")
                actions.append((ACTIONS[code], argument))
            sources = np.array(self._take(max(rows, 0) if OPERATIONS[op] == "copy" else 0), np.int32)
            constants = self._constants[first_constant : first_constant + num_constants]
            _require(len(constants) == num_constants, "constants are missing")
            first_constant += num_constants
            layer = None
            if OPERATIONS[op] == "convolve":
                _require(0 <= layer_index < len(self._layers), f"step {len(steps)} has no layer {layer_index}")
                used.append(layer_index)
                name, weight, *settings = self._layers[layer_index]
                layer = Layer(name, weight, layer_source, *settings)
            steps.append(
                Step(
                    OPERATIONS[op],
                    rows,
                    source,
                    target,
                    actions,
                    constants,
                    parameters,
                    tuple(factors.tolist()),
                    sources,
                    layer,
                )
            )
        _require(used == list(range(len(self._layers))), "its layers are not those of its steps")
        _require(first_constant == len(self._constants), "it has more constants than its steps read")
        return steps

    def _take(self, count: int) -> list[int]:
        numbers = self._numbers[self._place : self._place + count]
        _require(len(numbers) == count, "its steps are cut off")
        self._place += count
        return numbers.tolist()


def _check_step(step: Step, program: Program) -> None:
    """Raise ValueError if a step would leave its planes, for an utterance of any length."""
    _check_planes(step.source, program)
    _check_planes(step.target, program)
    source = program.resolutions[step.source.resolution]
    target = program.resolutions[step.target.resolution]
    _require(1 <= step.rows <= _MAX_PLANES, f"a step has {step.rows} rows")
    check = _CHECKS.get(step.op)
    if check is not None:
        _require(check(step, program, source, target), f"a step {step.op} does not fit its planes")
    if step.op in ("convolve", "elementwise"):
        for code, argument in step.actions:
            _check_action(step, program, code, argument)


def _check_planes(planes: Planes, program: Program) -> None:
    is_valid = 0 <= planes.resolution < len(program.resolutions)
    is_inside = is_valid and planes.first >= 0 <= planes.size
    is_inside = is_inside and planes.first + planes.size <= program.num_planes[planes.resolution]
    _require(is_inside, f"it has no planes {list(planes)}")


def _check_action(step: Step, program: Program, code: str, argument: int) -> None:
    operand = code.rpartition("_")[2]
    if code in FUSED_CONSTANTS or operand == "constant":
        size = step.rows * FUSED_CONSTANTS.get(code, 1)
        limit = len(step.constants)
    elif operand in ("vector", "scalar", "plane"):
        size = 1 if operand == "scalar" else step.rows
        limit = program.num_planes[step.target.resolution if operand == "plane" else 0]
    else:
        return
    _require(argument >= 0 and argument + size <= limit, f"an action {code} reads what is not there")


def _fits_convolution(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    layer = step.layer
    assert layer is not None
    _check_planes(layer.source, program)
    original = program.resolutions[layer.source.resolution]
    phases = layer.strides[0] * layer.strides[1]
    channels = layer.weight.shape[1] * layer.groups
    has_divisors = source.columns.divisor == target.columns.divisor
    has_divisors = has_divisors and original.columns.divisor * layer.strides[1] == target.columns.divisor
    if phases == 1 and source != original:
        return False
    return (
        has_divisors
        and step.rows == layer.weight.shape[0]
        and step.target.size == step.rows
        and layer.source.size == channels
        and step.source.size == channels * phases <= MAX_CHANNELS
    )


def _fits_copy(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    skip, repeats, *_ = step.parameters
    num_rows = step.source.size * source.rows
    is_inside = bool(((step.sources >= 0) & (step.sources < num_rows)).all())
    return is_inside and step.rows == step.target.size * target.rows and skip >= 0 and 1 <= repeats <= _MAX_SIZE


def _fits_phases(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    row_stride, col_stride, *_ = step.parameters
    are_strides = 1 <= row_stride <= _MAX_SIZE and 1 <= col_stride <= _MAX_SIZE
    return (
        are_strides
        and step.rows == step.source.size
        and step.target.size == step.rows * row_stride * col_stride
        and source.columns.divisor * col_stride == target.columns.divisor
    )


def _fits_extend(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    left, right, *_ = step.parameters
    is_small = 0 <= left <= _MAX_REACH and 0 <= right <= _MAX_REACH
    return is_small and step.source == step.target and step.rows == step.source.size and source.columns != VECTOR


def _fits_reduce(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    kind, reduces_rows, *_ = step.parameters
    rows = step.source.size if reduces_rows else step.source.size * source.rows
    is_valid = 0 <= kind < len(REDUCTIONS) and reduces_rows in (0, 1)
    return is_valid and target.columns == VECTOR and step.rows == rows == step.target.size


def _fits_attend(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    scores = Planes(step.source.resolution, step.parameters[0], step.rows)
    _check_planes(scores, program)
    is_vector = target.columns == VECTOR and step.target.size == 2 * step.rows
    return is_vector and source.rows == 1 and source.columns != VECTOR and step.source.size == step.rows


def _fits_segments(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    length = step.parameters[0]
    is_valid = (
        1 <= length <= _MAX_SIZE and source.rows == target.rows and VECTOR not in (source.columns, target.columns)
    )
    return is_valid and step.rows == step.source.size == step.target.size


def _fits_load(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    return target == Resolution(1, Columns()) and step.rows == step.target.size == program.mel_bins


def _fits_store(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    return source.columns == VECTOR and step.rows == step.source.size == program.embedding_dim


def _fits_elementwise(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    return source == target and step.rows == step.source.size == step.target.size


def _fits_softmax(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    return target.rows == 1 and target.columns != VECTOR and step.rows == step.target.size


def _fits_scalar(step: Step, program: Program, source: Resolution, target: Resolution) -> bool:
    return target.columns == VECTOR and step.target.size == 1


_CHECKS: dict[str, Callable[[Step, Program, Resolution, Resolution], bool]] = {
    "convolve": _fits_convolution,
    "elementwise": _fits_elementwise,
    "copy": _fits_copy,
    "phases": _fits_phases,
    "extend": _fits_extend,
    "reduce": _fits_reduce,
    "softmax": _fits_softmax,
    "attend": _fits_attend,
    "segments": _fits_segments,
    "scalar": _fits_scalar,
    "load": _fits_load,
    "store": _fits_store,
}


def check_frames(program: Program, frames: int) -> None:
    """Raise ValueError if a step would leave its planes for an utterance of so many frames."""
    for resolution in program.resolutions:
        _require(resolution.columns(frames) >= 1, f"{frames} frames leave nothing of a resolution")
    for step in program.steps:
        source = program.resolutions[step.source.resolution].columns(frames)
        target = program.resolutions[step.target.resolution].columns(frames)
        is_inside = True
        if step.layer is not None:
            is_inside = _reaches(step.layer, program, step.target, frames)
        elif step.op == "copy" and step.source.resolution != 0:
            skip, repeats, *_ = step.parameters
            is_inside = target + skip <= source * repeats
        elif step.op == "phases":
            is_inside = -(-source // step.parameters[1]) <= target
        elif step.op == "extend":
            is_inside = max(step.parameters[:2]) < source + step.parameters[2]
        elif step.op == "segments":
            is_inside = (target - 1) * step.parameters[0] < source
        _require(is_inside, f"a step {step.op} does not fit {frames} frames")


def _reaches(layer: Layer, program: Program, target: Planes, frames: int) -> bool:
    """Return whether a dense product finds all rows and columns that it reads, or the zeros around them."""
    source = program.resolutions[layer.source.resolution]
    output = program.resolutions[target.resolution]
    halo = program.halo.get(source.columns.divisor, (0, 0))
    sizes = ((output.rows, source.rows), (output.columns(frames), source.columns(frames)))
    for axis, (num_outputs, num_inputs) in enumerate(sizes):
        reach = layer.dilation[axis] * (layer.weight.shape[2 + axis] - 1) - layer.padding[axis]
        if (num_outputs - 1) * layer.strides[axis] + reach >= num_inputs + halo[axis]:
            return False
    return True


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _is_list(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most


def _are_ints(values: Any, count: int) -> bool:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        return False
    return all(isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31 for value in values)
