"""How far error rates would move with other speakers: a bootstrap over speakers, not over trials.

Trials of one speaker are alike, so drawing trials would promise too much. Speakers are drawn with replacement; a
nontarget trial counts as often as both its speakers were drawn, multiplied, a target trial as often as its one.
Bengio and Mariéthoz, A statistical significance test for person authentication (Odyssey 2004), say why.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from sv_sparse.scoring.cosine import Floats, Rows
from sv_sparse.scoring.metrics import OperatingPoint

Interval = tuple[float, float]
Statistic = Callable[["Redrawn"], NDArray[np.float64]]

_FEWEST = 5  # speakers with targets, from which an interval says something
_DRAWS = 1000
_AT_ONCE = 64
_LEVEL = 0.95
_GRID = np.concatenate([np.linspace(0, 1, 801), np.geomspace(1e-6, 1e-2, 400)])  # shares of a class, finer at its end


@dataclass(frozen=True)
class Drawn:
    """Who speaks in the trials of a list, and how often each speaker was drawn.

    The same trials have the same draws, so that two systems can be compared on them.

    Args:
        is_target: [trials].
        enrolment: [trials], speaker of each trial's enrolment as a number.
        test: [trials], speaker of each trial's test utterance.
    """

    is_target: NDArray[np.bool_]
    enrolment: Rows
    test: Rows

    @property
    def enough(self) -> bool:
        """Whether so many speakers have targets that drawing others says something."""
        return len(np.unique(self.enrolment[self.is_target])) >= _FEWEST

    @cached_property
    def numbers(self) -> tuple[int, Rows]:
        """How many speakers there are, and the number of each trial's, from 0 on: enrolments, then tests."""
        distinct, numbers = np.unique(np.concatenate([self.enrolment, self.test]), return_inverse=True)
        return len(distinct), numbers

    @property
    def speakers(self) -> int:
        """How many different ones there are."""
        return self.numbers[0]

    @cached_property
    def pairs(self) -> tuple[Rows, Rows, Rows]:
        """Both speakers of each distinct pair, counted from 0, and the pair of each trial."""
        left, right = np.split(self.numbers[1], 2)
        distinct, pair = np.unique(left * self.speakers + right, return_inverse=True)
        return *np.divmod(distinct, self.speakers), pair

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """How often each speaker was drawn, [speakers, draws]."""
        generator = np.random.default_rng(0)
        even = np.full(self.speakers, 1 / self.speakers)
        return generator.multinomial(self.speakers, even, size=_DRAWS).T.astype(np.float32)


@dataclass(frozen=True)
class Redrawn:
    """Error rates of each draw at thresholds that rise, [thresholds, draws]."""

    p_miss: NDArray[np.float64]
    p_fa: NDArray[np.float64]


def redraw(scores: Floats, drawn: Drawn) -> Redrawn:
    """Error rates of one system under every draw, at some 2,000 thresholds.

    Draws without a target or without a nontarget are left out.

    Args:
        scores: [trials].
        drawn: of the same trials.
    """
    is_target = drawn.is_target
    target_levels, nontarget_levels = np.quantile(scores[is_target], _GRID), np.quantile(scores[~is_target], 1 - _GRID)
    thresholds = np.unique(np.concatenate([target_levels, nontarget_levels])).astype(scores.dtype)
    place = np.searchsorted(thresholds, scores, "right")  # how many thresholds accept it
    first, second, pair = drawn.pairs
    shape = (len(thresholds) + 1, len(first))
    counted = [
        coo_array((np.ones(own.sum(), np.float32), (place[own], pair[own])), shape=shape).tocsr()
        for own in (is_target, ~is_target)
    ]
    found = []
    for start in range(0, _DRAWS, _AT_ONCE):
        weights = drawn.weights[:, start : start + _AT_ONCE]
        of_pair = np.where((first == second)[:, None], weights[first], weights[first] * weights[second])
        targets, nontargets = (np.cumsum(count @ of_pair, axis=0, dtype=np.float64) for count in counted)
        whole = (targets[-1] > 0) & (nontargets[-1] > 0)
        targets, nontargets = targets[:, whole], nontargets[:, whole]
        found.append((targets[:-1] / targets[-1], 1 - nontargets[:-1] / nontargets[-1]))
    p_miss, p_fa = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    return Redrawn(p_miss, p_fa)


def eers(rates: Redrawn) -> NDArray[np.float64]:
    """Equal error rate of each draw, interpolated between thresholds."""
    p_miss = np.concatenate([rates.p_miss, np.ones((1, rates.p_miss.shape[1]))])
    p_fa = np.concatenate([rates.p_fa, np.zeros((1, rates.p_fa.shape[1]))])
    after = np.argmax(p_miss > p_fa, axis=0)  # the first threshold with more misses
    draw = np.arange(p_miss.shape[1])
    before = after - 1  # there is one: at the lowest threshold nothing is missed
    gap_before, gap_after = ((p_fa - p_miss)[place, draw] for place in (before, after))
    share = gap_before / (gap_before - gap_after)
    return p_fa[before, draw] + share * (p_fa[after, draw] - p_fa[before, draw])


def min_dcfs(point: OperatingPoint) -> Statistic:
    """What gives the smallest normalized detection cost of each draw."""
    miss, fa = point.weights
    return lambda rates: np.minimum((miss * rates.p_miss + fa * rates.p_fa).min(axis=0), 1.0)


def interval(values: NDArray[np.float64]) -> Interval:
    """The middle 95 % of the draws."""
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def difference(ours: Floats, theirs: Floats, drawn: Drawn) -> Interval:
    """The interval of the difference of two systems' EERs on the same trials, ours less theirs.

    Both hear the same draws, so that what is hard for both does not count. They differ beyond chance in the speakers
    where the interval leaves out 0.

    Args:
        ours: scores [trials].
        theirs: scores [trials] of another system.
        drawn: of these trials.
    """
    return interval(eers(redraw(ours, drawn)) - eers(redraw(theirs, drawn)))
