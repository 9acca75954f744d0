"""Embeddings of recordings of any length, also while they come, in memory that does not grow."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from sv_sparse.data.decoding import MIN_SECONDS, SILENT, Resampler, check_length, is_constant
from sv_sparse.runtime.audio import to_float
from sv_sparse.scoring.arrays import Float32Array


class WindowedEmbedding:
    """Embedding of the samples that were pushed: of all together as long as they fit into one window.

    Of longer recordings, windows are embedded and averaged, weighted by their lengths: full windows and, at
    the end, the two halves of what is more than one and at most two windows long. Windows of digital
    silence, or of any other constant, do not count. The result does not depend on how the samples were
    cut into pieces.

    Args:
        embed: Function from waveforms [B, S] to embeddings [B, E].
        window: Samples of a full window.
        sample_rate: Rate of the samples, in Hz.

    Raises:
        ValueError: Half a window is too short to be embedded.

    >>> windows = WindowedEmbedding(lambda waveforms: waveforms[:, :2], 6400, 16000)
    >>> windows.push(np.linspace(0, 1, 6400, dtype=np.float32))
    >>> windows.embedding().shape
    (2,)
    """

    def __init__(self, embed: Callable[[Float32Array], Float32Array], window: int, sample_rate: int) -> None:
        if window < 2 * MIN_SECONDS * sample_rate:
            raise ValueError(f"windows must be at least {2 * MIN_SECONDS:g} seconds long, got {window / sample_rate:g}")
        self._embed = embed
        # Squeeze-excitation and pooling look at the complete utterance, so a network cannot be streamed exactly:
        # DECISIONS 61
        self._window = window
        self._sample_rate = sample_rate
        # Joined only when a window is full, so that many small pieces cost little.
        self._buffer: list[Float32Array] = []
        self._buffer_samples = 0
        self._sum = np.zeros(())
        self._weight = 0
        # Samples of all that was pushed.
        self.num_samples = 0

    @property
    def seconds(self) -> float:
        """Duration of the samples that were pushed."""
        return self.num_samples / self._sample_rate

    def push(self, samples: Float32Array) -> None:
        """Add samples [S], and embed the full windows that are not near the end."""
        self._buffer.append(samples)
        self._buffer_samples += len(samples)
        self.num_samples += len(samples)
        if self._buffer_samples <= 2 * self._window:
            return
        buffer = np.concatenate(self._buffer)
        start = 0
        # Up to two windows stay behind: only at the end it is known how they are divided.
        while len(buffer) - start > 2 * self._window:
            embedding, weight = self._weighted_embedding(buffer[start : start + self._window])
            self._sum = self._sum + embedding
            self._weight += weight
            start += self._window
        # A slice would keep all of the buffer in memory.
        remainder = buffer[start:].copy()
        self._buffer = [remainder]
        self._buffer_samples = len(remainder)

    def embedding(self) -> Float32Array:
        """Return the embedding [E] of all samples so far; raise ValueError for too few, or nothing but silence."""
        check_length(self.num_samples, self._sample_rate)
        buffer = np.concatenate(self._buffer)
        # Two halves, rather than a full window and a short one, whose embedding would be a poor one.
        middle = len(buffer) // 2 if len(buffer) > self._window else len(buffer)
        total = self._sum
        total_weight = self._weight
        for window in (buffer[:middle], buffer[middle:]):
            embedding, weight = self._weighted_embedding(window)
            total = total + embedding
            total_weight += weight
        if not total_weight:
            raise ValueError(SILENT)
        return np.asarray(total / total_weight, np.float32)

    def _weighted_embedding(self, samples: Float32Array) -> tuple[np.ndarray, int]:
        """Return an embedding times its weight, float64 [E], and the weight."""
        if not len(samples) or is_constant(samples):
            return np.zeros(()), 0
        return self._embed(samples[None])[0].astype(np.float64) * len(samples), len(samples)


class Stream(WindowedEmbedding):
    """Recording that comes in chunks of another rate, with its embedding so far; ``Verifier.stream`` makes it."""

    def __init__(
        self, embed: Callable[[Float32Array], Float32Array], window: int, sample_rate: int, chunk_rate: int
    ) -> None:
        super().__init__(embed, window, sample_rate)
        # Where the rates differ, it holds up to a quarter of a second back.
        self._resampler = Resampler(chunk_rate, sample_rate)

    def push(self, samples: Float32Array | Tensor) -> None:
        """Add the next samples [S], with errors as of ``Verifier.embed``."""
        super().push(self._resampler(to_float(samples)))
