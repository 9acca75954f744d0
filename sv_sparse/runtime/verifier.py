"""Whether two recordings are of one speaker, by a packaged network.

>>> verifier = Verifier.from_pretrained("model.safetensors")  # doctest: +SKIP
>>> verifier.verify("one.wav", "other.flac").accepted  # doctest: +SKIP
True
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sv_sparse.data.decoding import check_length, check_silence
from sv_sparse.models.features import Filterbank
from sv_sparse.runtime.audio import LONGEST_SECONDS, Resampler, Source, as_samples, pieces
from sv_sparse.runtime.decision import Heard, RefusedInputError, Rule, Verification, decide, warning_of
from sv_sparse.runtime.engine.runtime import Runtime
from sv_sparse.runtime.long_audio import Windows
from sv_sparse.runtime.package import Package, read_package
from sv_sparse.runtime.streaming import Stream
from sv_sparse.scoring.arrays import Float32Array
from sv_sparse.scoring.backend import Backend

Waveform = Float32Array | Tensor
Side = Source | tuple[Waveform, int] | Heard | Float32Array

_BATCH = 16  # waveforms of equal length


class Verifier:
    """A trained network in use.

    Recordings of up to ``window_seconds`` are embedded whole, as ``sv-sparse evaluate`` does, so that scores are the
    same but for rounding; of longer ones, windows are embedded and averaged (``windows.Windows``), in memory that does
    not grow. Several threads may use it.

    Args:
        engine: filterbank [B, F, T] to embedding [B, E].
        backend: from embeddings to scores and decisions.
        card: what is known of the network.
        features: ``sample_rate`` in Hz and ``mel_bins`` of the filterbank.
        fingerprint: tells the network from others; embeddings of different networks cannot be compared.
        window_seconds: longest stretch that is embedded at once.

    Raises:
        ValueError: the windows are too short.
    """

    def __init__(
        self,
        engine: Callable[[Tensor], Tensor],
        backend: Backend,
        card: Mapping[str, Any],
        *,
        features: Mapping[str, int],
        fingerprint: str = "",
        window_seconds: float = 60.0,
    ) -> None:
        self.backend, self.card, self.fingerprint = backend, card, fingerprint
        self.sample_rate, self.window_seconds = features["sample_rate"], window_seconds
        self.engine = engine
        self._filterbank = Filterbank(features["sample_rate"], features["mel_bins"])
        self._windows(window_seconds)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, threads: int | None = None) -> "Verifier":
        """A verifier from a package, a file that ``sv-sparse export`` wrote.

        Args:
            path: the file.
            threads: that the network is computed by; see ``Runtime.of``.

        Raises:
            ValueError: the package cannot be read; names it.
        """
        return cls.of(read_package(path), threads=threads)

    @classmethod
    def of(cls, package: Package, *, threads: int | None = None) -> "Verifier":
        """A verifier from a package that was read; see ``from_pretrained``."""
        engine = Runtime.of(package, threads=threads)
        return cls(engine, package.backend, package.card, features=package.features, fingerprint=package.fingerprint)

    @property
    def basis(self) -> dict[str, str | None]:
        """Words on what decisions rest on: ``calibration``, and a ``warning`` about the model; each may be None."""
        calibration = self.backend.calibration
        words = calibration.description if calibration is not None else None
        return {"calibration": words, "warning": warning_of(self.card)}

    def embed(self, waveform: Waveform, sample_rate: int) -> Float32Array:
        """The embedding [E], float32, of a waveform.

        Args:
            waveform: [S], of floating-point samples in [-1, 1] or of 16-bit samples.
            sample_rate: in Hz, from 4,000 to 384,000; other rates than the network's are resampled.

        Raises:
            ValueError: it is shorter than a fifth of a second, silent, of another shape, or not finite.
        """
        return self.hear((waveform, sample_rate)).embedding

    def embed_file(self, path: str | os.PathLike[str]) -> Float32Array:
        """The embedding [E] of a file's first channel, read piece by piece.

        Raises:
            ValueError: see ``embed`` and ``audio.pieces``; names the file.
        """
        return self.hear(path).embedding

    def embed_batch(self, waveforms: Sequence[Waveform], sample_rate: int) -> Float32Array:
        """Embeddings [N, E] of waveforms, of which those of equal length go together; see ``embed``.

        Raises:
            ValueError: see ``embed``; says which waveform it is.
        """
        found = np.empty((len(waveforms), len(self.backend.mean)), np.float32)
        alike: dict[int, dict[int, Float32Array]] = {}  # by length, by position
        for position, waveform in enumerate(waveforms):
            name = f"waveform {position}"
            samples = self._resampled(waveform, sample_rate, name)
            with _naming(name):
                if len(samples) > self.window_seconds * self.sample_rate:
                    windows = self._windows(self.window_seconds)
                    windows.push(samples)
                    found[position] = windows.embedding()
                    continue
                check_length(len(samples), self.sample_rate)
                check_silence(samples)
            alike.setdefault(len(samples), {})[position] = samples
        for several in alike.values():
            positions = list(several)
            for start in range(0, len(positions), _BATCH):
                part = positions[start : start + _BATCH]
                found[part] = self._embedded(np.stack([several[position] for position in part]))
        return found

    def stream(self, sample_rate: int, *, window_seconds: float = 3.0) -> Stream:
        """An embedding that follows a recording while it comes.

        Args:
            sample_rate: of what comes, in Hz.
            window_seconds: of the windows that are embedded and averaged. Shorter ones cost less memory and waiting,
                longer ones are nearer to the embedding of the whole.

        Raises:
            ValueError: the rate or the windows are not allowed.
        """
        return Stream(self._windows(window_seconds), Resampler(sample_rate, self.sample_rate), self.sample_rate)

    def hear(self, side: Side, *, max_seconds: float = LONGEST_SECONDS) -> Heard:
        """Embed a recording, whatever it comes as.

        Args:
            side: a file's path, what a file holds, or a waveform [S] with its rate in Hz; what was heard before, or an
                embedding [E], stays as it is.
            max_seconds: beyond which a file is refused.

        Raises:
            ValueError: see ``embed`` and ``audio.pieces``; names a file.
        """
        if isinstance(side, Heard):
            return side
        if isinstance(side, np.ndarray):
            return Heard(side)
        windows = self._windows(self.window_seconds)
        if isinstance(side, tuple):
            name = "the waveform"
            windows.push(self._resampled(*side, name))
        else:
            name = "the recording" if isinstance(side, bytes) else os.fspath(side)
            for samples in pieces(side, self.sample_rate, max_seconds=max_seconds):
                windows.push(samples)
        with _naming(name):
            return Heard(windows.embedding(), windows.samples / self.sample_rate)

    def verify(
        self,
        enrolment: Side,
        test: Side,
        *,
        prior: float = 0.5,
        false_alarms: float | None = None,
        threshold: float | None = None,
    ) -> Verification:
        """Whether two recordings are of one speaker.

        Args:
            enrolment: see ``hear``; which of the two is which does not matter.
            test: see ``hear``.
            prior: see ``Rule.of``.
            false_alarms: see ``Rule.of``.
            threshold: see ``Rule.of``.

        Returns:
            The verification, whose ``outcome`` is "accepted", "not accepted" (the evidence does not reach the
            threshold, which does not mean "different speakers") or, without a threshold, "no decision".

        Raises:
            RefusedInputError: a recording cannot be judged; see ``hear``.
            ValueError: see ``Rule.of`` and ``decide``.
        """
        started = time.perf_counter()
        rule = Rule.of(self.backend, prior=prior, false_alarms=false_alarms, threshold=threshold)
        sides = [self._judged(enrolment, 1), self._judged(test, 2)]
        return decide(self.backend, rule, sides, np.array([0]), np.array([1]), started=started)[0]

    def identify(
        self,
        test: Side,
        enrolled: Sequence[Heard] | Float32Array,
        *,
        prior: float = 0.5,
        false_alarms: float | None = None,
        threshold: float | None = None,
    ) -> list[Verification]:
        """A recording against each of several speakers; the likeliest has the highest ``llr``, or ``score``.

        A stranger is taken for somebody up to as many times as often as in one comparison as there are speakers.

        Args:
            test: see ``hear``.
            enrolled: [K], what was heard of each speaker, or embeddings [K, E].
            prior: of each.
            false_alarms: of each; see ``Rule.of``.
            threshold: see ``Rule.of``.

        Returns:
            [K], in the order of ``enrolled``.

        Raises:
            RefusedInputError: the recording cannot be judged; see ``hear``.
            ValueError: see ``verify``, or nobody is enrolled.
        """
        started = time.perf_counter()
        rule = Rule.of(self.backend, prior=prior, false_alarms=false_alarms, threshold=threshold)
        known = [each if isinstance(each, Heard) else Heard(each) for each in enrolled]
        if not known:
            raise ValueError("nobody is enrolled")
        rows = np.arange(len(known))
        sides = [*known, self._judged(test, 1)]
        return decide(self.backend, rule, sides, rows, np.full_like(rows, len(known)), started=started)

    def _judged(self, side: Side, recording: int) -> Heard:
        """Embed one of the recordings that are to be compared."""
        try:
            return self.hear(side)
        except ValueError as error:
            raise RefusedInputError(str(error), recording) from error

    def _windows(self, seconds: float) -> Windows:
        return Windows(self._embedded, round(seconds * self.sample_rate), self.sample_rate)

    def _resampled(self, waveform: Waveform, sample_rate: int, name: str) -> Float32Array:
        with _naming(name):
            samples, resampler = as_samples(waveform), Resampler(sample_rate, self.sample_rate)
        return np.concatenate([resampler(samples), resampler.rest()])

    @torch.no_grad()
    def _embedded(self, waveforms: Float32Array) -> Float32Array:
        """Waveforms [B, S] to embeddings [B, E]."""
        found: Float32Array = self.engine(self._filterbank(torch.from_numpy(waveforms))).float().numpy()
        if not np.isfinite(found).all():
            raise ValueError("its embedding is not finite")
        return found


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Let an error say which recording it was."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
