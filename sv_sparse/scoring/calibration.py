"""Scores to log-likelihood ratios, and to decisions; what the map is fitted by is in ``regression``.

Quality measures as in Mandasari et al., Quality measure functions for calibration (2013).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sv_sparse.scoring.cosine import Floats, Rows

QUALITIES = ("duration", "magnitude")

Qualities = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Calibration:
    """A map from scores, and what is known of a trial's quality, to log-likelihood ratios.

    Attributes:
        slope: natural log-likelihood ratio for each unit of the score.
        offset: of a score of 0.
        qualities: ratio for each unit of each quality measure.
        p_target: prior of the fit; ratios around ``-logit(p_target)`` are fitted best.
        trials: that it was fitted on.
        targets: of them.
        speakers: in them.
        thresholds: ratio from which to accept, by the share of false alarms it leads to on these trials.
    """

    slope: float
    offset: float
    qualities: dict[str, float]
    p_target: float
    trials: int
    targets: int
    speakers: int
    thresholds: dict[float, float]

    def llr(self, scores: Floats, qualities: Qualities) -> NDArray[np.float64]:
        """Natural log-likelihood ratios of trials, [trials]; above 0, the evidence is for a target."""
        found = self.slope * scores.astype(np.float64) + self.offset
        for name, weight in self.qualities.items():
            found += weight * qualities[name]
        return found

    @property
    def words(self) -> str:
        """What it is and was fitted on, in words."""
        known = " and ".join(["scores", *self.qualities])
        trials = f"{self.trials:,} trials of {self.speakers} held-out speakers, one utterance a side"
        return f"logistic regression of {known} on {trials}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, which ``Calibration(**data)`` takes."""
        return asdict(self)


def qualities_of(measured: Qualities, enrolment: Rows, test: Rows) -> dict[str, NDArray[np.float64]]:
    """Quality measures of trials: the logarithm of that of the poorer side.

    Args:
        measured: [N] by name: ``duration``, seconds that were heard of each side; ``magnitude``, the length of its
            embedding.
        enrolment: [trials], row of each trial's enrolment.
        test: [trials], row of each trial's test utterance.

    Returns:
        [trials] by name.
    """
    logs = {name: np.log(values.astype(np.float64).clip(1e-6)) for name, values in measured.items()}
    return {name: np.minimum(values[enrolment], values[test]) for name, values in logs.items()}
