"""Laws of judging a list: every number has its conditions, groups are what their trials say, trials are named."""

from dataclasses import replace

import numpy as np
import pytest

from sv_sparse.data.manifest import Part
from sv_sparse.data.prepared import Judged, concatenated, without
from sv_sparse.data.trials import Trials
from sv_sparse.evaluation.result import TrialSideInfo, compute_metrics
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import Calibration
from sv_sparse.scoring.config import ScoringConfig
from sv_sparse.scoring.metrics import eer, sort_scores

SCORING = ScoringConfig([0.01, 0.05], 1.0, 1.0, "none", 300, 10, "average", [], [0.05])
PLAIN = Backend(np.zeros(2, np.float32))


def listed(count: int = 400, *, known: bool = True, seed: int = 0) -> tuple[Judged, np.ndarray]:
    """A list of eight speakers with four utterances each, and its scores."""
    generator = np.random.default_rng(seed)
    names = [f"s{k}/v/{n}.wav" for k in range(8) for n in range(4)]
    left, right = generator.integers(32, size=(2, count))
    is_target = left // 4 == right // 4
    trials = Trials("list", is_target, left, right, names)
    recordings = [[Part(name, 16000, 0, 1, -1)] for name in names]
    if not known:
        return Judged(trials, recordings, [], [], [], None), generator.normal(size=count).astype(np.float32)
    one = Judged(
        trials,
        recordings,
        genres=["song" if n % 2 else "talk" for n in range(32)],
        speakers=[name[:2] for name in names],
        seconds=[1.0 + n % 4 * 3 for n in range(32)],
        source=None,
        sexes=["f" if n < 12 else "m" if n < 28 else "" for n in range(32)],
    )
    return one, (generator.normal(size=count) + 1.5 * is_target).astype(np.float32)


def test_every_number_says_what_it_was_measured_on():
    one, scores = listed()
    found = compute_metrics(one, scores, PLAIN, SCORING, with_details=True)
    assert (found.name, found.trials, found.speakers) == ("list", 400, 8)
    assert found.targets == one.trials.is_target.sum()
    assert (found.enrollment, found.score_norm, found.calibration) == ("one recording", "none", None)
    assert [cost["p_target"] for cost in found.dcf] == [0.01, 0.05]
    assert all(cost["act_dcf"] is None for cost in found.dcf)
    low, high = found.eer_interval
    assert low < found.eer < high
    for cost in found.dcf:
        assert cost["min_dcf_interval"][0] <= cost["min_dcf"] <= cost["min_dcf_interval"][1]
    assert found.id == "list"


def test_groups_are_judged_by_their_trials_alone():
    one, scores = listed(6000)
    trials = one.trials
    groups = compute_metrics(one, scores, PLAIN, SCORING, with_details=True).breakdown
    assert set(groups) == {"genre", "seconds", "sex"}
    song = np.array(one.genres)[trials.test] == "song"
    assert groups["genre"]["song"]["eer"] == eer(sort_scores(scores[song], trials.is_target[song]))[0]
    assert groups["genre"]["song"]["trials"] == song.sum()
    shorter = np.minimum(np.array(one.seconds)[trials.enrolment], np.array(one.seconds)[trials.test])
    assert {name: group["trials"] for name, group in groups["seconds"].items()} == {
        "below 2": (shorter < 2).sum(),
        "4 to 8": ((shorter >= 4) & (shorter < 8)).sum(),
        "8 and more": (shorter >= 8).sum(),
    }
    sexes = np.array(one.sexes)
    women = (sexes[trials.enrolment] == "f") & (sexes[trials.test] == "f")
    assert groups["sex"]["f"]["trials"] == women.sum()
    assert set(groups["sex"]) == {"f", "m"}  # pairs of both, and of unknown sex, are in no group


def test_speakers_in_paths_are_believed_where_the_labels_agree():
    one, scores = listed(known=False)
    assert TrialSideInfo.from_trial_set(one).speakers[:5] == ["s0", "s0", "s0", "s0", "s1"]
    assert compute_metrics(one, scores, PLAIN, SCORING, with_details=True).speakers == 8
    one.trials.is_target[:] = ~one.trials.is_target
    found = compute_metrics(one, scores, PLAIN, SCORING, with_details=True)
    assert (found.speakers, found.eer_interval) == (None, None)


