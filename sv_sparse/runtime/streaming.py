"""Recordings that are still going on."""

from torch import Tensor

from sv_sparse.runtime.audio import Resampler, as_samples
from sv_sparse.runtime.decision import Heard
from sv_sparse.runtime.long_audio import Windows
from sv_sparse.scoring.arrays import Float32Array


class Stream:
    """A recording that comes in chunks, and its embedding so far; ``Verifier.stream`` makes it.

    Args:
        windows: what embeds.
        resampler: of what comes.
        sample_rate: of what is embedded, in Hz.
    """

    def __init__(self, windows: Windows, resampler: Resampler, sample_rate: int) -> None:
        self._windows, self._resampler, self._rate = windows, resampler, sample_rate

    @property
    def seconds(self) -> float:
        """That were heard so far."""
        return self._windows.samples / self._rate

    def push(self, chunk: Float32Array | Tensor) -> None:
        """Take the next samples [S], as ``Verifier.embed`` takes them.

        Raises:
            ValueError: they are of another shape or kind, or not finite.
        """
        self._windows.push(self._resampler(as_samples(chunk)))

    def embedding(self) -> Float32Array:
        """The embedding [E] so far; more chunks may follow.

        Where the rate is another than the network's, up to a quarter of a second is still on its way.

        Raises:
            ValueError: too little was heard, or nothing but silence.
        """
        return self._windows.embedding()

    def heard(self) -> Heard:
        """The embedding so far with its seconds, for ``Verifier.verify``; see ``embedding``."""
        return Heard(self.embedding(), self.seconds)
