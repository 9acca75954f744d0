"""Scores to log-likelihood ratios, and to decisions: logistic regression on trials whose answers are known.

It is fitted on speakers that are neither trained on nor judged by. Brümmer et al., Fusion of heterogeneous speaker
recognition systems (2007); quality measures as in Mandasari et al., Quality measure functions for calibration (2013).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sv_sparse.scoring.cosine import Rows
from sv_sparse.scoring.metrics import Floats, rank_scores, thresholds_for

QUALITIES = ("duration", "magnitude")
_LEAST_FALSE_ALARMS = 10  # behind a threshold; fewer would be chance

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


def calibrate(
    scores: Floats,
    is_target: NDArray[np.bool_],
    qualities: Qualities,
    *,
    speakers: int,
    false_alarms: Sequence[float],
    p_target: float = 0.1,
) -> Calibration | None:
    """Fit a calibration.

    Args:
        scores: [trials].
        is_target: [trials].
        qualities: [trials] by name; none is usual.
        speakers: in the trials; it is kept.
        false_alarms: shares for which thresholds are wanted; those that fewer than ten of the nontargets would make
            up get none.
        p_target: prior that both classes are weighted to.

    Returns:
        None where higher scores do not speak for targets: nothing can be decided then.

    Raises:
        ValueError: there are no targets or no nontargets, or a score is not finite.
    """
    rank_scores(scores, is_target)
    slopes, offset = _regression(np.stack([scores, *qualities.values()], axis=1), is_target, p_target)
    if slopes[0] <= 0:
        return None
    fitted = Calibration(
        slope=slopes[0],
        offset=offset - float(logit(p_target)),
        qualities=dict(zip(qualities, slopes[1:], strict=True)),
        p_target=p_target,
        trials=len(scores),
        targets=int(is_target.sum()),
        speakers=speakers,
        thresholds={},
    )
    ranked = rank_scores(fitted.llr(scores, qualities), is_target)
    known = [share for share in false_alarms if share * len(ranked.nontargets) >= _LEAST_FALSE_ALARMS]
    fitted.thresholds.update(zip(known, thresholds_for(ranked, known), strict=True))
    return fitted


def _regression(columns: Floats, is_target: NDArray[np.bool_], p_target: float) -> tuple[list[float], float]:
    """Slopes of the columns, and the offset, of the log odds of a target whose prior is ``p_target``.

    The fit is penalized as if by one trial, so that scores which separate the classes wholly get finite slopes.
    """
    count, targets = len(is_target), is_target.sum()
    weight = np.where(is_target, p_target / targets, (1 - p_target) / (count - targets)) * count
    scale, regression = make_pipeline(StandardScaler(), LogisticRegression()).fit(
        columns.astype(np.float64), is_target, logisticregression__sample_weight=weight
    )
    slopes = regression.coef_[0] / scale.scale_
    return slopes.tolist(), float(regression.intercept_[0] - np.dot(slopes, scale.mean_))
