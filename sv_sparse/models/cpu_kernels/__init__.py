"""Optional CPU kernels for training: ``accelerate`` brings them into a model; model files are plain torch."""

from sv_sparse.models.cpu_kernels.modules import accelerate

__all__ = ["accelerate"]
