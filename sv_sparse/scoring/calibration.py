"""Calibration: scores to log-likelihood ratios and decision thresholds."""

# It is fitted in fit_calibration.py, apart from here: using a network needs no scikit-learn (DECISIONS 3).

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sv_sparse.scoring.arrays import Float64Array, FloatArray, IndexArray

QUALITY_MEASURES = ("duration", "magnitude")


@dataclass(frozen=True)
class Calibration:
    """Affine map from a trial's score and quality measures to its log-likelihood ratio.

    Attributes:
        slope: natural log-likelihood ratio per unit of the score, above 0.
        offset: log-likelihood ratio of a score of 0, with quality measures of 0.
        qualities: log-likelihood ratio per unit of each quality measure, by name.
        p_target: prior of the fit, in (0, 1); ratios around ``-logit(p_target)`` are fitted best.
        trials: number of trials that it was fitted on; ``targets`` and ``speakers`` are those in them.
        thresholds: log-likelihood ratio from which to accept, by its false-alarm rate on these trials.

    >>> calibration = Calibration(10.0, -3.0, {}, 0.1, 1000, 200, 20, {0.01: 2.5})
    >>> calibration.llr(np.array([0.3, 0.6]), {}).tolist()
    [0.0, 3.0]
    """

    slope: float
    offset: float
    qualities: dict[str, float]
    p_target: float
    trials: int
    targets: int
    speakers: int
    thresholds: dict[float, float]

    def llr(self, scores: FloatArray, qualities: Mapping[str, FloatArray]) -> Float64Array:
        """Compute natural log-likelihood ratios, float64 [trials]; above 0 they are evidence for a target.

        Args:
            scores: [trials].
            qualities: [trials] for each name in ``self.qualities``, from ``quality_measures``.
        """
        llr = self.slope * scores.astype(np.float64) + self.offset
        for name, weight in self.qualities.items():
            llr += weight * qualities[name]
        return llr

    @property
    def description(self) -> str:
        """Sentence part that says what was fitted, and on what."""
        inputs = " and ".join(["scores", *self.qualities])
        trials = f"{self.trials:,} trials of {self.speakers} held-out speakers, one utterance a side"
        return f"logistic regression of {inputs} on {trials}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which ``Calibration(**data)`` takes."""
        return asdict(self)


def quality_measures(
    measured: Mapping[str, FloatArray], enrollment: IndexArray, test: IndexArray
) -> dict[str, Float64Array]:
    """Compute quality measures, float64 [trials] by name: the logarithm of the lower of both sides' values.

    Args:
        measured: [N] by name: ``duration``, seconds of speech of each side; ``magnitude``, length of its embedding.
        enrollment: int64 [trials], the row of each trial's enrollment.
        test: int64 [trials], the row of each trial's test utterance.
    """
    # Mandasari et al., Quality measure functions for calibration of speaker recognition systems in various
    # duration conditions (2013).
    qualities = {}
    for name, values in measured.items():
        # The clip gives a length of 0 a logarithm.
        logs = np.log(values.astype(np.float64).clip(1e-6))
        qualities[name] = np.minimum(logs[enrollment], logs[test])
    return qualities
