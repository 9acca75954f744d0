"""Laws of calibration: it finds log-likelihood ratios, and says nothing where scores say nothing."""

import numpy as np
import pytest

from sv_sparse.scoring.calibration import Calibration, quality_measures
from sv_sparse.scoring.fit_calibration import calibrate
from sv_sparse.scoring.metrics import OperatingPoint, act_dcf, cllr, min_cllr, min_dcf, sort_scores


def scored(count: int = 40_000, seed: int = 0):
    """Scores whose log-likelihood ratio is 10 (s - 0.3): both classes normal, of one variance."""
    generator = np.random.default_rng(seed)
    is_target = generator.random(count) < 0.2
    llr = np.where(is_target, 2.0, -2.0) + 2 * generator.normal(size=count)
    return (0.1 * llr + 0.3).astype(np.float32), is_target


def fitted(scores, is_target, qualities=None, p_target=0.1) -> Calibration:
    found = calibrate(
        scores, is_target, qualities or {}, p_target=p_target, num_speakers=9, target_fars=[0.05, 0.01, 1e-6]
    )
    assert found is not None
    return found


@pytest.mark.parametrize("p_target", [0.5, 0.1, 0.02])
def test_the_ratios_are_the_true_ones_whatever_prior_it_is_fitted_at(p_target):
    calibration = fitted(*scored(), p_target=p_target)
    assert calibration.slope == pytest.approx(10, rel=0.06)
    assert calibration.offset == pytest.approx(-3, rel=0.06)


def test_on_other_trials_of_the_kind_the_ratios_cost_little_more_than_the_least():
    calibration = fitted(*scored())
    scores, is_target = scored(seed=1)
    ranked = sort_scores(calibration.llr(scores, {}), is_target)
    assert cllr(ranked) < min_cllr(ranked) + 0.01
    for point in (OperatingPoint(0.05), OperatingPoint(0.3)):
        assert act_dcf(ranked, point) < min_dcf(ranked, point)[0] + 0.03


def test_a_threshold_for_a_share_of_false_alarms_keeps_it_on_other_trials():
    calibration = fitted(*scored())
    scores, is_target = scored(seed=2)
    llr = calibration.llr(scores, {})
    assert list(calibration.thresholds) == [0.05, 0.01]  # one in a million is more than these trials can tell
    for share, threshold in calibration.thresholds.items():
        assert np.mean(llr[~is_target] >= threshold) == pytest.approx(share, rel=0.15)


def test_short_utterances_whose_scores_say_less_are_helped_by_their_length():
    scores, is_target = scored()
    seconds = np.random.default_rng(0).choice([1.0, 8.0], size=len(scores))
    heard = np.where(seconds == 1, scores - np.float32(0.2), scores)  # all of a short one's scores are lower
    with_length = fitted(heard, is_target, {"duration": np.log(seconds)})
    without = fitted(heard, is_target)
    assert with_length.qualities["duration"] == pytest.approx(-0.2 * 10 / np.log(8), rel=0.1)
    costs = [cllr(sort_scores(c.llr(heard, {"duration": np.log(seconds)}), is_target)) for c in (with_length, without)]
    assert costs[0] < costs[1] - 0.01


def test_the_quality_of_a_trial_is_that_of_its_poorer_side():
    measured = {"duration": np.array([2.0, 5.0, 3.0]), "magnitude": np.array([1.0, 2.0, 4.0], np.float32)}
    both = quality_measures(measured, np.array([0, 1]), np.array([1, 2]))
    np.testing.assert_allclose(both["duration"], np.log([2.0, 3.0]))
    np.testing.assert_allclose(both["magnitude"], np.log([1.0, 2.0]))


def test_scores_that_separate_the_speakers_wholly_get_a_finite_calibration():
    is_target = np.arange(100) < 20
    calibration = fitted(np.where(is_target, 0.9, 0.1).astype(np.float32), is_target)
    assert 0 < calibration.slope < 1e4


def test_scores_that_speak_against_targets_are_not_calibrated():
    scores, is_target = scored()
    assert calibrate(-scores, is_target, {}, p_target=0.5, num_speakers=9, target_fars=[]) is None


def test_a_calibration_is_plain_data_and_back():
    calibration = fitted(*scored(2000))
    assert Calibration(**calibration.to_dict()) == calibration


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the score of trial 0 is nan"):
        calibrate(
            np.array([np.nan, 0, 1]), np.array([True, False, True]), {}, p_target=0.5, num_speakers=2, target_fars=[]
        )
