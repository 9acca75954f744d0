"""Gradient clipping that knows about sparsity."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

CLIP_CHOICES = ("support", "all")


@torch.no_grad()
def clip_grad_norm_(params: Tensor | Iterable[Tensor], max_norm: float, *, on: str = "support") -> Tensor:
    """Scale the gradients in place so that their global norm is at most ``max_norm``.

    Over ``all`` gradients the norm counts those of zero weights too: at 99 % sparsity this shrinks the live weights'
    steps several times. On the ``support`` it counts only gradients of nonzero weights; every gradient is scaled all
    the same. Parameters with fewer than two axes (biases, gains) always count: they are never regularized.

    Returns:
        The norm before clipping, 0-dim on the device.

    Raises:
        ValueError: ``on`` is neither choice, or ``max_norm`` is not positive.
    """
    if on not in CLIP_CHOICES:
        raise ValueError(f"clip on must be one of {', '.join(CLIP_CHOICES)}, got {on!r}")
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    params = [params] if isinstance(params, Tensor) else params
    live = [(param, param.grad) for param in params if param.grad is not None]
    counted = [grad * (param != 0) if on == "support" and param.ndim > 1 else grad for param, grad in live]
    norm = get_total_norm(counted)
    clip_grads_with_norm_([param for param, _ in live], max_norm, norm)
    return norm
