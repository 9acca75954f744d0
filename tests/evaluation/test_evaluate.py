"""Laws of evaluation: score files keep all names, validation has many sessions, later results are kept."""

import json

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from sv_sparse.data.manifest import SEGMENT, Manifest
from sv_sparse.data.trial_set import TrialSet
from sv_sparse.data.trials import Trials
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.evaluation.embed import embed
from sv_sparse.evaluation.embedding_cache import EmbeddingCache
from sv_sparse.evaluation.evaluate import evaluate_trial_sets, update_evaluations_file
from sv_sparse.evaluation.result import compute_metrics
from sv_sparse.evaluation.score_files import eer_difference, read_scores, read_speakers, write_scores, write_speakers
from sv_sparse.evaluation.validation import validation_trials
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.config import ScoringConfig


def test_a_score_file_is_read_as_it_was_written_whatever_the_names(tmp_path):
    names = ['a#1/"x"', "b/2", "c'3"]
    trials = Trials("odd", np.array([True, False, True]), np.array([0, 1, 2]), np.array([1, 2, 0]), names)
    scores = np.array([0.25, -0.5, 1.0], dtype=np.float32)
    write_scores(tmp_path / "scores" / "odd.txt", trials, scores)
    read, is_target = read_scores(tmp_path / "scores" / "odd.txt")
    np.testing.assert_array_equal(read, scores)
    np.testing.assert_array_equal(is_target, trials.is_target)
    assert (tmp_path / "scores" / "odd.txt").read_text().splitlines()[0] == 'a#1/"x" b/2 0.25 1'


@pytest.mark.parametrize("space", [" ", "\u3000", "\u00a0", "\u2028", "\u0085", "\x1c"])
def test_score_files_keep_names_with_any_space_of_unicode(tmp_path, space):
    names = [f"{speaker}{space}{number}" for speaker in "abcdefghijklmnop" for number in range(2)]
    pairs = [(left, right) for left in range(len(names)) for right in range(left)]
    sides, other_sides = (np.array(column) for column in zip(*pairs, strict=True))
    is_target = sides // 2 == other_sides // 2
    trials = Trials("odd", is_target, sides, other_sides, names)
    scores = np.random.default_rng(0).normal(size=len(pairs)).astype(np.float32)
    path = tmp_path / "odd.txt"
    write_scores(path, trials, scores)
    write_speakers(path.with_suffix(".speakers"), trials, [f"{name[0]}{space}" for name in names])
    np.testing.assert_array_equal(read_scores(path)[0], scores)
    assert read_speakers(path.with_suffix(".speakers")) == {name: f"{name[0]}{space}" for name in names}
    gap, _ = eer_difference(path, path)  # which asks for the names in both files
    assert gap == 0


def recorded(folder) -> Manifest:
    """Four recordings of two speakers, of which the last could not be used when the manifest was written."""
    keys = [f"{speaker}/s/{number}.wav" for speaker in "ab" for number in range(2)]
    lengths = [8000, 8000, 8000, 0]
    for number, key in enumerate(keys):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / key, np.random.default_rng(number).uniform(-0.5, 0.5, 8000), 16000)
    parts = [
        [{"file": key, "samples": samples, "offset": 0, "size": 0, "pcm_offset": -1}]
        for key, samples in zip(keys, lengths, strict=True)
    ]
    columns = {"utterance": keys, "speaker": [key[0] for key in keys], "session": ["s"] * 4, "samples": lengths}
    columns |= {"sample_rate": [16000] * 4, "channels": [1] * 4, "split": ["test"] * 4}
    return Manifest.write(
        folder / "manifest.parquet", pa.table(columns | {"segments": pa.array(parts, pa.list_(SEGMENT))}), folder
    )


