"""Settings of scoring: the group ``scoring`` of the configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from sv_sparse.scoring.calibration import QUALITY_MEASURES
from sv_sparse.scoring.metrics import OperatingPoint

SCORE_NORMS = ("none", "as_norm")
ENROLLMENTS = ("average", "concatenated")


@dataclass(frozen=True)
class ScoringConfig:
    """Scoring of trials: operating points, score normalization, calibration.

    Raises:
        ValueError: a setting is not allowed; names it.

    >>> [point.p_target for point in ScoringConfig(p_target=0.1).points]
    [0.1]
    """

    # Any stands for a number or several, a union that Hydra's structured configs do not have.
    p_target: Any = field(
        default=(0.01, 0.05), metadata={"help": "Prior of a target, or several, one per operating point."}
    )
    c_miss: float = field(default=1.0, metadata={"help": "Cost of a miss."})
    c_fa: float = field(default=1.0, metadata={"help": "Cost of a false alarm."})
    score_norm: str = field(default="none", metadata={"help": "none, or as_norm: by a cohort of training speakers."})
    top_n: int = field(default=300, metadata={"help": "Closest speakers of the cohort that as_norm takes."})
    cohort_utts_per_speaker: int = field(default=10, metadata={"help": "Utterances per speaker of the cohort."})
    enrollment: str = field(
        default="average", metadata={"help": "Several enrollment utterances: average, or concatenated."}
    )
    quality_measures: list[str] = field(
        default_factory=list, metadata={"help": "Inputs of the calibration beside the score: duration, magnitude."}
    )
    target_fars: Any = field(default=(0.05, 0.01, 0.001), metadata={"help": "False-alarm rates with a threshold."})

    def __post_init__(self) -> None:
        _check_numbers("p_target", self.p_target)
        _check_numbers("target_fars", self.target_fars)
        _check_choice("score_norm", self.score_norm, SCORE_NORMS)
        _check_choice("enrollment", self.enrollment, ENROLLMENTS)
        for name in self.quality_measures:
            _check_choice("quality_measures", name, QUALITY_MEASURES)
        # Making the points checks each.
        if not self.points:
            raise ValueError("scoring.p_target: expected one prior or several, got none")
        for far in unique_list(self.target_fars):
            if not 0 < far < 1:
                raise ValueError(f"scoring.target_fars must be above 0 and below 1, got {far}")
        if self.top_n < 2 or self.cohort_utts_per_speaker < 1:
            expected = "scoring.top_n must be 2 or more and scoring.cohort_utts_per_speaker 1 or more"
            raise ValueError(f"{expected}, got {self.top_n} and {self.cohort_utts_per_speaker}")

    @property
    def points(self) -> list[OperatingPoint]:
        """Operating points at which costs are computed, one for each distinct prior."""
        return [OperatingPoint(p_target, self.c_miss, self.c_fa) for p_target in unique_list(self.p_target)]


def unique_list(values: float | Sequence[float]) -> list[float]:
    """Return the distinct values of a setting that is a number or a list of numbers."""
    return list(dict.fromkeys(values if isinstance(values, (list, tuple)) else [values]))


def _check_numbers(name: str, values: float | Sequence[float]) -> None:
    for value in unique_list(values):
        # A bool is an int in Python.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
            raise ValueError(f"scoring.{name}={values}: expected finite numbers")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"scoring.{name}={value}: expected one of {', '.join(choices)}")
