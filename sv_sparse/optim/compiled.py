"""The functions of bregman.py under torch.compile: update, read-out and count in a few kernels, for any device.

Learning rate, lambda and betas are 0-dim tensors here, so that a change of them compiles nothing again. The first step
of each parameter group compiles, which takes from seconds to a minute. A change of LinBreg's momentum, or of weight
decay, compiles anew; the compiler allows eight of these.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim import bregman
from sv_sparse.optim.bregman import ReadOut


def _adabreg(
    params: list[Tensor], *state: list[Tensor], read_out: tuple[Tensor, float, str], **settings: Any
) -> Tensor:
    bregman.adabreg(params, *state, fused=False, **settings)
    return _finish(params, state[1], read_out)


def _linbreg(
    params: list[Tensor], *state: list[Tensor], read_out: tuple[Tensor, float, str], **settings: Any
) -> Tensor:
    bregman.linbreg(params, *state, fused=False, **settings)  # type: ignore[arg-type]  # the buffers exist
    return _finish(params, state[1], read_out)


def _finish(params: list[Tensor], duals: list[Tensor], read_out: tuple[Tensor, float, str]) -> Tensor:
    ReadOut(*read_out).write(params, duals)
    return torch.stack([torch.count_nonzero(param) for param in params])


def adabreg() -> Callable[..., Tensor]:
    """A compiled AdaBreg step; it takes the lists of ``bregman.adabreg`` and its settings.

    ``read_out`` are the first three of ReadOut. It returns the nonzero weights of each parameter, int64.
    """
    return _compiled(_adabreg)


def linbreg() -> Callable[..., Tensor]:
    """A compiled LinBreg step, likewise."""
    return _compiled(_linbreg)


def _compiled(function: Any) -> Callable[..., Tensor]:
    """Compile with a code object of its own: the compiler counts recompilations per code object, and allows few."""
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    return torch.compile(own, fullgraph=True)
