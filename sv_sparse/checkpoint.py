"""What is saved of a run, and how: atomically, as tensors and plain data, read back strictly.

``last.pt`` holds everything that resuming needs, ``epoch_0003.pt`` the same after the third epoch. A network file
(``model.pt``, ``best.pt``) holds what using the network needs: its weights, the resolved configuration, and the figures
it was saved with.
"""

import io
import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sv_sparse.io import atomic_write, compare_zip_sums

FORMAT = 5
TRAINING_KEYS = {
    "format", "config", "model", "head", "optimizer", "controller", "scaler",
    "diagnostics", "progress", "rng_states", "best", "untrained_metrics", "sparse_init",
}  # fmt: skip
NETWORK_KEYS = {"format", "config", "model", "backend", "metrics"}

# What torch.load and zipfile raise for files that were cut off or changed at random: found by trying.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),  # the last two where the name of a compression is damaged
    *(RuntimeError, EOFError, OSError, UnpicklingError, struct.error, AssertionError),
    *(LookupError, ValueError, TypeError, AttributeError),
)


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
    try:
        with path.open("rb") as file:  # one file, whatever takes its name meanwhile
            compare_zip_sums(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        first = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {first}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a checkpoint")
    if state.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {state.get('format')}, and this version reads {FORMAT}; sv-sparse 0.1 reads 4")
    if keys == NETWORK_KEYS and set(state) == TRAINING_KEYS:
        raise ValueError(
            f"{path} is what a run continues from, not a network that was delivered; those are model.pt and best.pt"
        )
    if keys == TRAINING_KEYS and set(state) == NETWORK_KEYS:
        raise ValueError(f"{path} is a network file, with which no training continues; init_from=RUN starts from it")
    if set(state) != keys:
        raise ValueError(f"{path} lacks {sorted(keys - set(state))} and has unknown {sorted(set(state) - keys)}")
    return state
