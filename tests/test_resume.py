"""Laws of stopping and continuing: no bit changes, nothing written is lost."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ROOT, TINY

from sv_sparse import checkpoint
from sv_sparse.monitor import read_rows

SETTINGS = (*TINY, "trainer.epochs=3", "target_sparsity=0.8")
KILLED_AT = 8  # of 18 steps, 6 in each epoch: in the middle of the second
TIMING = {"utterances_per_second", "data_wait"}

# train.py with a signal to itself right after an update, as a scheduler or a user would send it
RUNNER = """
import os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
script, number, at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
updates = []
def after_update(*_):
    updates.append(None)
    if len(updates) == at:
        os.kill(os.getpid(), number)
register_optimizer_step_post_hook(after_update)
sys.argv = [script, *sys.argv[4:]]
runpy.run_path(script, run_name="__main__")
"""


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    words = [sys.executable, *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, **options)


def interrupted(number: int, runs: Path, *settings: str) -> tuple[subprocess.CompletedProcess, Path]:
    done = command(
        *("-c", RUNNER, str(ROOT / "train.py"), str(number), str(KILLED_AT)), *SETTINGS, *settings, f"runs={runs}"
    )
    (folder,) = runs.iterdir()
    return done, folder


def resume(folder: Path, **options) -> subprocess.CompletedProcess:
    return command(str(ROOT / "train.py"), f"resume={folder}", **options)


def assert_same(left, right, where: str = "") -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            if key != "seconds":
                assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    else:
        assert left == right, where


def assert_same_run(left: Path, right: Path) -> None:
    for name, keys in (("last.pt", checkpoint.TRAINING_KEYS), ("model.pt", checkpoint.NETWORK_KEYS)):
        states = [checkpoint.load(folder / "checkpoints" / name, keys) for folder in (left, right)]
        for state in states:
            del state["config"]["runs"]
        assert_same(*states, where=name)
    rows = [
        [{key: value for key, value in row.items() if key not in TIMING} for row in read_rows(folder / "metrics.jsonl")]
        for folder in (left, right)
    ]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def uninterrupted(tones, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("uninterrupted")
    done = command(str(ROOT / "train.py"), *SETTINGS, *tones.settings(), f"runs={runs}")
    assert done.returncode == 0, done.stderr
    (folder,) = runs.iterdir()
    return folder


def test_a_run_killed_in_mid_epoch_continues_without_changing_a_bit(uninterrupted, tones, tmp_path):
    done, folder = interrupted(signal.SIGKILL, tmp_path, *tones.settings())
    assert done.returncode == -signal.SIGKILL
    assert read_rows(folder / "metrics.jsonl")[-1]["step"] == KILLED_AT - 1
    again = resume(folder)
    assert again.returncode == 0, again.stderr
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_in_mid_epoch_and_says_how_to_continue(uninterrupted, tones, tmp_path, number):
    workers = ["trainer.workers=1"] if number == signal.SIGINT else []
    done, folder = interrupted(number, tmp_path, *tones.settings(), *workers)
    assert done.returncode == 128 + number
    assert f"python train.py resume={folder}" in done.stdout
    progress = checkpoint.load(folder / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"]) == (1, KILLED_AT - 6, KILLED_AT)
    if not workers:
        again = resume(folder)
        assert again.returncode == 0, again.stderr
        assert_same_run(folder, uninterrupted)


def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stands(tones, tmp_path):
    _, folder = interrupted(signal.SIGTERM, tmp_path, *tones.settings())
    last = folder / "checkpoints" / "last.pt"
    before = last.read_bytes()
    most = len(before) // 2
    done = resume(folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: [Errno 27] File too large")
    assert last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} <= {"last.pt", "best.pt", "epoch_0001.pt"}
    assert resume(folder).returncode == 0


def test_resuming_a_finished_run_reports_again_without_training(uninterrupted):
    before = json.loads((uninterrupted / "results.json").read_text())
    done = resume(uninterrupted)
    assert done.returncode == 0, done.stderr
    after = json.loads((uninterrupted / "results.json").read_text())
    assert after.pop("seconds") > before.pop("seconds")
    assert after == before


def test_resuming_takes_no_other_settings(train, uninterrupted):
    done = train(f"resume={uninterrupted}", "trainer.epochs=9")
    assert done.status == 2
    assert "continues with the run's own settings; leave out trainer.epochs=9" in done.err


def test_resuming_what_is_no_run_says_what_is_expected(train, tmp_path):
    done = train(f"resume={tmp_path}")
    assert done.status == 2
    assert "expected a run folder with config.yaml and checkpoints/last.pt" in done.err


def test_a_damaged_checkpoint_is_named(train, uninterrupted, tmp_path):
    folder = tmp_path / "damaged"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "manifest.parquet"):
        (folder / name).write_bytes((uninterrupted / name).read_bytes())
    whole = (uninterrupted / "checkpoints" / "last.pt").read_bytes()
    (folder / "checkpoints" / "last.pt").write_bytes(whole[: len(whole) // 2])
    done = train(f"resume={folder}")
    assert done.status == 2
    assert f"{folder}/checkpoints/last.pt is not a readable checkpoint" in done.err
    assert (folder / "checkpoints" / "last.pt").stat().st_size == len(whole) // 2