class _Loudness(torch.nn.Module):
    """Stands for a network and its features."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, waveforms):
        return self.scale * waveforms[:, :4]


@pytest.mark.parametrize("enrolment", ["average", "concatenated"])
def test_a_recording_without_samples_in_the_manifest_is_left_out_though_it_can_be_read_now(tmp_path, enrolment):
    """Its duration, of which calibrated scores may be a function, is not known."""
    manifest = recorded(tmp_path)
    names = [manifest.utterance(row) for row in range(4)]
    # "pair" is the enrolment of the second and the last one.
    is_target = np.array([True, False, False, True, False])
    trials = Trials("mine", is_target, np.array([0, 0, 4, 2, 1]), np.array([1, 2, 0, 3, 2]), names, {"pair": [1, 3]})
    one = TrialSet.from_manifest(trials, manifest, {})
    scoring = ScoringConfig([0.01], 1.0, 1.0, "none", 300, 10, enrolment, [], [])
    settings = {"limit": UnreadableLimit(0.5), "output_dir": None, "with_details": False}
    for cache in (None, EmbeddingCache(tmp_path / "cache", _Loudness(), {})):
        if cache is not None:  # which may know its embedding from elsewhere
            embed(_Loudness(), torch.nn.Identity(), one.audio, title="others", cache=cache)
        (result,) = evaluate_trial_sets(
            _Loudness(),
            torch.nn.Identity(),
            [one],
            Backend(np.zeros(4, np.float32)),
            scoring,
            cache=cache,
            **settings,
        )
        left_out = 2 if enrolment == "concatenated" else 1  # averages do with the others
        assert (result.trials, result.trials_left_out) == (5 - left_out, left_out)
    with pytest.raises(ValueError, match=r"b/s/1.wav: could not be used when its manifest was written"):
        evaluate_trial_sets(
            _Loudness(),
            torch.nn.Identity(),
            [one],
            Backend(np.zeros(4, np.float32)),
            scoring,
            **settings | {"limit": UnreadableLimit(0.0)},
        )


def written(folder, sessions: int, utterances: int) -> Manifest:
    """Two held-out speakers with as many sessions, and one that is trained on."""
    keys = [
        (f"s{k}", f"v{s:02d}", f"s{k}/v{s:02d}/{n}")
        for k in range(3)
        for s in range(sessions)
        for n in range(utterances)
    ]
    speakers, videos, names = (list(column) for column in zip(*keys, strict=True))
    count = len(keys)
    part = {"file": "x.wav", "samples": 16000, "offset": 0, "size": 1, "pcm_offset": -1}
    table = pa.table(
        {
            **{"utterance": names, "speaker": speakers, "session": videos, "samples": [16000] * count},
            **{"sample_rate": [16000] * count, "channels": [1] * count},
            "segments": pa.array([[part]] * count, pa.list_(SEGMENT)),
            "split": ["train" if name == "s0" else "validation" for name in speakers],
        }
    )
    return Manifest.write(folder / "manifest.parquet", table, folder)


def test_validation_has_as_many_sessions_of_a_speaker_as_there_are(tmp_path):
    manifest = written(tmp_path, sessions=10, utterances=20)
    rows, trials = validation_trials(manifest)
    assert trials is not None
    assert len(rows) == 24
    for speaker in ("s1", "s2"):
        sessions = [manifest.session(row) for row in rows if manifest.speaker(row) == speaker]
        assert len(set(sessions)) == 10
    assert trials.is_target.any()


def test_later_results_are_added_to_those_before(tmp_path):
    scoring = ScoringConfig([0.01], 1.0, 1.0, "none", 300, 10, "average", [], [])
    for name in ("one", "two", "one"):
        trials = Trials(name, np.array([True, False]), np.array([0, 1]), np.array([1, 0]), ["a", "b"])
        one, scores = TrialSet(trials, [[], []], [], [], [], None), np.array([1.0, 0.0], np.float32)
        result = compute_metrics(one, scores, Backend(np.zeros(2, np.float32)), scoring, with_details=True)
        update_evaluations_file(tmp_path, [result])
    stored = json.loads((tmp_path / "evaluations.json").read_text())
    assert list(stored) == ["one", "two"]
    assert stored["two"]["trials"] == 2


def test_speakers_are_written_beside_the_scores(tmp_path):
    trials = Trials("names", np.array([True]), np.array([2]), np.array([0]), ["a b/1", "c/2"], {"m": [0, 1]})
    write_speakers(tmp_path / "names.speakers", trials, ["a b", "c", "c"])
    lines = (tmp_path / "names.speakers").read_text()
    assert lines == "a b/1\ta b\nc/2\tc\nm\tc\n"
    assert read_speakers(tmp_path / "names.speakers") == {"a b/1": "a b", "c/2": "c", "m": "c"}
    write_speakers(tmp_path / "names.speakers", trials, [])
    assert read_speakers(tmp_path / "names.speakers") == {}


def scored(folder, scores, *, speakers: int = 8, label_of_first=None):
    """A file of scores of all pairs of 32 utterances, and who speaks in them."""
    names = [f"s{k % speakers}/{k}" for k in range(32)]
    left, right = np.triu_indices(32, k=1)
    is_target = left % speakers == right % speakers
    if label_of_first is not None:
        is_target[0] = label_of_first
    trials = Trials("all", is_target, left, right, names)
    write_scores(folder / "all.txt", trials, (scores + 1.5 * is_target).astype(np.float32))
    write_speakers(folder / "all.speakers", trials, [name.split("/")[0] for name in names])
    return folder / "all.txt"


def test_two_systems_are_compared_on_the_same_trials(tmp_path):
    generator = np.random.default_rng(0)
    better, worse = generator.normal(size=496), 3 * generator.normal(size=496)
    path, other = scored(tmp_path / "a", better), scored(tmp_path / "b", worse)
    gain, (low, high) = eer_difference(path, other)
    assert low < gain < high < 0
    loss, (lower, upper) = eer_difference(other, path)
    assert (loss, lower, upper) == (-gain, -high, -low)
    assert eer_difference(path, path) == (0, (0, 0))


def test_systems_are_not_compared_on_other_trials_nor_on_few_speakers(tmp_path):
    scores = np.random.default_rng(0).normal(size=496)
    path = scored(tmp_path / "a", scores)
    assert eer_difference(path, scored(tmp_path / "b", scores, label_of_first=True)) is None
    few = [scored(tmp_path / name, scores, speakers=4) for name in "cd"]
    assert eer_difference(*few) is None
    (tmp_path / "a" / "all.speakers").write_text("s0/0\ts0\n")
    assert eer_difference(path, path) is None
    (tmp_path / "a" / "all.speakers").unlink()
    assert eer_difference(path, path) is None
