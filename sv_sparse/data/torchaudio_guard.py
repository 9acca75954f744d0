"""Import of torchaudio beside a CPU-only torch, for SpeechBrain and other toolkits; nothing here needs it.

Import this in place of ``import torchaudio``; afterwards ``import speechbrain`` works as well. DECISIONS 1

>>> from sv_sparse.data.torchaudio_guard import torchaudio
>>> torchaudio.transforms.Resample(9, 10).new_freq
10
"""

import importlib
import sys
import traceback
from types import ModuleType

_PACKAGE = "torchaudio"
_EXTENSION = "torchaudio._extension"


def _stand_in() -> ModuleType:
    """Return a module with the names that torchaudio reads from its extension, all saying that there is none."""
    module = ModuleType(_EXTENSION, "Stands in for a compiled extension that cannot be loaded.")
    vars(module).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        fail_if_no_align=lambda function: function,
    )
    return module


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _import_torchaudio() -> ModuleType:
    """Import torchaudio, without its compiled extension where that cannot be loaded.

    Raises:
        ModuleNotFoundError: torchaudio is not installed.
        OSError, RuntimeError: the import failed elsewhere than in loading the extension.
    """
    try:
        return importlib.import_module(_PACKAGE)
    except (OSError, RuntimeError) as error:
        # A missing library, or one built for another CUDA. torchaudio 2.11 on PyPI is built for CUDA.
        frames = traceback.walk_tb(error.__traceback__)
        if not any(_is_within(frame.f_globals.get("__name__", ""), _EXTENSION) for frame, _ in frames):
            raise
    # Modules of the failed import are incomplete.
    for name in [name for name in sys.modules if _is_within(name, _PACKAGE)]:
        del sys.modules[name]
    # Most of torchaudio is plain torch and needs no extension.
    sys.modules[_EXTENSION] = _stand_in()
    return importlib.import_module(_PACKAGE)


torchaudio = _import_torchaudio()
