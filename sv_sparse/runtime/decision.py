"""Decisions from embeddings, each with what it rests on."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from sv_sparse.scoring.arrays import Float32Array
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import quality_measures


class Outcome(StrEnum):
    """Result of a comparison, in the same words in the commands, on the page, in JSON and in Python."""

    # The evidence reaches the threshold.
    ACCEPTED = "accepted"
    # It does not. The speakers may still be the same.
    NOT_ACCEPTED = "not accepted"
    # A recording cannot be used: it is too short, silent or unreadable.
    REFUSED_INPUT = "refused input"
    # The model has no threshold, and the caller named none.
    NO_DECISION = "no decision"


# People read "different speakers" into a missing acceptance. At a strict threshold it is common for one speaker.
NOT_DIFFERENT = 'this does not mean "different speakers"'
NOT_DETECTED = "replayed, converted or synthetic voices (spoofing, deepfakes) are not detected"
CONSENT = "enroll or compare a person's voice only with that person's consent"
CONSENT_SENTENCE = f"{CONSENT[0].upper()}{CONSENT[1:]}."
LIMITS_OF_USE = f"{NOT_DETECTED}; {CONSENT}"
# Key of a model's card; True for the demo corpus.
SYNTHETIC = "synthetic_voices_only"
SYNTHETIC_WARNING = "trained on synthetic voices only (demo corpus): decisions about people mean nothing"


class RefusedInputError(ValueError):
    """Error for a recording that cannot be used, the first or the second of those that are compared (1 or 2)."""

    outcome = Outcome.REFUSED_INPUT

    def __init__(self, reason: str, recording: int) -> None:
        super().__init__(reason)
        self.recording = recording


@dataclass(frozen=True)
class EmbeddedRecording:
    """Embedding of a recording, or of several recordings of one speaker.

    >>> EmbeddedRecording(np.zeros(192, np.float32), seconds=3.2).seconds
    3.2
    """

    # [E]; of several recordings the mean.
    embedding: Float32Array
    # Duration; None where it is unknown. Only some calibrations use it.
    seconds: float | None = None

    @classmethod
    def mean_of(cls, recordings: Sequence["EmbeddedRecording"]) -> "EmbeddedRecording":
        """Return recordings of one speaker as one, averaged as ``sv-sparse evaluate`` averages enrollments."""
        embedding = np.stack([recording.embedding for recording in recordings]).mean(axis=0)
        seconds = [recording.seconds for recording in recordings if recording.seconds is not None]
        # Of an unknown duration the sum is unknown.
        return cls(embedding, sum(seconds) if len(seconds) == len(recordings) else None)


@dataclass(frozen=True)
class Verification:
    """Comparison of two recordings."""

    # Cosine or, with AS-norm, standard deviations above close strangers; larger for likelier targets.
    score: float
    # Natural log-likelihood ratio; above 0, the evidence is for one speaker. None without a calibration.
    llr: float | None
    # Posterior probability of one speaker, by llr and prior; None without a calibration.
    probability: float | None
    # Probability of one speaker before the recordings are compared.
    prior: float
    # Smallest llr, or score without a calibration, that is accepted; None where there is none.
    threshold: float | None
    # False-alarm rate of the threshold on the trials that it was set on; None where the caller named the threshold, or
    # there is none.
    target_far: float | None
    # True if the evidence reaches the threshold; None without a threshold.
    accepted: bool | None
    # That the answer took.
    seconds: float

    @property
    def outcome(self) -> Outcome:
        """``accepted`` as one of the outcomes."""
        if self.accepted is None:
            return Outcome.NO_DECISION
        return Outcome.ACCEPTED if self.accepted else Outcome.NOT_ACCEPTED

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with the outcome, for JSON."""
        return {"outcome": self.outcome.value} | asdict(self)


