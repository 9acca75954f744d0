"""The kernels of kernel.cpp, compiled once on this machine for processors like its own."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sv_sparse.optim.cpp.compiler import load_library

OPERATIONS = (
    *("convolve", "finish", "copy", "phases", "mirror", "means"),
    *("statistics", "attend", "excite", "load", "store"),
)
ACTIVATIONS = ("none", "relu", "tanh", "sigmoid")
WIDEST_TILE = 12  # vectors
MOST_TAPS, MOST_CHANNELS = 255, (1 << 16) - 1
ENTRY = np.dtype([("code", np.uint32), ("weight", np.float32)])

_FAST = ("-march=native", "-ffp-contract=fast")


class Level(ctypes.Structure):
    """Where the planes of one resolution lie; numbers of float32 values. See kernel.cpp."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "cols", "stride", "lead", "plane", "base")]


class Step(ctypes.Structure):
    """One operation of a program. See kernel.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("op", "rows", "in_level", "in_plane", "out_level", "out_plane")),
        *((name, ctypes.c_int32) for name in ("add_plane", "more_plane", "onward_plane", "bias_plane")),
        *((name, ctypes.c_int32) for name in ("inner", "outer", "tile", "taps")),
        *((name, ctypes.c_float) for name in ("first", "second")),
        *((name, ctypes.c_void_p) for name in ("starts", "entries", "offsets", "bias", "scale", "shift")),
    ]


@cache
def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        OSError: there is no compiler, it fails, or the cache cannot be written; says how to do without.
    """
    without = "choose engine=torch, which needs no compiler and is slower"
    source = Path(__file__).with_name("sparse_kernels.cpp")
    return load_library(source, ("run_steps", "clear_around"), "the kernels for sparse networks", without, _FAST)


def run_steps(steps: Any, levels: Any, arena: Tensor, threads: int, filterbank: Tensor, output: Tensor) -> None:
    """Run steps of a program on one utterance, in place on ``arena`` and ``output``.

    Args:
        steps: a ctypes array of Step.
        levels: a ctypes array of Level.
        arena: float32, as large as the levels say.
        threads: at most so many.
        filterbank: [F, T], float32 and contiguous.
        output: [E], float32 and contiguous.
    """
    ends = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (filterbank, output))
    count, place = ctypes.c_int64(len(steps)), ctypes.c_void_p(arena.data_ptr())
    library().run_steps(steps, count, levels, place, ctypes.c_int64(threads), *ends)


def clear_around(levels: Any, planes: Sequence[int], arena: Tensor) -> None:
    """Write the zeros around all planes, of which each level has so many."""
    counts = (ctypes.c_int64 * len(planes))(*planes)
    library().clear_around(levels, counts, ctypes.c_int64(len(planes)), ctypes.c_void_p(arena.data_ptr()))


def address(array: NDArray[np.generic] | None) -> int | None:
    """Of an array's values, for a field of a Step; the array must outlive it."""
    return None if array is None else array.ctypes.data
