"""Laws of recordings that cannot be used: named, left out and counted; none of them ends a run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers.same import assert_same_run
from helpers.tiny import RATE, ROOT, THREE_EPOCHS, Tones, damage_middle, tone, write_tones, write_trial_list

from sv_sparse import checkpoint
from sv_sparse.commands import main as cli
from sv_sparse.data.corpora.folder import validation_speakers
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.trials import read_trials
from sv_sparse.evaluation import embed as embedding
from sv_sparse.scoring.backend import Backend

SPEAKERS = [f"id1000{number}" for number in range(9)]
TRAINED, TESTED = SPEAKERS[:6], SPEAKERS[6:]
HELD_OUT = sorted(validation_speakers(np.repeat(np.array(TRAINED, object), 6), 0.4, 0))
SETTINGS = (
    *THREE_EPOCHS,
    "data.val_fraction=0.4",
    "scoring=as_norm",
    "scoring.cohort_utts_per_speaker=1",
    "scoring.top_n=4",
    "scoring.quality_measures=[duration,magnitude]",
)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def damage(path: Path) -> None:
    """Write a recording of which the scan of the folder does not notice that it is damaged."""
    soundfile.write(path, tone(0, 0, 1.0), RATE)
    damage_middle(path)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Tones:
    """The tiny corpus, with a bad recording of a held-out speaker, and another speaker with no good one."""
    folder = tmp_path_factory.mktemp("damaged")
    keys = write_tones(folder / "wav", SPEAKERS)
    trained = next(speaker for speaker in TRAINED if speaker not in HELD_OUT)
    for key in keys:
        if key == f"{HELD_OUT[0]}/s0/00001.flac" or key.startswith(trained):
            damage(folder / "wav" / key)
    write_trial_list(folder / "trials.txt", [key for key in keys if key[:7] in TESTED])
    return Tones(folder / "wav", folder / "trials.txt")


@pytest.fixture(scope="module")
def damaged_run(attempts, damaged, tmp_path_factory) -> Path:
    """The folder of a run on that corpus."""
    folder = tmp_path_factory.mktemp("damaged_run") / "run"
    done = attempts(*SETTINGS, *damaged.settings(), "data.max_unreadable_fraction=0.5", f"run_dir={folder}")
    assert done.status == 0, done.err
    return folder


def test_held_out_speakers_the_cohort_and_the_calibration_lose_bad_recordings_and_the_run_goes_on(damaged, damaged_run):
    log = (damaged_run / "train.log").read_text()
    bad = f"{damaged.root}/{HELD_OUT[0]}/s0/00001.flac: cannot be read as a recording"
    assert (
        log.count(f"WARNING sv_sparse.evaluation.embed: left out of the validation: {bad}") == 4
    )  # 3 epochs, and the end
    assert log.count(f"left out of the calibration: {bad}") == 1
    assert log.count("left out of the cohort: 1 training speakers without a recording that can be used") == 1
    assert "scoring.top_n=4 is lowered to the 3 speakers of the cohort" in log
    state = checkpoint.load(damaged_run / "checkpoints" / "model.pt", checkpoint.NETWORK_KEYS)
    backend = Backend.from_dict(state["backend"])
    assert len(backend.cohort) == 3
    assert np.isfinite(backend.cohort).all()
    assert (backend.calibration.trials, backend.calibration.targets) == (5 * 6 + 15, 2 * 3 + 3 * 3)  # in other sessions
    figures = json.loads((damaged_run / "results.json").read_text())
    assert np.isfinite(figures["validation_eer"])
    assert figures["evaluations"]["trials_as_norm_4"]["recordings_left_out"] == 0


def test_a_run_that_is_killed_in_a_validation_with_bad_recordings_ends_the_same(
    attempts, damaged, damaged_run, tmp_path
):
    folder = tmp_path / "run"
    words = (*SETTINGS, *damaged.settings(), "data.max_unreadable_fraction=0.5", f"run_dir={folder}")
    done = attempts(*words, within="validation.validate", visit=2)
    assert done.status == -signal.SIGKILL, done.err
    progress = checkpoint.load(folder / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)["progress"]
    assert (progress["epoch"], progress["step_in_epoch"], progress["validated"]) == (2, 0, False)
    done = attempts(f"resume_from={folder}")
    assert done.status == 0, done.err
    assert_same_run(folder, damaged_run)


def test_too_many_bad_recordings_end_a_run_after_its_epoch_was_saved(attempts, tmp_path):
    keys = write_tones(tmp_path / "wav", SPEAKERS)
    bad = f"{HELD_OUT[0]}/s0/00001.flac"
    whole = (tmp_path / "wav" / bad).read_bytes()
    damage_middle(tmp_path / "wav" / bad)
    write_trial_list(tmp_path / "trials.txt", [key for key in keys if key[:7] in TESTED])
    corpus = Tones(tmp_path / "wav", tmp_path / "trials.txt")
    folder = tmp_path / "run"
    done = attempts(*SETTINGS, *corpus.settings(), "data.max_unreadable_fraction=0", f"run_dir={folder}")
    assert done.status == 2
    message = (
        "error: data.max_unreadable_fraction=0.0: more than 0 of the 12 recordings of the validation cannot be used; "
        "first "
    )
    assert f"{message}{tmp_path}/wav/{bad}: cannot be read as a recording" in done.err
    progress = checkpoint.load(folder / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)["progress"]
    assert (progress["epoch"], progress["step"], progress["validated"]) == (1, 6, False)
    (tmp_path / "wav" / bad).write_bytes(whole)  # mended
    done = attempts(f"resume_from={folder}")
    assert done.status == 0, done.err


def test_held_out_speakers_of_whom_too_little_can_be_used_give_a_warning_and_no_figure(attempts, tmp_path):
    keys = write_tones(tmp_path / "wav", SPEAKERS)
    for key in keys:
        if key[:7] == HELD_OUT[0] and not key.endswith("s0/00000.flac"):
            damage(tmp_path / "wav" / key)
        if key[:7] == HELD_OUT[1] and key[8:10] == "s0":
            damage(tmp_path / "wav" / key)
    write_trial_list(tmp_path / "trials.txt", [key for key in keys if key[:7] in TESTED])
    corpus = Tones(tmp_path / "wav", tmp_path / "trials.txt")
    folder = tmp_path / "run"
    done = attempts(*THREE_EPOCHS, *corpus.settings(), "data.val_fraction=0.4", f"run_dir={folder}")
    assert done.status == 0, done.err
    assert "no validation: the recordings of held-out speakers that can be used make 0 targets and" in done.out
    assert "no calibration: the recordings" in done.out
    assert "validation_eer" not in json.loads((folder / "results.json").read_text())


def test_a_run_whose_trials_have_a_bad_recording_is_judged_on_the_others(attempts, tmp_path):
    keys = write_tones(tmp_path / "wav", SPEAKERS)
    tested = [key for key in keys if key[:7] in TESTED]
    (tmp_path / "wav" / tested[0]).write_bytes(b"no FLAC")
    write_trial_list(tmp_path / "trials.txt", tested)
    corpus = Tones(tmp_path / "wav", tmp_path / "trials.txt")
    folder = tmp_path / "run"
    done = attempts(*THREE_EPOCHS, *corpus.settings(), f"run_dir={folder}")
    assert done.status == 0, done.err
    assert f"list trials: 17 of 153 trials are left out, since 1 recordings cannot be used ({tested[0]})" in done.out
    one = json.loads((folder / "results.json").read_text())["evaluations"]["trials"]
    assert (one["trials"], one["trials_left_out"], one["recordings_left_out"]) == (136, 17, 1)
    assert one["checksum"] != one["list_checksum"] == read_trials(corpus.trials).checksum
    lines = (folder / "scores" / "trials.txt").read_text().splitlines()
    assert len(lines) == 136
    assert not any(tested[0] in line for line in lines)
    assert tested[0] not in (folder / "scores" / "trials.speakers").read_text()
    assert "left out: 17 trials, unusable recordings: 1" in (folder / "report.md").read_text()


@pytest.fixture
def copied(tones, uninterrupted, tmp_path) -> tuple[Path, Tones, list[str]]:
    """A finished run, and trials of recordings that are not those of its manifest: one of them is bad."""
    keys = read_trials(tones.trials).utterances
    for key in keys:
        (tmp_path / "wav" / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tones.root / key, tmp_path / "wav" / key)
    (tmp_path / "wav" / keys[3]).write_bytes((tones.root / keys[3]).read_bytes()[:300])
    shutil.copy(tones.trials, tmp_path / "others.txt")
    run = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    return run, Tones(tmp_path / "wav", tmp_path / "others.txt"), keys


def evaluate(*words: object) -> None:
    cli.main(["evaluate", *map(str, words)])


def words_of(lists: Tones) -> list[object]:
    return ["--audio-root", lists.root, "--trials", lists.trials]


def test_an_evaluation_leaves_trials_of_a_bad_recording_out_and_says_so(copied, capsys, caplog):
    run, lists, keys = copied
    evaluate(run, *words_of(lists))
    text = capsys.readouterr().out
    assert "  136 trials, " in text
    assert "  left out: 17 trials; recordings that cannot be used: 1\n" in text
    assert any(f"left out of the trial lists: {lists.root}/{keys[3]}: " in message for message in caplog.messages)
    scores = (run / "scores" / "others.txt").read_text().splitlines()
    own = (run / "scores" / "trials.txt").read_text().splitlines()
    rest = [line for line in own if keys[3] not in line.split()]
    assert [line.split()[:2] for line in scores] == [line.split()[:2] for line in rest]
    np.testing.assert_allclose(*([float(line.split()[2]) for line in lines] for lines in (scores, rest)), atol=1e-5)
    assert "left out" in (run / "report.html").read_text()
    cli.main(["compare", str(run)])
    assert "left out 17 trials, unusable recordings: 1" in capsys.readouterr().out


def test_where_nothing_is_left_out_nothing_is_said_of_it(uninterrupted, tmp_path, capsys):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    evaluate(run)
    cli.main(["compare", str(run)])
    assert "left out" not in capsys.readouterr().out
    assert "left out" not in (run / "report.md").read_text()


def test_a_recording_that_was_mended_is_judged_again_under_the_same_name(copied, tones, capsys):
    run, lists, keys = copied
    evaluate(run, *words_of(lists))
    shutil.copy(tones.root / keys[3], lists.root / keys[3])
    capsys.readouterr()
    evaluate(run, *words_of(lists))
    text = capsys.readouterr().out
    assert "  153 trials, " in text
    assert "left out" not in text
    assert len((run / "scores" / "others.txt").read_text().splitlines()) == 153


def test_runs_that_lost_other_trials_are_told_apart_and_not_compared(copied, tones, tmp_path, capsys):
    run, lists, keys = copied
    other = shutil.copytree(run, tmp_path / "other")
    evaluate(run, *words_of(lists))
    shutil.copy(tones.root / keys[3], lists.root / keys[3])
    evaluate(other, *words_of(lists))
    capsys.readouterr()
    cli.main(["compare", str(run), str(other), "--list", "others"])
    names = re.findall(r"^(others \(\w+\)): trials", capsys.readouterr().out, re.MULTILINE)
    assert len(set(names)) == 2


def test_an_evaluation_that_allows_nothing_to_be_left_out_names_the_recording(copied, capsys):
    run, lists, keys = copied
    with pytest.raises(SystemExit):
        evaluate(run, *words_of(lists), "--max-unreadable", 0)
    message = "error: --max-unreadable 0.0: more than 0 of the 18 recordings of the trial lists cannot be used; first "
    assert f"{message}{lists.root}/{keys[3]}: " in capsys.readouterr().err
    assert not (run / "scores" / "others.txt").exists()
    with pytest.raises(SystemExit):
        evaluate(run, *words_of(lists), "--max-unreadable", 7)
    assert "error: --max-unreadable 7.0: expected a fraction from 0 to 1" in capsys.readouterr().err


def test_an_evaluation_without_targets_that_can_be_used_is_one_error(copied, capsys):
    run, lists, keys = copied
    lists.trials.write_text(f"1 {keys[0]} {keys[3]}\n0 {keys[0]} {keys[-1]}\n")
    with pytest.raises(SystemExit):
        evaluate(run, *words_of(lists))
    message = f"error: list others: 1 recordings cannot be used ({keys[3]}); without their trials it has 0 targets and"
    assert message in capsys.readouterr().err


def test_a_listed_recording_that_is_not_there_any_more_is_an_error(uninterrupted, tmp_path, capsys):
    keys = write_tones(tmp_path / "wav", SPEAKERS)
    run = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    manifest = run / "manifest.parquet"
    Manifest.write(manifest, pq.read_table(manifest), tmp_path / "wav")
    gone = next(key for key in keys if key[:7] in TESTED)
    (tmp_path / "wav" / gone).unlink()
    with pytest.raises(SystemExit):
        evaluate(run)
    assert f"error: list trials: 1 recordings are not there; first {tmp_path}/wav/{gone}" in capsys.readouterr().err


def test_two_processes_leave_out_what_one_does_and_name_it_once(copied, capsys, monkeypatch):
    monkeypatch.setattr(embedding, "_PREFETCH", 4)
    run, lists, _ = copied
    elsewhere = run.parent / "elsewhere"
    evaluate(run, *words_of(lists), "--output-dir", elsewhere)
    expected = capsys.readouterr().out
    scores = (elsewhere / "others.txt").read_text()
    shutil.rmtree(elsewhere)
    words = [str(word) for word in ("evaluate", run, *words_of(lists), "--output-dir", elsewhere)]
    script = run.parent / "evaluate.py"
    script.write_text(
        "from sv_sparse.commands.main import main\nfrom sv_sparse.evaluation import embed\n"
        f"embed._PREFETCH = 4\nmain({words!r})\n"
    )
    done = together(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    assert (elsewhere / "others.txt").read_text() == scores
    assert done.stderr.count("left out of the trial lists: ") == 1
    assert done.stderr.count("trials are left out, since") == 1
    words += ["--max-unreadable", "0"]
    script.write_text(
        "from sv_sparse.commands.main import main\nfrom sv_sparse.evaluation import embed\n"
        f"embed._PREFETCH = 4\nmain({words!r})\n"
    )
    done = together(script)
    assert done.returncode != 0
    assert done.stderr.count("error: --max-unreadable 0.0") == 1


def test_two_processes_train_on_where_held_out_speakers_have_bad_recordings(damaged, tmp_path):
    folder = tmp_path / "run"
    words = [
        *SETTINGS,
        *damaged.settings(),
        "data.max_unreadable_fraction=0.5",
        "trainer.epochs=1",
        f"run_dir={folder}",
    ]
    done = together(ROOT / "train.py", *words)
    assert done.returncode == 0, done.stderr
    log = (folder / "train.log").read_text()
    assert log.count("left out of the validation: ") == 2  # after the epoch, and at the end
    assert "left out of the validation" not in done.stderr  # of the second process
    assert "left out of the cohort" not in done.stderr


def together(script: Path, *words: str) -> subprocess.CompletedProcess:
    """Run a script by two processes."""
    command = [*TORCHRUN, str(script), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
