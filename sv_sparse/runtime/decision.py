"""Embeddings to decisions, each with what it rests on."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from sv_sparse.scoring.arrays import Float32Array, IndexArray
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import quality_measures


class Outcome(StrEnum):
    """Result of a comparison, in the words of the commands, the page, JSON and Python alike.

    Attributes:
        ACCEPTED: The evidence reaches the threshold.
        NOT_ACCEPTED: The evidence does not reach the threshold. The speakers may still be the same.
        REFUSED_INPUT: A recording cannot be judged: it is too short, silent or unreadable.
        NO_DECISION: The model knows no threshold, and none was given.
    """

    ACCEPTED = "accepted"
    NOT_ACCEPTED = "not accepted"
    REFUSED_INPUT = "refused input"
    NO_DECISION = "no decision"


# What people read into a missing acceptance: at a strict threshold it is common for recordings of one speaker.
NOT_DIFFERENT = 'this does not mean "different speakers"'
NOT_DETECTED = "replayed, converted or synthetic voices (spoofing, deepfakes) are not detected"
CONSENT = "enroll or compare a person's voice only with that person's consent"
CONSENT_SENTENCE = f"{CONSENT[0].upper()}{CONSENT[1:]}."
LIMITS_OF_USE = f"{NOT_DETECTED}; {CONSENT}"
SYNTHETIC = "synthetic_voices_only"  # key of a model's card
SYNTHETIC_WARNING = "trained on synthetic voices only (demo corpus): decisions about people mean nothing"
_DEMO_BEFORE = "the demo corpus: made-up speech"  # trained_on in cards that were written before they had SYNTHETIC


class RefusedInputError(ValueError):
    """A recording cannot be judged.

    Args:
        reason: In words, with the name of the recording.
        recording: 1 or 2, of the two that are compared.
    """

    outcome = Outcome.REFUSED_INPUT

    def __init__(self, reason: str, recording: int) -> None:
        super().__init__(reason)
        self.recording = recording


def warning_of(card: Mapping[str, Any]) -> str | None:
    """Return the warning that belongs to every decision of a model, by its card; None if there is none."""
    if card.get(SYNTHETIC) is True or card.get("trained_on") == _DEMO_BEFORE:
        return SYNTHETIC_WARNING
    return None


@dataclass(frozen=True)
class Heard:
    """What is kept of a recording, or of several of one speaker.

    Attributes:
        embedding: [E]; of several recordings the mean.
        seconds: that were heard; None where that is not known. Only some calibrations ask for it.
    """

    embedding: Float32Array
    seconds: float | None = None

    @classmethod
    def together(cls, several: Sequence["Heard"]) -> "Heard":
        """Several recordings of one speaker as one, as ``sv-sparse evaluate`` averages enrolments."""
        seconds = [each.seconds for each in several if each.seconds is not None]
        embedding = np.stack([each.embedding for each in several]).mean(axis=0)
        return cls(embedding, sum(seconds) if len(seconds) == len(several) else None)


@dataclass(frozen=True)
class Verification:
    """Whether two sides are of one speaker.

    Attributes:
        score: larger for likelier targets: a cosine, or, with AS-norm, standard deviations above close strangers.
        llr: natural log-likelihood ratio; above 0, the evidence is for one speaker. None without a calibration.
        probability: that it is one speaker, by ``llr`` and ``prior``; None without a calibration.
        prior: how probable that was before anything was heard.
        threshold: from which on they are taken for one speaker, of ``llr``, or of ``score`` without a calibration; None
            where there is none.
        false_alarms: share of strangers that the threshold accepted among the speakers it was made on; None where it
            was given, or is none.
        accepted: whether they are taken for one speaker; None without a threshold.
        seconds: that the answer took.
    """

    score: float
    llr: float | None
    probability: float | None
    prior: float
    threshold: float | None
    false_alarms: float | None
    accepted: bool | None
    seconds: float

    @property
    def outcome(self) -> Outcome:
        """``accepted`` as one of the outcomes."""
        if self.accepted is None:
            return Outcome.NO_DECISION
        return Outcome.ACCEPTED if self.accepted else Outcome.NOT_ACCEPTED

    def as_dict(self) -> dict[str, Any]:
        """Plain data with the outcome, for JSON."""
        return {"outcome": self.outcome.value} | asdict(self)


@dataclass(frozen=True)
class Rule:
    """By what is decided; see ``Verification``."""

    prior: float
    threshold: float | None
    false_alarms: float | None

    @classmethod
    def of(
        cls, backend: Backend, *, prior: float = 0.5, false_alarms: float | None = None, threshold: float | None = None
    ) -> "Rule":
        """What a back-end offers, as it is wanted.

        Args:
            backend: of the model.
            prior: probability of one speaker before anything is heard. At 0.5 the recordings alone speak.
            false_alarms: the share to take the calibration's threshold for; its smallest one if not given.
            threshold: to take instead.

        Raises:
            ValueError: the prior is no probability, no threshold is known for that share, or both it and a threshold
                are given.
        """
        if not 0 < prior < 1:
            raise ValueError(f"the prior must be above 0 and below 1, got {prior}")
        if threshold is not None:
            if false_alarms is not None:
                raise ValueError("give a threshold, or a share of false alarms that one is known for")
            if not np.isfinite(threshold):
                raise ValueError(f"the threshold must be a number, got {threshold}")
            return cls(prior, threshold, None)
        known = backend.calibration.thresholds if backend.calibration is not None else {}
        if false_alarms is None:  # the strictest threshold: nobody is accepted by an oversight
            return cls(prior, known[min(known)], min(known)) if known else cls(prior, None, None)
        if false_alarms not in known:
            shares = ", ".join(f"{share:g}" for share in sorted(known)) or "none"
            raise ValueError(f"no threshold is known for {false_alarms:g} false alarms; the model knows: {shares}")
        return cls(prior, known[false_alarms], false_alarms)


def decide(
    backend: Backend, rule: Rule, sides: Sequence[Heard], enrolment: IndexArray, test: IndexArray, *, started: float
) -> list[Verification]:
    """Score and decide trials.

    Args:
        backend: what scores.
        rule: what decides.
        sides: [N], all that stand in a trial.
        enrolment: [trials], rows of ``sides``.
        test: [trials], rows of ``sides``.
        started: when the answer was begun, in seconds of ``time.perf_counter``.

    Raises:
        ValueError: an embedding has another size than the model's or is not finite, or the calibration asks for seconds
            that are not known.
    """
    for side in sides:
        if side.embedding.shape != backend.mean.shape or not np.isfinite(side.embedding).all():
            raise ValueError(
                f"expected embeddings {list(backend.mean.shape)} of finite numbers, got {list(side.embedding.shape)}"
            )
    embeddings = np.stack([np.asarray(side.embedding, np.float32) for side in sides])
    scores = backend.score(embeddings, enrolment, test)
    llrs = _ratios(backend, sides, embeddings, scores, enrolment, test)
    prior = np.log(rule.prior) - np.log1p(-rule.prior)
    probabilities = (1 + np.tanh((llrs + prior) / 2)) / 2 if llrs is not None else None
    seconds = time.perf_counter() - started
    found = []
    for trial, score in enumerate(scores.tolist()):
        llr = float(llrs[trial]) if llrs is not None else None
        probability = float(probabilities[trial]) if probabilities is not None else None
        accepted = (score if llr is None else llr) >= rule.threshold if rule.threshold is not None else None
        found.append(
            Verification(score, llr, probability, rule.prior, rule.threshold, rule.false_alarms, accepted, seconds)
        )
    return found


def _ratios(
    backend: Backend, sides: Sequence[Heard], embeddings: Float32Array, scores: Float32Array, enrolment: IndexArray, test: IndexArray
) -> np.ndarray | None:
    """Log-likelihood ratios [trials], of float64; None without a calibration."""
    calibration = backend.calibration
    if calibration is None:
        return None
    measured = {"magnitude": np.linalg.norm(embeddings, axis=1)}
    if "duration" in calibration.qualities:
        if any(side.seconds is None for side in sides):
            raise ValueError("the model's calibration asks how long recordings are: give Heard(embedding, seconds)")
        measured["duration"] = np.array([side.seconds for side in sides])
    return calibration.llr(
        scores, quality_measures({name: measured[name] for name in calibration.qualities}, enrolment, test)
    )
