"""Error rates and costs of scored trials, each with the threshold at which it is reached.

A trial is accepted if its score is at least the threshold, so equal scores are accepted together.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import log_expit, logit

from sv_sparse.scoring.arrays import BoolArray, Float64Array, FloatArray


@dataclass(frozen=True)
class OperatingPoint:
    """Prior of a target and the costs of both errors, as in the NIST evaluations.

    Args:
        p_target: prior of a target, in (0, 1).
        c_miss: cost of a miss, above 0.
        c_fa: cost of a false alarm, above 0.

    >>> round(OperatingPoint(0.01).threshold, 3)
    4.595
    """

    p_target: float = 0.01
    c_miss: float = 1.0
    c_fa: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.p_target < 1:
            raise ValueError(f"scoring.p_target must be above 0 and below 1, got {self.p_target}")
        if not (0 < self.c_miss < np.inf and 0 < self.c_fa < np.inf):
            costs = f"{self.c_miss} and {self.c_fa}"
            raise ValueError(f"scoring.c_miss and scoring.c_fa must be above 0 and finite, got {costs}")

    @property
    def weights(self) -> tuple[float, float]:
        """Costs of missing every target and of accepting every nontarget, over the smaller of both."""
        miss = self.c_miss * self.p_target
        fa = self.c_fa * (1 - self.p_target)
        return miss / min(miss, fa), fa / min(miss, fa)

    @property
    def threshold(self) -> float:
        """Natural log-likelihood ratio from which accepting costs less than rejecting."""
        miss, fa = self.weights
        return float(np.log(fa / miss))


@dataclass(frozen=True)
class SortedScores:
    """Scores by class, ascending: the input of all metrics (DECISIONS 47).

    >>> SortedScores(np.array([0.5, 1.0]), np.array([0.0])).rates(np.array([0.0, 0.7]))
    (array([0. , 0.5]), array([1., 0.]))
    """

    targets: FloatArray
    nontargets: FloatArray

    def rates(self, thresholds: FloatArray | np.floating) -> tuple[Float64Array, Float64Array]:
        """Return ``p_miss`` and ``p_fa`` at thresholds of any shape, in the scores' own precision."""
        num_missed = np.searchsorted(self.targets, thresholds)
        num_rejected = np.searchsorted(self.nontargets, thresholds)
        p_miss = num_missed / len(self.targets)
        p_fa = (len(self.nontargets) - num_rejected) / len(self.nontargets)
        return p_miss, p_fa


def sort_scores(
    scores: FloatArray, is_target: BoolArray, trial: Callable[[int], str] = "trial {}".format
) -> SortedScores:
    """Sort scores by class, for the metrics.

    Args:
        scores: [trials]; a higher score is more likely a target.
        is_target: bool [trials].
        trial: name of a trial for an error, from its position.

    Raises:
        ValueError: there are no targets or no nontargets, or a score is not finite; names the first such trial.
    """
    finite = np.isfinite(scores)
    if not finite.all():
        first = int(np.argmin(finite))
        count = f"{len(scores) - finite.sum()} of {len(scores)} scores"
        raise ValueError(f"the score of {trial(first)} is {scores[first]}; {count} are not finite")
    if is_target.all() or not is_target.any():
        raise ValueError(f"trials need targets and nontargets, got {is_target.sum()} targets of {len(is_target)}")
    return SortedScores(np.sort(scores[is_target]), np.sort(scores[~is_target]))


