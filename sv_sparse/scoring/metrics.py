"""Error rates of scored trials, each with the threshold it is reached at.

All of them take the scores sorted by class, once (``Ranked``). A trial is accepted where its score is at least the
threshold; equal scores are one group.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.special import log_expit, logit

from sv_sparse.scoring.cosine import Floats

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
        if not (0 < self.c_miss < np.inf and 0 < self.c_fa < np.inf):
            raise ValueError(
                f"scoring.c_miss and scoring.c_fa must be above 0 and finite, got {self.c_miss} and {self.c_fa}"
            )

    @property
    def weights(self) -> tuple[float, float]:
        """Cost of missing every target, and of accepting every nontarget, over that of the better of the two."""
        miss, fa = self.c_miss * self.p_target, self.c_fa * (1 - self.p_target)
        return miss / min(miss, fa), fa / min(miss, fa)

    @property
    def threshold(self) -> float:
        """The log-likelihood ratio from which accepting costs less than rejecting."""
        miss, fa = self.weights
        return float(np.log(fa / miss))


@dataclass(frozen=True)
class Ranked:
    """Scores by class, ascending.

    Attributes:
        targets: [targets].
        nontargets: [nontargets].
    """

    targets: Floats
    nontargets: Floats

    def rates(self, thresholds: Floats | np.floating) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``p_miss`` and ``p_fa`` at thresholds of the scores' own type, of any shape."""
        missed = np.searchsorted(self.targets, thresholds)
        rejected = np.searchsorted(self.nontargets, thresholds)
        return missed / len(self.targets), (len(self.nontargets) - rejected) / len(self.nontargets)


def rank_scores(
    scores: Floats, is_target: NDArray[np.bool_], trial: Callable[[int], str] = "trial {}".format
) -> Ranked:
    """Scores sorted by class, which every metric takes.

    Args:
        scores: [trials], larger is more likely a target.
        is_target: [trials].
        trial: what a trial is called in an error, by its position.

    Raises:
        ValueError: there are no targets or no nontargets, or a score is not finite; names the first such trial.
    """
    finite = np.isfinite(scores)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"the score of {trial(first)} is {scores[first]}; {len(scores) - finite.sum()} of {len(scores)} scores "
            f"are not finite"
        )
    if is_target.all() or not is_target.any():
        raise ValueError(f"trials need targets and nontargets, got {is_target.sum()} targets of {len(is_target)}")
    return Ranked(np.sort(scores[is_target]), np.sort(scores[~is_target]))


def det_curve(ranked: Ranked) -> Curve:
    """Miss and false-alarm rates at every threshold.

    Returns:
        ``p_miss`` (falling from 1 to 0), ``p_fa`` (rising from 0 to 1), ``thresholds`` (falling from just
        above the largest score, where nothing is accepted).
    """
    distinct = np.unique(np.concatenate([ranked.targets, ranked.nontargets]))[::-1]
    thresholds = np.concatenate([[_above(distinct[0])], distinct])
    return *ranked.rates(thresholds), thresholds.astype(np.float64)


def eer(ranked: Ranked) -> tuple[float, float]:
    """Equal error rate, interpolated on the DET curve, and its threshold.

    The threshold is the largest at which there are no fewer false alarms than misses, as shares; found by bisection,
    as the difference of the two does not rise with the threshold.

    >>> eer(rank_scores(np.array([0.9, 0.4, 0.6, 0.1]), np.array([True, True, False, False])))[0]
    0.5
    """

    def crossed(threshold: np.floating) -> bool:
        p_miss, p_fa = ranked.rates(threshold)
        return bool(p_fa >= p_miss)

    sides = (ranked.targets, ranked.nontargets)
    last = [bisect_left(side, True, key=lambda score: not crossed(score)) - 1 for side in sides]
    threshold = max(side[index] for side, index in zip(sides, last, strict=True) if index >= 0)
    above = [side[index] for side in sides if (index := np.searchsorted(side, threshold, "right")) < len(side)]
    before_miss, before_fa = ranked.rates(min(above)) if above else (1.0, 0.0)
    after_miss, after_fa = ranked.rates(threshold)
    before, after = before_fa - before_miss, after_fa - after_miss
    share = -before / (after - before)
    return float(before_fa + share * (after_fa - before_fa)), float(threshold)


