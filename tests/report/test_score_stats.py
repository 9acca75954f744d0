"""Laws of the summaries of scores that figures draw."""

import numpy as np
import pytest

from sv_sparse.report.figures.score_stats import MAX_POINTS, probit, summarize_scores
from sv_sparse.scoring.metrics import OperatingPoint, det_curve, min_dcf, sort_scores

COSTS = [{"p_target": p, "c_miss": 1.0, "c_fa": 1.0} for p in (0.01, 0.05)]


def random_scores(trials: int):
    generator = np.random.default_rng(1)
    is_target = generator.random(trials) < 0.1
    return generator.normal(is_target * 1.5).astype(np.float32), is_target


def test_a_decimated_curve_has_points_of_its_own_and_lies_near_all_others():
    scores, is_target = random_scores(200_000)
    summary = summarize_scores(scores, is_target, COSTS)
    p_miss, p_fa, _ = det_curve(sort_scores(scores, is_target))
    assert len(summary.p_fa) <= MAX_POINTS
    assert set(zip(summary.p_fa, summary.p_miss, strict=True)) <= set(zip(p_fa, p_miss, strict=True))
    inner = (p_fa > 1e-4) & (p_miss > 1e-3)
    interpolated = np.interp(probit(p_fa[inner]), probit(summary.p_fa), probit(summary.p_miss))
    assert np.abs(interpolated - probit(p_miss[inner])).max() < 0.1


def test_few_trials_are_drawn_as_they_are():
    scores, is_target = random_scores(50)
    p_miss, p_fa, _ = det_curve(sort_scores(scores, is_target))
    summary = summarize_scores(scores, is_target, COSTS)
    assert np.array_equal(summary.p_fa, p_fa)
    assert np.array_equal(summary.p_miss, p_miss)


def test_a_mark_is_where_the_cost_is_smallest():
    scores, is_target = random_scores(5_000)
    for (fa, miss), cost in zip(summarize_scores(scores, is_target, COSTS).min_dcf_rates, COSTS, strict=True):
        p = cost["p_target"]
        lowest, _ = min_dcf(sort_scores(scores, is_target), OperatingPoint(p))
        assert (p * miss + (1 - p) * fa) / min(p, 1 - p) == pytest.approx(lowest)


def test_histograms_hold_all_scores():
    summary = summarize_scores(*random_scores(3_000), COSTS)
    assert np.isclose(summary.targets.sum(), 1)
    assert np.isclose(summary.nontargets.sum(), 1)


def test_equal_scores_are_drawn_too():
    summary = summarize_scores(np.full(4, 0.5, np.float32), np.array([True, False, True, False]), COSTS)
    assert np.isfinite(summary.edges).all()
