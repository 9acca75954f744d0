"""Verifier: a packaged network that says if two recordings are of one speaker.

>>> verifier = Verifier.from_pretrained("model.safetensors")  # doctest: +SKIP
>>> verifier.verify("enrollment.wav", "test.flac").accepted  # doctest: +SKIP
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

from sv_sparse.data.decoding import Source, check_length, check_silence, resample
from sv_sparse.models.features import DEFAULT_FEATURES, build_features
from sv_sparse.runtime.audio import iter_audio, to_float
from sv_sparse.runtime.decision import (
    SYNTHETIC,
    SYNTHETIC_WARNING,
    DecisionRule,
    EmbeddedRecording,
    RefusedInputError,
    Verification,
    decide,
)
from sv_sparse.runtime.engine.runtime import Runtime
from sv_sparse.runtime.long_audio import Stream, WindowedEmbedding
from sv_sparse.runtime.package import read_package
from sv_sparse.scoring.arrays import Float32Array
from sv_sparse.scoring.backend import Backend

Waveform = Float32Array | Tensor
Recording = Source | tuple[Waveform, int] | EmbeddedRecording | Float32Array

# Waveforms of equal length.
_BATCH_SIZE = 16


class Verifier:
    """Trained network in use; several threads may share it.

    Recordings of up to ``window_seconds`` are embedded as one utterance, longer ones in windows, which are
    averaged (``long_audio.WindowedEmbedding``).

    Args:
        engine: Function from filterbank [B, F, T] to embedding [B, E].
        backend: Scoring back-end: from embeddings to scores and decisions.
        card: Plain data about the network.
        features: ``sample_rate`` in Hz and ``mel_bins`` of the filterbank, and its ``kind``, which is ``sv_sparse``
            where it is missing.
        fingerprint: Identifies the network; embeddings of different networks cannot be compared.
        window_seconds: Longest stretch that is embedded at once. Default: 60.

    Raises:
        ValueError: The windows are too short.

    >>> backend = Backend(np.zeros(80, np.float32))
    >>> features = {"sample_rate": 16000, "mel_bins": 80}
    >>> verifier = Verifier(lambda filterbank: filterbank[:, :, 0], backend, {}, features=features)
    >>> noise = np.random.default_rng(0).normal(size=16000) / 10
    >>> round(verifier.verify((noise, 16000), (noise, 16000)).score, 3)
    1.0
    """

    def __init__(
        self,
        engine: Callable[[Tensor], Tensor],
        backend: Backend,
        card: Mapping[str, Any],
        *,
        features: Mapping[str, Any],
        fingerprint: str = "",
        window_seconds: float = 60.0,
    ) -> None:
        self.engine = engine
        self.backend = backend
        self.card = card
        self.fingerprint = fingerprint
        self.sample_rate = features["sample_rate"]
        # A minute is embedded at once as `sv-sparse evaluate` does, so scores are the same but for rounding.
        self.window_seconds = window_seconds
        kind = features.get("kind", DEFAULT_FEATURES)
        self._filterbank = build_features(kind, features["sample_rate"], features["mel_bins"])
        # Raises for windows that are too short.
        self._new_windows()

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, threads: int | None = None) -> "Verifier":
        """Return the verifier of a package, a file that ``sv-sparse export`` wrote.

        Args:
            path: The file.
            threads: Threads that compute the network; default as of ``Runtime.load``.

        Raises:
            ValueError: The package cannot be read; the message names it.
        """
        package = read_package(path)
        engine = Runtime.load(package, threads=threads)
        return cls(engine, package.backend, package.card, features=package.features, fingerprint=package.fingerprint)

    @property
    def basis(self) -> dict[str, str | None]:
        """Description of what decisions rest on: ``calibration``, and a ``warning`` about the model; or None."""
        calibration = self.backend.calibration
        # A card is somebody's words: nothing of it but this one fact is repeated.
        warning = SYNTHETIC_WARNING if self.card.get(SYNTHETIC) is True else None
        return {"calibration": calibration.description if calibration is not None else None, "warning": warning}

    def embed(self, waveform: Waveform, sample_rate: int) -> Float32Array:
        """Return the embedding [E], float32, of a waveform.

        Args:
            waveform: [S], floating-point samples in [-1, 1] or 16-bit samples.
            sample_rate: In Hz, 4,000 to 384,000. Other rates than the network's are resampled.

        Raises:
            ValueError: It is shorter than a fifth of a second, silent, of another shape, or not finite.
        """
        return self.embed_recording((waveform, sample_rate)).embedding

    def embed_file(self, path: str | os.PathLike[str]) -> Float32Array:
        """Return the embedding [E] of a file's first channel; errors as of ``embed_recording``."""
        return self.embed_recording(path).embedding

    def embed_batch(self, waveforms: Sequence[Waveform], sample_rate: int) -> Float32Array:
        """Return the embeddings [N, E] of waveforms of one rate; those of equal length are computed together.

        Raises:
            ValueError: As of ``embed``; the message names the waveform by its index.
        """
        embeddings = np.empty((len(waveforms), len(self.backend.mean)), np.float32)
        samples_by_length: dict[int, dict[int, Float32Array]] = {}
        for index, waveform in enumerate(waveforms):
            with _naming(f"waveform {index}"):
                samples = self._resample(waveform, sample_rate)
                # Windows of long recordings are not batched: they would have to be held in memory together.
                if len(samples) > self.window_seconds * self.sample_rate:
                    windows = self._new_windows()
                    windows.push(samples)
                    embeddings[index] = windows.embedding()
                    continue
                check_length(len(samples), self.sample_rate)
                check_silence(samples)
            samples_by_length.setdefault(len(samples), {})[index] = samples
        # Not padded to one length: pooling would count the padding.
        for group in samples_by_length.values():
            indices = list(group)
            for start in range(0, len(indices), _BATCH_SIZE):
                batch = indices[start : start + _BATCH_SIZE]
                embeddings[batch] = self._embed_waveforms(np.stack([group[index] for index in batch]))
        return embeddings

    def stream(self, sample_rate: int, *, window_seconds: float = 3.0) -> Stream:
        """Return an embedding that follows a recording while it comes.

        Args:
            sample_rate: Rate of the samples that come, in Hz.
            window_seconds: Length of the windows that are embedded and averaged. Shorter ones need less memory and
                waiting; longer ones are nearer to the embedding of the complete recording. Default: 3.

        Raises:
            ValueError: The rate or the length is not allowed.
        """
        window = round(window_seconds * self.sample_rate)
        return Stream(self._embed_waveforms, window, self.sample_rate, sample_rate)

    def embed_recording(self, recording: Recording) -> EmbeddedRecording:
        """Return a recording's embedding with its duration.

        Args:
            recording: Path of a file, content of a file, or a waveform [S] with its rate in Hz. An embedded recording,
                or an embedding [E], stays as it is.

        Raises:
            ValueError: As of ``embed`` and ``audio.iter_audio``; the message names a file.
        """
        if isinstance(recording, EmbeddedRecording):
            return recording
        if isinstance(recording, np.ndarray):
            return EmbeddedRecording(recording)
        windows = self._new_windows()
        if isinstance(recording, tuple):
            name = "the waveform"
            with _naming(name):
                windows.push(self._resample(*recording))
        else:
            name = "the recording" if isinstance(recording, bytes) else os.fspath(recording)
            for samples in iter_audio(recording, self.sample_rate):
                windows.push(samples)
        with _naming(name):
            return EmbeddedRecording(windows.embedding(), windows.seconds)

    def verify(
        self,
        enrollment: Recording,
        test: Recording,
        *,
        prior: float = 0.5,
        target_far: float | None = None,
        threshold: float | None = None,
    ) -> Verification:
        """Compare two recordings.

        Args:
            enrollment: Recording as ``embed_recording`` takes it. The two can be exchanged.
            test: Another recording.
            prior: As of ``DecisionRule.from_backend``, as are the others.
            target_far: False-alarm rate whose threshold is used.
            threshold: Threshold to use instead.

        Raises:
            RefusedInputError: A recording cannot be used, by the rules of ``embed_recording``.
            ValueError: As of ``DecisionRule.from_backend`` and ``decide``.
        """
        start_time = time.perf_counter()
        rule = DecisionRule.from_backend(self.backend, prior=prior, target_far=target_far, threshold=threshold)
        first = self._embed_side(enrollment, 1)
        second = self._embed_side(test, 2)
        return decide(self.backend, rule, [first], second, start_time=start_time)[0]

    def identify(
        self,
        test: Recording,
        enrollments: Sequence[EmbeddedRecording] | Float32Array,
        *,
        prior: float = 0.5,
        target_far: float | None = None,
        threshold: float | None = None,
    ) -> list[Verification]:
        """Compare a recording with each of K enrolled speakers; the likeliest has the highest ``llr``, or ``score``.

        Args:
            test: Recording as ``embed_recording`` takes it.
            enrollments: [K] embedded recordings, or embeddings [K, E].
            prior: Probability of each speaker.
            target_far: False-alarm rate of each comparison; of all together it is up to K times as high.
            threshold: Threshold to use instead.

        Raises:
            RefusedInputError: The recording cannot be used, by the rules of ``embed_recording``.
            ValueError: As of ``verify``, or nobody is enrolled.
        """
        start_time = time.perf_counter()
        rule = DecisionRule.from_backend(self.backend, prior=prior, target_far=target_far, threshold=threshold)
        sides = [self.embed_recording(enrollment) for enrollment in enrollments]
        if not sides:
            raise ValueError("nobody is enrolled")
        return decide(self.backend, rule, sides, self._embed_side(test, 1), start_time=start_time)

    def _embed_side(self, recording: Recording, number: int) -> EmbeddedRecording:
        try:
            return self.embed_recording(recording)
        except ValueError as error:
            raise RefusedInputError(str(error), number) from error

    def _new_windows(self) -> WindowedEmbedding:
        window = round(self.window_seconds * self.sample_rate)
        return WindowedEmbedding(self._embed_waveforms, window, self.sample_rate)

    def _resample(self, waveform: Waveform, sample_rate: int) -> Float32Array:
        return resample(to_float(waveform), sample_rate, self.sample_rate)

    @torch.no_grad()
    def _embed_waveforms(self, waveforms: Float32Array) -> Float32Array:
        """Map waveforms [B, S] to embeddings [B, E]."""
        embeddings: Float32Array = self.engine(self._filterbank(torch.from_numpy(waveforms))).float().numpy()
        if not np.isfinite(embeddings).all():
            raise ValueError("its embedding is not finite")
        return embeddings


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of the recording in front of an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
