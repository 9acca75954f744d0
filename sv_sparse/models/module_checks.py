"""Tests of whether code here may compute in place of a module's own ``forward``.

Others put hooks on modules, reparametrize or replace them, and run them under torch's transforms. A kernel that
reads ``conv.weight`` would skip all that. So it stands in only for torch's own modules, untouched, on ordinary tensors.
"""

from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from sv_sparse.optim.memory import PLAIN_TYPES

_WITH_NEW_OUTPUT = (nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Linear)
_Kind = TypeVar("_Kind", bound=nn.Module)


def is_ordinary(x: Tensor) -> bool:
    """Return whether ``x`` is a plain tensor in eager mode, at which nothing but autograd looks.

    It is False while torch compiles, exports or traces, inside torch.func's transforms, in forward-mode
    differentiation, under modes that see each operation (fake tensors, counters of operations), and for subclasses.
    """
    return (
        not torch.compiler.is_compiling()
        and has_address(x)
        and not torch._C._len_torch_dispatch_stack()
        and not _in_function_mode()
        and not torch.jit.is_tracing()
        and forward_ad._current_level < 0
    )


def has_address(x: Tensor) -> bool:
    """Return whether a tensor's values lie where it says: it is no subclass, and in none of torch.func's transforms."""
    return (
        type(x) in PLAIN_TYPES
        and not torch._C._are_functorch_transforms_active()
        # is_grads_batched=True makes such tensors.
        and not torch._C._functorch.is_legacy_batchedtensor(x)
    )


def _in_function_mode() -> bool:
    """Return whether a mode sees torch's functions; that of a default device changes nothing here."""
    if not torch._C._len_torch_function_stack():
        return False
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())


def is_untouched(module: nn.Module, kind: type[_Kind]) -> TypeGuard[_Kind]:
    """Return whether a module is exactly of this class, without hooks and with the class's own ``forward``.

    Parametrizations change a module's class. The older weight_norm, spectral_norm and prune are hooks.
    """
    return (
        type(module) is kind
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and "forward" not in module.__dict__
        and not torch_module._has_any_global_hook()
    )


def is_trained(module: nn.Module) -> bool:
    """Return whether a module has a weight and a bias, plain float32 parameters on the CPU that are to be trained.

    Under ``torch.func.functional_call`` they may be tensors of other kinds, and under FSDP no parameters at all.
    """
    return _is_trained(module._parameters.get("weight")) and _is_trained(module._parameters.get("bias"))


def _is_trained(parameter: Tensor | None) -> bool:
    return (
        type(parameter) is nn.Parameter
        and parameter.requires_grad
        and parameter.dtype == torch.float32
        and parameter.device.type == "cpu"
        and parameter.layout == torch.strided
    )


def moves_steadily(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    """Return whether a batch norm is in training, with running statistics in float32 that move by its momentum."""
    return (
        norm.training
        and norm.momentum is not None
        and _is_statistic(norm.running_mean)
        and _is_statistic(norm.running_var)
        and type(norm.num_batches_tracked) is Tensor
    )


def _is_statistic(buffer: Tensor | None) -> bool:
    return type(buffer) is Tensor and buffer.dtype == torch.float32 and buffer.device.type == "cpu"


def keeps_frames(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is over time alone, of all channels, and gives as many frames as come in."""
    return (
        conv.groups == 1
        and conv.stride == (1, 1)
        and conv.kernel_size[0] == 1
        and not isinstance(conv.padding, str)
        and conv.padding[0] == 0
        and 2 * conv.padding[1] == conv.dilation[1] * (conv.kernel_size[1] - 1)
    )


def relu_after(module: nn.Module, x: Tensor) -> Tensor:
    """Return ``relu(module(x))``.

    It is computed in place where the module's output is nobody else's. A hook may hold it, and a module put in
    another's place may return its own input or a view of it.

    Args:
        module: A convolution, batch norm or linear layer of torch, or what stands in its place.
        x: Its input.
    """
    return F.relu(module(x), inplace=not torch.compiler.is_compiling() and _owns_output(module))


def _owns_output(module: nn.Module) -> bool:
    return any(is_untouched(module, kind) for kind in _WITH_NEW_OUTPUT)
