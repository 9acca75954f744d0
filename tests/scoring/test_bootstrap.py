"""Laws of the intervals: what drawing speakers one by one gives, and how often they hold what is true."""

import numpy as np
import pytest

from sv_sparse.scoring.bootstrap import (
    SpeakerBootstrap,
    bootstrap_eer,
    bootstrap_min_dcf,
    eer_difference_interval,
    interval,
    resample,
)
from sv_sparse.scoring.metrics import OperatingPoint, eer, min_dcf, sort_scores


def scored(seed: int, speakers: int = 20, utterances: int = 4, spread: float = 0.7):
    """Scores of all pairs of utterances; each speaker is easier or harder to recognize."""
    generator = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(speakers), utterances)
    first, second = np.triu_indices(len(speaker), k=1)
    left, right = speaker[first], speaker[second]
    is_target = left == right
    ease = generator.normal(scale=spread, size=speakers)
    scores = generator.normal(size=len(left)) + is_target * (2 + ease[left]) + 0.3 * (ease[left] + ease[right])
    return scores.astype(np.float32), SpeakerBootstrap(is_target, left, right)


def test_each_draw_has_the_error_rates_of_trials_repeated_as_often_as_their_speakers():
    scores, bootstrap = scored(0)
    rates = resample(scores, bootstrap)
    point = OperatingPoint(0.1)
    found, costs = bootstrap_eer(rates), bootstrap_min_dcf(rates, point)
    for draw in range(0, 1000, 97):
        weight = bootstrap.multiplicities[:, draw]
        times = np.where(
            bootstrap.is_target, weight[bootstrap.enrollment], weight[bootstrap.enrollment] * weight[bootstrap.test]
        )
        ranked = sort_scores(*(np.repeat(values, times.astype(int)) for values in (scores, bootstrap.is_target)))
        assert found[draw] == pytest.approx(eer(ranked)[0], abs=5e-3)
        assert costs[draw] == pytest.approx(min_dcf(ranked, point)[0], abs=5e-3)


def test_every_draw_has_as_many_speakers_as_there_are():
    _, bootstrap = scored(1)
    assert bootstrap.num_speakers == 20
    np.testing.assert_array_equal(bootstrap.multiplicities.sum(axis=0), np.full(1000, 20))


def test_speakers_may_have_any_numbers():
    scores, bootstrap = scored(2)
    renamed = SpeakerBootstrap(bootstrap.is_target, bootstrap.enrollment * 7 + 100, bootstrap.test * 7 + 100)
    assert interval(bootstrap_eer(resample(scores, renamed))) == interval(bootstrap_eer(resample(scores, bootstrap)))


def test_the_interval_holds_what_many_speakers_would_give_about_as_often_as_it_says():
    truth = np.mean([eer(sort_scores(s, d.is_target))[0] for s, d in (scored(k, speakers=60) for k in range(900, 912))])
    cases = [scored(seed) for seed in range(40)]
    found = np.array([interval(bootstrap_eer(resample(scores, bootstrap))) for scores, bootstrap in cases])
    num_covered = ((found[:, 0] <= truth) & (truth <= found[:, 1])).sum()
    assert num_covered >= 33  # of 40; 38 are promised
    spread = np.std([eer(sort_scores(scores, bootstrap.is_target))[0] for scores, bootstrap in cases])
    assert 0.7 < np.mean(found[:, 1] - found[:, 0]) / (2 * 1.96 * spread) < 1.4


def test_two_systems_on_the_same_trials_differ_by_less_than_their_own_intervals_say():
    scores, bootstrap = scored(3)
    noise = np.random.default_rng(0).normal(size=len(scores)).astype(np.float32)
    other = scores + np.float32(0.05) * noise
    low, high = eer_difference_interval(other, scores, bootstrap)
    alone = interval(bootstrap_eer(resample(scores, bootstrap)))
    assert high - low < (alone[1] - alone[0]) / 4


def test_a_system_that_is_worse_for_all_speakers_differs():
    scores, bootstrap = scored(4)
    noise = np.random.default_rng(0).normal(size=len(scores)).astype(np.float32)
    low, _ = eer_difference_interval(scores + 2 * noise, scores, bootstrap)
    assert low > 0
    assert eer_difference_interval(scores, scores, bootstrap) == (0, 0)
