"""Fit of a calibration: logistic regression on trials of speakers that are neither trained nor evaluated on.

Brümmer et al., Fusion of heterogeneous speaker recognition systems (2007).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sv_sparse.scoring.arrays import BoolArray, FloatArray
from sv_sparse.scoring.calibration import Calibration
from sv_sparse.scoring.metrics import sort_scores, thresholds_at_far

# A threshold that fewer false alarms decide is chance.
_MIN_FALSE_ALARMS = 10


def calibrate(
    scores: FloatArray,
    is_target: BoolArray,
    qualities: Mapping[str, FloatArray],
    *,
    num_speakers: int,
    target_fars: Sequence[float],
    p_target: float = 0.1,
) -> Calibration | None:
    """Fit a calibration.

    Args:
        scores: [trials].
        is_target: bool [trials].
        qualities: [trials] by name, from ``quality_measures``; usually empty.
        num_speakers: number of speakers in the trials, for the record.
        target_fars: false-alarm rates in (0, 1) to find thresholds for; rates of fewer than ten nontargets get none.
        p_target: prior in (0, 1) that both classes are weighted to; default: 0.1.

    Returns:
        The calibration, or None if higher scores do not mean targets: they cannot decide anything.

    Raises:
        ValueError: there are no targets or no nontargets, or a score is not finite.
    """
    # For its errors: scikit-learn's do not name the trial.
    sort_scores(scores, is_target)
    columns = np.stack([scores, *qualities.values()], axis=1)
    slopes, intercept = _fit_log_odds(columns, is_target, p_target)
    if slopes[0] <= 0:
        return None
    calibration = Calibration(
        slope=slopes[0],
        # The regression predicts posterior odds. Less the prior's they are the likelihood ratio.
        offset=intercept - float(logit(p_target)),
        qualities=dict(zip(qualities, slopes[1:], strict=True)),
        p_target=p_target,
        trials=len(scores),
        targets=int(is_target.sum()),
        speakers=num_speakers,
        thresholds={},
    )
    ratios = sort_scores(calibration.llr(scores, qualities), is_target)
    reliable = [far for far in target_fars if far * len(ratios.nontargets) >= _MIN_FALSE_ALARMS]
    calibration.thresholds.update(zip(reliable, thresholds_at_far(ratios, reliable), strict=True))
    return calibration


def _fit_log_odds(columns: FloatArray, is_target: BoolArray, p_target: float) -> tuple[list[float], float]:
    """Fit slopes and intercept of the log odds of a target with prior ``p_target``, to columns [trials, inputs]."""
    count = len(is_target)
    num_targets = is_target.sum()
    weight = np.where(is_target, p_target / num_targets, (1 - p_target) / (count - num_targets)) * count
    # scikit-learn's default penalty weighs as much as a single trial. It keeps the slopes finite if
    # the scores separate the classes.
    scaler, regression = make_pipeline(StandardScaler(), LogisticRegression()).fit(
        columns.astype(np.float64), is_target, logisticregression__sample_weight=weight
    )
    slopes = regression.coef_[0] / scaler.scale_
    return slopes.tolist(), float(regression.intercept_[0] - np.dot(slopes, scaler.mean_))
