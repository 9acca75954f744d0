"""Bindings of sparse_kernels.cpp, which is compiled once on this machine for processors like its own."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sv_sparse.optim.cpp.compiler import load_library

# Their numbers are their places here, as in the enumerations of sparse_kernels.cpp.
# fmt: off
OPERATIONS = (
    "convolve", "elementwise", "copy", "phases", "extend", "reduce", "softmax", "attend", "segments", "scalar", "load",
    "store",
)
ACTIONS = (
    "store_plane", "add_constant", "multiply_constant", "add_relu", "multiply_add", "add_relu_multiply_add",
    "add_vector", "subtract_vector", "multiply_vector", "divide_vector", "add_scalar", "multiply_scalar",
    "add_plane", "subtract_plane", "multiply_plane", "divide_plane", "minimum_constant", "maximum_constant",
    "relu", "sigmoid", "tanh", "square", "square_root", "exponential", "logarithm", "reciprocal",
)
# fmt: on
# How many constants some actions read for each output channel; others with constants read one.
FUSED_CONSTANTS = {"add_relu": 1, "multiply_add": 2, "add_relu_multiply_add": 3}
REDUCTIONS = ("mean", "sum", "variance", "largest")
# Vectors of outputs that stay in registers.
MAX_TILE = 12
# An entry's code has 16 bits for the input channel; the kernel has room for 256 taps.
MAX_CHANNELS = (1 << 16) - 1
MAX_TAPS = 255
ENTRY = np.dtype([("code", np.uint32), ("weight", np.float32)])
ACTION = np.dtype([("code", np.int32), ("argument", np.int32)])
NUM_PARAMETERS = 4

# fmt: off
_INT_FIELDS = (
    "op", "rows", "in_resolution", "in_plane", "out_resolution", "out_plane", "tile", "num_taps", "num_actions",
)
# fmt: on
Float32Array = NDArray[np.float32]

# Unlike the optimizer's kernels, these need not give the same bits on every processor.
_COMPILER_FLAGS = ("-march=native", "-ffp-contract=fast")


class PlaneLayout(ctypes.Structure):
    """Memory layout of the planes of one resolution; see sparse_kernels.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "cols", "stride", "margin", "plane_stride", "base")]


class Step(ctypes.Structure):
    """One operation of a program; see sparse_kernels.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in _INT_FIELDS),
        ("parameters", ctypes.c_int32 * NUM_PARAMETERS),
        ("numbers", ctypes.c_float * NUM_PARAMETERS),
        *((name, ctypes.c_void_p) for name in ("starts", "entries", "offsets", "sources", "actions", "constants")),
    ]


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels, or raise OSError, which says how to do without a compiler."""
    source = Path(__file__).with_name("sparse_kernels.cpp")
    hint = "choose engine=numpy, which needs no compiler and is slower"
    functions = ("run_steps", "clear_margins")
    kernels = load_library(source, functions, "the kernels for sparse networks", hint, _COMPILER_FLAGS)
    # Untyped, a Python integer would be passed as 32 bits.
    number = ctypes.c_int64
    pointer = ctypes.c_void_p
    kernels.run_steps.argtypes = (pointer, number, pointer, pointer, number, pointer, pointer)
    kernels.clear_margins.argtypes = (pointer, pointer, number, pointer)
    return kernels


def run_steps(
    steps: Any, layouts: Any, memory: Float32Array, threads: int, filterbank: Float32Array, output: Float32Array
) -> None:
    """Run steps on one utterance, from ``filterbank`` [F, T] to ``output`` [E], all float32 and contiguous.

    ``steps`` and ``layouts`` are ctypes arrays of Step and PlaneLayout; ``memory`` is as large as the layouts say.
    """
    library().run_steps(
        steps, len(steps), layouts, memory.ctypes.data, threads, filterbank.ctypes.data, output.ctypes.data
    )


def clear_margins(layouts: Any, num_planes: Sequence[int], memory: Float32Array) -> None:
    """Write the zeros around all planes, of which each resolution has so many."""
    counts = (ctypes.c_int64 * len(num_planes))(*num_planes)
    library().clear_margins(layouts, counts, len(counts), memory.ctypes.data)
