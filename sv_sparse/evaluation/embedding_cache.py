"""Cache of embeddings on disk, by the network's weights and by the audio (DECISIONS 50).

Each state of a network has a folder of files that never become wrong, so it can be copied, or removed at any time.
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
from torch import nn

from sv_sparse import checkpoint
from sv_sparse.data.manifest import AudioSegment
from sv_sparse.io import atomic_write, verify_crc
from sv_sparse.scoring.arrays import Float32Array

# In a run folder.
EMBEDDINGS_DIR = "embeddings"
_KEY_BYTES = 16
# The source files that decide an embedding, relative to the package. Their content is a part of the
# model's key, so that a new version never takes embeddings of the old one.
_SOURCES = ("evaluation/embed.py", "data/audio.py", "data/decoding.py", "data/layout.py", "models/**/*.py")
# Errors of zipfile, zlib and numpy for damaged bytes. The last two come from headers with unknown values.
_DAMAGE_ERRORS = (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error)
# A killed process loses no more.
_FLUSH_SECONDS = 10


class EmbeddingCache:
    """Embeddings of a network, looked up by the path, size and modification time of audio files.

    Several processes may use a cache at once.

    Args:
        cache_dir: folder for the embeddings of all networks; it is made when something is put.
        network: network whose embeddings they are; its weights are read now.
        model: settings of the network.

    >>> import tempfile
    >>> cache = EmbeddingCache(Path(tempfile.mkdtemp()), nn.Linear(3, 2), {"name": "tiny"})
    >>> cache.put({0: [AudioSegment("a.wav", 16000, 0, 0, -1)]}, {0: np.ones(2, np.float32)})
    >>> cache.flush()
    >>> cache.get([[AudioSegment("b.wav", 16000, 0, 0, -1)], [AudioSegment("a.wav", 16000, 0, 0, -1)]])
    {1: array([1., 1.], dtype=float32)}
    """

    def __init__(self, cache_dir: Path, network: nn.Module, model: Mapping[str, Any]) -> None:
        self.folder = cache_dir / _model_key(network, model)
        self._pending: dict[bytes, Float32Array] = {}
        self._last_flush = time.monotonic()

    def get(self, utterances: Sequence[Sequence[AudioSegment]]) -> dict[int, Float32Array]:
        """Return the embeddings [E] that are cached, by the position of their utterance.

        Raises:
            ValueError: a file of the cache is damaged; names it.
        """
        stored = self._read()
        # Saves asking the file system for each utterance.
        if not stored:
            return {}
        cached = {}
        for position, parts in enumerate(utterances):
            embedding = stored.get(_utterance_key(parts))
            if embedding is not None:
                cached[position] = embedding
        return cached

    def put(self, utterances: Mapping[int, Sequence[AudioSegment]], embeddings: Mapping[int, Float32Array]) -> None:
        """Add embeddings [E] of utterances; they are on disk within seconds, or after ``flush``."""
        # All of a call reach the disk or none: a block that is embedded again has the same batches.
        for position, parts in utterances.items():
            self._pending[_utterance_key(parts)] = embeddings[position]
        if time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the embeddings that are not on disk yet."""
        if self._pending:
            self.folder.mkdir(parents=True, exist_ok=True)
            keys = np.frombuffer(b"".join(self._pending), np.uint8).reshape(-1, _KEY_BYTES)
            # A random name keeps processes that share the cache out of each other's way.
            with atomic_write(self.folder / f"{secrets.token_hex(8)}.npz") as file:
                np.savez(file, keys=keys, embeddings=np.stack(list(self._pending.values())))
            self._pending.clear()
        self._last_flush = time.monotonic()

    def _read(self) -> dict[bytes, Float32Array]:
        stored: dict[bytes, Float32Array] = {}
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with path.open("rb") as file:
                    verify_crc(file)
                with np.load(path) as arrays:
                    keys = arrays["keys"]
                    embeddings = arrays["embeddings"]
            except _DAMAGE_ERRORS as error:
                raise ValueError(f"{path}: damaged ({error}); remove it, it will be computed again") from error
            stored.update(zip(map(bytes, keys), embeddings, strict=True))
        return stored


def _model_key(network: nn.Module, model: Mapping[str, Any]) -> str:
    """Return a name that depends on all that decides an embedding but the audio."""
    # Kinds of devices differ in the last bits.
    device = next(network.parameters()).device.type
    settings = sorted(model.items())
    digest = hashlib.blake2b(repr((device, settings)).encode(), digest_size=_KEY_BYTES)
    package = Path(__file__).parents[1]
    sources: set[Path] = set()
    for pattern in _SOURCES:
        sources.update(package.glob(pattern))
    for source in sorted(sources):
        digest.update(source.read_bytes())
    digest.update(checkpoint.weights_digest(network.state_dict()))
    return digest.hexdigest()


def _utterance_key(parts: Sequence[AudioSegment]) -> bytes:
    # Not the content: reading all audio would take much of the time that the cache saves.
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for part in parts:
        within_tar = (part.offset, part.size) if part.offset else ()
        digest.update(repr((os.path.abspath(part.path), within_tar, _file_stat(part.path))).encode())
    return digest.digest()


def _file_stat(path: str) -> tuple[int, int] | None:
    """Return size and modification time, or None for a missing file."""
    try:
        status = os.stat(path)
    except OSError:
        # It fails later, when it is read, with a message that names it.
        return None
    return status.st_size, status.st_mtime_ns
