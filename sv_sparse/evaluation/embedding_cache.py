"""Embeddings that were computed before, on disk: by the network's weights, and by the audio.

A folder for each state of a network, in it files of some thousand embeddings each, which are written whole or not at
all. What is there is never wrong, so the folder can be copied, and removed at any time.
"""

import hashlib
import os
import secrets
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sv_sparse.data.manifest import Part
from sv_sparse.io import atomic_write, verify_crc
from sv_sparse.scoring.cosine import Array

EMBEDDINGS = "embeddings"  # of a run folder
_KEY_BYTES = 16
# Of this package, what makes embeddings.
_SOURCES = ("evaluation/embed.py", "data/audio.py", "data/decoding.py", "data/layout.py", "models/**/*.py")
# What zipfile, zlib and numpy raise for damaged bytes, the last two where a header names what they do not know.
_DAMAGED = (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error)
_SECONDS = 10  # between files; what is younger is lost when the process is killed


class EmbeddingCache:
    """Embeddings of one network, found by the audio.

    Audio is known by its files' path, size and time of change, not by its content. Several processes may use
    a cache at once.

    Args:
        folder: of all networks' embeddings, e.g. ``RUN/embeddings``; made when something is kept.
        network: whose embeddings they are; its weights are read now.
        model: its settings, of which ``implementation`` does not count.
    """

    def __init__(self, folder: Path, network: nn.Module, model: Mapping[str, Any]) -> None:
        self.folder = folder / _name_of(network, model)
        self._waiting: dict[bytes, Array] = {}
        self._written = time.monotonic()

    def find(self, utterances: Sequence[Sequence[Part]]) -> dict[int, Array]:
        """The embeddings [E] of those utterances that are there, by position.

        Raises:
            ValueError: a file in the cache is damaged; names it.
        """
        stored = self._read()
        keys = (_key(parts) for parts in utterances) if stored else ()
        return {position: stored[key] for position, key in enumerate(keys) if key in stored}

    def keep(self, utterances: Mapping[int, Sequence[Part]], embeddings: Mapping[int, Array]) -> None:
        """Remember embeddings [E] of utterances, on disk within seconds or at ``flush``: all of them or none."""
        self._waiting |= {_key(parts): embeddings[position] for position, parts in utterances.items()}
        if time.monotonic() - self._written > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        if self._waiting:
            self.folder.mkdir(parents=True, exist_ok=True)
            keys = np.frombuffer(b"".join(self._waiting), np.uint8).reshape(-1, _KEY_BYTES)
            with atomic_write(self.folder / f"{secrets.token_hex(8)}.npz") as file:
                np.savez(file, keys=keys, embeddings=np.stack(list(self._waiting.values())))
            self._waiting.clear()
        self._written = time.monotonic()

    def _read(self) -> dict[bytes, Array]:
        found: dict[bytes, Array] = {}
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with path.open("rb") as file:
                    verify_crc(file)
                with np.load(path) as arrays:
                    keys: NDArray[np.uint8] = arrays["keys"]
                    embeddings: Array = arrays["embeddings"]
            except _DAMAGED as error:
                raise ValueError(f"{path}: damaged ({error}); remove it, it will be computed again") from error
            found.update(zip(map(bytes, keys), embeddings, strict=True))
        return found


def _name_of(network: nn.Module, model: Mapping[str, Any]) -> str:
    """A name that other weights, another network, kind of device or source of what makes embeddings would change."""
    device = next(network.parameters()).device.type
    settings = sorted((name, value) for name, value in model.items() if name != "implementation")
    digest = hashlib.blake2b(repr((device, settings)).encode(), digest_size=_KEY_BYTES)
    for source in sorted(path for pattern in _SOURCES for path in Path(__file__).parents[1].glob(pattern)):
        digest.update(source.read_bytes())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _key(parts: Sequence[Part]) -> bytes:
    """What an utterance is known by; that of a file that is not there is its name's alone: reading it will fail."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for part in parts:
        within = (part.offset, part.bytes) if part.offset else ()  # of a tar file
        digest.update(repr((os.path.abspath(part.path), within, _state(part.path))).encode())
    return digest.digest()


def _state(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