def det_curve(scores: SortedScores) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Compute miss and false-alarm rates at every threshold.

    Returns:
        ``p_miss`` (falling from 1 to 0), ``p_fa`` (rising from 0 to 1) and ``thresholds`` (falling from just
        above the highest score, where nothing is accepted).
    """
    distinct = np.unique(np.concatenate([scores.targets, scores.nontargets]))[::-1]
    # The first threshold is finite, so that it can be drawn and compared.
    thresholds = np.concatenate([[_next_float(distinct[0])], distinct])
    p_miss, p_fa = scores.rates(thresholds)
    return p_miss, p_fa, thresholds.astype(np.float64)


def eer(scores: SortedScores) -> tuple[float, float]:
    """Compute the equal error rate, interpolated on the DET curve, and its threshold.

    Returns:
        The rate in [0, 1], and the highest threshold at which the false-alarm rate is not below the miss rate.

    >>> eer(sort_scores(np.array([0.9, 0.4, 0.6, 0.1]), np.array([True, True, False, False])))[0]
    0.5
    """

    def misses_prevail(threshold: np.floating) -> bool:
        p_miss, p_fa = scores.rates(threshold)
        return bool(p_fa < p_miss)

    # The difference of both rates falls as the threshold rises, so bisection finds where they cross,
    # without the rates at every threshold.
    below: list[np.floating] = []
    above: list[np.floating] = []
    for sorted_class in (scores.targets, scores.nontargets):
        count = bisect_left(sorted_class, True, key=misses_prevail)
        below.extend(sorted_class[max(0, count - 1) : count])
        above.extend(sorted_class[count : count + 1])
    threshold = max(below)
    # Above all scores nothing is accepted.
    miss_above, fa_above = scores.rates(min(above)) if above else (1.0, 0.0)
    miss_below, fa_below = scores.rates(threshold)
    gap_above = fa_above - miss_above
    gap_below = fa_below - miss_below
    fraction = -gap_above / (gap_below - gap_above)
    return float(fa_above + fraction * (fa_below - fa_above)), float(threshold)


def min_dcf(scores: SortedScores, point: OperatingPoint) -> tuple[float, float]:
    """Compute the minimum detection cost in [0, 1], over that of the better constant answer, and its threshold.

    >>> min_dcf(sort_scores(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, False, False])), OperatingPoint())
    (0.0, 0.8)
    """
    targets = scores.targets
    nontargets = scores.nontargets
    miss, fa = point.weights
    # The minimum lies at the score of a target, or above all scores: any other threshold can be raised
    # to the next target's score without a miss.
    # Thresholds whose false alarms alone cost as much as rejecting everything are skipped.
    first = max(0, len(nontargets) - 1 - int(miss / fa * len(nontargets)))
    top = nontargets[first:]
    num_skipped = int(np.searchsorted(targets, top[0])) if first else 0
    candidates = targets[num_skipped:]
    p_fa = (len(top) - np.searchsorted(top, candidates)) / len(nontargets)
    # Of equal targets this is right for the first, which is the best: the false alarms are the same.
    p_miss = np.arange(num_skipped, len(targets)) / len(targets)
    cost = miss * p_miss + fa * p_fa
    # Of equal costs the last, at the highest threshold.
    best = len(cost) - 1 - int(np.argmin(cost[::-1])) if len(cost) else -1
    if best < 0 or cost[best] >= miss:
        return float(miss), float(_next_float(max(targets[-1], nontargets[-1])))
    return float(cost[best]), float(candidates[best])


def act_dcf(ratios: SortedScores, point: OperatingPoint) -> float:
    """Compute the normalized detection cost of log-likelihood ratios at the operating point's threshold."""
    p_miss, p_fa = ratios.rates(ratios.targets.dtype.type(point.threshold))
    miss, fa = point.weights
    return float(miss * p_miss + fa * p_fa)


def cllr(ratios: SortedScores) -> float:
    """Compute the cost of natural log-likelihood ratios, in bits: 0 if certain and right, 1 if they say nothing.

    >>> cllr(SortedScores(np.zeros(3), np.zeros(5)))
    1.0
    """
    # Brümmer and du Preez, Application-independent evaluation of speaker detection (2006).
    targets = -log_expit(ratios.targets).mean()
    nontargets = -log_expit(-ratios.nontargets).mean()
    return float((targets + nontargets) / 2 / np.log(2))


def min_cllr(scores: SortedScores) -> float:
    """Compute the ``cllr`` of the best monotone map of the scores, in bits."""
    targets, num_equal = np.unique(scores.targets, return_counts=True)
    below = np.searchsorted(scores.nontargets, targets)
    upto = np.searchsorted(scores.nontargets, targets, "right")
    # Isotonic regression pools the nontargets between two targets, so they are counted together. The
    # groups are: below the first target's score, at it, between it and the second, ..., above the last.
    num_targets = np.zeros(2 * len(targets) + 1)
    num_targets[1::2] = num_equal
    num_nontargets = np.diff(np.stack([below, upto], axis=1).ravel(), prepend=0, append=len(scores.nontargets))
    is_present = num_targets + num_nontargets > 0
    num_targets, num_nontargets = num_targets[is_present], num_nontargets[is_present]
    count = num_targets + num_nontargets
    posterior = isotonic_regression(num_targets / count, weights=count).x.clip(0, 1)
    llr = logit(posterior) - np.log(len(scores.targets) / len(scores.nontargets))
    # Groups without targets may have an infinite ratio, which must not meet their zero count: 0 * inf is NaN.
    has_targets = num_targets > 0
    has_nontargets = num_nontargets > 0
    miss_cost = -np.dot(num_targets[has_targets], log_expit(llr[has_targets])) / len(scores.targets)
    fa_cost = -np.dot(num_nontargets[has_nontargets], log_expit(-llr[has_nontargets])) / len(scores.nontargets)
    return float((miss_cost + fa_cost) / 2 / np.log(2))


def thresholds_at_far(scores: SortedScores, target_fars: Sequence[float]) -> list[float]:
    """Return the lowest threshold for each false-alarm rate in [0, 1] at which no more nontargets are accepted."""
    count = len(scores.nontargets)
    thresholds = []
    for far in target_fars:
        # In floating point 0.29 * 100 is a little less than 29.
        num_allowed = int(np.floor(far * count + 1e-9))
        if num_allowed < count:
            threshold = float(_next_float(scores.nontargets[count - 1 - num_allowed]))
        else:
            threshold = float(min(scores.nontargets[0], scores.targets[0]))
        thresholds.append(threshold)
    return thresholds


def _next_float(score: np.floating) -> np.floating:
    """Return the next larger number in the score's own precision."""
    return np.nextafter(score, score.dtype.type(np.inf))
