"""Laws of the error rates, against values worked out by hand and by counting."""

import numpy as np
import pytest

from sv_sparse.scoring.cosine import cosine_scores
from sv_sparse.scoring.metrics import OperatingPoint, det_curve, eer, min_dcf


def scored(count: int = 2000, shift: float = 1.5, seed: int = 0):
    generator = np.random.default_rng(seed)
    is_target = generator.random(count) < 0.3
    return generator.normal(size=count) + shift * is_target, is_target


def by_counting(scores, is_target):
    """Miss and false-alarm rates at every score, the slow and obvious way."""
    thresholds = [np.inf, *sorted(set(scores), reverse=True)]
    miss = [np.mean(scores[is_target] < t) for t in thresholds]
    false_alarm = [np.mean(scores[~is_target] >= t) for t in thresholds]
    return np.array(miss), np.array(false_alarm), thresholds


def test_the_curve_is_what_counting_gives():
    scores, is_target = scored(200)
    scores = scores.round(1)  # with ties
    miss, false_alarm, thresholds = by_counting(scores, is_target)
    p_miss, p_fa, found = det_curve(scores, is_target)
    np.testing.assert_allclose(p_miss, miss, atol=1e-12)
    np.testing.assert_allclose(p_fa, false_alarm, atol=1e-12)
    np.testing.assert_allclose(found[1:], thresholds[1:])
    assert found[0] > scores.max()


def test_the_eer_lies_where_the_rates_cross():
    scores, is_target = scored()
    miss, false_alarm, _ = by_counting(scores, is_target)
    crossing = np.argmin(np.abs(miss - false_alarm))
    assert eer(scores, is_target)[0] == pytest.approx((miss[crossing] + false_alarm[crossing]) / 2, abs=2e-3)


@pytest.mark.parametrize(
    ("targets", "nontargets", "rate"),
    [([2.0, 3.0], [0.0, 1.0], 0.0), ([0.0], [1.0], 1.0), ([1.0, 1.0], [1.0, 1.0], 0.5), ([1.0, 3.0], [0.0, 2.0], 0.5)],
)
def test_the_eer_of_small_cases_is_what_paper_and_pencil_give(targets, nontargets, rate):
    is_target = np.array([True] * len(targets) + [False] * len(nontargets))
    assert eer(np.array(targets + nontargets), is_target)[0] == pytest.approx(rate)


def test_the_eer_does_not_depend_on_the_order_nor_on_a_monotone_map():
    scores, is_target = scored()
    order = np.random.default_rng(1).permutation(len(scores))
    assert eer(scores[order], is_target[order])[0] == eer(scores, is_target)[0] == eer(np.exp(scores), is_target)[0]


def test_at_the_eer_threshold_both_rates_are_the_eer():
    scores, is_target = scored()
    rate, threshold = eer(scores, is_target)
    assert np.mean(scores[is_target] < threshold) == pytest.approx(rate, abs=2e-3)
    assert np.mean(scores[~is_target] >= threshold) == pytest.approx(rate, abs=2e-3)


@pytest.mark.parametrize("point", [OperatingPoint(), OperatingPoint(0.05), OperatingPoint(0.5, c_miss=10.0)])
def test_min_dcf_is_the_least_cost_over_all_thresholds(point):
    scores, is_target = scored()
    miss, false_alarm, thresholds = by_counting(scores, is_target)
    costs = point.c_miss * point.p_target * miss + point.c_fa * (1 - point.p_target) * false_alarm
    least = costs.min() / min(point.c_miss * point.p_target, point.c_fa * (1 - point.p_target))
    cost, threshold = min_dcf(scores, is_target, point)
    assert cost == pytest.approx(least)
    assert threshold == pytest.approx(thresholds[int(np.argmin(costs))])


def test_min_dcf_never_exceeds_one_and_is_one_for_useless_scores():
    is_target = np.arange(100) % 2 == 0
    cost, threshold = min_dcf(np.zeros(100), is_target, OperatingPoint())
    assert cost == 1.0
    assert 0 < threshold < 1e-9  # finite, and above every score: nothing is accepted


@pytest.mark.parametrize("is_target", [np.ones(3, bool), np.zeros(3, bool)])
def test_trials_of_one_kind_are_refused(is_target):
    with pytest.raises(ValueError, match="trials need targets and nontargets"):
        eer(np.zeros(3), is_target)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        eer(np.array([0.0, np.nan, 1.0]), np.array([True, False, True]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"p_target": 0.0}, r"scoring.p_target must be above 0 and below 1, got 0.0"), ({"c_fa": 0.0}, "must be above 0")],
)
def test_an_operating_point_checks_itself(settings, message):
    with pytest.raises(ValueError, match=message):
        OperatingPoint(**settings)


def test_cosine_scores_are_cosines_of_centred_embeddings():
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(50, 8)).astype(np.float32)
    mean = generator.normal(size=8).astype(np.float32)
    left, right = generator.integers(50, size=(2, 40_000))
    centred = (embeddings - mean).astype(np.float64)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    expected = (unit[left] * unit[right]).sum(1)
    np.testing.assert_allclose(cosine_scores(embeddings, mean, left, right), expected, atol=1e-6)


def test_an_embedding_equal_to_the_mean_scores_zero():
    embeddings = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    assert cosine_scores(embeddings, embeddings[0], np.array([0]), np.array([1])).tolist() == [0.0]