def min_dcf(ranked: Ranked, point: OperatingPoint) -> tuple[float, float]:
    """Smallest detection cost, normalized by the cost of the better constant answer, and its threshold.

    It is reached at the score of a target, or above all scores: any other threshold can be raised to the next target's
    score without a miss. Nor need thresholds be looked at whose false alarms alone cost as much as rejecting all.

    >>> min_dcf(rank_scores(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, True, False, False])), OperatingPoint())
    (0.0, 0.8)
    """
    targets, nontargets = ranked.targets, ranked.nontargets
    miss, fa = point.weights
    first = max(0, len(nontargets) - 1 - int(miss / fa * len(nontargets)))
    top = nontargets[first:]
    skipped = int(np.searchsorted(targets, top[0])) if first else 0
    candidates = targets[skipped:]
    p_fa = (len(top) - np.searchsorted(top, candidates)) / len(nontargets)
    p_miss = np.arange(skipped, len(targets)) / len(targets)  # of equal targets the first; the others cost more
    cost = miss * p_miss + fa * p_fa
    best = len(cost) - 1 - int(np.argmin(cost[::-1])) if len(cost) else -1
    if best < 0 or cost[best] >= miss:
        return float(miss), float(_above(max(targets[-1], nontargets[-1])))
    return float(cost[best]), float(candidates[best])


def act_dcf(ranked: Ranked, point: OperatingPoint) -> float:
    """Detection cost of log-likelihood ratios at the threshold that the operating point asks for, normalized."""
    p_miss, p_fa = ranked.rates(ranked.targets.dtype.type(point.threshold))
    miss, fa = point.weights
    return float(miss * p_miss + fa * p_fa)


def cllr(ranked: Ranked) -> float:
    """Cost of log-likelihood ratios, in bits; 0 where they are certain and right, 1 where they say nothing.

    Brümmer and du Preez, Application-independent evaluation of speaker detection (2006).

    >>> cllr(Ranked(np.zeros(3), np.zeros(5)))
    1.0
    """
    missed, accepted = -log_expit(ranked.targets).mean(), -log_expit(-ranked.nontargets).mean()
    return float((missed + accepted) / 2 / np.log(2))


def min_cllr(ranked: Ranked) -> float:
    """The ``cllr`` of the best monotone map of the scores, which isotonic regression finds (PAV), in bits."""
    targets, targets_equal = np.unique(ranked.targets, return_counts=True)
    below = np.searchsorted(ranked.nontargets, targets)
    upto = np.searchsorted(ranked.nontargets, targets, "right")
    ones = np.zeros(2 * len(targets) + 1)  # targets below a target's score, at it, ..., above the last one's
    zeros = np.zeros_like(ones)  # and nontargets
    ones[1::2] = targets_equal
    zeros[1::2] = upto - below
    zeros[::2] = np.diff(below, prepend=0, append=len(ranked.nontargets)) - np.append(0, upto - below)
    count = ones + zeros
    ones, zeros, count = (values[count > 0] for values in (ones, zeros, count))
    posterior = isotonic_regression(ones / count, weights=count).x.clip(0, 1)
    llr = logit(posterior) - np.log(len(ranked.targets) / len(ranked.nontargets))
    missed = -np.dot(ones[ones > 0], log_expit(llr[ones > 0])) / len(ranked.targets)
    accepted = -np.dot(zeros[zeros > 0], log_expit(-llr[zeros > 0])) / len(ranked.nontargets)
    return float((missed + accepted) / 2 / np.log(2))


def thresholds_for(ranked: Ranked, false_alarms: Sequence[float]) -> list[float]:
    """The lowest threshold at which no more than each of these shares of nontargets are accepted."""
    count = len(ranked.nontargets)
    allowed = [min(int(np.floor(share * count + 1e-9)), count) for share in false_alarms]
    lowest = float(min(ranked.nontargets[0], ranked.targets[0]))
    return [float(_above(ranked.nontargets[count - 1 - k])) if k < count else lowest for k in allowed]


def _above(score: np.floating) -> np.floating:
    """The next number of the score's own type."""
    return np.nextafter(score, score.dtype.type(np.inf))
