"""Laws of continuing: no bit changes, nothing written is lost, and what cannot be continued is named."""

import json
import pickle
import shutil
import signal
from pathlib import Path

import pytest
from helpers.same import assert_same, assert_same_run, curves, rows
from helpers.tiny import THREE_EPOCHS

from sv_sparse import checkpoint

AT = 8  # of 18 steps, 6 in each epoch: in the middle of the second


@pytest.fixture
def killed(attempts, tones, tmp_path):
    """The folder of a run of three epochs that is killed somewhere."""

    def run(within: str, visit: int, *settings: str, calls: int = 0) -> Path:
        folder = tmp_path / "run"
        words = (*THREE_EPOCHS, *tones.settings(), *settings, f"run_dir={folder}")
        done = attempts(*words, within=within, visit=visit, calls=calls)
        assert done.status == -signal.SIGKILL, done.err
        return folder

    return run


@pytest.fixture
def resume(attempts):
    """Continue a run to its end."""

    def run(path: Path) -> None:
        done = attempts(f"resume_from={path}")
        assert done.status == 0, done.err

    return run


@pytest.fixture
def copied(uninterrupted, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


def training(path: Path) -> dict:
    return checkpoint.load(path, checkpoint.TRAINING_KEYS)


def where(folder: Path) -> tuple[int, int, int]:
    progress = training(folder / "checkpoints" / "last.pt")["progress"]
    return progress["epoch"], progress["step_in_epoch"], progress["step"]


def kept(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("epoch_*")}


def test_a_run_killed_in_mid_epoch_continues_without_changing_a_bit(uninterrupted, killed, resume):
    folder = killed("trainer._record_non_finite", AT)
    assert rows(folder)[-1]["step"] == AT - 1
    assert where(folder) == (1, 0, 6)
    resume(folder)
    assert_same_run(folder, uninterrupted)
    assert curves(folder) == curves(uninterrupted)


def test_checkpoints_inside_an_epoch_are_as_close_as_the_settings_say(uninterrupted, killed, resume):
    folder = killed("trainer._record_non_finite", AT, "trainer.checkpoint_interval_minutes=1e-6")
    assert where(folder) == (1, AT - 7, AT - 1)
    resume(folder)
    assert_same_run(folder, uninterrupted)


def test_the_checkpoints_of_the_last_epochs_are_kept_and_no_others(uninterrupted):
    assert kept(uninterrupted) == {"epoch_0002.pt", "epoch_0003.pt"}
    epochs = [training(uninterrupted / "checkpoints" / f"epoch_000{number}.pt")["progress"] for number in (2, 3)]
    assert [(progress["epoch"], progress["validated"]) for progress in epochs] == [(2, True), (3, True)]


@pytest.mark.parametrize("visit", [2, 3])
def test_an_epoch_is_kept_though_the_run_was_killed_before(uninterrupted, killed, resume, visit):
    folder = killed("checkpoints.keep_epoch", visit)
    assert f"epoch_000{visit}.pt" not in kept(folder)
    resume(folder)
    assert_same_run(folder, uninterrupted)


def test_a_run_killed_in_its_first_checkpoint_is_begun_again(attempts, uninterrupted, tones, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "checkpoints" / ".last.pt.0123abcd.tmp").write_bytes(b"half a checkpo")
    done = attempts(*THREE_EPOCHS, *tones.settings(), f"run_dir={folder}")
    assert done.status == 0, done.err
    assert_same_run(folder, uninterrupted)
    assert not list(folder.rglob(".*.tmp"))


def test_a_run_returns_to_an_earlier_epoch_and_ends_the_same(uninterrupted, killed, resume):
    folder = killed("trainer._record_non_finite", 16)
    before = (folder / "checkpoints" / "last.pt").read_bytes()
    resume(folder / "checkpoints" / "epoch_0001.pt")
    assert (folder / "checkpoints" / "last_before_rollback.pt").read_bytes() == before
    assert_same_run(folder, uninterrupted)
    assert curves(folder) == curves(uninterrupted)


def test_a_run_returns_to_what_was_replaced(attempts, copied, uninterrupted):
    folder = copied / "checkpoints"
    before = (folder / "last.pt").read_bytes()
    struck = attempts(f"resume_from={folder / 'epoch_0002.pt'}", within="trainer._record_non_finite", visit=1)
    assert struck.status == -signal.SIGKILL
    assert where(copied) == (2, 0, 12)
    struck = attempts(f"resume_from={folder / 'last_before_rollback.pt'}", within="setup.build_setup")
    assert struck.status == -signal.SIGKILL
    assert (folder / "last.pt").read_bytes() == before
    assert training(folder / "last_before_rollback.pt")["progress"]["step"] == 12


def test_resuming_a_finished_run_reports_again_without_training(copied, resume):
    before = json.loads((copied / "results.json").read_text())
    resume(copied)
    after = json.loads((copied / "results.json").read_text())
    assert_same(after, before)


def test_a_truncated_checkpoint_is_refused_and_the_one_before_it_continues(attempts, resume, copied, uninterrupted):
    last, before = copied / "checkpoints" / "last.pt", copied / "checkpoints" / "epoch_0003.pt"
    before.unlink()
    before = before.with_name("epoch_0002.pt")
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    done = attempts(f"resume_from={copied}")
    assert done.status == 2
    assert f"{last} is not a readable checkpoint" in done.err
    assert f"continue from there with resume_from={before}" in done.err
    assert last.stat().st_size == len(whole) // 2
    resume(before)
    assert_same_run(copied, uninterrupted)


@pytest.mark.parametrize("name", ["last.pt", "epoch_0002.pt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a pickle", "is not a readable checkpoint"),
        ("a network", "is a network file"),
    ],
)
def test_another_file_is_refused_and_nothing_is_replaced(attempts, copied, name, content, message):
    folder = copied / "checkpoints"
    network = (folder / "model.pt").read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(network if content == "a network" else pickle.dumps({"model": 1}))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = attempts(f"resume_from={copied if name == 'last.pt' else folder / name}")
    assert done.status == 2
    assert f"{folder / name} {message}" in done.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_resuming_takes_no_other_settings(attempts, uninterrupted):
    done = attempts(f"resume_from={uninterrupted}", "trainer.epochs=9")
    assert done.status == 2
    assert "continues with the run's own settings; leave out trainer.epochs=9" in done.err


def test_resuming_what_is_no_run_says_what_is_expected(attempts, tmp_path):
    done = attempts(f"resume_from={tmp_path}")
    assert done.status == 2
    assert "expected a run folder with config.yaml and checkpoints/last.pt" in done.err
