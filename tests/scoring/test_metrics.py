"""Laws of the error rates: what counting gives, what scikit-learn gives, on random scores with many ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from sklearn.metrics import log_loss, roc_curve

from sv_sparse.scoring.metrics import (
    OperatingPoint,
    SortedScores,
    act_dcf,
    cllr,
    det_curve,
    eer,
    min_cllr,
    min_dcf,
    sort_scores,
    thresholds_at_far,
)

POINTS = [OperatingPoint(), OperatingPoint(0.05), OperatingPoint(0.5, c_miss=10.0), OperatingPoint(0.9, 1.0, 3.0)]
few_values = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 3.0])  # so that many are equal
any_values = st.floats(-8, 8, width=32)
cases = settings(max_examples=1000, deadline=None)


@st.composite
def scored(draw, values=None):
    """Scores with at least one target and one nontarget, in float32 or float64."""
    count = draw(st.integers(2, 40))
    elements = draw(st.sampled_from([few_values, any_values])) if values is None else values
    scores = draw(arrays(draw(st.sampled_from([np.float32, np.float64])), count, elements=elements))
    is_target = draw(arrays(bool, count))
    is_target[:2] = True, False
    return scores, is_target


def by_counting(scores, is_target):
    """Miss and false-alarm rates at every threshold from above all scores down, the slow and obvious way."""
    thresholds = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    miss = [sum(s < t for s in scores[is_target]) / is_target.sum() for t in thresholds]
    false_alarm = [sum(s >= t for s in scores[~is_target]) / (~is_target).sum() for t in thresholds]
    return np.array(miss), np.array(false_alarm), thresholds


@cases
@given(scored())
def test_the_curve_is_what_counting_and_scikit_learn_give(case):
    scores, is_target = case
    p_miss, p_fa, thresholds = det_curve(sort_scores(scores, is_target))
    miss, false_alarm, expected = by_counting(scores, is_target)
    np.testing.assert_allclose(p_miss, miss, atol=1e-12)
    np.testing.assert_allclose(p_fa, false_alarm, atol=1e-12)
    np.testing.assert_array_equal(thresholds[1:], expected[1:])
    assert scores.max() < thresholds[0] < np.inf
    fpr, tpr, _ = roc_curve(is_target, scores, drop_intermediate=False)
    np.testing.assert_allclose(p_fa, fpr, atol=1e-12)
    np.testing.assert_allclose(p_miss, 1 - tpr, atol=1e-12)


@cases
@given(scored())
def test_the_eer_lies_where_the_lines_between_the_curves_points_cross(case):
    scores, is_target = case
    rate, threshold = eer(sort_scores(scores, is_target))
    miss, false_alarm, thresholds = by_counting(scores, is_target)
    after = next(k for k in range(len(miss)) if false_alarm[k] >= miss[k])
    before = after - 1
    share = np.linspace(0, 1, 2001)  # along the line
    along_miss = miss[before] + share * (miss[after] - miss[before])
    along_fa = false_alarm[before] + share * (false_alarm[after] - false_alarm[before])
    nearest = np.argmin(np.abs(along_miss - along_fa))
    assert rate == pytest.approx((along_miss[nearest] + along_fa[nearest]) / 2, abs=1e-3)
    assert threshold == thresholds[after]


@cases
@given(scored(), st.sampled_from(POINTS))
def test_min_dcf_is_the_least_cost_over_all_thresholds_and_its_threshold_costs_that(case, point):
    scores, is_target = case
    ranked = sort_scores(scores, is_target)
    miss, false_alarm, _ = by_counting(scores, is_target)
    costs = point.c_miss * point.p_target * miss + point.c_fa * (1 - point.p_target) * false_alarm
    least = costs.min() / min(point.c_miss * point.p_target, point.c_fa * (1 - point.p_target))
    cost, threshold = min_dcf(ranked, point)
    assert cost == pytest.approx(least, abs=1e-12)
    assert cost <= 1 + 1e-12
    p_miss, p_fa = ranked.rates(scores.dtype.type(threshold))
    assert np.dot(point.weights, (p_miss, p_fa)) == pytest.approx(cost, abs=1e-12)


@cases
@given(scored(), st.sampled_from(POINTS))
def test_act_dcf_is_the_cost_at_the_bayes_threshold_and_never_below_min_dcf(case, point):
    llr, is_target = case
    ranked = sort_scores(llr, is_target)
    odds = point.p_target * point.c_miss / ((1 - point.p_target) * point.c_fa)
    accepted = np.exp(llr.astype(np.float64)) * odds >= 1 - 1e-12
    cost = point.p_target * point.c_miss * np.mean(~accepted[is_target])
    cost += (1 - point.p_target) * point.c_fa * np.mean(accepted[~is_target])
    cost /= min(point.c_miss * point.p_target, point.c_fa * (1 - point.p_target))
    assert act_dcf(ranked, point) == pytest.approx(cost, abs=1e-9)
    assert act_dcf(ranked, point) >= min_dcf(ranked, point)[0] - 1e-9


@cases
@given(scored())
def test_cllr_is_scikit_learns_log_loss_with_both_classes_of_equal_weight(case):
    llr, is_target = case
    found = cllr(sort_scores(llr.astype(np.float64), is_target))
    weight = np.where(is_target, 1 / is_target.sum(), 1 / (~is_target).sum())
    loss = log_loss(is_target, 1 / (1 + np.exp(-llr.astype(np.float64))), sample_weight=weight)
    assert found == pytest.approx(loss / np.log(2), rel=1e-4, abs=1e-6)


@cases
@given(scored(few_values))
def test_min_cllr_is_below_that_of_any_monotone_map_and_of_the_scores_themselves(case):
    scores, is_target = case
    least = min_cllr(sort_scores(scores, is_target))
    assert 0 <= least <= 1 + 1e-9
    for mapped in (scores, scores - 1, 3 * scores, np.tanh(scores), scores**3):
        assert least <= cllr(sort_scores(mapped.astype(np.float64), is_target)) + 1e-6


@settings(max_examples=50, deadline=None)
@given(scored(few_values))
def test_min_cllr_is_reached_by_a_monotone_map_that_a_general_minimizer_finds(case):
    scores, is_target = case
    values, index = np.unique(scores, return_inverse=True)

    def cost(steps):
        llr = np.cumsum(np.concatenate([steps[:1], np.exp(steps[1:])]))[index]
        return cllr(sort_scores(llr, is_target))

    found = min(minimize(cost, np.full(len(values), start)).fun for start in (-1.0, 0.5))
    assert min_cllr(sort_scores(scores, is_target)) == pytest.approx(found, abs=5e-3)


@cases
@given(scored(), st.floats(0, 1))
def test_at_the_threshold_for_a_share_of_false_alarms_there_are_no_more_and_just_below_there_are(case, share):
    scores, is_target = case
    ranked = sort_scores(scores, is_target)
    (threshold,) = thresholds_at_far(ranked, [share])
    nontargets = scores[~is_target]
    assert np.mean(nontargets >= threshold) <= share + 1e-9
    lower = nontargets[nontargets < threshold]
    if len(lower):
        assert np.mean(nontargets >= lower.max()) > share


def test_the_rates_do_not_depend_on_the_order_nor_on_a_monotone_map():
    generator = np.random.default_rng(0)
    is_target = generator.random(2000) < 0.3
    scores = generator.normal(size=2000) + 1.5 * is_target
    order = generator.permutation(2000)
    for metric in (lambda r: eer(r)[0], lambda r: min_dcf(r, POINTS[0])[0], min_cllr):
        found = metric(sort_scores(scores, is_target))
        assert metric(sort_scores(scores[order], is_target[order])) == pytest.approx(found, abs=1e-12)
        assert metric(sort_scores(np.exp(scores), is_target)) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize(
    ("targets", "nontargets", "rate"),
    [([2.0, 3.0], [0.0, 1.0], 0.0), ([0.0], [1.0], 1.0), ([1.0, 1.0], [1.0, 1.0], 0.5), ([1.0, 3.0], [0.0, 2.0], 0.5)],
)
def test_the_eer_of_small_cases_is_what_paper_and_pencil_give(targets, nontargets, rate):
    assert eer(SortedScores(np.array(targets), np.array(nontargets)))[0] == pytest.approx(rate)


def test_useless_scores_cost_what_a_constant_answer_costs():
    ranked = sort_scores(np.zeros(100), np.arange(100) % 2 == 0)
    cost, threshold = min_dcf(ranked, OperatingPoint())
    assert cost == 1.0
    assert 0 < threshold < 1e-9  # finite, and above every score: nothing is accepted
    assert min_cllr(ranked) == pytest.approx(1)
    assert eer(ranked) == (0.5, 0.0)


def test_scores_that_separate_the_classes_cost_nothing():
    ranked = SortedScores(np.array([2.0, 3.0]), np.array([-1.0, 0.0, 1.0]))
    assert (eer(ranked)[0], min_dcf(ranked, OperatingPoint())[0], min_cllr(ranked)) == (0, 0, 0)


@pytest.mark.parametrize("is_target", [np.ones(3, bool), np.zeros(3, bool)])
def test_trials_of_one_kind_are_refused(is_target):
    with pytest.raises(ValueError, match=f"need targets and nontargets, got {is_target.sum()} targets of 3"):
        sort_scores(np.zeros(3), is_target)


@cases
@given(scored(), st.data(), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_score_that_is_not_finite_is_refused_and_its_trial_named(case, data, value):
    scores, is_target = case
    spoilt = sorted(data.draw(st.sets(st.integers(0, len(scores) - 1), min_size=1, max_size=3)))
    scores = scores.copy()
    scores[spoilt] = value
    message = f"the score of a b {spoilt[0]} is {value}; {len(spoilt)} of {len(scores)} scores are not finite"
    with pytest.raises(ValueError, match=message.replace("-", ".")):
        sort_scores(scores, is_target, "a b {}".format)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"p_target": 0.0}, r"scoring.p_target must be above 0 and below 1, got 0.0"),
        ({"c_fa": 0.0}, "must be above 0"),
        ({"c_miss": float("inf")}, "must be above 0 and finite, got inf and 1.0"),
    ],
)
def test_an_operating_point_checks_itself(wrong, message):
    with pytest.raises(ValueError, match=message):
        OperatingPoint(**wrong)
