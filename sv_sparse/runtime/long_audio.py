"""Recordings of any length to one embedding, piece by piece, in memory that does not grow."""

from collections.abc import Callable

import numpy as np

from sv_sparse.data.decoding import MIN_SECONDS, SILENT, check_length, is_constant
from sv_sparse.scoring.arrays import Float32Array


class Windows:
    """The embedding of what was pushed: that of the whole as long as it fits into one window.

    Of more, windows are embedded and averaged, weighted by their lengths: full windows, and at the end, of what is more
    than one and at most two windows long, two halves. Windows of digital silence, or any other constant, do not count.
    The result does not depend on how the pieces were cut.

    Args:
        embed: waveforms [B, S] to embeddings [B, E].
        window: samples of a full window.
        sample_rate: of what is pushed, in Hz.

    Raises:
        ValueError: half a window is too short to be embedded.

    Attributes:
        samples: pushed so far.
    """

    def __init__(self, embed: Callable[[Float32Array], Float32Array], window: int, sample_rate: int) -> None:
        if window < 2 * MIN_SECONDS * sample_rate:
            raise ValueError(f"windows must be at least {2 * MIN_SECONDS:g} seconds long, got {window / sample_rate:g}")
        self._embed, self._window, self._rate = embed, window, sample_rate
        self._held: list[Float32Array] = []
        self._held_samples = 0
        self._sum, self._weight = np.zeros(()), 0
        self.samples = 0

    def push(self, samples: Float32Array) -> None:
        """Take further samples [S], and embed what fills windows and is not near the end."""
        self._held.append(samples)
        self._held_samples += len(samples)
        self.samples += len(samples)
        if self._held_samples <= 2 * self._window:
            return
        held, start = np.concatenate(self._held), 0
        while len(held) - start > 2 * self._window:
            part, weight = self._weighted(held[start : start + self._window])
            self._sum, self._weight = self._sum + part, self._weight + weight
            start += self._window
        rest = held[start:].copy()
        self._held, self._held_samples = [rest], len(rest)

    def embedding(self) -> Float32Array:
        """The embedding [E] of all samples so far; more may follow.

        Raises:
            ValueError: they are too few, or nothing but silence.
        """
        check_length(self.samples, self._rate)
        rest = np.concatenate(self._held)
        middle = len(rest) // 2 if len(rest) > self._window else len(rest)
        found, total = self._sum, self._weight
        for part in filter(len, (rest[:middle], rest[middle:])):
            more, weight = self._weighted(part)
            found, total = found + more, total + weight
        if not total:
            raise ValueError(SILENT)
        return np.asarray(found / total, np.float32)

    def _weighted(self, samples: Float32Array) -> tuple[np.ndarray, int]:
        """An embedding times its weight, float64 [E], and the weight."""
        if is_constant(samples):
            return np.zeros(()), 0
        return self._embed(samples[None])[0].astype(np.float64) * len(samples), len(samples)
