"""What turns embeddings into scores, log-likelihood ratios and decisions, fixed before any trial is seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch

from sv_sparse.scoring.as_norm import as_norm, cohort_statistics
from sv_sparse.scoring.calibration import QUALITIES, Calibration
from sv_sparse.scoring.cosine import Array, Rows, centred_unit, cosine_scores
from sv_sparse.scoring.metrics import OperatingPoint

NORMALIZATIONS = ("none", "as_norm")
ENROLMENTS = ("average", "concatenated")


@dataclass(frozen=True)
class Scoring:
    """How trials are scored and judged: the settings of ``scoring``.

    Args:
        p_target: prior of a target, or several: one for each operating point.
        c_miss: cost of a miss.
        c_fa: cost of a false alarm.
        normalization: ``none`` or ``as_norm``.
        top_n: closest speakers of the cohort that AS-norm looks at.
        cohort_utterances: of each training speaker that make its mean embedding in the cohort.
        enrolment: what becomes of several enrolment utterances: their embeddings' ``average``, or they are
            ``concatenated`` and embedded as one.
        quality: measures that calibration knows beside the score: ``duration``, ``magnitude``.
        false_alarms: shares of false alarms for which thresholds are given.

    Raises:
        ValueError: a setting is not allowed; names it.
    """

    p_target: float | Sequence[float]
    c_miss: float
    c_fa: float
    normalization: str
    top_n: int
    cohort_utterances: int
    enrolment: str
    quality: Sequence[str]
    false_alarms: float | Sequence[float]

    def __post_init__(self) -> None:
        for name in ("p_target", "false_alarms", "c_miss", "c_fa"):
            given = getattr(self, name)
            several = listed(given) if name in {"p_target", "false_alarms"} else [given]
            if not all(isinstance(value, (int, float)) and isfinite(value) for value in several):
                raise ValueError(f"scoring.{name}={given}: expected a number{' or several' * (several is not given)}")
        if isinstance(self.quality, str) or self.quality is None:
            raise ValueError(f"scoring.quality={self.quality}: expected a list, of {', '.join(QUALITIES)} or empty: []")
        _refuse_other("normalization", self.normalization, NORMALIZATIONS)
        _refuse_other("enrolment", self.enrolment, ENROLMENTS)
        for name in self.quality:
            _refuse_other("quality", name, QUALITIES)
        if not self.points:  # each checks itself
            raise ValueError("scoring.p_target: expected one prior or several, got none")
        for share in listed(self.false_alarms):
            if not 0 < share < 1:
                raise ValueError(f"scoring.false_alarms must be above 0 and below 1, got {share}")
        if self.top_n < 2 or self.cohort_utterances < 1:
            raise ValueError(
                f"scoring.top_n must be 2 or more and scoring.cohort_utterances 1 or more, "
                f"got {self.top_n} and {self.cohort_utterances}"
            )

    @property
    def points(self) -> list[OperatingPoint]:
        """The operating points that costs are given at."""
        return [OperatingPoint(p_target, self.c_miss, self.c_fa) for p_target in listed(self.p_target)]


def listed(values: float | Sequence[float]) -> list[float]:
    """The distinct values of a setting that may be one or several."""
    return list(dict.fromkeys(values if isinstance(values, (list, tuple)) else [values]))


def _refuse_other(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"scoring.{name}={value}: expected one of {', '.join(choices)}")


@dataclass(frozen=True)
class Backend:
    """From embeddings to scores.

    Attributes:
        mean: [E], which is subtracted from every embedding.
        cohort: [K, E], mean embedding of each of K training speakers, for AS-norm; None where there is none.
        top_n: closest of them that AS-norm looks at.
        calibration: scores to log-likelihood ratios; None where no speakers were held out, or scores say nothing.
    """

    mean: Array
    cohort: Array | None = None
    top_n: int = 0
    calibration: Calibration | None = None

    def score(self, embeddings: Array, enrolment: Rows, test: Rows) -> Array:
        """Scores of trials, larger for likelier targets.

        Args:
            embeddings: [N, E].
            enrolment: [trials], row of each trial's enrolment.
            test: [trials], row of each trial's test utterance.

        Returns:
            [trials]: cosines, or with a cohort standard deviations above close strangers.

        Raises:
            ValueError: the cohort has fewer speakers than ``top_n``.
        """
        unit = centred_unit(embeddings, self.mean)
        scores = cosine_scores(unit, enrolment, test)
        if self.cohort is None:
            return scores
        means, deviations = cohort_statistics(unit, centred_unit(self.cohort, self.mean), self.top_n)
        return as_norm(scores, means, deviations, enrolment, test)

    @property
    def normalization(self) -> str:
        """How scores are normalized, in words."""
        if self.cohort is None:
            return "none"
        return f"AS-norm, top {self.top_n} of {len(self.cohort):,} training speakers"

    def state(self) -> dict[str, Any]:
        """Tensors and plain data, from which ``of`` makes it again."""
        return {
            "mean": torch.from_numpy(self.mean),
            "cohort": torch.from_numpy(self.cohort) if self.cohort is not None else None,
            "top_n": self.top_n,
            "calibration": self.calibration.as_dict() if self.calibration is not None else None,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Backend":
        """The back-end of a network file."""
        cohort, calibration = state["cohort"], state["calibration"]
        return cls(
            state["mean"].numpy(),
            cohort.numpy() if cohort is not None else None,
            state["top_n"],
            Calibration(**calibration) if calibration is not None else None,
        )