class DecisionRule(NamedTuple):
    """Prior and threshold of decisions, as in ``Verification``."""

    prior: float
    threshold: float | None
    target_far: float | None

    @classmethod
    def from_backend(
        cls, backend: Backend, *, prior: float = 0.5, target_far: float | None = None, threshold: float | None = None
    ) -> "DecisionRule":
        """Return the rule of a scoring back-end.

        Args:
            backend: Back-end of the model.
            prior: Probability of one speaker before the recordings are compared. Default: 0.5, by which the evidence
                alone counts.
            target_far: False-alarm rate whose threshold is used, such as 0.01. Default: the smallest one that the
                calibration has a threshold for.
            threshold: Threshold to use instead.

        Raises:
            ValueError: The prior is not a probability, there is no threshold for that rate, or the caller named both a
                rate and a threshold.
        """
        if not 0 < prior < 1:
            raise ValueError(f"the prior must be above 0 and below 1, got {prior}")
        if threshold is not None:
            if target_far is not None:
                raise ValueError("expected a threshold or a false-alarm rate, got both")
            if not np.isfinite(threshold):
                raise ValueError(f"the threshold must be a number, got {threshold}")
            return cls(prior, threshold, None)
        thresholds = backend.calibration.thresholds if backend.calibration is not None else {}
        if target_far is None:
            if not thresholds:
                return cls(prior, None, None)
            # The strictest one: nobody is accepted by an oversight.
            target_far = min(thresholds)
        if target_far not in thresholds:
            rates = ", ".join(f"{rate:g}" for rate in sorted(thresholds)) or "none"
            raise ValueError(
                f"there is no threshold for a false-alarm rate of {target_far:g}; the model has thresholds for: {rates}"
            )
        return cls(prior, thresholds[target_far], target_far)


def decide(
    backend: Backend,
    rule: DecisionRule,
    enrollments: Sequence[EmbeddedRecording],
    test: EmbeddedRecording,
    *,
    start_time: float,
) -> list[Verification]:
    """Score a test recording against each of K enrollments, and decide.

    Args:
        backend: Scoring back-end.
        rule: Prior and threshold.
        enrollments: [K], one or more.
        test: Test recording.
        start_time: ``time.perf_counter`` at the beginning of the request.

    Raises:
        ValueError: An embedding has another size than the model's or is not finite, or the calibration uses durations
            and one is unknown.
    """
    sides = [*enrollments, test]
    for side in sides:
        if side.embedding.shape != backend.mean.shape or not np.isfinite(side.embedding).all():
            raise ValueError(
                f"expected embeddings {list(backend.mean.shape)} of finite numbers, got {list(side.embedding.shape)}"
            )
    embeddings = np.stack([np.asarray(side.embedding, np.float32) for side in sides])
    trials = (np.arange(len(enrollments)), np.full(len(enrollments), len(enrollments)))
    scores = backend.score(embeddings, *trials)
    llrs: list[float] | list[None] = [None] * len(scores)
    probabilities: list[float] | list[None] = llrs
    calibration = backend.calibration
    if calibration is not None:
        measures = {"magnitude": np.linalg.norm(embeddings, axis=1)}
        if "duration" in calibration.qualities:
            seconds = [side.seconds for side in sides]
            if None in seconds:
                raise ValueError("the model's calibration uses durations: pass EmbeddedRecording(embedding, seconds)")
            measures["duration"] = np.array(seconds)
        log_ratios = calibration.llr(scores, quality_measures(measures, *trials))
        prior_log_odds = np.log(rule.prior) - np.log1p(-rule.prior)
        llrs = log_ratios.tolist()
        # The sigmoid; tanh does not overflow.
        probabilities = ((1 + np.tanh((log_ratios + prior_log_odds) / 2)) / 2).tolist()
    elapsed = time.perf_counter() - start_time
    verifications = []
    for score, llr, probability in zip(scores.tolist(), llrs, probabilities, strict=True):
        evidence = score if llr is None else llr
        accepted = None if rule.threshold is None else evidence >= rule.threshold
        verifications.append(Verification(score, llr, probability, *rule, accepted, elapsed))
    return verifications
