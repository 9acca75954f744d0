"""Scored lists to what is drawn of them: a DET curve of few points, and histograms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from sv_sparse.scoring.metrics import OperatingPoint, det_curve, min_dcf, sort_scores

Array = NDArray[np.float64]

POINTS = 400  # of a curve
BINS = 60


@dataclass(frozen=True)
class Scored:
    """What is drawn of a list's scores.

    Attributes:
        p_fa: [points] false-alarm rates, rising, of points of the DET curve.
        p_miss: [points] miss rates there.
        best: for each operating point, (p_fa, p_miss) where its cost is smallest.
        edges: [bins + 1] of scores.
        targets: [bins] shares of the targets' scores.
        nontargets: [bins] likewise.
    """

    p_fa: Array
    p_miss: Array
    best: list[tuple[float, float]]
    edges: Array
    targets: Array
    nontargets: Array


def look_at(scores: NDArray[np.floating], is_target: NDArray[np.bool_], costs: Sequence[dict[str, Any]]) -> Scored:
    """Few numbers of many scores.

    Args:
        scores: [trials].
        is_target: [trials].
        costs: operating points: ``p_target``, ``c_miss``, ``c_fa``.

    Raises:
        ValueError: see ``sort_scores``.
    """
    ranked = sort_scores(scores, is_target)
    p_miss, p_fa, _ = det_curve(ranked)
    best = []
    for cost in costs:
        _, threshold = min_dcf(ranked, OperatingPoint(cost["p_target"], cost["c_miss"], cost["c_fa"]))
        miss, fa = ranked.rates(scores.dtype.type(threshold))
        best.append((float(fa), float(miss)))
    edges = np.histogram_bin_edges(scores, BINS)
    shares = [np.histogram(scores[which], edges)[0] / which.sum() for which in (is_target, ~is_target)]
    chosen = thinned(p_fa, p_miss)
    return Scored(p_fa[chosen], p_miss[chosen], best, edges.astype(np.float64), *shares)


def thinned(p_fa: Array, p_miss: Array, points: int = POINTS) -> NDArray[np.intp]:
    """Indices of at most ``points`` points of a DET curve, evenly far from each other where rates are drawn as probits.

    >>> thinned(np.linspace(0.0, 1.0, 9), np.linspace(1.0, 0.0, 9), points=5).tolist()
    [0, 1, 4, 8]
    """
    if len(p_fa) <= points:
        return np.arange(len(p_fa))
    steps = np.abs(np.diff(probit(p_fa))) + np.abs(np.diff(probit(p_miss)))
    length = np.concatenate([[0.0], np.cumsum(steps)])
    chosen = np.searchsorted(length, np.linspace(0, length[-1], points))
    return np.unique(np.minimum(chosen, len(length) - 1))


def probit(rate: Array | float) -> Array:
    """Where a rate lies on the axes of a DET curve, in standard deviations; 0 and 1 lie just outside any that is drawn.

    >>> probit(0.5).item()
    0.0
    """
    return np.asarray(ndtri(np.clip(rate, 1e-7, 1 - 1e-7)))
