"""Laws of the intervals: what drawing speakers one by one gives, and how often they hold what is true."""

import numpy as np
import pytest

from sv_sparse.scoring.bootstrap import Drawn, difference, eers, interval, min_dcfs, redraw
from sv_sparse.scoring.metrics import OperatingPoint, eer, min_dcf, rank_scores


def judged(seed: int, speakers: int = 20, utterances: int = 4, spread: float = 0.7):
    """Scores of all pairs of utterances; each speaker is easier or harder to recognize."""
    generator = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(speakers), utterances)
    first, second = np.triu_indices(len(speaker), k=1)
    left, right = speaker[first], speaker[second]
    is_target = left == right
    ease = generator.normal(scale=spread, size=speakers)
    scores = generator.normal(size=len(left)) + is_target * (2 + ease[left]) + 0.3 * (ease[left] + ease[right])
    return scores.astype(np.float32), Drawn(is_target, left, right)


def test_each_draw_has_the_error_rates_of_trials_repeated_as_often_as_their_speakers():
    scores, drawn = judged(0)
    rates = redraw(scores, drawn)
    point = OperatingPoint(0.1)
    found, costs = eers(rates), min_dcfs(point)(rates)
    for draw in range(0, 1000, 97):
        weight = drawn.weights[:, draw]
        times = np.where(drawn.is_target, weight[drawn.enrolment], weight[drawn.enrolment] * weight[drawn.test])
        ranked = rank_scores(*(np.repeat(values, times.astype(int)) for values in (scores, drawn.is_target)))
        assert found[draw] == pytest.approx(eer(ranked)[0], abs=5e-3)
        assert costs[draw] == pytest.approx(min_dcf(ranked, point)[0], abs=5e-3)


def test_every_draw_has_as_many_speakers_as_there_are():
    _, drawn = judged(1)
    assert drawn.speakers == 20
    np.testing.assert_array_equal(drawn.weights.sum(axis=0), np.full(1000, 20))


def test_speakers_may_have_any_numbers():
    scores, drawn = judged(2)
    renamed = Drawn(drawn.is_target, drawn.enrolment * 7 + 100, drawn.test * 7 + 100)
    assert interval(eers(redraw(scores, renamed))) == interval(eers(redraw(scores, drawn)))


def test_the_interval_holds_what_many_speakers_would_give_about_as_often_as_it_says():
    truth = np.mean([eer(rank_scores(s, d.is_target))[0] for s, d in (judged(k, speakers=60) for k in range(900, 912))])
    cases = [judged(seed) for seed in range(40)]
    found = np.array([interval(eers(redraw(scores, drawn))) for scores, drawn in cases])
    held = ((found[:, 0] <= truth) & (truth <= found[:, 1])).sum()
    assert held >= 33  # of 40; 38 are promised
    spread = np.std([eer(rank_scores(scores, drawn.is_target))[0] for scores, drawn in cases])
    assert 0.7 < np.mean(found[:, 1] - found[:, 0]) / (2 * 1.96 * spread) < 1.4


def test_two_systems_on_the_same_trials_differ_by_less_than_their_own_intervals_say():
    scores, drawn = judged(3)
    noise = np.random.default_rng(0).normal(size=len(scores)).astype(np.float32)
    other = scores + np.float32(0.05) * noise
    low, high = difference(other, scores, drawn)
    alone = interval(eers(redraw(scores, drawn)))
    assert high - low < (alone[1] - alone[0]) / 4


def test_a_system_that_is_worse_for_all_speakers_is_told_apart():
    scores, drawn = judged(4)
    noise = np.random.default_rng(0).normal(size=len(scores)).astype(np.float32)
    low, _ = difference(scores + 2 * noise, scores, drawn)
    assert low > 0
    assert difference(scores, scores, drawn) == (0, 0)
