"""Settings of scoring: the group ``scoring`` of the configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from sv_sparse.scoring.calibration import QUALITY_MEASURES
from sv_sparse.scoring.metrics import OperatingPoint

SCORE_NORMS = ("none", "as_norm")
ENROLLMENTS = ("average", "concatenated")


@dataclass(frozen=True)
class ScoringConfig:
    """Settings of scoring.

    Attributes:
        p_target: prior of a target, in (0, 1); or several, one for each operating point.
        c_miss: cost of a miss, above 0.
        c_fa: cost of a false alarm, above 0.
        score_norm: ``none``, or ``as_norm`` by a cohort of training speakers.
        top_n: closest speakers of the cohort that AS-norm takes, 2 or more.
        cohort_utts_per_speaker: utterances of each training speaker whose mean embedding is in the cohort,
            1 or more.
        enrollment: treatment of several enrollment utterances: ``average`` of their embeddings, or
            ``concatenated`` and embedded as one.
        quality_measures: inputs of the calibration beside the score: ``duration``, ``magnitude``.
        target_fars: false-alarm rates in (0, 1) to find thresholds for; a number or several.

    Raises:
        ValueError: a setting is not allowed; names it.

    >>> [point.p_target for point in ScoringConfig(p_target=0.1).points]
    [0.1]
    """

    p_target: float | Sequence[float] = (0.01, 0.05)
    c_miss: float = 1.0
    c_fa: float = 1.0
    score_norm: str = "none"
    top_n: int = 300
    cohort_utts_per_speaker: int = 10
    enrollment: str = "average"
    quality_measures: Sequence[str] = ()
    target_fars: float | Sequence[float] = (0.05, 0.01, 0.001)

    def __post_init__(self) -> None:
        _check_numbers("p_target", self.p_target)
        _check_numbers("target_fars", self.target_fars)
        _check_numbers("c_miss", self.c_miss)
        _check_numbers("c_fa", self.c_fa)
        if isinstance(self.quality_measures, str) or self.quality_measures is None:
            raise ValueError(
                f"scoring.quality_measures={self.quality_measures}: expected a list, of "
                f"{', '.join(QUALITY_MEASURES)} or empty: []"
            )
        _check_choice("score_norm", self.score_norm, SCORE_NORMS)
        _check_choice("enrollment", self.enrollment, ENROLLMENTS)
        for name in self.quality_measures:
            _check_choice("quality_measures", name, QUALITY_MEASURES)
        if not self.points:  # each checks itself
            raise ValueError("scoring.p_target: expected one prior or several, got none")
        for far in unique_list(self.target_fars):
            if not 0 < far < 1:
                raise ValueError(f"scoring.target_fars must be above 0 and below 1, got {far}")
        if self.top_n < 2 or self.cohort_utts_per_speaker < 1:
            raise ValueError(
                f"scoring.top_n must be 2 or more and scoring.cohort_utts_per_speaker 1 or more, "
                f"got {self.top_n} and {self.cohort_utts_per_speaker}"
            )

    @property
    def points(self) -> list[OperatingPoint]:
        """Operating points at which costs are computed, one for each distinct prior."""
        return [OperatingPoint(p_target, self.c_miss, self.c_fa) for p_target in unique_list(self.p_target)]


def unique_list(values: float | Sequence[float]) -> list[float]:
    """Return the distinct values of a setting that is a number or a list of numbers."""
    return list(dict.fromkeys(values if isinstance(values, (list, tuple)) else [values]))


def _check_numbers(name: str, values: float | Sequence[float]) -> None:
    for value in unique_list(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise ValueError(f"scoring.{name}={values}: expected finite numbers")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"scoring.{name}={value}: expected one of {', '.join(choices)}")
