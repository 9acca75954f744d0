"""The fit of a calibration: logistic regression on trials whose answers are known.

It is fitted on speakers that are neither trained on nor judged by. Brümmer et al., Fusion of heterogeneous speaker
recognition systems (2007).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sv_sparse.scoring.calibration import Calibration, Qualities
from sv_sparse.scoring.cosine import Floats
from sv_sparse.scoring.metrics import rank_scores, thresholds_for

_LEAST_FALSE_ALARMS = 10  # behind a threshold; fewer would be chance


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
