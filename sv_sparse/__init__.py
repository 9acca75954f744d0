"""Speaker-verification networks that end exactly as sparse as asked, in one run.

The names below are imported when they are first used::

    from sv_sparse import AdaBreg, FeedbackController, param_groups, sparse_init_  # needs only torch
    from sv_sparse import Verifier  # uses an exported network
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sv_sparse.optim import AdaBreg, FeedbackController, LinBreg, param_groups, sparse_init_
    from sv_sparse.runtime.verifier import Verifier

__version__ = "0.2.0"
__all__ = ["AdaBreg", "FeedbackController", "LinBreg", "Verifier", "__version__", "param_groups", "sparse_init_"]

_MODULES = {
    "AdaBreg": "sv_sparse.optim",
    "FeedbackController": "sv_sparse.optim",
    "LinBreg": "sv_sparse.optim",
    "Verifier": "sv_sparse.runtime.verifier",
    "param_groups": "sv_sparse.optim",
    "sparse_init_": "sv_sparse.optim",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a user of the optimizer does not import the runtime."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
