"""Controllers: they lead a run to its target sparsity, by lambda or by masks. log_lambda.py is where to begin one."""

from sv_sparse.optim.controllers.base import Controller, largest_initial_lambda
from sv_sparse.optim.controllers.feedback import FeedbackController
from sv_sparse.optim.controllers.fixed import FixedController
from sv_sparse.optim.controllers.log_lambda import LogLambdaController
from sv_sparse.optim.controllers.magnitude import GradualMagnitudePruning
from sv_sparse.optim.controllers.paper import PaperController
from sv_sparse.optim.controllers.quantile import QuantileController

__all__ = [
    "Controller",
    "FeedbackController",
    "FixedController",
    "GradualMagnitudePruning",
    "LogLambdaController",
    "PaperController",
    "QuantileController",
    "largest_initial_lambda",
]
