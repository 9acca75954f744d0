"""CPU kernels for training."""

from torch import nn

from sv_sparse.models.cpu_kernels.fused import prepare


def accelerate(model: nn.Module, enabled: bool | str = "auto") -> None:
    prepare(model)
