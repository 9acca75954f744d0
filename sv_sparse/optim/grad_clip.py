"""Gradient clipping by the norm over nonzero weights."""

from collections.abc import Iterable
from numbers import Real

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sv_sparse.optim.bregman_optimizer import BACKENDS
from sv_sparse.optim.cpp import bindings
from sv_sparse.optim.validation import require

CLIP_SCOPES = ("support", "all")
# Values of one pass: on a CPU its intermediate results stay in the cache.
_CHUNK_SIZE = 2**17


@torch.no_grad()
def clip_grad_norm_(
    params: Tensor | Iterable[Tensor],
    max_norm: float,
    *,
    scope: str = "support",
    sparse_params: Iterable[Tensor] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Scale the gradients in place so that their global norm is at most ``max_norm``.

    torch's norm counts the gradients of zero weights too: at 99 % sparsity that shrinks the steps of nonzero weights
    several times. The norm over the support counts gradients of nonzero weights only; every gradient is scaled all
    the same.

    Args:
        params: parameters whose gradients to clip.
        max_norm: largest norm, above 0.
        scope: gradients that the norm counts: ``"support"`` or ``"all"``. Default: support.
        sparse_params: parameters that have a support, such as ``controller.params``; all gradients of others count.
            None: those with two axes or more. Default: None.
        backend: that of the optimizer. With ``"auto"`` and ``"cpp"`` a kernel takes float32 on the CPU in one pass, and
            rounds otherwise than torch does. Default: auto.

    Returns:
        The norm before clipping, 0-dim on the device. An infinite gradient of a zero weight makes it NaN, since the
        dual variable of that weight would be lost (DECISIONS 45).

    Raises:
        ValueError: ``scope`` or ``backend`` is none of its choices, or ``max_norm`` is not positive.
        OSError: ``backend="cpp"`` and the kernel cannot be compiled; says how to do without.

    >>> weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0]]))
    >>> weight.grad = torch.tensor([[3.0, 4.0]])
    >>> clip_grad_norm_([weight], max_norm=1.5)
    tensor(3.)
    >>> weight.grad
    tensor([[1.5000, 2.0000]])
    """
    require(scope in CLIP_SCOPES, "clip scope", scope, f"one of {', '.join(CLIP_SCOPES)}")
    require(isinstance(max_norm, Real) and max_norm > 0, "max_norm", max_norm, "a number above 0")
    require(backend in BACKENDS, "backend", backend, f"one of {', '.join(BACKENDS)}")
    params = [params] if isinstance(params, Tensor) else params
    pairs = [(param, param.grad) for param in params if param.grad is not None]
    if scope == "all":
        with_support = set()
    elif sparse_params is None:
        with_support = {param for param, _ in pairs if param.ndim > 1}
    else:
        with_support = set(sparse_params)
    is_on_cpu = any(param.device.type == "cpu" for param in with_support)
    use_cpp = is_on_cpu and not torch.compiler.is_compiling() and bindings.is_selected(backend)
    norm = _total_norm(pairs, with_support, use_cpp=use_cpp)
    clip_grads_with_norm_([param for param, _ in pairs], max_norm, norm)
    return norm


def _total_norm(pairs: list[tuple[Tensor, Tensor]], with_support: set[Tensor], *, use_cpp: bool) -> Tensor:
    """Return the norm of gradients; of parameters with a support, of the gradients of nonzero weights.

    Args:
        pairs: parameters and gradients.
        with_support: parameters that have a support.
        use_cpp: use the kernel for what it supports.
    """
    # The norm of norms is the norm of all.
    norms_or_grads: list[Tensor] = []
    kernel_params: list[Tensor] = []
    kernel_grads: list[Tensor] = []
    for param, grad in pairs:
        if param not in with_support:
            norms_or_grads.append(grad)
        elif use_cpp and bindings.supports_pair(param, grad):
            kernel_params.append(param)
            kernel_grads.append(grad)
        else:
            norms_or_grads += _support_norms(param, grad)
    if kernel_params:
        norms_or_grads.append(bindings.support_norm(kernel_params, kernel_grads))
    return get_total_norm(norms_or_grads)


def _support_norms(param: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the norms of the gradients of nonzero weights in chunks of rows, by torch's operations."""
    chunks = [(param, grad)]
    if param.ndim and param.device.type == "cpu":
        num_rows = max(1, _CHUNK_SIZE * len(param) // max(1, param.numel()))
        chunks = list(zip(param.split(num_rows), grad.split(num_rows), strict=True))
    norms = []
    for weight_rows, grad_rows in chunks:
        # five times as fast as torch.where on a CPU
        norms.append(torch.linalg.vector_norm(weight_rows.clone().ne_(0).mul_(grad_rows)))
    return norms
