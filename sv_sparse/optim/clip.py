"""Gradient clipping that knows about sparsity."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

CLIP_CHOICES = ("support", "all")


@torch.no_grad()
def clip_grad_norm_(
    params: Tensor | Iterable[Tensor], max_norm: float, *, on: str = "support", sparse: Iterable[Tensor] | None = None
) -> Tensor:
    """Scale the gradients in place so that their global norm is at most ``max_norm``.

    Over ``all`` gradients the norm counts those of zero weights too: at 99 % sparsity this shrinks the live weights'
    steps several times. On the ``support`` it counts only gradients of nonzero weights; every gradient is scaled all
    the same.

    Args:
        params: whose gradients to clip.
        max_norm: above 0.
        on: ``"support"`` or ``"all"``.
        sparse: the parameters that have a support, ``controller.params`` for instance; all gradients of others count.
            None: those with two axes or more.

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
    chosen = {param for param, _ in live if param.ndim > 1} if sparse is None else set(sparse)
    counted = [
        torch.where(param != 0, grad, 0.0) if on == "support" and param in chosen else grad for param, grad in live
    ]
    norm = get_total_norm(counted)
    clip_grads_with_norm_([param for param, _ in live], max_norm, norm)
    return norm
