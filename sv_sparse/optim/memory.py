"""Say how tensors lie in memory, which kernels walk by address."""

import torch
from torch import Tensor, nn

PLAIN_TYPES = (Tensor, nn.Parameter)  # subclasses may hold no memory of their own


def is_plain(tensor: Tensor) -> bool:
    """Return whether a kernel may walk this tensor's memory: no subclass, no lazy negation, strided."""
    return type(tensor) in PLAIN_TYPES and tensor.layout == torch.strided and not tensor.is_neg()


def empty_float32(*shape: int) -> Tensor:
    """Return uninitialized float32 on the CPU, whatever type and device are torch's default."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def same_layout(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors of one shape walk memory alike; the stride of an axis of size 1 says nothing."""
    if first.stride() == second.stride():
        return True
    axes = zip(first.shape, first.stride(), second.stride(), strict=True)
    return all(size == 1 or left == right for size, left, right in axes)


def fills_memory(tensor: Tensor) -> bool:
    """Return whether the tensor's values fill a stretch of memory, in whatever order of axes."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
