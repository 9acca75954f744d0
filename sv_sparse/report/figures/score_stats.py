"""Summary of a trial list's scores for figures: a DET curve of few points, and histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from sv_sparse.scoring.metrics import OperatingPoint, det_curve, min_dcf, sort_scores

Array = NDArray[np.float64]

# Of a DET curve, which has millions: more cannot be seen (DECISIONS 51).
MAX_POINTS = 400
_BINS = 60


@dataclass(frozen=True)
class ScoreSummary:
    """Few numbers that stand for many scores.

    Attributes:
        p_fa: [points] false-alarm rates of points of the DET curve, rising.
        p_miss: [points] miss rates there.
        min_dcf_rates: (p_fa, p_miss) of the smallest cost, for each operating point.
        edges: [bins + 1] scores between the bins of the histograms.
        targets: [bins] fractions of the targets' scores.
        nontargets: [bins] fractions of the nontargets' scores.
    """

    p_fa: Array
    p_miss: Array
    min_dcf_rates: list[tuple[float, float]]
    edges: Array
    targets: Array
    nontargets: Array


def summarize_scores(
    scores: NDArray[np.floating], is_target: NDArray[np.bool_], points: Sequence[Mapping[str, Any]]
) -> ScoreSummary:
    """Summarize scores and labels, [trials] each, at operating points with ``p_target``, ``c_miss`` and ``c_fa``.

    Raises:
        ValueError: a score is not finite, or there are no targets or no nontargets.
    """
    sorted_scores = sort_scores(scores, is_target)
    p_miss, p_fa, _ = det_curve(sorted_scores)
    min_dcf_rates = []
    for point in points:
        _, threshold = min_dcf(sorted_scores, OperatingPoint(point["p_target"], point["c_miss"], point["c_fa"]))
        # In the scores' own precision, or the threshold could fall on the other side of a score.
        miss_rate, fa_rate = sorted_scores.rates(scores.dtype.type(threshold))
        min_dcf_rates.append((float(fa_rate), float(miss_rate)))
    edges = np.histogram_bin_edges(scores, _BINS)
    targets = np.histogram(scores[is_target], edges)[0] / is_target.sum()
    nontargets = np.histogram(scores[~is_target], edges)[0] / (~is_target).sum()
    indices = _decimate(p_fa, p_miss)
    return ScoreSummary(p_fa[indices], p_miss[indices], min_dcf_rates, edges.astype(np.float64), targets, nontargets)


def _decimate(p_fa: Array, p_miss: Array) -> NDArray[np.intp]:
    """Return indices of at most MAX_POINTS points [points] of a DET curve, evenly spaced on probit axes."""
    if len(p_fa) <= MAX_POINTS:
        return np.arange(len(p_fa))
    steps = np.abs(np.diff(probit(p_fa))) + np.abs(np.diff(probit(p_miss)))
    length = np.concatenate([[0.0], np.cumsum(steps)])
    # Of the curve's own points, without interpolation: each was measured.
    indices = np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS))
    return np.unique(np.minimum(indices, len(length) - 1))


def probit(rate: Array | float) -> Array:
    """Return the position of a rate on the axes of a DET curve, in standard deviations.

    >>> probit(0.5).item()
    0.0
    """
    # 0 and 1 lie at infinity; these limits lie just outside any axis that is drawn.
    return np.asarray(ndtri(np.clip(rate, 1e-7, 1 - 1e-7)))
