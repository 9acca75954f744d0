"""Laws of ending before the end: stop signals save where there is something to save, a full disk is one clear error."""

import errno
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.same import assert_same_run, rows
from helpers.tiny import THREE_EPOCHS

from sv_sparse import checkpoint
from sv_sparse.training.trainer import Trainer

AT = 8  # of 18 steps, 6 in each epoch: in the middle of the second


@pytest.fixture
def struck(attempts, tones, tmp_path):
    """A run of three epochs that gets a signal somewhere: its end, and its folder."""

    def run(number: int, within: str, visit: int, *settings: str):
        folder = tmp_path / "run"
        words = (*THREE_EPOCHS, *tones.settings(), *settings, f"run_dir={folder}")
        return attempts(*words, within=within, visit=visit, number=number), folder

    return run


def progress(folder: Path) -> dict:
    return checkpoint.load(folder / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)["progress"]


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 1), (signal.SIGUSR1, 0)], ids=["INT", "TERM", "USR1"]
)
def test_a_stop_signal_to_all_processes_saves_in_mid_epoch(attempts, uninterrupted, struck, number, workers):
    done, folder = struck(number, "trainer._record_non_finite", AT, f"trainer.num_workers={workers}")
    assert done.status == 128 + number, done.err
    assert f"python train.py resume_from={folder}" in done.out
    assert [progress(folder)[name] for name in ("epoch", "step_in_epoch", "step")] == [1, AT - 6, AT]
    again = attempts(f"resume_from={folder}")
    assert again.status == 0, again.err
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("at", [6, 18], ids=["of an epoch", "of the run"])
def test_a_run_that_is_stopped_after_the_last_step_still_judges_its_epoch(attempts, uninterrupted, struck, at):
    done, folder = struck(signal.SIGTERM, "trainer._record_non_finite", at)
    assert done.status == 128 + signal.SIGTERM, done.err
    again = attempts(f"resume_from={folder}")
    assert again.status == 0, again.err
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize(
    ("within", "visit"),
    [("validation.validate", 2), ("finalize.evaluate", 1)],
)
def test_a_stop_signal_outside_the_steps_ends_at_once(attempts, uninterrupted, struck, within, visit):
    done, folder = struck(signal.SIGTERM, within, visit)
    assert done.status == 128 + signal.SIGTERM, done.err
    assert f"python train.py resume_from={folder}" in done.out
    assert not (folder / "results.json").exists()
    at = progress(folder)
    if within == "validation.validate":
        assert (at["epoch"], at["step_in_epoch"], at["validated"]) == (2, 0, False)
        assert "validation_eer" not in rows(folder)[-1]
    again = attempts(f"resume_from={folder}")
    assert again.status == 0, again.err
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("name", ["checkpoints/last.pt", "metrics.jsonl"])
def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stands(attempts, uninterrupted, struck, name):
    _, folder = struck(signal.SIGTERM, "trainer._record_non_finite", AT)
    last = folder / "checkpoints" / "last.pt"
    before, full = last.read_bytes(), (folder / name).stat().st_size
    done = attempts(f"resume_from={folder}", largest_file=full // 2 if name.endswith(".pt") else full + 100)
    assert done.status == 2
    assert done.err.strip().splitlines()[-1] == f"error: [Errno {errno.EFBIG}] File too large: '{folder / name}'"
    assert sum(line.startswith("error: ") for line in done.err.splitlines()) == 1
    assert last.read_bytes() == before
    assert not list(folder.rglob(".*.tmp"))
    again = attempts(f"resume_from={folder}")
    assert again.status == 0, again.err
    assert_same_run(folder, uninterrupted)


def test_a_run_whose_other_process_stopped_first_says_how_to_go_on(train, tones, tmp_path, monkeypatch):
    def left(_trainer):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(Trainer, "_train_epoch", left)
    with suppress(RuntimeError):
        assert train(*THREE_EPOCHS, *tones.settings(), f"run_dir={tmp_path / 'run'}").status != 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"continue with: python train.py resume_from={tmp_path / 'run'}" in log
