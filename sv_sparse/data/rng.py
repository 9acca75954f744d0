"""Random draws as functions of (seed, stream, epoch, name): the same in every process and order (DECISIONS 15)."""

import hashlib

import numpy as np


def generator(seed: int, stream: str, epoch: int, name: str) -> np.random.Generator:
    """Return a generator of its own for every (seed, stream, epoch, name).

    ``stream`` is the purpose of the draws, such as ``"augment"``; ``name`` the key of an utterance, empty for draws
    of an epoch.

    >>> bool(generator(1, "crop", 0, "a.wav").random() == generator(1, "crop", 0, "a.wav").random())
    True
    """
    # The digest is Philox's key, so that no state has to be seeded.
    key = np.frombuffer(_digest(seed, stream, epoch, name), dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key))


def randint(limit: int, seed: int, stream: str, epoch: int, name: str) -> int:
    """Return one integer in [0, limit); the other arguments are those of :func:`generator`."""
    # Twenty times as fast as making a generator for one draw. The modulo's bias is below limit / 2 ** 128.
    return int.from_bytes(_digest(seed, stream, epoch, name), "little") % limit


def _digest(seed: int, stream: str, epoch: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{stream}/{epoch}/{name}".encode(), digest_size=16).digest()
