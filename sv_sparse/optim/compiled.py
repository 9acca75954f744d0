"""The functions of bregman.py under torch.compile: update, read-out and count in a few kernels, for any device.

Learning rate and lambda are 0-dim tensors here, so that a change of either compiles nothing again. The first step
of each group compiles, which takes from seconds (GPU) to a minute (CPU).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sv_sparse.optim import bregman
from sv_sparse.optim.bregman import ReadOut


def _adabreg(params: list[Tensor], *state: list[Tensor], read_out: tuple[Tensor, float], **settings: Any) -> Tensor:
    bregman.adabreg(params, *state, fused=False, **settings)
    return _finish(params, state[1], read_out)


def _linbreg(params: list[Tensor], *state: list[Tensor], read_out: tuple[Tensor, float], **settings: Any) -> Tensor:
    bregman.linbreg(params, *state, fused=False, **settings)  # type: ignore[arg-type]  # the buffers exist
    return _finish(params, state[1], read_out)


def _finish(params: list[Tensor], duals: list[Tensor], read_out: tuple[Tensor, float]) -> Tensor:
    lambda_, delta = read_out
    ReadOut(lambda_, delta).write(params, duals)
    return torch.stack([torch.count_nonzero(param) for param in params])


@functools.cache
def adabreg() -> Callable[..., Tensor]:
    """AdaBreg's step; takes the lists of ``bregman.adabreg``, its settings, and ``read_out=(lambda_, delta)``.

    Returns the nonzero weights of each parameter, int64.
    """
    return torch.compile(_adabreg, fullgraph=True, dynamic=False)


@functools.cache
def linbreg() -> Callable[..., Tensor]:
    """LinBreg's step, likewise."""
    return torch.compile(_linbreg, fullgraph=True, dynamic=False)
