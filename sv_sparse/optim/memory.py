"""Memory layout of tensors, which the C++ kernels walk by address."""

import torch
from torch import Tensor, nn

# A subclass may hold no memory of its own.
PLAIN_TYPES = (Tensor, nn.Parameter)


def is_plain(tensor: Tensor) -> bool:
    """Return whether a kernel may walk this tensor's memory: no subclass, no lazy negation, strided."""
    return type(tensor) in PLAIN_TYPES and tensor.layout == torch.strided and not tensor.is_neg()


def empty_float32(*shape: int) -> Tensor:
    """Return uninitialized float32 on the CPU, whatever type and device are torch's default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def has_same_strides(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors of one shape walk memory alike; the stride of an axis of size 1 does not count."""
    if first.stride() == second.stride():
        return True
    axes = zip(first.shape, first.stride(), second.stride(), strict=True)
    return all(size == 1 or first_stride == second_stride for size, first_stride, second_stride in axes)


def is_non_overlapping_and_dense(tensor: Tensor) -> bool:
    """Return whether the tensor's values fill one stretch of memory, in any order of axes."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def match_layout(tensor: Tensor, template: Tensor) -> Tensor:
    """Return a tensor in another's precision, device and memory layout: fused kernels walk both in storage order.

    Args:
        tensor: of the shape of ``template``; returned itself where nothing has to change.
        template: usually the dual variable.
    """
    is_walkable = torch.compiler.is_compiling() or is_plain(tensor)
    same_type = tensor.dtype == template.dtype and tensor.device == template.device
    if is_walkable and same_type and has_same_strides(tensor, template):
        return tensor
    return torch.empty_like(template).copy_(tensor)
