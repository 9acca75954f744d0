"""Operations of torch in the terms of programs."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sv_sparse.export.lowering import Lowering, UnsupportedError, Value
from sv_sparse.export.moments import live_nodes, match_moments
from sv_sparse.export.tracing import Node, TracingError, trace
from sv_sparse.runtime.engine.executor import SparseEngine, uniform_plan
from sv_sparse.runtime.engine.numpy_engine import NumpyEngine
from sv_sparse.runtime.engine.plan import USE_DENSE
from sv_sparse.runtime.engine.program import Float32Array, NoProgramError, Program

Operation = Callable[..., Value]

# Frames, beyond the fewest that are allowed, of the utterances that a new program is tried with; the tile of the sparse
# kernel; and the largest difference of an embedding to the network's, as a fraction of its largest value.
_CHECKED_FRAMES = (0, 1, 250)
_CHECKED_TILE = 8
_TOLERANCE = 1e-3


@torch.no_grad()
def lower(network: nn.Module, mel_bins: int) -> Program:
    """Return the program of a network in evaluation mode.

    Args:
        network: From filterbank [1, F, T] to embedding [1, E].
        mel_bins: F.

    Raises:
        NoProgramError: An operation has no kernel, or the network is too wide for the kernels; the message names the
            operation and its place in the code of the network.
    """
    try:
        traced = trace(network, mel_bins)
    except TracingError as error:
        raise NoProgramError(str(error)) from error
    names = {tensor.untyped_storage().data_ptr(): name for name, tensor in network.named_parameters()}
    lowering = Lowering(traced.source, names)
    for node in live_nodes(match_moments(traced.nodes), traced.output):
        name = node.op.removeprefix("aten.").removesuffix(".default")
        try:
            if name not in OPERATIONS:
                raise UnsupportedError("the sparse kernels have no such operation")
            args = [lowering.values.get(arg, arg) if isinstance(arg, Node) else arg for arg in node.args]
            lowering.define(node, OPERATIONS[name](lowering, node, *args, **node.kwargs))
        except UnsupportedError as error:
            raise NoProgramError(f"{node.place}: {name}: {error}") from error
    program = lowering.program(traced.output, traced.least_frames)
    _check_embedding(network, program)
    return program


def _check_embedding(network: nn.Module, program: Program) -> None:
    """Raise a NoProgramError if a program computes another embedding than its network, by any engine."""
    # A network may do what no rule here foresees. This finds it out, whatever it is.
    engines: list[Callable[[Float32Array], Float32Array]] = [NumpyEngine(program)]
    # Without a compiler only numpy can be tried.
    with suppress(OSError):
        engines += [SparseEngine(program, plan=uniform_plan(program, tile)) for tile in (USE_DENSE, _CHECKED_TILE)]
    generator = torch.Generator().manual_seed(0)
    for added_frames in _CHECKED_FRAMES:
        filterbanks = torch.randn(2, program.mel_bins, program.min_frames + added_frames, generator=generator)
        expected = _embeddings(network, filterbanks)
        if not np.isfinite(expected).all():
            # A logarithm may be taken.
            filterbanks = filterbanks.abs() + 0.1
            expected = _embeddings(network, filterbanks)
        if not np.isfinite(expected).all():
            continue
        for engine in engines:
            if not _are_close(engine(filterbanks.numpy()), expected):
                raise NoProgramError("its program would compute other embeddings; please report the network")


def _embeddings(network: nn.Module, filterbanks: Tensor) -> Float32Array:
    return torch.cat([network(filterbank.unsqueeze(0)) for filterbank in filterbanks]).numpy()


def _are_close(embeddings: Float32Array, expected: Float32Array) -> bool:
    largest = np.abs(expected).max()
    # A constant part must not hide what differs between two utterances.
    difference = expected[0] - expected[1]
    is_near = np.abs(embeddings - expected).max() <= _TOLERANCE * largest
    error = np.abs(embeddings[0] - embeddings[1] - difference).max()
    return bool(is_near and error <= 10 * _TOLERANCE * np.abs(difference).max() + 1e-5 * largest)


def _unary(code: str) -> Operation:
    return lambda lowering, node, x: lowering.unary(x, code)


def _add(lowering: Lowering, node: Node, x: Any, y: Any, alpha: float = 1) -> Value:
    if alpha != 1:
        y = lowering.binary("multiply", y, alpha) if isinstance(y, Value) else y * alpha
    return lowering.binary("add", x, y)


def _subtract(lowering: Lowering, node: Node, x: Any, y: Any, alpha: float = 1) -> Value:
    if alpha != 1:
        raise UnsupportedError("a factor is not known")
    return lowering.binary("subtract", x, y)


def _multiply(lowering: Lowering, node: Node, x: Any, y: Any) -> Value:
    return lowering.binary("multiply", x, y)


def _divide(lowering: Lowering, node: Node, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        raise UnsupportedError("rounding is not known")
    return lowering.binary("divide", x, y)


def _rsub(lowering: Lowering, node: Node, x: Value, y: Any, alpha: float = 1) -> Value:
    if alpha != 1:
        raise UnsupportedError("a factor is not known")
    return lowering.binary("subtract", y, x)


def _addcmul(lowering: Lowering, node: Node, x: Any, y: Any, z: Any, value: float = 1) -> Value:
    product = y * z if isinstance(y, Tensor) and isinstance(z, Tensor) else lowering.binary("multiply", y, z)
    if value != 1:
        product = product * value if isinstance(product, Tensor) else lowering.binary("multiply", product, value)
    return lowering.binary("add", x, product)


def _power(lowering: Lowering, node: Node, x: Value, exponent: float) -> Value:
    if exponent not in (2, 0.5):
        raise UnsupportedError(f"only squares and square roots are known, got the power {exponent}")
    return lowering.unary(x, "square" if exponent == 2 else "square_root")


def _clamp(lowering: Lowering, node: Node, x: Value, min: Any = None, max: Any = None) -> Value:
    for bound, code in ((min, "maximum_constant"), (max, "minimum_constant")):
        if bound is not None:
            if not isinstance(bound, (int, float)):
                raise UnsupportedError("bounds must be numbers")
            x = lowering.unary(x, code, float(bound))
    return x


def _silu(lowering: Lowering, node: Node, x: Value) -> Value:
    return lowering.binary("multiply", x, lowering.unary(x, "sigmoid"))


def _hardsigmoid(lowering: Lowering, node: Node, x: Value) -> Value:
    return lowering.binary("divide", _clamp(lowering, node, lowering.binary("add", x, 3.0), 0, 6), 6.0)


def _hardswish(lowering: Lowering, node: Node, x: Value) -> Value:
    return lowering.binary("multiply", x, _hardsigmoid(lowering, node, x))


def _leaky_relu(lowering: Lowering, node: Node, x: Value, negative_slope: float = 0.01) -> Value:
    positive = lowering.binary("multiply", lowering.unary(x, "relu"), 1 - negative_slope)
    return lowering.binary("add", positive, lowering.binary("multiply", x, negative_slope))


def _prelu(lowering: Lowering, node: Node, x: Value, slope: Tensor) -> Value:
    slope = slope.reshape(-1, *[1] * (len(x.axes) - 2))
    positive = lowering.binary("multiply", lowering.unary(x, "relu"), 1 - slope)
    return lowering.binary("add", positive, lowering.binary("multiply", x, slope))


def _abs(lowering: Lowering, node: Node, x: Value) -> Value:
    negative = lowering.unary(lowering.unary(x, "multiply_constant", -1.0), "relu")
    return lowering.binary("add", lowering.unary(x, "relu"), negative)


def _rsqrt(lowering: Lowering, node: Node, x: Value) -> Value:
    return lowering.unary(lowering.unary(x, "square_root"), "reciprocal")


def _batch_norm(
    lowering: Lowering,
    node: Node,
    x: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    *settings: Any,
) -> Value:
    # Older and newer operations differ in `training`, which they have or not.
    if settings[0] is True:
        raise UnsupportedError("the network must be in evaluation mode")
    scale = (variance.double() + settings[-1]).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    shape = [-1] + [1] * (len(x.axes) - 2)
    return lowering.binary("add", lowering.binary("multiply", x, scale.view(shape)), shift.view(shape))


def _convolution(
    lowering: Lowering,
    node: Node,
    x: Value,
    weight: Any,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    if transposed or not isinstance(weight, Tensor) or weight.ndim > 4:
        raise UnsupportedError("only convolutions of one or two dimensions with constant weights are known")
    is_image = weight.ndim == 4
    mode, before = x.padding or ("zeros", ((0, 0), (0, 0)))
    pads = [(pad, pad) for pad in padding]
    if not is_image:
        weight = weight.unsqueeze(2)
        pads.insert(0, (0, 0))
    x = lowering.as_channels(x, is_image)
    if mode != "zeros" and any(any(pad) for pad in pads):
        raise UnsupportedError("frames are continued in two ways")
    rows = (pads[0][0] + before[0][0], pads[0][1] + before[0][1])
    columns = (pads[1][0] + before[1][0], pads[1][1] + before[1][1])
    return lowering.convolution(
        x,
        weight,
        bias,
        strides=(stride[0] if is_image else 1, stride[-1]),
        padding=(rows, columns),
        dilation=(dilation[0] if is_image else 1, dilation[-1]),
        groups=groups,
        mode=mode,
    )


def _addmm(lowering: Lowering, node: Node, bias: Any, x: Any, weight: Any, beta: float = 1, alpha: float = 1) -> Value:
    if beta != 1 or alpha != 1 or not isinstance(bias, Tensor):
        raise UnsupportedError("only a constant bias is known")
    return _linear(lowering, x, weight, bias)


def _mm(lowering: Lowering, node: Node, x: Any, weight: Any) -> Value:
    return _linear(lowering, x, weight, None)


def _bmm(lowering: Lowering, node: Node, x: Any, weight: Any) -> Value:
    return _linear(lowering, x, weight[0] if isinstance(weight, Tensor) else weight, None)


def _linear(lowering: Lowering, x: Any, weight: Any, bias: Tensor | None) -> Value:
    if not isinstance(x, Value) or not isinstance(weight, Tensor):
        raise UnsupportedError("only products with a constant on the right are known")
    x = lowering.as_planes(x)
    if x.axis_of("plane") not in (len(x.axes) - 1, None) or any(atom.kind != "plane" for atom in x.axes[-1]):
        raise UnsupportedError("only channels can be multiplied by a matrix")
    return lowering.convolution(x, weight.T[:, :, None, None], bias)


def _softmax(lowering: Lowering, node: Node, x: Value, dim: int, half_to_float: bool) -> Value:
    return lowering.softmax(x, dim)


def _reduction(kind: str) -> Operation:
    def reduce(
        lowering: Lowering,
        node: Node,
        x: Value,
        dims: Sequence[int] | None = None,
        keepdim: bool = False,
        dtype: Any = None,
    ) -> Value:
        return lowering.reduction(kind, x, dims or [], keepdim)

    return reduce


def _variance(
    lowering: Lowering,
    node: Node,
    x: Value,
    dims: Sequence[int] | None = None,
    keepdim: bool = False,
    correction: float | None = None,
) -> Value:
    if not isinstance(keepdim, bool):
        raise UnsupportedError("an older form of the operation")
    correction = 1 if correction is None else correction
    return lowering.reduction("variance", x, dims or [], keepdim, correction)


def _deviation(lowering: Lowering, node: Node, x: Value, dims: Any = None, **settings: Any) -> Value:
    return lowering.unary(_variance(lowering, node, x, dims, **settings), "square_root")


def _variance_and_mean(lowering: Lowering, node: Node, x: Value, dims: Any = None, **settings: Any) -> Value:
    if node.index == 1:
        return lowering.reduction("mean", x, dims or [], settings.get("keepdim", False))
    compute = _variance if node.op.startswith("aten.var") else _deviation
    return compute(lowering, node, x, dims, **settings)


def _attended(
    lowering: Lowering,
    node: Node,
    x: Value,
    scores: Value,
    weights: tuple[Node],
    dims: Sequence[int],
    keepdim: bool,
) -> Value:
    key = (node.args[0], weights[0])
    return lowering.attended(x, scores, key, node.op == "core.attended_variance", dims, keepdim)


def _cat(lowering: Lowering, node: Node, tensors: Sequence[Any], dim: int = 0) -> Value:
    if not all(isinstance(tensor, Node) for tensor in tensors):
        raise UnsupportedError("constants cannot be put side by side with what is computed")
    return lowering.concatenation([lowering.values[tensor] for tensor in tensors], dim)


def _slice(
    lowering: Lowering, node: Node, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    size = node.args[0].shape[dim]
    return lowering.sliced(x, dim, 0 if start is None else start, size if end is None else end, step)


def _select(lowering: Lowering, node: Node, x: Value, dim: int, index: int) -> Value:
    index = index if index >= 0 else index + node.args[0].shape[dim]
    part = lowering.sliced(x, dim, index, index + 1)
    axes = list(part.axes)
    del axes[dim % len(axes)]
    return part.viewed(axes)


def _split(lowering: Lowering, node: Node, x: Value, sizes: Any, dim: int = 0) -> Value:
    size = node.args[0].shape[dim]
    if not isinstance(sizes, list):
        start = node.index * sizes
        return lowering.sliced(x, dim, start, np.minimum(start + sizes, size))
    start = sum(sizes[: node.index])
    return lowering.sliced(x, dim, start, start + sizes[node.index])


def _reshape(lowering: Lowering, node: Node, x: Value, *_shape: Any) -> Value:
    return lowering.reshaped(x, node.shape)


def _permute(lowering: Lowering, node: Node, x: Value, dims: Sequence[int]) -> Value:
    return x.viewed([x.axes[dim] for dim in dims])


def _transpose(lowering: Lowering, node: Node, x: Value, first: int, second: int) -> Value:
    dims = list(range(len(x.axes)))
    dims[first], dims[second] = dims[second], dims[first]
    return _permute(lowering, node, x, dims)


def _expand(lowering: Lowering, node: Node, x: Value, sizes: Any, implicit: bool = False) -> Value:
    return lowering.expanded(x, node.shape)


def _cast(lowering: Lowering, node: Node, x: Value, **_settings: Any) -> Value:
    raise UnsupportedError("only float32 is known")


def _constant_pad(lowering: Lowering, node: Node, x: Value, pad: Sequence[int], value: float = 0) -> Value:
    if value != 0:
        raise UnsupportedError("only zeros and mirror images can continue frames")
    return lowering.padded(x, pad, "zeros", node.shape)


def _reflection_pad(lowering: Lowering, node: Node, x: Value, pad: Sequence[int]) -> Value:
    return lowering.padded(x, pad, "reflect", node.shape)


def _replication_pad(lowering: Lowering, node: Node, x: Value, pad: Sequence[int]) -> Value:
    return lowering.padded(x, pad, "edge", node.shape)


def _average_pool(
    lowering: Lowering,
    node: Node,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Value:
    rows = kernel[:-1]
    is_of_frames = all(size == 1 for size in rows) and list(stride or kernel)[-1] == kernel[-1]
    if not is_of_frames or any(padding) or divisor is not None:
        raise UnsupportedError("only means of segments of frames side by side are known")
    return lowering.segments(x, kernel[-1], ceil_mode)


OPERATIONS: dict[str, Operation] = {
    **{name: _unary(name) for name in ("relu", "sigmoid", "tanh", "reciprocal")},
    "exp": _unary("exponential"),
    "log": _unary("logarithm"),
    "sqrt": _unary("square_root"),
    "square": _unary("square"),
    "rsqrt": _rsqrt,
    "abs": _abs,
    "neg": lambda lowering, node, x: lowering.unary(x, "multiply_constant", -1.0),
    "pow.Tensor_Scalar": _power,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda lowering, node, x, bound: _clamp(lowering, node, x, None, bound),
    "hardtanh": lambda lowering, node, x, low=-1, high=1: _clamp(lowering, node, x, low, high),
    "silu": _silu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "leaky_relu": _leaky_relu,
    "_prelu_kernel": _prelu,
    "add.Tensor": _add,
    "add.Scalar": _add,
    "sub.Tensor": _subtract,
    "sub.Scalar": _subtract,
    "rsub.Scalar": _rsub,
    "rsub.Tensor": _rsub,
    "mul.Tensor": _multiply,
    "mul.Scalar": _multiply,
    "div.Tensor": _divide,
    "div.Scalar": _divide,
    "addcmul": _addcmul,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "convolution": _convolution,
    "addmm": _addmm,
    "mm": _mm,
    "bmm": _bmm,
    "_softmax": _softmax,
    "mean": _reduction("mean"),
    "mean.dim": _reduction("mean"),
    "core.mean": _reduction("mean"),
    "sum": _reduction("sum"),
    "sum.dim_IntList": _reduction("sum"),
    "amax": _reduction("largest"),
    "var.correction": _variance,
    "std.correction": _deviation,
    "var_mean.correction": _variance_and_mean,
    "std_mean.correction": _variance_and_mean,
    "core.variance": _variance,
    "core.attended_mean": _attended,
    "core.attended_variance": _attended,
    "cat": _cat,
    "slice.Tensor": _slice,
    "select.int": _select,
    "split.Tensor": _split,
    "split_with_sizes": _split,
    "view": _reshape,
    "reshape": _reshape,
    "unsqueeze": _reshape,
    "squeeze": _reshape,
    "squeeze.dim": _reshape,
    "squeeze.dims": _reshape,
    "permute": _permute,
    "transpose.int": _transpose,
    "t": lambda lowering, node, x: _transpose(lowering, node, x, 0, 1) if len(x.axes) == 2 else x,
    "expand": _expand,
    "_to_copy": _cast,
    "constant_pad_nd": _constant_pad,
    "reflection_pad1d": _reflection_pad,
    "reflection_pad2d": _reflection_pad,
    "replication_pad1d": _replication_pad,
    "replication_pad2d": _replication_pad,
    "avg_pool1d": _average_pool,
    "avg_pool2d": _average_pool,
}
