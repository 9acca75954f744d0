"""What is saved of a run, and how: atomically, as tensors and plain data, read back strictly.

``last.pt`` holds everything that resuming needs. A network file (``model.pt``, ``best.pt``) holds what using the
network needs: its weights, the resolved configuration, and the figures it was saved with.
"""

import io
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sv_sparse.storage import atomic_write

FORMAT = 2
TRAINING_KEYS = {
    "format", "config", "model", "head", "optimizer", "controller",
    "diagnostics", "progress", "generators", "best", "at_start", "started_sparse",
}  # fmt: skip
NETWORK_KEYS = {"format", "config", "model", "mean", "figures"}


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` under a temporary name, sync, rename: a reader finds the old file or the new one, whole.

    Raises:
        OSError: it cannot be written (a full disk, say); the old file stands.
    """
    buffer = io.BytesIO()  # torch would turn a failing write into an error of its own that names no cause
    torch.save(state | {"format": FORMAT}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path, keys: set[str]) -> dict[str, Any]:
    """Read a file that ``save`` wrote, onto the CPU.

    Args:
        path: the file.
        keys: what it must hold, no more and no less: TRAINING_KEYS or NETWORK_KEYS.

    Raises:
        ValueError: it is missing, damaged, of another format, or holds other keys; names the file.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a readable checkpoint: damaged, or another kind of file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: {str(error).splitlines()[0]}") from error
    if state.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {state.get('format')}, this version reads {FORMAT}")
    if set(state) != keys:
        raise ValueError(f"{path} lacks {sorted(keys - set(state))} and has unknown {sorted(set(state) - keys)}")
    return state
