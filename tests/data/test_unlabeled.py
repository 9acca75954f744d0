"""Laws of a folder of audio without labels."""

import logging
import os

import numpy as np
import pytest
import soundfile

from sv_sparse.data.corpora.unlabeled import scan_unlabeled
from sv_sparse.data.dataset import CropDataset
from sv_sparse.evaluation.validation import validation_trials

NAMES = ("top.wav", "a/flat.flac", "a/b/c/d/deep.ogg", "a/b/x.mp3", "calls/8k.wav", "calls/48k.flac", "x y/\u00e9.wav")


@pytest.fixture
def root(tmp_path, record):
    """Recordings of several formats, rates and depths."""
    for number, name in enumerate(NAMES):
        rate = {"8k": 8000, "48k": 48000}.get(name.rpartition("/")[2].partition(".")[0], 16000)
        record(tmp_path / "audio" / name, samples=(number + 1) * rate // 4, rate=rate)
    (tmp_path / "audio" / "notes.txt").write_text("no recording\n")
    return tmp_path / "audio"


@pytest.fixture
def scan(tmp_path, root):
    def run(**changes):
        settings = {
            "trial_files": [],
            "val_fraction": 0.0,
            "seed": 1,
            "max_unreadable_fraction": 0.0,
            "out": tmp_path / "manifest.parquet",
        }
        return scan_unlabeled(root, **(settings | changes))

    return run


def utterances(manifest, split):
    return [manifest.utterance(row) for row in manifest.split(split)]


def test_every_recording_at_any_depth_is_trained_on_and_nobody_is_a_speaker(scan):
    manifest = scan()
    assert utterances(manifest, "train") == sorted(NAMES)
    assert manifest.speakers("train") == []
    assert manifest.summary("train")[:2] == (0, len(NAMES))
    assert {manifest.speaker(row) for row in manifest.split("train")} == {""}


def test_crops_are_as_those_of_other_corpora(scan):
    manifest = scan()
    rows = manifest.split("train")
    dataset = CropDataset(manifest, rows, manifest.labels(rows), crop_samples=8000, seed=7)
    batch = dataset.__getitems__([(0, position) for position in range(len(rows))])
    assert batch.waveforms.shape == (len(NAMES), 8000)
    assert not batch.unreadable
    assert batch.waveforms.float().std(dim=1).min() > 1000


def test_held_out_recordings_depend_on_the_seed_alone_and_make_no_trials(scan):
    first, again = scan(val_fraction=0.3), scan(val_fraction=0.3)
    held_out = utterances(first, "validation")
    assert len(held_out) == 2
    assert utterances(again, "validation") == held_out
    assert sorted([*utterances(first, "train"), *held_out]) == sorted(NAMES)
    others = [utterances(scan(val_fraction=0.3, seed=seed), "validation") for seed in range(9)]
    assert any(names != held_out for names in others)
    assert len(scan(val_fraction=0.001).split("validation")) == 2
    rows, trials = validation_trials(scan(val_fraction=0.3))
    assert (len(rows), trials) == (0, None)


def test_recordings_of_trial_lists_are_left_out_by_whatever_path(scan, root, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "elsewhere").mkdir()
    os.link(root / "a/flat.flac", tmp_path / "elsewhere" / "same.flac")
    os.symlink(root / "top.wav", tmp_path / "elsewhere" / "link.wav")
    files = [str(tmp_path / "elsewhere" / name) for name in ("same.flac", "link.wav")]
    manifest = scan(trial_files=[*files, str(root / "calls/8k.wav")])
    assert utterances(manifest, "train") == sorted(set(NAMES) - {"a/flat.flac", "top.wav", "calls/8k.wav"})
    assert len(manifest) == len(NAMES) - 3
    assert "3 recordings of the trial lists are left out of training" in caplog.text


def test_bad_recordings_are_named_and_left_out_up_to_the_limit(scan, root, record, caplog):
    record(root / "short.wav", samples=1000)
    soundfile.write(root / "silent.wav", np.zeros(16000), 16000)
    (root / "broken.flac").write_bytes(b"fLaC" + bytes(100))
    manifest = scan(max_unreadable_fraction=0.01, val_fraction=0.3)
    assert sorted([*utterances(manifest, "train"), *utterances(manifest, "validation")]) == sorted(NAMES)
    for name in ("short.wav", "silent.wav", "broken.flac"):
        assert f"left out: {name}: " in caplog.text
    with pytest.raises(ValueError, match=r"data.max_unreadable_fraction=0.0: 3 of 10 training utterances cannot be"):
        scan()


def test_bad_recordings_of_trial_lists_are_counted_before_training(scan, tmp_path, caplog):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    scan(max_unreadable_fraction=0.01, trial_files=[str(tmp_path / "bad.wav")])
    assert f"left out: {tmp_path / 'bad.wav'}: " in caplog.text
    with pytest.raises(ValueError, match=r"1 of 1 data.trial_lists utterances cannot be used"):
        scan(trial_files=[str(tmp_path / "bad.wav")])


def test_a_folder_without_recordings_or_with_none_left_is_refused(scan, root, tmp_path):
    with pytest.raises(ValueError, match=r"data.root=.*expected at least 1 training recording; found 0 beside 0 held"):
        scan(trial_files=[str(root / name) for name in NAMES])
    (tmp_path / "empty").mkdir()
    options = {"trial_files": [], "val_fraction": 0, "seed": 0, "max_unreadable_fraction": 0, "out": tmp_path / "m"}
    with pytest.raises(ValueError, match=r"data.root=.*empty: expected recordings as .* at any depth; found an empty"):
        scan_unlabeled(tmp_path / "empty", **options)
    with pytest.raises(ValueError, match=r"data.root=.*gone: expected a folder of .*; found nothing there"):
        scan_unlabeled(tmp_path / "gone", **options)
