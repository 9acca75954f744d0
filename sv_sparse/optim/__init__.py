"""Bregman optimizers and the controllers that lead them to a target sparsity; imports only torch.

In your own training loop::

    groups = param_groups(model)
    sparse_init_(groups)
    optimizer = AdaBreg(groups, lr=1e-2)
    controller = FeedbackController(optimizer, target_sparsity=0.9, total_steps=steps)
    ...
    optimizer.step(); controller.step()   # at every update
    ...
    controller.finalize()                 # once, at the end: exactly the target

For pretrained weights: ``param_groups(model, penalty="l0")``, no ``sparse_init_``, and ``lr=1e-3``.

To change the rule of lambda, read controllers/base.py, controllers/log_lambda.py and controllers/feedback.py. A rule of
your own is a subclass of LogLambdaController with one method. The formulas of the optimizers are in functional.py.
"""

from sv_sparse.optim.adabreg import AdaBreg
from sv_sparse.optim.averaging import DualAverage
from sv_sparse.optim.bregman_optimizer import BregmanOptimizer
from sv_sparse.optim.controllers import (
    Controller,
    FeedbackController,
    FixedController,
    GradualMagnitudePruning,
    LogLambdaController,
    PaperController,
    QuantileController,
    largest_initial_lambda,
)
from sv_sparse.optim.diagnostics import SupportDiagnostics
from sv_sparse.optim.grad_clip import clip_grad_norm_
from sv_sparse.optim.groups import (
    DENSE_TYPES,
    SPARSE_TYPES,
    count_zeros,
    param_groups,
    sparse_init_,
    sparsity,
    summary_table,
)
from sv_sparse.optim.linbreg import LinBreg
from sv_sparse.optim.lr_scheduler import warmup_decay
from sv_sparse.optim.proxsgd import ProxSGD

__all__ = [
    "DENSE_TYPES",
    "SPARSE_TYPES",
    "AdaBreg",
    "BregmanOptimizer",
    "Controller",
    "DualAverage",
    "FeedbackController",
    "FixedController",
    "GradualMagnitudePruning",
    "LinBreg",
    "LogLambdaController",
    "PaperController",
    "ProxSGD",
    "QuantileController",
    "SupportDiagnostics",
    "clip_grad_norm_",
    "count_zeros",
    "largest_initial_lambda",
    "param_groups",
    "sparse_init_",
    "sparsity",
    "summary_table",
    "warmup_decay",
]
