"""Import of torchaudio beside a CPU-only torch, for SpeechBrain and other toolkits; nothing here needs it.

torchaudio 2.11 on PyPI is built for CUDA: beside a CPU-only torch its compiled extension cannot be loaded, and
``import torchaudio`` fails, like everything that imports it (SpeechBrain does). Most of it is plain torch and
needs no extension. If, and only if, loading the extension fails, this module registers a stand-in that says "not
available", and imports torchaudio again.

Import this in place of ``import torchaudio``; afterwards ``import speechbrain`` works as well.

>>> from sv_sparse.data.torchaudio_guard import torchaudio
>>> torchaudio.transforms.Resample(9, 10).new_freq
10
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_PACKAGE = "torchaudio"
_EXTENSION = "torchaudio._extension"


def _stand_in() -> ModuleType:
    """Return a module with the names that torchaudio reads from its extension, all saying that there is none."""
    module = ModuleType(_EXTENSION, "Stands in for a compiled extension that cannot be loaded.")
    attributes: dict[str, bool | Callable[..., Any]] = {
        "_IS_TORCHAUDIO_EXT_AVAILABLE": False,
        "_IS_ALIGN_AVAILABLE": False,
        "_check_cuda_version": lambda: None,
        "fail_if_no_align": lambda function: function,
    }
    vars(module).update(attributes)
    return module


def _raised_in_extension(error: BaseException) -> bool:
    """Return True if the error passed through the extension's own loading code."""
    traceback = error.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__", "")
        if name == _EXTENSION or name.startswith(f"{_EXTENSION}."):
            return True
        traceback = traceback.tb_next
    return False


def _import_torchaudio() -> ModuleType:
    """Import torchaudio, without its compiled extension where that cannot be loaded.

    Raises:
        ModuleNotFoundError: torchaudio is not installed.
        OSError, RuntimeError: the import failed elsewhere than in loading the extension.
    """
    try:
        return importlib.import_module(_PACKAGE)
    except (OSError, RuntimeError) as error:  # a missing library; a library built for another CUDA
        if not _raised_in_extension(error):
            raise
    # Modules of the failed import are incomplete.
    for name in [name for name in sys.modules if name == _PACKAGE or name.startswith(f"{_PACKAGE}.")]:
        del sys.modules[name]
    sys.modules[_EXTENSION] = _stand_in()
    return importlib.import_module(_PACKAGE)


torchaudio = _import_torchaudio()
