"""Bregman optimizers and the controllers that steer them to a target sparsity; imports only torch.

In your own training loop::

    groups = partition(model)
    sparse_init_(groups)                  # leave out for pretrained weights, and take lr=3e-3
    optimizer = AdaBreg(groups, lr=1e-2)
    controller = FeedbackController(optimizer, target_sparsity=0.9, total_steps=steps)
    ...
    optimizer.step(); controller.step()   # at every update
    ...
    controller.land()                     # once, at the end: exactly the target
"""

from sv_sparse.optim.average import DualAverage
from sv_sparse.optim.clip import clip_grad_norm_
from sv_sparse.optim.control import Controller, FixedController, largest_start
from sv_sparse.optim.diagnostics import SupportDiagnostics
from sv_sparse.optim.exact import MagnitudeController, QuantileController
from sv_sparse.optim.feedback import DampedFeedbackController, DecayingFeedbackController, FeedbackController
from sv_sparse.optim.methods import AdaBreg, LinBreg
from sv_sparse.optim.optimizer import BregmanOptimizer
from sv_sparse.optim.partition import (
    DENSE_TYPES,
    SPARSE_TYPES,
    count_zeros,
    describe,
    partition,
    sparse_init_,
    sparsity,
)
from sv_sparse.optim.proxsgd import ProxSGD
from sv_sparse.optim.schedule import warmup_exponential

__all__ = [
    "DENSE_TYPES",
    "SPARSE_TYPES",
    "AdaBreg",
    "BregmanOptimizer",
    "Controller",
    "DampedFeedbackController",
    "DecayingFeedbackController",
    "DualAverage",
    "FeedbackController",
    "FixedController",
    "LinBreg",
    "MagnitudeController",
    "ProxSGD",
    "QuantileController",
    "SupportDiagnostics",
    "clip_grad_norm_",
    "count_zeros",
    "describe",
    "largest_start",
    "partition",
    "sparse_init_",
    "sparsity",
    "warmup_exponential",
]

PaperController, GradualMagnitudePruning = DecayingFeedbackController, MagnitudeController  # TEMP
