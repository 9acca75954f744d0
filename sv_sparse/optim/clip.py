"""Gradient clipping that knows about sparsity."""

from collections.abc import Iterable, Iterator
from numbers import Real

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sv_sparse.optim import native
from sv_sparse.optim.checks import check
from sv_sparse.optim.optimizer import IMPLEMENTATIONS

CLIP_CHOICES = ("support", "all")
_PIECE = 2**17  # values


@torch.no_grad()
def clip_grad_norm_(
    params: Tensor | Iterable[Tensor],
    max_norm: float,
    *,
    on: str = "support",
    sparse: Iterable[Tensor] | None = None,
    implementation: str = "auto",
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
        implementation: that of the optimizer. With all but ``"compile"`` and ``"foreach"`` a kernel takes what is on
            the CPU in float32 in one pass, and rounds otherwise than torch does.

    Returns:
        The norm before clipping, 0-dim on the device.

    Raises:
        ValueError: ``on`` or ``implementation`` is none of its choices, or ``max_norm`` is not positive.
        OSError: the kernel cannot be compiled, and ``"auto"`` was not asked for; says how to do without.
    """
    check(on in CLIP_CHOICES, "clip on", on, f"one of {', '.join(CLIP_CHOICES)}")
    check(isinstance(max_norm, Real) and max_norm > 0, "max_norm", max_norm, "a number above 0")
    check(implementation in IMPLEMENTATIONS, "implementation", implementation, f"one of {', '.join(IMPLEMENTATIONS)}")
    params = [params] if isinstance(params, Tensor) else params
    live = [(param, param.grad) for param in params if param.grad is not None]
    with_support = {param for param, _ in live if param.ndim > 1} if sparse is None else set(sparse)
    supported = with_support if on == "support" else set()
    on_cpu = any(param.device.type == "cpu" for param in supported)
    by_kernel = on_cpu and not torch.compiler.is_compiling() and native.takes_over(implementation)
    norm = _norm(live, supported, by_kernel=by_kernel)
    clip_grads_with_norm_([param for param, _ in live], max_norm, norm)
    return norm


def _norm(live: list[tuple[Tensor, Tensor]], supported: set[Tensor], *, by_kernel: bool) -> Tensor:
    """Of the gradients; where a parameter has a support, of those in it."""
    counted: list[Tensor] = []
    quick: list[tuple[Tensor, Tensor]] = []
    for param, grad in live:
        if param not in supported:
            counted.append(grad)
        elif by_kernel and native.fits(param, grad):
            quick.append((param, grad))
        else:
            counted += [_support_norm(*piece) for piece in _pieces(param, grad)]
    if quick:
        counted.append(native.support_norm(*zip(*quick, strict=True)))
    return get_total_norm(counted)


def _support_norm(param: Tensor, grad: Tensor) -> Tensor:
    """The gradient's norm where the weight is not zero, by torch; five times as fast as torch.where on a CPU."""
    return torch.linalg.vector_norm(param.clone().ne_(0).mul_(grad))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of tensors of one shape, on a CPU few enough that what is computed from them stays in its cache."""
    first = tensors[0]
    few = max(1, _PIECE * len(first) // max(1, first.numel())) if first.ndim and first.device.type == "cpu" else 0
    return zip(*(tensor.split(few) if few else [tensor] for tensor in tensors), strict=True)
