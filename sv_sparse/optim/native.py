"""The update kernels of kernel.cpp, compiled once on this machine and called with the addresses of tensors.

The compiler is ``$CXX``, or ``g++``; the library is kept in ``$XDG_CACHE_HOME/sv-sparse/native`` (``~/.cache/…``)
under a name that tells source, compiler and kind of machine apart. By gcc on Linux it holds code for several
generations of processors and chooses when loaded, so that machines may share a cache. On macOS it uses one thread.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim.checks import warn
from sv_sparse.optim.memory import empty_float32, fills_memory, is_plain, same_layout

SOURCE = Path(__file__).with_name("kernel.cpp")
_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
PORTABLE = ("-ffp-contract=off",)  # the same bits on every processor
_THREADS = [] if sys.platform == "darwin" else ["-fopenmp"]

Tensors = Sequence[Tensor]


def fits(param: Tensor, other: Tensor) -> bool:
    """Return whether the kernels take this weight: float32 on the CPU, without gaps, laid out like ``other``."""
    if not (param.device.type == "cpu" and param.dtype == torch.float32 and is_plain(param)):
        return False
    if param is not other:
        alike = other.device.type == "cpu" and other.dtype == torch.float32 and is_plain(other)
        if not alike or not same_layout(param, other):
            return False
    return fills_memory(param)


def takes_over(implementation: str) -> bool:
    """Return whether the kernels are to be used for parameters on the CPU.

    Warns:
        UserWarning: ``"auto"``, and they cannot be compiled; once in a process.
    """
    return implementation in {"fused", "native"} or (implementation == "auto" and _available())


def is_loaded() -> bool:
    """Return whether somebody in this process has needed the kernels, and could have them."""
    return library.cache_info().currsize > 0


@functools.cache
def _available() -> bool:
    return loads(
        library,
        "implementation='auto' takes torch's own operations: the same results but for rounding, and a step takes "
        "about twice as long. {error}",
    )


def loads(load: Callable[[], ctypes.CDLL], message: str) -> bool:
    """Return whether kernels can be had here.

    Args:
        load: compiles and loads them, or raises OSError.
        message: UserWarning where they cannot; ``{error}`` in it is why.
    """
    try:
        load()
    except OSError as error:
        warn(message.format(error=error))
        return False
    return True


def adabreg(
    params: Tensors,
    grads: Tensors,
    duals: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    maximize: bool,
    lambda_: float,
    delta: float,
) -> Tensor:
    """AdaBreg's update and read-out, in place; a dual that is the parameter itself is Adam's parameter.

    Returns:
        The nonzero weights of each parameter, int64; 0 for those that are their own dual.
    """
    lists = (params, grads, duals, exp_avgs, exp_avg_sqs, steps)
    numbers = (lr, *betas, eps, weight_decay, -1 if maximize else 1, lambda_, delta)
    return _call(library().adabreg, lists, numbers)


def linbreg(
    params: Tensors,
    grads: Tensors,
    duals: Tensors,
    momentum_buffers: Tensors,
    *,
    fresh: bool,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    lambda_: float,
    delta: float,
) -> Tensor:
    """LinBreg's update and read-out, in place; ``fresh`` buffers are zero and take the whole gradient.

    Returns:
        As ``adabreg``.
    """
    lists = (params, grads, duals, momentum_buffers)
    keep = 1 if fresh else 1 - dampening
    numbers = (
        lr,
        0 if fresh else momentum,
        momentum,
        keep,
        nesterov,
        weight_decay,
        -1 if maximize else 1,
        lambda_,
        delta,
    )
    return _call(library().linbreg, lists, numbers)


def readable(dual: Tensor) -> bool:
    """Return whether ``largest`` takes this tensor."""
    return dual.device.type == "cpu" and dual.dtype == torch.float32 and is_plain(dual) and fills_memory(dual)


def largest(duals: Sequence[tuple[Tensor, float]], rank: int) -> Tensor:
    """Two values of ``|dual| / scale``, over all pairs of dual and scale, [2].

    The first is the one that ``rank`` others exceed or equal, the second the next above it; infinity for rank 0.
    """
    result = empty_float32(2)
    scales = (ctypes.c_float * len(duals))(*[scale for _, scale in duals])
    out = ctypes.c_void_p(result.data_ptr())
    library().largest(*_handed_over([dual for dual, _ in duals]), scales, ctypes.c_int64(rank), out)
    return result


def support_norm(params: Tensors, grads: Tensors) -> Tensor:
    """The norm of the gradients of nonzero weights, 0-dim; each pair laid out alike (``fits``)."""
    result = empty_float32()
    library().support_norm(*_handed_over(params, grads), ctypes.c_void_p(result.data_ptr()))
    return result


def sample(params: Tensors, rows: int, columns: int) -> Tensor:
    """Return values of float32 weights as a vector: all of small ones, of large ones those of a few places.

    Args:
        params: plain tensors on the CPU that fill their memory.
        rows: places in a large weight, 2 or more; the last is at its end.
        columns: values in a place.
    """
    result = empty_float32(sum(min(param.numel(), rows * columns) for param in params))
    numbers = ctypes.c_int64(rows), ctypes.c_int64(columns)
    library().sample(*_handed_over(params), *numbers, ctypes.c_void_p(result.data_ptr()))
    return result


def _handed_over(*lists: Tensors) -> list[Any]:
    """Lists of one length and equal sizes as every kernel takes them: how many, their sizes, the addresses of each."""
    count = len(lists[0])
    sizes = (ctypes.c_int64 * count)(*[tensor.numel() for tensor in lists[0]])
    addresses = [(ctypes.c_void_p * count)(*[tensor.data_ptr() for tensor in tensors]) for tensors in lists]
    return [ctypes.c_int64(count), sizes, *addresses]


def _call(function: Any, lists: Sequence[Tensors], numbers: Sequence[float]) -> Tensor:
    """Hand over the addresses; returns the counts."""
    counts = torch.empty(len(lists[0]), dtype=torch.int64, device="cpu")
    doubles = [ctypes.c_double(number) for number in numbers]
    function(*_handed_over(*lists), *doubles, ctypes.c_void_p(counts.data_ptr()))
    changed = [tensor for index, tensors in enumerate(lists) if index != 1 for tensor in tensors]  # all but gradients
    torch.autograd.graph.increment_version(changed)
    return counts


@functools.cache
def library() -> ctypes.CDLL:
    """The optimizer's compiled kernels.

    Raises:
        OSError: there is no compiler, it fails, or the cache cannot be written; says how to do without.
    """
    functions = ("adabreg", "linbreg", "largest", "support_norm", "sample")
    return compiled(SOURCE, functions, "the optimizer's kernels", _WITHOUT)


_WITHOUT = 'choose implementation="foreach", which needs no compiler and is slower'


def compiled(
    source: Path, functions: Sequence[str], what: str, without: str, flags: Sequence[str] = PORTABLE
) -> ctypes.CDLL:
    """A source's functions, which return nothing; compiled first where this source and compiler have not met.

    Args:
        source: of C++.
        functions: their names.
        what: they are, for an error.
        without: what else the user can do.
        flags: of the compiler, beside those that all kernels have. ``-march=native`` makes a library for processors
            like this one.

    Raises:
        OSError: there is no compiler, it fails, or the cache cannot be written; says how to do without.
    """
    help_ = f"install g++ (or set CXX), or {without}"
    setting = os.environ.get("CXX") or "g++"
    try:
        compiler = shlex.split(setting)
    except ValueError as error:
        raise OSError(f"CXX={setting!r} is no command ({error}); {help_}") from error
    try:
        version = _run([*compiler, "--version"])
        about = repr([sys.platform, platform.machine(), _FLAGS, *flags, _THREADS]).encode()
        macros = _run([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])  # all that is known of the processor
        key = hashlib.sha256(b"\0".join([version, macros, source.read_bytes(), about]))
        path = _cache() / f"kernel-{key.hexdigest()[:16]}.so"
        if not path.is_file():
            _compile([*compiler, *_FLAGS, *flags, *_THREADS], source, path)
        loaded = ctypes.CDLL(str(path))
        for name in functions:
            getattr(loaded, name).restype = None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-500:]
        raise OSError(f"{' '.join(compiler)} failed: {said}; {help_}") from error
    # RuntimeError: there is no home for the cache; AttributeError: what was compiled is not our library
    except (OSError, RuntimeError, AttributeError) as error:
        raise OSError(f"{what} cannot be compiled with {' '.join(compiler)}: {error}; {help_}") from error
    return loaded


def _run(words: Sequence[str]) -> bytes:
    """What a command prints; out of reach of the terminal's Ctrl-C, which this program answers in its own time."""
    return subprocess.run(words, capture_output=True, check=True, start_new_session=True).stdout


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sv-sparse" / "native"


def _compile(compiler: Sequence[str], source: Path, path: Path) -> None:
    """Compile to a temporary name and rename: several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        _run([*compiler, "-o", str(temporary), str(source)])
        temporary.replace(path)
