"""Environment of a run: versions, commit, hardware and command."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sv_sparse import __version__
from sv_sparse.distributed import world_size

_PACKAGES = ("torch", "torchaudio", "speechbrain", "hydra-core", "numpy", "soundfile", "scikit-learn")


def environment() -> dict[str, Any]:
    """Return what a figure depends on beside the settings, as plain data."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "sv-sparse": __version__,
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _commit() -> str | None:
    """Return the source's commit, marked where files differ from it; None where the source is in no checkout."""
    if shutil.which("git") is None or _git("ls-files", "--error-unmatch", __file__) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=40")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None
