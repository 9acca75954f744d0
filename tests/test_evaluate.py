"""Laws of judging: score files keep what they were given, validation hears many sessions, later lists are kept."""

import json

import numpy as np
import pyarrow as pa

from sv_sparse.data.manifest import PART, Manifest
from sv_sparse.data.trials import Trials
from sv_sparse.evaluate import judge, keep_evaluations, read_scores, validation_trials, write_scores
from sv_sparse.scoring.metrics import OperatingPoint


def test_a_score_file_is_read_as_it_was_written_whatever_the_names(tmp_path):
    names = ['a#1/"x"', "b/2", "c'3"]
    trials = Trials("odd", np.array([True, False, True]), np.array([0, 1, 2]), np.array([1, 2, 0]), names)
    scores = np.array([0.25, -0.5, 1.0], dtype=np.float32)
    write_scores(tmp_path / "scores" / "odd.txt", trials, scores)
    read, is_target = read_scores(tmp_path / "scores" / "odd.txt")
    np.testing.assert_array_equal(read, scores)
    np.testing.assert_array_equal(is_target, trials.is_target)
    assert (tmp_path / "scores" / "odd.txt").read_text().splitlines()[0] == 'a#1/"x" b/2 0.250000 1'


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
    part = {"file": "x.wav", "samples": 16000, "offset": 0, "bytes": 1, "pcm": -1}
    table = pa.table(
        {
            **{"utterance": names, "speaker": speakers, "session": videos, "samples": [16000] * count},
            **{"sample_rate": [16000] * count, "channels": [1] * count},
            "parts": pa.array([[part]] * count, pa.list_(PART)),
            "split": ["train" if name == "s0" else "validation" for name in speakers],
        }
    )
    return Manifest.write(folder / "manifest.parquet", table, folder)


def test_validation_hears_as_many_sessions_of_a_speaker_as_there_are(tmp_path):
    manifest = written(tmp_path, sessions=10, utterances=20)
    rows, trials = validation_trials(manifest)
    assert trials is not None
    assert len(rows) == 24
    for speaker in ("s1", "s2"):
        heard = [manifest.session(row) for row in rows if manifest.speaker(row) == speaker]
        assert len(set(heard)) == 10
    assert trials.is_target.any()


def test_what_a_run_is_judged_by_later_is_kept_beside_what_was_there(tmp_path):
    for name in ("one", "two", "one"):
        trials = Trials(name, np.array([True, False]), np.array([0, 1]), np.array([1, 0]), ["a", "b"])
        keep_evaluations(tmp_path, [judge(trials, np.array([1.0, 0.0], np.float32), OperatingPoint())])
    found = json.loads((tmp_path / "evaluations.json").read_text())
    assert list(found) == ["one", "two"]
    assert found["two"]["trials"] == 2
