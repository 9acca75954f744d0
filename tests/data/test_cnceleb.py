"""CN-Celeb as released: who is trained on, what is joined, what is scored."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import trees

from sv_sparse.data.audio import read_segment, read_utterance
from sv_sparse.data.corpora import cnceleb
from sv_sparse.data.corpora.cnceleb import prepare_cnceleb
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.prepared import load_trial_sets, trial_list_path, write_run_manifest
from sv_sparse.data.trials import read_trials


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cnceleb")
    trees.write_cnceleb(folder / "root")
    prepare_cnceleb([folder / "root"], folder / "out", allow_partial=True)
    return folder / "out"


@pytest.fixture
def run_manifest(prepared, tmp_path) -> Manifest:
    lists = load_trial_sets(prepared, ["cnceleb_average", "cnceleb_concatenated"])
    train = ["cn1_dev", "cn2_dev"]
    return write_run_manifest(
        prepared, train_subsets=train, trial_sets=lists, val_fraction=0.0, seed=0, out=tmp_path / "manifest.parquet"
    )


def refused(root: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_cnceleb([root], root.parent / "out", allow_partial=True)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_training_speakers_are_the_listed_ones_and_no_evaluation_speaker(run_manifest):
    assert run_manifest.speakers("train") == sorted(trees.CN1_DEV + trees.CN2_DEV)
    files = [part.path for row in range(len(run_manifest)) for part in run_manifest.segments(row)]
    assert not [file for file in files if any(speaker in file for speaker in trees.CN_EVAL)]


def test_a_list_of_training_speakers_that_names_an_evaluation_speaker_is_refused(tmp_path):
    trees.write_cnceleb(tmp_path / "root")
    rewrite(tmp_path / "root" / "CN-Celeb_flac" / "dev" / "dev.lst", "id00001\n", "id00001\nid00801\n")
    refused(tmp_path / "root", "dev.lst: 1 evaluation speakers are listed: id00801")


def test_a_subset_of_evaluation_speakers_cannot_be_trained_on(prepared, tmp_path):
    for name in ("cnceleb_average", "cnceleb_concatenated"):
        options = {"trial_sets": load_trial_sets(prepared, [name]), "val_fraction": 0.0, "seed": 0}
        with pytest.raises(ValueError, match=f"{name}: 3 of its speakers are trained on with data.train_subsets="):
            write_run_manifest(
                prepared, train_subsets=["cn1_dev", "cn_segments"], out=tmp_path / "m.parquet", **options
            )


def test_both_releases_may_lie_in_roots_of_their_own_and_the_second_may_be_absent(tmp_path, prepared):
    trees.write_cnceleb(tmp_path / "root")
    one, two = tmp_path / "root" / "CN-Celeb_flac", tmp_path / "root" / "CN-Celeb2_flac"
    prepare_cnceleb([one, two], tmp_path / "both", allow_partial=True)
    assert len(Manifest(tmp_path / "both" / "manifest.parquet")) == len(Manifest(prepared / "manifest.parquet"))
    prepare_cnceleb([one], tmp_path / "alone", allow_partial=True)
    alone = load_trial_sets(tmp_path / "alone", ["cnceleb_average"])
    options = {"train_subsets": ["cn1_dev"], "val_fraction": 0.0, "seed": 0, "out": tmp_path / "manifest.parquet"}
    assert write_run_manifest(tmp_path / "alone", trial_sets=alone, **options).speakers("train") == list(trees.CN1_DEV)


def test_short_utterances_are_joined_within_speaker_and_genre_to_five_seconds(run_manifest):
    lengths = run_manifest.samples / run_manifest.sample_rate
    assert len(run_manifest) == 2 * 4 * 2  # speakers x genres x (three joined, one long enough)
    assert sorted(set(lengths.round(1))) == [6.0, 6.5]
    joined = [row for row in range(len(run_manifest)) if len(run_manifest.segments(row)) > 1]
    for row in joined:
        parts = run_manifest.segments(row)
        assert len({tuple(part.path.rsplit("-", 1)) for part in parts}) == len(parts) == 3
        assert len({part.path.rsplit("-", 1)[0] for part in parts}) == 1
        assert run_manifest.samples[row] == sum(part.samples for part in parts)
        assert run_manifest.genre(row) in trees.GENRES


def test_a_joined_utterance_sounds_like_its_parts_one_after_the_other(run_manifest):
    row = next(row for row in range(len(run_manifest)) if len(run_manifest.segments(row)) == 3)
    parts = run_manifest.segments(row)
    whole = torch.cat([read_utterance([part]) for part in parts]).numpy()
    assert np.array_equal(read_utterance(parts).numpy(), whole)
    for start, count in ((0, 100), (15_900, 300), (20_000, 40_000), (len(whole) - 5, 5), (0, len(whole))):
        assert np.array_equal(read_segment(parts, 16000, start, count), whole[start : start + count])


def test_what_is_too_little_in_all_stays_and_the_rest_joins_the_last(tmp_path):
    trees.write_cnceleb(tmp_path / "root", seconds=(3.0, 3.0, 1.0))
    prepare_cnceleb([tmp_path / "root"], tmp_path / "out", allow_partial=True)
    found = Manifest(tmp_path / "out" / "manifest.parquet")
    keys = [found.utterance(row) for row in range(len(found))]
    assert "id00000/singing-01-001.wav+2" in keys
    assert found.samples[keys.index("id00000/singing-01-001.wav+2")] == 7 * 16000
    assert "id00800/singing-01-001.wav" in keys  # evaluation speech is not joined


def test_lists_say_wav_where_files_are_flac(prepared):
    for name in ("cnceleb_average", "cnceleb_concatenated"):
        (one,) = load_trial_sets(prepared, [name])
        assert all(utterance.endswith(".wav") for utterance in one.trials.utterances)
        assert all(part.path.endswith(".flac") for parts in one.audio for part in parts)


def test_enrollments_are_segments_or_the_joined_file(prepared):
    average, concatenated = (
        read_trials(trial_list_path(prepared, f"cnceleb_{x}")) for x in ("average", "concatenated")
    )
    assert len(average) == len(concatenated) == 2 * 12
    assert average.is_target.sum() == concatenated.is_target.sum() == 8
    assert average.is_target.tolist() == concatenated.is_target.tolist()
    assert {average.sides[side] for side in average.enrollment} == {"id00800-enroll", "id00801-enroll"}
    segments = [average.utterances[part] for part in average.models["id00800-enroll"]]
    assert segments == ["id00800/singing-01-001.wav", "id00800/singing-01-002.wav"]
    assert concatenated.models == {}
    assert {concatenated.sides[side] for side in concatenated.enrollment} == {
        "enroll/id00800-enroll.wav",
        "enroll/id00801-enroll.wav",
    }


def test_test_utterances_know_their_genre(prepared):
    (one,) = load_trial_sets(prepared, ["cnceleb_average"])
    assert {one.genres[test] for test in one.trials.test} == set(trees.GENRES)


def test_a_label_in_the_first_column_is_refused(tmp_path):
    trees.write_cnceleb(tmp_path / "root")
    path = tmp_path / "root" / "CN-Celeb_flac" / "eval" / "lists" / "trials.lst"
    lines = [line.split() for line in path.read_text().splitlines()]
    path.write_text("".join(f"{label} {one} {other}\n" for one, other, label in lines))
    refused(
        tmp_path / "root", r"trials.lst, line 1: expected 'enrollment test label' with a label of 0 or 1; got '1 id"
    )


def test_an_enrollment_that_the_map_lacks_is_refused(tmp_path):
    trees.write_cnceleb(tmp_path / "root")
    lists = tmp_path / "root" / "CN-Celeb_flac" / "eval" / "lists"
    rewrite(lists / "enroll.map", "id00801-enroll", "id00802-enroll")
    refused(tmp_path / "root", "1 enrollments have no utterances; first id00801-enroll")


def test_a_missing_test_file_is_named_and_the_trials_are_left_out(tmp_path, prepared, caplog):
    trees.write_cnceleb(tmp_path / "root")
    shutil.copytree(prepared / "trials", tmp_path / "out" / "trials")
    (tmp_path / "root" / "CN-Celeb_flac" / "eval" / "test" / "id00999-singing-02-001.flac").unlink()
    prepare_cnceleb([tmp_path / "root"], tmp_path / "out", allow_partial=True)
    assert "1 of its utterances are missing or unusable: test/id00999-singing-02-001.wav" in caplog.text
    assert "out: no trial list was prepared" in caplog.text
    assert not list((tmp_path / "out" / "trials").iterdir())  # those of an earlier run are gone
    with pytest.raises(ValueError, match="no trial list 'cnceleb_average'; it has none"):
        trial_list_path(tmp_path / "out", "cnceleb_average")


def test_a_protocol_is_left_out_alone_where_only_its_enrollments_are_missing(tmp_path):
    trees.write_cnceleb(tmp_path / "root")
    (tmp_path / "root" / "CN-Celeb_flac" / "eval" / "enroll" / "id00800-enroll.flac").unlink()
    prepare_cnceleb([tmp_path / "root"], tmp_path / "out", allow_partial=True)
    assert [path.name for path in (tmp_path / "out" / "trials").iterdir()] == ["cnceleb_average.parquet"]


def test_trials_are_checked_before_any_header_is_read(tmp_path, monkeypatch):
    trees.write_cnceleb(tmp_path / "root")
    monkeypatch.setattr(cnceleb, "checked_table", None)
    rewrite(tmp_path / "root" / "CN-Celeb_flac" / "eval" / "lists" / "trials.lst", " 1\n", " one\n")
    refused(tmp_path / "root", r"trials.lst, line 1: expected 'enrollment test label'")
    with pytest.raises(ValueError, match="cn1_dev has 2 of 797 published speakers"):
        prepare_cnceleb([tmp_path / "root"], tmp_path / "out")


def test_a_missing_list_is_named(tmp_path):
    trees.write_cnceleb(tmp_path / "root")
    (tmp_path / "root" / "CN-Celeb_flac" / "eval" / "lists" / "enroll.map").unlink()
    refused(tmp_path / "root", "lists of CN-Celeb are missing: enroll.map")
