"""Checkpoint files: written atomically, as tensors and plain data, and read back strictly.

``last.pt`` holds everything that resuming needs, ``epoch_0003.pt`` the same after the third epoch. ``teacher.pt`` holds
the network as it was at the start, where it teaches the run.
A network file (``model.pt``, ``best.pt``) holds what using the network needs: its weights, the
settings of its run, the back-end that scores its embeddings, and the metrics when it was saved.
"""

import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from sv_sparse.io import atomic_write, verify_crc

FORMAT = 5
TRAINING_KEYS = {
    "format", "config", "model", "head", "optimizer", "controller", "scaler",
    "diagnostics", "progress", "rng_states", "best", "untrained_metrics", "sparse_init", "teacher",
}  # fmt: skip
# Names that files of version 0.2 do not have, and what that means.
_ADDED_TRAINING_KEYS = {"teacher": None}
NETWORK_KEYS = {"format", "config", "model", "backend", "metrics"}
TEACHER_KEYS = {"format", "config", "model"}

# Errors of torch.load and zipfile for files that were cut off or changed at random: a list from experiments. That of
# lzma comes where the name of the compression is damaged.
CORRUPT_FILE_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, UnpicklingError, struct.error, AssertionError, AttributeError,
    EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a reader sees the complete old file or the complete new one.

    Args:
        path: file to write; its folder must exist.
        state: tensors and plain data by the names in TRAINING_KEYS, NETWORK_KEYS or TEACHER_KEYS, without ``format``.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.pt"
    >>> save(path, {"config": {}, "model": {"weight": torch.ones(2)}, "backend": {}, "metrics": {}})
    >>> load(path, NETWORK_KEYS)["model"]["weight"]
    tensor([1., 1.])
    """
    # By way of memory: torch turns a failing write into an error that does not name the cause.
    buffer = io.BytesIO()
    torch.save(state | {"format": FORMAT}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path, keys: set[str]) -> dict[str, Any]:
    """Read a file that ``save`` wrote, onto the CPU: tensors and plain data by name.

    Args:
        path: the file.
        keys: names that it must hold, no more and no less: TRAINING_KEYS, NETWORK_KEYS or TEACHER_KEYS.

    Raises:
        ValueError: the file is missing, damaged, of another format, or holds other names.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    try:
        # Opened once: both reads see the same file even if another process replaces it.
        with path.open("rb") as file:
            verify_crc(file)
            file.seek(0)
            # weights_only: a checkpoint is data and runs no code.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except CORRUPT_FILE_ERRORS as error:
        first_line = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {first_line}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a checkpoint")
    if "format" not in state:
        raise ValueError(
            f"{path} is no network of sv-sparse; of weights of other toolkits, sv-sparse train init_from={path} "
            f"target_sparsity=0 trainer.max_steps=0 makes one"
        )
    if state["format"] != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}; sv-sparse 0.1 reads 4"
        )
    if "optimizer" in state:
        state = _ADDED_TRAINING_KEYS | state
    names = set(state)
    if keys == NETWORK_KEYS and names == TRAINING_KEYS:
        raise ValueError(f"{path} is a checkpoint to resume from, not a network file; those are model.pt and best.pt")
    if keys == TRAINING_KEYS and names == NETWORK_KEYS:
        raise ValueError(f"{path} is a network file, from which no run resumes; init_from=RUN starts from it")
    if names != keys:
        raise ValueError(f"{path} lacks {sorted(keys - names)} and has unknown {sorted(names - keys)}")
    return state


def weights_digest(weights: Mapping[str, Tensor]) -> bytes:
    """Return a checksum of a state dict's names and values, 16 bytes; it is the same on every device.

    >>> weights_digest({"weight": torch.ones(2)}).hex()[:8]
    '9bd7eaab'
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in weights.items():
        digest.update(name.encode())
        # As bytes, since numpy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
