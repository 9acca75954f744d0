"""Bindings of sparse_kernels.cpp, which is compiled once on this machine for processors like its own."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sv_sparse.optim.cpp.compiler import load_library

# The numbers of operations and activations are their places here, as in the enumerations of sparse_kernels.cpp.
# fmt: off
OPERATIONS = (
    "convolve", "epilogue", "copy", "phases", "mirror", "means", "statistics", "attend", "excite", "load", "store",
)
# fmt: on
ACTIVATIONS = ("none", "relu", "tanh", "sigmoid")
# Vectors of outputs that stay in registers.
MAX_TILE = 12
# An entry's code has 16 bits for the input channel; the kernel has room for 256 taps.
MAX_CHANNELS = (1 << 16) - 1
MAX_TAPS = 255
ENTRY = np.dtype([("code", np.uint32), ("weight", np.float32)])

# fmt: off
_INT_FIELDS = (
    "op", "rows", "in_resolution", "in_plane", "out_resolution", "out_plane", "add_plane", "add_to_next_plane",
    "next_input_plane", "bias_plane", "pre_activation", "post_activation", "tile", "taps", "mirror_width",
)
# fmt: on
# Unlike the optimizer's kernels, these need not give the same bits on every processor.
_COMPILER_FLAGS = ("-march=native", "-ffp-contract=fast")


class PlaneLayout(ctypes.Structure):
    """Memory layout of the planes of one resolution; see sparse_kernels.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "cols", "stride", "margin", "plane_stride", "base")]


class Step(ctypes.Structure):
    """One operation of a program; see sparse_kernels.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in _INT_FIELDS),
        *((name, ctypes.c_float) for name in ("correction", "min_variance")),
        *((name, ctypes.c_void_p) for name in ("starts", "entries", "offsets", "bias", "scale", "shift")),
    ]


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels, or raise OSError, which says how to do without a compiler."""
    source = Path(__file__).with_name("sparse_kernels.cpp")
    hint = "choose engine=torch, which needs no compiler and is slower"
    functions = ("run_steps", "clear_margins")
    kernels = load_library(source, functions, "the kernels for sparse networks", hint, _COMPILER_FLAGS)
    # Untyped, a Python integer would be passed as 32 bits.
    number = ctypes.c_int64
    pointer = ctypes.c_void_p
    kernels.run_steps.argtypes = (pointer, number, pointer, pointer, number, pointer, pointer)
    kernels.clear_margins.argtypes = (pointer, pointer, number, pointer)
    return kernels


def run_steps(steps: Any, layouts: Any, memory: Tensor, threads: int, filterbank: Tensor, output: Tensor) -> None:
    """Run steps on one utterance, from ``filterbank`` [F, T] to ``output`` [E], all float32 and contiguous.

    ``steps`` and ``layouts`` are ctypes arrays of Step and PlaneLayout; ``memory`` is as large as the layouts say.
    """
    library().run_steps(
        steps, len(steps), layouts, memory.data_ptr(), threads, filterbank.data_ptr(), output.data_ptr()
    )


def clear_margins(layouts: Any, num_planes: Sequence[int], memory: Tensor) -> None:
    """Write the zeros around all planes, of which each resolution has so many."""
    counts = (ctypes.c_int64 * len(num_planes))(*num_planes)
    library().clear_margins(layouts, counts, len(counts), memory.data_ptr())
