"""Error rates of scored trials: DET curve, EER, minDCF, each with the threshold it is reached at."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

Curve = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class OperatingPoint:
    """Prior of a target and the costs of both errors."""

    p_target: float = 0.01
    c_miss: float = 1.0
    c_fa: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.p_target < 1:
            raise ValueError(f"scoring.p_target must be above 0 and below 1, got {self.p_target}")
        if not (self.c_miss > 0 and self.c_fa > 0):
            raise ValueError(f"scoring.c_miss and scoring.c_fa must be above 0, got {self.c_miss} and {self.c_fa}")


def det_curve(scores: NDArray[np.floating], is_target: NDArray[np.bool_]) -> Curve:
    """Miss and false-alarm rates at every threshold, equal scores taken as one group.

    Args:
        scores: [trials], larger is more likely a target.
        is_target: [trials].

    Returns:
        ``p_miss`` (falling from 1 to 0), ``p_fa`` (rising from 0 to 1), ``thresholds`` (falling from just
        above the largest score, where nothing is accepted); a trial is accepted where its score is at least the
        threshold.

    Raises:
        ValueError: there are no targets or no nontargets, or a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} of {len(scores)} scores are not finite")
    if is_target.all() or not is_target.any():
        raise ValueError(f"trials need targets and nontargets, got {is_target.sum()} targets of {len(is_target)}")
    p_fa, p_hit, thresholds = roc_curve(is_target, scores.astype(np.float64), drop_intermediate=False)
    thresholds[0] = np.nextafter(thresholds[1], np.inf)
    return 1 - p_hit, p_fa, thresholds


def eer(scores: NDArray[np.floating], is_target: NDArray[np.bool_]) -> tuple[float, float]:
    """Equal error rate, interpolated on the DET curve, and its threshold.

    >>> eer(np.array([0.9, 0.4, 0.6, 0.1]), np.array([True, True, False, False]))[0]
    0.5
    """
    p_miss, p_fa, thresholds = det_curve(scores, is_target)
    gap = p_fa - p_miss
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    rate = p_fa[after - 1] + share * (p_fa[after] - p_fa[after - 1])
    return float(rate), float(thresholds[after])


def min_dcf(scores: NDArray[np.floating], is_target: NDArray[np.bool_], point: OperatingPoint) -> tuple[float, float]:
    """Smallest detection cost, normalized by the cost of the better constant answer, and its threshold.

    >>> min_dcf(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, False, False]), OperatingPoint())
    (0.0, 0.8)
    """
    p_miss, p_fa, thresholds = det_curve(scores, is_target)
    miss, fa = point.c_miss * point.p_target, point.c_fa * (1 - point.p_target)
    cost = (miss * p_miss + fa * p_fa) / min(miss, fa)
    best = int(np.argmin(cost))
    return float(cost[best]), float(thresholds[best])
