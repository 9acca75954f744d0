"""Laws of results: every number has its conditions, groups are those of their trials, bad trials are named."""

from dataclasses import replace

import numpy as np
import pytest

from sv_sparse.data.manifest import AudioSegment
from sv_sparse.data.trial_set import TrialSet
from sv_sparse.data.trials import Trials
from sv_sparse.evaluation.result import compute_metrics, side_speakers
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import Calibration
from sv_sparse.scoring.config import ScoringConfig
from sv_sparse.scoring.metrics import eer, sort_scores

SCORING = ScoringConfig([0.01, 0.05], 1.0, 1.0, "none", 300, 10, "average", [], [0.05])
COSINE = Backend(np.zeros(2, np.float32))


def labeled_trial_set(count: int = 400, *, with_metadata: bool = True, seed: int = 0) -> tuple[TrialSet, np.ndarray]:
    """A list of eight speakers with four utterances each, and its scores."""
    generator = np.random.default_rng(seed)
    names = [f"s{k}/v/{n}.wav" for k in range(8) for n in range(4)]
    left, right = generator.integers(32, size=(2, count))
    is_target = left // 4 == right // 4
    trials = Trials("list", is_target, left, right, names)
    recordings = [[AudioSegment(name, 16000, 0, 1, -1)] for name in names]
    if not with_metadata:
        return TrialSet(trials, recordings, [], [], [], None), generator.normal(size=count).astype(np.float32)
    trial_set = TrialSet(
        trials,
        recordings,
        genres=["song" if n % 2 else "talk" for n in range(32)],
        speakers=[name[:2] for name in names],
        seconds=[1.0 + n % 4 * 3 for n in range(32)],
        source=None,
        sexes=["f" if n < 12 else "m" if n < 28 else "" for n in range(32)],
    )
    return trial_set, (generator.normal(size=count) + 1.5 * is_target).astype(np.float32)


def test_every_number_says_what_it_was_measured_on():
    trial_set, scores = labeled_trial_set()
    result = compute_metrics(trial_set, scores, COSINE, SCORING, with_details=True)
    assert (result.name, result.trials, result.speakers) == ("list", 400, 8)
    assert result.targets == trial_set.trials.is_target.sum()
    assert (result.enrollment, result.score_norm, result.calibration) == ("one recording", "none", None)
    assert [cost["p_target"] for cost in result.dcf] == [0.01, 0.05]
    assert all(cost["act_dcf"] is None for cost in result.dcf)
    low, high = result.eer_interval
    assert low < result.eer < high
    for cost in result.dcf:
        assert cost["min_dcf_interval"][0] <= cost["min_dcf"] <= cost["min_dcf_interval"][1]
    assert result.id == "list"


def test_the_breakdown_is_of_the_groups_trials_alone():
    trial_set, scores = labeled_trial_set(6000)
    trials = trial_set.trials
    groups = compute_metrics(trial_set, scores, COSINE, SCORING, with_details=True).breakdown
    assert set(groups) == {"genre", "seconds", "sex"}
    song = np.array(trial_set.genres)[trials.test] == "song"
    assert groups["genre"]["song"]["eer"] == eer(sort_scores(scores[song], trials.is_target[song]))[0]
    assert groups["genre"]["song"]["trials"] == song.sum()
    shorter = np.minimum(np.array(trial_set.seconds)[trials.enrollment], np.array(trial_set.seconds)[trials.test])
    assert {name: group["trials"] for name, group in groups["seconds"].items()} == {
        "below 2": (shorter < 2).sum(),
        "4 to 8": ((shorter >= 4) & (shorter < 8)).sum(),
        "8 and more": (shorter >= 8).sum(),
    }
    sexes = np.array(trial_set.sexes)
    women = (sexes[trials.enrollment] == "f") & (sexes[trials.test] == "f")
    assert groups["sex"]["f"]["trials"] == women.sum()
    assert set(groups["sex"]) == {"f", "m"}  # pairs of both, and of unknown sex, are in no group