def test_few_speakers_have_no_interval():
    one, scores = listed()
    owners = np.isin(one.trials.enrolment // 4, range(4))  # who alone have targets, beside four strangers
    columns = (one.trials.is_target, one.trials.enrolment, one.trials.test)
    few = replace(one, trials=Trials("few", *(column[owners] for column in columns), one.trials.utterances))
    found = compute_metrics(few, scores[owners], PLAIN, SCORING, with_details=True)
    assert (found.speakers, found.eer_interval) == (8, None)


def test_a_calibrated_network_is_judged_by_its_decisions():
    one, scores = listed(4000)
    calibration = Calibration(1.5, -1.1, {}, 0.1, 10, 5, 2, {0.05: 0.7})
    found = compute_metrics(one, scores, Backend(PLAIN.mean, calibration=calibration), SCORING, with_details=True)
    accepted = 1.5 * scores - 1.1 >= 0.7
    (decision,) = found.thresholds
    assert decision["p_fa"] == pytest.approx(accepted[~one.trials.is_target].mean())
    assert decision["p_miss"] == pytest.approx((~accepted)[one.trials.is_target].mean())
    assert found.min_cllr <= found.cllr < 1
    assert all(cost["min_dcf"] <= cost["act_dcf"] for cost in found.dcf)
    assert (
        found.calibration == "logistic regression of scores on 10 trials of 2 held-out speakers, one utterance a side"
    )


def test_a_calibration_that_wants_to_know_how_long_utterances_are_is_silent_where_nobody_knows():
    calibration = Calibration(1.5, -1.1, {"duration": 0.5}, 0.1, 10, 5, 2, {0.05: 0.7})
    backend = Backend(PLAIN.mean, calibration=calibration)
    one, scores = listed()
    assert compute_metrics(one, scores, backend, SCORING, with_details=False).cllr is not None
    one, scores = listed(known=False)
    found = compute_metrics(one, scores, backend, SCORING, with_details=False)
    assert (found.cllr, found.calibration, found.thresholds) == (None, None, [])


def test_a_score_that_is_not_a_number_is_an_error_that_names_the_trial():
    one, scores = listed()
    scores[7] = np.nan
    left, right = one.trials.enrolment[7], one.trials.test[7]
    name = f"the score of list, {one.trials.utterances[left]} {one.trials.utterances[right]} is nan; 1 of 400"
    with pytest.raises(ValueError, match=name):
        compute_metrics(one, scores, PLAIN, SCORING, with_details=False)


def test_enrolments_of_several_utterances_are_told_and_can_be_concatenated():
    one, _ = listed()
    trials = Trials("models", np.array([True, False]), np.array([32, 33]), np.array([0, 0]), one.trials.utterances,
                    {"m0": [1, 2, 3], "m1": [4, 5]})  # fmt: skip
    several = Judged(trials, one.recordings, one.genres, one.speakers, one.seconds, None, one.sexes)
    sides = TrialSideInfo.from_trial_set(several)
    assert (sides.speakers[32], sides.seconds[32], sides.sexes[33]) == ("s0", 4 + 7 + 10, "f")
    scores = np.array([1.0, 0.0], np.float32)
    assert (
        compute_metrics(several, scores, PLAIN, SCORING, with_details=False).enrollment
        == "average of up to 3 utterances"
    )
    joined = concatenated(several)
    assert joined.trials.utterances[32:] == ["m0", "m1"]
    assert joined.recordings[32] == [part for k in (1, 2, 3) for part in one.recordings[k]]
    assert (joined.seconds[33], joined.speakers[33]) == (1 + 4, "s1")
    assert joined.trials.heard().tolist() == [0, 32, 33]
    assert trials.heard().tolist() == [0, 1, 2, 3, 4, 5]
    found = compute_metrics(joined, scores, PLAIN, replace(SCORING, enrollment="concatenated"), with_details=False)
    assert (found.enrollment, found.id) == ("up to 3 utterances concatenated", "models_concatenated")


def test_a_list_that_lost_recordings_is_judged_by_its_rest_and_says_how_much_it_lost():
    complete, scores = listed(4000)
    rest = without(complete, [0, 9])
    trials = complete.trials
    remains = ~(np.isin(trials.enrolment, [0, 9]) | np.isin(trials.test, [0, 9]))
    evaluation = compute_metrics(rest, scores[remains], PLAIN, SCORING, with_details=True)
    assert (evaluation.trials, evaluation.trials_left_out) == (remains.sum(), 4000 - remains.sum())
    assert evaluation.recordings_left_out == 2
    assert rest.left_out.recordings == ["s0/v/0.wav", "s2/v/1.wav"]
    assert (evaluation.list_checksum, evaluation.checksum) == (trials.digest, rest.trials.digest)
    assert evaluation.checksum != evaluation.list_checksum
    assert evaluation.eer == eer(sort_scores(scores[remains], trials.is_target[remains]))[0]
    song = remains & (np.array(complete.genres)[trials.test] == "song")
    assert evaluation.breakdown["genre"]["song"]["trials"] == song.sum()
    assert rest.recordings[0] == complete.recordings[1]
    nothing_lost = compute_metrics(complete, scores, PLAIN, SCORING, with_details=False)
    assert (nothing_lost.trials_left_out, nothing_lost.recordings_left_out) == (0, 0)
    assert nothing_lost.checksum == nothing_lost.list_checksum == trials.digest


def test_speakers_of_whom_nothing_can_be_used_are_not_counted():
    complete, scores = listed(4000)
    trials = complete.trials
    rest = without(complete, [28, 29, 30, 31])
    remains = (trials.enrolment < 28) & (trials.test < 28)
    assert compute_metrics(rest, scores[remains], PLAIN, SCORING, with_details=False).speakers == 7


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
        ({"c_miss": None}, "scoring.c_miss=None: expected finite numbers"),
        ({"c_fa": float("inf")}, "scoring.c_fa=inf: expected finite numbers"),
    ],
)
def test_settings_of_scoring_check_themselves(setting, message):
    with pytest.raises(ValueError, match=message):
        ScoringConfig(**{**vars(SCORING), **setting})


def test_one_prior_may_be_given_without_brackets():
    assert [point.p_target for point in ScoringConfig(**{**vars(SCORING), "p_target": 0.1}).points] == [0.1]
    assert [point.p_target for point in ScoringConfig(**{**vars(SCORING), "p_target": [0.1, 0.1]}).points] == [0.1]
