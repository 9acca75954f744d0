"""How trials are scored and judged: what the settings of ``scoring`` may be."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from sv_sparse.scoring.calibration import QUALITIES
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

    p_target: Any = (0.01, 0.05)
    c_miss: float = 1.0
    c_fa: float = 1.0
    normalization: str = "none"
    top_n: int = 300
    cohort_utterances: int = 10
    enrolment: str = "average"
    quality: list[str] = field(default_factory=list)
    false_alarms: Any = (0.05, 0.01, 0.001)

    def __post_init__(self) -> None:
        for name in ("p_target", "false_alarms", "c_miss", "c_fa"):
            given = getattr(self, name)
            several = listed(given) if name in {"p_target", "false_alarms"} else [given]
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in several)
            if not numbers or not all(map(isfinite, several)):
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