def test_speakers_in_paths_are_believed_where_the_labels_agree():
    trial_set, scores = labeled_trial_set(with_metadata=False)
    assert side_speakers(trial_set)[:5] == ["s0", "s0", "s0", "s0", "s1"]
    assert compute_metrics(trial_set, scores, COSINE, SCORING, with_details=True).speakers == 8
    trial_set.trials.is_target[:] = ~trial_set.trials.is_target
    result = compute_metrics(trial_set, scores, COSINE, SCORING, with_details=True)
    assert (result.speakers, result.eer_interval) == (None, None)


def test_few_speakers_have_no_interval():
    trial_set, scores = labeled_trial_set()
    owners = np.isin(trial_set.trials.enrollment // 4, range(4))  # who alone have targets, beside four strangers
    columns = (trial_set.trials.is_target, trial_set.trials.enrollment, trial_set.trials.test)
    few = replace(trial_set, trials=Trials("few", *(column[owners] for column in columns), trial_set.trials.utterances))
    result = compute_metrics(few, scores[owners], COSINE, SCORING, with_details=True)
    assert (result.speakers, result.eer_interval) == (8, None)


def test_thresholds_of_a_calibration_have_their_error_rates():
    trial_set, scores = labeled_trial_set(4000)
    calibration = Calibration(1.5, -1.1, {}, 0.1, 10, 5, 2, {0.05: 0.7})
    result = compute_metrics(
        trial_set, scores, Backend(COSINE.mean, calibration=calibration), SCORING, with_details=True
    )
    accepted = 1.5 * scores - 1.1 >= 0.7
    (decision,) = result.thresholds
    assert decision["p_fa"] == pytest.approx(accepted[~trial_set.trials.is_target].mean())
    assert decision["p_miss"] == pytest.approx((~accepted)[trial_set.trials.is_target].mean())
    assert result.min_cllr <= result.cllr < 1
    assert all(cost["min_dcf"] <= cost["act_dcf"] for cost in result.dcf)
    assert (
        result.calibration == "logistic regression of scores on 10 trials of 2 held-out speakers, one utterance a side"
    )


def test_there_are_no_ratios_where_a_calibration_needs_durations_that_are_unknown():
    calibration = Calibration(1.5, -1.1, {"duration": 0.5}, 0.1, 10, 5, 2, {0.05: 0.7})
    backend = Backend(COSINE.mean, calibration=calibration)
    trial_set, scores = labeled_trial_set()
    assert compute_metrics(trial_set, scores, backend, SCORING, with_details=False).cllr is not None
    trial_set, scores = labeled_trial_set(with_metadata=False)
    result = compute_metrics(trial_set, scores, backend, SCORING, with_details=False)
    assert (result.cllr, result.calibration, result.thresholds) == (None, None, [])


def test_a_score_that_is_not_a_number_is_an_error_that_names_the_trial():
    trial_set, scores = labeled_trial_set()
    scores[7] = np.nan
    left, right = trial_set.trials.enrollment[7], trial_set.trials.test[7]
    name = (
        f"the score of list, {trial_set.trials.utterances[left]} {trial_set.trials.utterances[right]} is nan; 1 of 400"
    )
    with pytest.raises(ValueError, match=name):
        compute_metrics(trial_set, scores, COSINE, SCORING, with_details=False)


def test_several_enrollment_utterances_are_described_and_can_be_concatenated():
    trial_set, _ = labeled_trial_set()
    sides, tests = np.array([32, 33]), np.array([0, 0])
    models = {"m0": [1, 2, 3], "m1": [4, 5]}
    trials = Trials("models", np.array([True, False]), sides, tests, trial_set.trials.utterances, models)
    several = TrialSet(
        trials, trial_set.audio, trial_set.genres, trial_set.speakers, trial_set.seconds, None, trial_set.sexes
    )
    sides = several.concat_enrollments()
    assert (sides.speakers[32], sides.seconds[32], sides.sexes[33]) == ("s0", 4 + 7 + 10, "f")
    scores = np.array([1.0, 0.0], np.float32)
    assert (
        compute_metrics(several, scores, COSINE, SCORING, with_details=False).enrollment
        == "average of up to 3 utterances"
    )
    joined = several.concat_enrollments()
    assert joined.trials.utterances[32:] == ["m0", "m1"]
    assert joined.audio[32] == [part for k in (1, 2, 3) for part in trial_set.audio[k]]
    assert (joined.seconds[33], joined.speakers[33]) == (1 + 4, "s1")
    assert joined.trials.used_utterances().tolist() == [0, 32, 33]
    assert trials.used_utterances().tolist() == [0, 1, 2, 3, 4, 5]
    result = compute_metrics(joined, scores, COSINE, replace(SCORING, enrollment="concatenated"), with_details=False)
    assert (result.enrollment, result.id) == ("up to 3 utterances concatenated", "models_concatenated")


def test_trials_of_unusable_recordings_are_left_out_and_counted():
    complete, scores = labeled_trial_set(4000)
    rest = complete.without([0, 9])
    trials = complete.trials
    remains = ~(np.isin(trials.enrollment, [0, 9]) | np.isin(trials.test, [0, 9]))
    evaluation = compute_metrics(rest, scores[remains], COSINE, SCORING, with_details=True)
    assert (evaluation.trials, evaluation.trials_left_out) == (remains.sum(), 4000 - remains.sum())
    assert evaluation.recordings_left_out == 2
    assert rest.left_out.recordings == ["s0/v/0.wav", "s2/v/1.wav"]
    assert (evaluation.list_checksum, evaluation.checksum) == (trials.checksum, rest.trials.checksum)
    assert evaluation.checksum != evaluation.list_checksum
    assert evaluation.eer == eer(sort_scores(scores[remains], trials.is_target[remains]))[0]
    song = remains & (np.array(complete.genres)[trials.test] == "song")
    assert evaluation.breakdown["genre"]["song"]["trials"] == song.sum()
    assert rest.audio[0] == complete.audio[1]
    nothing_lost = compute_metrics(complete, scores, COSINE, SCORING, with_details=False)
    assert (nothing_lost.trials_left_out, nothing_lost.recordings_left_out) == (0, 0)
    assert nothing_lost.checksum == nothing_lost.list_checksum == trials.checksum


def test_speakers_of_whom_nothing_can_be_used_are_not_counted():
    complete, scores = labeled_trial_set(4000)
    trials = complete.trials
    rest = complete.without([28, 29, 30, 31])
    remains = (trials.enrollment < 28) & (trials.test < 28)
    assert compute_metrics(rest, scores[remains], COSINE, SCORING, with_details=False).speakers == 7


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"score_norm": "s_norm"}, "scoring.score_norm=s_norm: expected one of none, as_norm"),
        ({"enrollment": "first"}, "scoring.enrollment=first: expected one of average, concatenated"),
        ({"quality_measures": ["noise"]}, "scoring.quality_measures=noise: expected one of duration, magnitude"),
        ({"p_target": []}, "scoring.p_target: expected one prior or several, got none"),
        ({"p_target": [0.5, 1.0]}, "scoring.p_target must be above 0 and below 1, got 1.0"),
        ({"target_fars": [0.0]}, "scoring.target_fars must be above 0 and below 1, got 0.0"),
        ({"top_n": 1}, "scoring.top_n must be 2 or more"),
        ({"p_target": "high"}, "scoring.p_target=high: expected finite numbers"),
        ({"p_target": None}, "scoring.p_target=None: expected finite numbers"),
        ({"target_fars": [None]}, "scoring.target_fars=.None.: expected finite numbers"),
        ({"c_fa": float("inf")}, "scoring.c_fa must be above 0 and finite, got 1.0 and inf"),
    ],
)
def test_settings_of_scoring_check_themselves(setting, message):
    with pytest.raises(ValueError, match=message):
        ScoringConfig(**{**vars(SCORING), **setting})


def test_a_single_prior_needs_no_brackets():
    assert [point.p_target for point in ScoringConfig(**{**vars(SCORING), "p_target": 0.1}).points] == [0.1]
    assert [point.p_target for point in ScoringConfig(**{**vars(SCORING), "p_target": [0.1, 0.1]}).points] == [0.1]
