"""Embeddings of recordings that are still going on."""

from torch import Tensor

from sv_sparse.data.decoding import Resampler
from sv_sparse.runtime.audio import to_float
from sv_sparse.runtime.decision import EmbeddedRecording
from sv_sparse.runtime.long_audio import WindowedEmbedding
from sv_sparse.scoring.arrays import Float32Array


class Stream:
    """Recording that comes in chunks, with its embedding so far; ``Verifier.stream`` makes it.

    Args:
        windows: Embeds the samples.
        resampler: Converts the chunks to the network's rate.
        sample_rate: The network's rate, in Hz.
    """

    def __init__(self, windows: WindowedEmbedding, resampler: Resampler, sample_rate: int) -> None:
        self._windows = windows
        self._resampler = resampler
        self._sample_rate = sample_rate

    @property
    def seconds(self) -> float:
        """Duration so far."""
        return self._windows.num_samples / self._sample_rate

    def push(self, chunk: Float32Array | Tensor) -> None:
        """Add the next samples [S], as ``Verifier.embed`` takes them.

        Raises:
            ValueError: They have another type or shape, or are not finite.
        """
        self._windows.push(self._resampler(to_float(chunk)))

    def embedding(self) -> Float32Array:
        """Return the embedding [E] so far; more chunks may follow.

        Where the rates differ, up to a quarter of a second is still in the resampler.

        Raises:
            ValueError: The recording is too short so far, or nothing but silence.
        """
        return self._windows.embedding()

    def recording(self) -> EmbeddedRecording:
        """Return the embedding so far with its duration, for ``Verifier.verify``; errors as of ``embedding``."""
        return EmbeddedRecording(self.embedding(), self.seconds)
