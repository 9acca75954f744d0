"""The kernels of kernel.cpp, compiled once on this machine and called with the addresses of tensors."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sv_sparse.models.module_checks import has_address
from sv_sparse.optim.cpp.compiler import is_loadable, load_library


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("utterances", "frames", "channels")]


class _Matrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("step", ctypes.c_int64)]


# Types of the kernels' matrices.
TYPES = frozenset({torch.float32, torch.bfloat16})
_COST = "meanwhile torch's operations train the network; a step takes longer, most in bf16"


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        OSError: There is no compiler, it fails, or the cache cannot be written; says how to do without.
    """
    names = ("moments", "affine", "sums", "gradient", "attend", "attend_gradient", "transpose")
    without = "choose trainer.cpu_kernels=false (in Python, leave out cpu_kernels.accelerate), which needs no compiler"
    return load_library(Path(__file__).with_name("train_kernels.cpp"), names, "the network's kernels", without)


@cache
def available() -> bool:
    """Return whether the kernels can be compiled here; the first time, a UserWarning says why not.

    The answer holds for the life of the process: no step compiles anew.
    """
    return is_loadable(library, f"{{error}}; {_COST}")


def rows(x: Tensor) -> Tensor:
    """Return [B, C, H, W] as [B, H·W, C], the channels of a frame side by side; a copy only where they are not."""
    frames = x.permute(0, 2, 3, 1).flatten(1, 2)
    batch, length, channels = frames.shape
    # A stride is arbitrary along an axis of size one. The kernels know one step from a frame to the next, also from the
    # last frame of an utterance to the first of the next.
    is_aligned = frames.stride(2) == 1 or channels == 1
    step = frames.stride(1) if length > 1 else frames.stride(0)
    is_evenly_spaced = batch == 1 or frames.stride(0) == length * step
    if is_aligned and step >= channels and is_evenly_spaced:
        return frames
    return frames.contiguous()


def call(name: str, matrices: tuple[Tensor | None, ...], *small: Tensor, floor: float | None = None) -> None:
    """Call a kernel on matrices [B, T, C] of one type and on float32 rows [C] or [B, C].

    Raises:
        TypeError: they are anything else.
        RuntimeError: one of them has no address, as inside ``torch.vmap``.
    """
    first = matrices[0]
    # A kernel gets addresses and could not tell what lies there.
    if not all(tensor is None or has_address(tensor) for tensor in (*matrices, *small)):
        raise RuntimeError(
            "this network's CPU kernels take neither torch.vmap (is_grads_batched=True) nor subclasses of tensors; "
            "train with trainer.cpu_kernels=false (in Python, without cpu_kernels.accelerate)"
        )
    if first is None or not all(_reads_like(first, matrix) for matrix in matrices if matrix is not None):
        raise TypeError(f"{name}: expected matrices of one shape and type, the channels of a frame side by side")
    if not all(_is_row(first, tensor) for tensor in small):
        raise TypeError(f"{name}: expected contiguous float32 rows, [C] or [B, C]")
    arguments: list[Any] = [ctypes.c_int64(first.dtype == torch.bfloat16), _Shape(*first.shape)]
    for matrix in matrices:
        if matrix is None:
            arguments.append(_Matrix(None, 0))
            continue
        step = matrix.stride(1) if matrix.shape[1] > 1 else matrix.stride(0)
        arguments.append(_Matrix(matrix.data_ptr(), step))
    if floor is not None:
        arguments.append(ctypes.c_float(floor))
    arguments.extend(ctypes.c_void_p(tensor.data_ptr()) for tensor in small)
    getattr(library(), name)(*arguments)


def _reads_like(first: Tensor, matrix: Tensor) -> bool:
    aligned = matrix.stride(2) == 1 or matrix.shape[2] == 1
    fits = matrix.shape == first.shape and matrix.dtype == first.dtype and matrix.dtype in TYPES
    return aligned and fits and matrix.device.type == "cpu"


def _is_row(matrix: Tensor, row: Tensor) -> bool:
    batch, _, channels = matrix.shape
    fits = row.shape in {(channels,), (batch, channels)}
    return fits and row.dtype == torch.float32 and row.is_contiguous() and row.device.type == "cpu"


def image(frames: Tensor) -> Tensor:
    """Return [B, T, C] as [B, C, 1, T]."""
    return frames.unsqueeze(1).permute(0, 3, 1, 2)


def empty_image(frames: Tensor) -> Tensor:
    """Return uninitialized memory for [B, T, C] as [B, C, 1, T], no view, so that hooks may change it in place."""
    batch, length, channels = frames.shape
    shape = batch, channels, 1, length
    return torch.empty(shape, dtype=frames.dtype, device=frames.device, memory_format=torch.channels_last)


def transposed(matrix: Tensor) -> Tensor:
    """Return the transpose of [M, N], for a product over M."""
    # Products in bfloat16 are faster from a contiguous transpose; the kernel moves blocks of 8 by 8.
    if matrix.dtype != torch.bfloat16 or any(size % 8 for size in matrix.shape) or not has_address(matrix):
        return matrix.T
    result = matrix.new_empty(matrix.shape[1], matrix.shape[0])
    shape = ctypes.c_int64(matrix.shape[0]), ctypes.c_int64(matrix.shape[1])
    ends = (_Matrix(each.data_ptr(), each.stride(0)) for each in (matrix, result))
    library().transpose(*shape, *ends)
    return result
