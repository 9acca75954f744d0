"""Randomness that is handed over: a draw is a function of (seed, stream, epoch, name), whoever makes it and when."""

import hashlib

import numpy as np


def generator(seed: int, stream: str, epoch: int, name: str) -> np.random.Generator:
    """A generator of its own for every (seed, stream, epoch, name): equal arguments, equal draws, anywhere.

    >>> first, second = (generator(1, "crop", 0, "id10001/a/00001.wav") for _ in range(2))
    >>> bool(first.random() == second.random())
    True
    """
    return np.random.Generator(np.random.Philox(key=np.frombuffer(_key(seed, stream, epoch, name), dtype="<u8")))


def below(limit: int, seed: int, stream: str, epoch: int, name: str) -> int:
    """One whole number from 0 to below ``limit``; twenty times as fast as a generator for it.

    >>> below(10, 1, "crop", 0, "id10001/a/00001.wav") in range(10)
    True
    """
    return int.from_bytes(_key(seed, stream, epoch, name), "little") % limit


def _key(seed: int, stream: str, epoch: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{stream}/{epoch}/{name}".encode(), digest_size=16).digest()
