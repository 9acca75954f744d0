"""Bindings of optim_kernels.cpp: the kernels are called with the addresses of tensors.

By gcc on Linux the library holds code for several generations of processors and selects one when loaded, so that
machines may share a cache. On macOS it uses one thread.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.cpp.compiler import is_loadable, load_library
from sv_sparse.optim.memory import empty_float32, has_same_strides, is_non_overlapping_and_dense, is_plain

SOURCE = Path(__file__).with_name("optim_kernels.cpp")
_FUNCTIONS = ("adabreg", "linbreg", "kth_largest", "support_norm", "sample")
_HINT = 'choose backend="foreach", which needs no compiler and is slower'
_FALLBACK_WARNING = (
    "backend='auto' takes torch's own operations: the same results but for rounding, and a step takes about twice as "
    "long. {error}"
)

Tensors = Sequence[Tensor]


@functools.cache
def library() -> ctypes.CDLL:
    """Return the optimizer's compiled kernels.

    Raises:
        OSError: there is no compiler, it fails, or the cache cannot be written; says how to do without.
    """
    return load_library(SOURCE, _FUNCTIONS, "the optimizer's kernels", _HINT)


@functools.cache
def _is_available() -> bool:
    return is_loadable(library, _FALLBACK_WARNING)


def is_loaded() -> bool:
    """Return whether this process has loaded the kernels already."""
    return library.cache_info().currsize > 0


def is_selected(backend: str) -> bool:
    """Return whether a backend uses the kernels for parameters on the CPU.

    Warns:
        UserWarning: the backend is ``"auto"`` and the kernels cannot be compiled; once in a process.
    """
    return backend == "cpp" or (backend == "auto" and _is_available())


def supports(tensor: Tensor) -> bool:
    """Return whether the kernels take this tensor: float32 on the CPU, without gaps in memory."""
    is_float32_on_cpu = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return is_float32_on_cpu and is_plain(tensor) and is_non_overlapping_and_dense(tensor)


def supports_pair(param: Tensor, other: Tensor) -> bool:
    """Return whether the kernels take this parameter with a dual variable or gradient of the same memory layout."""
    if not supports(param):
        return False
    return param is other or (supports(other) and has_same_strides(param, other))


def adabreg(
    params: Tensors,
    grads: Tensors,
    duals: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    state_steps: Tensors,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    maximize: bool,
    penalty: str,
    lambda_: float,
    delta: float,
) -> Tensor:
    """Make a step of AdaBreg with the l1 or l0 penalty, in place; a parameter that is its own dual takes Adam's.

    Returns:
        Nonzero weights of each parameter, int64 [len(params)]; 0 for those that are their own dual variable.
    """
    lists = (params, grads, duals, exp_avgs, exp_avg_sqs, state_steps)
    sign = -1 if maximize else 1
    return _call(library().adabreg, lists, (lr, *betas, eps, weight_decay, sign, penalty == "l0", lambda_, delta))


def linbreg(
    params: Tensors,
    grads: Tensors,
    duals: Tensors,
    momentum_buffers: Tensors,
    *,
    is_first: bool,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    penalty: str,
    lambda_: float,
    delta: float,
) -> Tensor:
    """Make a step of LinBreg with the l1 or l0 penalty, in place.

    Args:
        params: weights.
        grads: gradients.
        duals: dual variables.
        momentum_buffers: buffers; any tensors without momentum.
        is_first: the buffers are zero and take the whole gradient, as torch.optim.SGD's do.
        lr: as in ``functional.linbreg``, as all that follows.
        momentum: factor on the buffer.
        dampening: fraction of the gradient that does not enter the buffer.
        nesterov: use Nesterov's momentum.
        weight_decay: factor on the weights.
        maximize: ascend instead of descend.
        penalty: of weights that are not their own dual variables, ``"l1"`` or ``"l0"``; any where all are.
        lambda_: strength of the penalty.
        delta: elastic-net parameter.

    Returns:
        Nonzero weights of each parameter, as ``adabreg`` does.
    """
    lists = (params, grads, duals, momentum_buffers)
    buffer_factor = 0 if is_first else momentum
    grad_factor = 1 if is_first else 1 - dampening
    sign = -1 if maximize else 1
    numbers = (lr, buffer_factor, momentum, grad_factor, nesterov, weight_decay, sign, penalty == "l0", lambda_, delta)
    return _call(library().linbreg, lists, numbers)


def kth_largest(tensors: Sequence[tuple[Tensor, float]], rank: int) -> Tensor:
    """Return two order statistics of ``|v| / scale`` over all pairs of a tensor v and its scale, float32 [2].

    The first is the value of rank ``rank`` from the top, 0 for the largest. The second is the next larger one;
    infinity for rank 0.
    """
    result = empty_float32(2)
    scales = (ctypes.c_float * len(tensors))(*[scale for _, scale in tensors])
    out = ctypes.c_void_p(result.data_ptr())
    library().kth_largest(*_pack_arguments([tensor for tensor, _ in tensors]), scales, ctypes.c_int64(rank), out)
    return result


def support_norm(params: Tensors, grads: Tensors) -> Tensor:
    """Return the norm of the gradients of nonzero weights, 0-dim float32; pairs are as ``supports_pair`` takes them."""
    result = empty_float32()
    library().support_norm(*_pack_arguments(params, grads), ctypes.c_void_p(result.data_ptr()))
    return result


def sample(params: Tensors, num_rows: int, num_columns: int) -> Tensor:
    """Return values of weights as a vector: all of small ones, of a large one those of ``num_rows`` places.

    Args:
        params: tensors that the kernels support.
        num_rows: places in a large weight, 2 or more; the last is at its end.
        num_columns: values in a place.
    """
    result = empty_float32(sum(min(param.numel(), num_rows * num_columns) for param in params))
    sizes = ctypes.c_int64(num_rows), ctypes.c_int64(num_columns)
    library().sample(*_pack_arguments(params), *sizes, ctypes.c_void_p(result.data_ptr()))
    return result


def _pack_arguments(*lists: Tensors) -> list[Any]:
    """Return what every kernel takes first: length of the lists, sizes of the tensors, addresses of each list."""
    length = len(lists[0])
    sizes = (ctypes.c_int64 * length)(*[tensor.numel() for tensor in lists[0]])
    arguments: list[Any] = [ctypes.c_int64(length), sizes]
    for tensors in lists:
        arguments.append((ctypes.c_void_p * length)(*[tensor.data_ptr() for tensor in tensors]))
    return arguments


def _call(function: Any, lists: Sequence[Tensors], numbers: Sequence[float]) -> Tensor:
    """Call an update kernel; return the nonzero weights of each parameter."""
    counts = torch.empty(len(lists[0]), dtype=torch.int64, device="cpu")
    doubles = [ctypes.c_double(number) for number in numbers]
    function(*_pack_arguments(*lists), *doubles, ctypes.c_void_p(counts.data_ptr()))
    for index, tensors in enumerate(lists):
        # Gradients are only read.
        if index != 1:
            torch.autograd.graph.increment_version(tensors)
    return counts
