"""The evidence recipe: its plan composes, its stages end in tables, and what is done is not done again."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from evidence.__main__ import main
from evidence.figures import FIGURES
from evidence.noisy import Condition, make_noisy, open_store
from evidence.plan import FULL, QUESTIONS, QUICK, plan
from evidence.results import Finished, Group, Run, near_target
from evidence.tables import TABLES, control_table
from helpers.tiny import ROOT, TINY, Tones
from hydra import compose, initialize_config_dir
from sv_sparse.config.settings import resolve
from sv_sparse.report.style import house_style

from sv_sparse.training.logging import read_rows

WORDS = ["--quick", "--questions", "structure", "finetuning"]


def command(*words: object) -> list[str]:
    return ["sh", str(ROOT / "recipes" / "evidence" / "run.sh"), *map(str, words)]


def evidence(*words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(command(*words), capture_output=True, text=True, check=False, env=environment, cwd="/")


@pytest.fixture(scope="module")
def listed(tones: Tones, tmp_path_factory) -> list[object]:
    """The command line's part on the corpus."""
    keys = sorted(str(path.relative_to(tones.root)) for path in tones.root.rglob("*.flac"))
    heard = {name for line in tones.trials.read_text().splitlines() for name in line.split()[1:]}
    path = tmp_path_factory.mktemp("lists") / "train list.txt"
    path.write_text("".join(f"{key.split('/')[0]} {key}\n" for key in keys if key not in heard))
    return ["--root", tones.root, "--trials", tones.trials, "--train-list", path, "--foreign-list", path]


@pytest.mark.parametrize("scale", ["full", "quick"])
def test_every_cell_of_the_plan_is_a_run_that_the_settings_allow(scale):
    done = evidence("--dry-run", *(["--quick"] if scale == "quick" else []))
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert len({words[2] for words in commands}) == len(commands)  # folders
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for words in commands:
            told = [word.replace("=LAMBDA", "=0.1") for word in words[2:]]
            assert resolve(compose("config", ["run_name=test", *told]))["trainer"]["epochs"] > 0


def test_what_a_cell_comes_after_is_trained_before_it():
    names = [cell.name for cell in plan(["finetuning"], FULL, [0])]
    assert names[0] == "dense_s0"
    for seeds in ([0], FULL.seeds):
        before: set[str] = set()
        for cell in plan(list(QUESTIONS), FULL, seeds):
            assert not cell.after or cell.after in before
            before.add(cell.name)
    assert len(plan(list(QUESTIONS), QUICK, QUICK.seeds)) < len(plan(list(QUESTIONS), FULL, [0]))


@pytest.fixture(scope="module")
def made(listed, tmp_path_factory) -> Path:
    """What the recipe leaves behind."""
    out = tmp_path_factory.mktemp("it's evidence")
    done = evidence(*WORDS, *listed, "--out", out, *TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_stages_end_in_tables_and_figures_of_what_was_run(made):
    tables = made / "tables"
    assert {path.name for path in tables.iterdir()} == {"structure", "finetuning"}
    for question, title in (("structure", "## Single weights, whole"), ("finetuning", "## From a dense network")):
        page = (tables / question / "answer.md").read_text()
        assert "recipes/evidence/run.sh --quick" in page
        assert str(made) not in page  # paths are nobody's business
        assert title in page
        assert "Not finished" not in page
    with open(tables / "finetuning" / "runs.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    tuned = {f"finetuned_{way}_0.9_s0" for way in ("feedback", "magnitude")}
    assert set(rows) == tuned | {"dense_s0", "feedback_0.9_s0", "magnitude_0.9_s0"}  # what they are compared with
    tuned = rows["finetuned_feedback_0.9_s0"]
    assert float(tuned["sparsity"]) == pytest.approx(0.9, abs=0.001)
    with open(tables / "finetuning" / "epochs.csv", newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} >= {"finetuned_feedback_0.9_s0"}
    measured = json.loads((tables / "structure" / "measured.json").read_text())
    compared = {"dense_s0", "feedback_0.9_s0", "feedback_0.99_s0"}
    assert set(measured) == compared | {"channels_0.5_s0", "narrow_64_s0"}
    assert measured["channels_0.5_s0"]["kept"] < measured["dense_s0"]["kept"]
    assert all(value > 0 for value in measured["dense_s0"]["milliseconds"].values())


def test_answers_of_questions_that_were_not_asked_again_stay_as_they_are(made, listed, tmp_path):
    for question in ("control", "structure"):
        (tmp_path / question).mkdir()
        (tmp_path / question / "answer.md").write_text("of another time")
    done = evidence("--quick", *listed, "--out", made, "--tables", tmp_path, "--stages", "tables")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "control" / "answer.md").read_text() == "of another time"  # nothing was run for it
    assert "of another time" not in (tmp_path / "structure" / "answer.md").read_text()
    assert not (tmp_path / "foreign").exists()  # only what it would be compared with is there
    page = (tmp_path / "quality" / "answer.md").read_text()
    assert re.search("- Not finished: .*layerwise_0.9_s0, ", page)
    assert "## How does it take noise" in (tmp_path / "noise" / "answer.md").read_text()
    for question, lists in (("quality", {"trials"}), ("noise", {"trials", "trials_noise_0dB", "trials_room"})):
        with open(tmp_path / question / "runs.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {"dense_s0", "feedback_0.9_s0"} < {row["run"] for row in rows}  # which others are compared with
        assert lists <= {row["list"] for row in rows}
        assert question == "noise" or {row["list"] for row in rows} == lists
        assert all(row["commit"] for row in rows)


def test_a_second_time_nothing_is_done_again_and_the_tables_are_the_same(made, listed):
    before = {path: path.read_bytes() for path in (made / "tables").rglob("*") if path.is_file()}
    again = evidence(*WORDS, *listed, "--out", made, *TINY)
    assert again.returncode == 0, again.stderr
    assert "train.py" not in again.stdout
    assert "evaluate" not in again.stdout
    assert {path: path.read_bytes() for path in (made / "tables").rglob("*") if path.is_file()} == before


def test_other_settings_than_a_cell_was_begun_with_are_refused_and_the_others_stay(made, listed):
    done = evidence(*WORDS, *listed, "--out", made, *TINY, "trainer.warmup_fraction=0.2")
    assert done.returncode == 2
    assert "dense_s0: error: " in done.stdout
    assert "was begun with" in done.stdout


def test_a_stop_leaves_checkpoints_and_the_same_command_goes_on(listed, tmp_path):
    words = ["--quick", "--questions", "control", *listed, "--out", tmp_path, *TINY, "--stages", "train"]
    words += ["trainer.epochs=3", "--jobs", "1"]
    folder = tmp_path / "runs" / "control_ecapa_256_adabreg_0.9_s0"
    environment = os.environ | {"PYTHON": sys.executable}
    with subprocess.Popen(command(*words), stdout=subprocess.PIPE, text=True, env=environment) as it:
        while not (folder / "checkpoints" / "last.pt").is_file() and it.poll() is None:
            time.sleep(0.01)
        it.send_signal(signal.SIGTERM)
        it.communicate()
    assert it.returncode == 128 + signal.SIGTERM
    assert not (folder / "results.json").is_file()
    done = [row["step"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row]
    resumed = evidence(*words)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"resume_from={folder}" in shlex.split(resumed.stdout.splitlines()[0])
    assert (folder / "results.json").is_file()
    again = [row["step"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row]
    assert again[: len(done)] == done
    assert again == sorted(set(again))


def test_what_a_run_is_about_is_not_changed_by_the_command_line(listed):
    words = ["--quick", "--questions", "structure", *listed, "--dry-run"]
    done = evidence(*words, "model.channels=32", "trainer.epochs=1")
    assert done.returncode == 0, done.stderr
    told = [shlex.split(line) for line in done.stdout.splitlines()]
    for cell, words in zip(plan(["structure"], QUICK, [0]), told, strict=True):
        widths = [word for word in words if word.startswith("model.channels=")]
        way, _, amount = cell.group.partition("_")
        assert widths == [f"model.channels={amount if way == 'narrow' else 32}"]
        assert "trainer.epochs=1" in words


def test_what_is_missing_is_said(tones: Tones, tmp_path, capsys):
    def refused(*words: object) -> str:
        """Return what the recipe says, run in this process."""
        with pytest.raises(SystemExit) as end:
            raise SystemExit(main([str(word) for word in words]))
        assert end.value.code == 2
        return capsys.readouterr().err

    lists = ["--root", tones.root, "--trials", tones.trials]
    assert "--root and --trials go together" in refused("--root", tones.root)
    for word in ("seed=5", "optim.lambda_init=0.05", "optim.lr=0.01", "optim.lr.sparse_start=0.01"):
        assert f"{word}: that is what the plan decides" in refused(*lists, word)
    assert "--seeds: expected some of 0, got 7" in refused("--quick", "--seeds", "7")
    assert "no such file" in refused("--root", tones.root, "--trials", tmp_path / "no.txt")
    assert "no such folder" in refused("--root", tones.trials, "--trials", tones.trials)
    assert "needs --foreign-list" in refused(*lists, "--questions", "foreign")
    assert "is not among --stages" in refused("--stages", "tables", "--dry-run")
    assert "trainr" in refused(*lists, "trainr.precision=bf16", "--dry-run")
    assert "are for --root" in refused("--train-list", tones.trials)
    nothing = refused(*lists, "--stages", "tables", "--out", tmp_path)
    assert "no run of these questions is finished yet" in nothing
    assert "foreign: left out" in nothing


def test_noise_is_as_loud_as_its_condition_says_and_the_same_every_time(tones: Tones, tmp_path):
    speech = sorted(tones.root.rglob("*.flac"))
    store = open_store(None, speech, tmp_path / "first")
    folders = make_noisy(tones.root, [tones.trials], store, tmp_path / "first")
    again = make_noisy(tones.root, [tones.trials], open_store(None, speech, tmp_path / "second"), tmp_path / "second")
    name = tones.trials.read_text().split()[1]
    clean, _ = soundfile.read(tones.root / name)
    for folder, other in zip(folders, again, strict=True):
        heard, _ = soundfile.read(folder / "wav" / name)
        assert (heard == soundfile.read(other / "wav" / name)[0]).all()
        condition = Condition(*([*folder.name.split("_"), None][:2]))
        if condition.snr is not None:
            snr = 10 * np.log10(np.sum(clean**2) / np.sum((heard - clean) ** 2))
            assert snr == pytest.approx(float(condition.snr.removesuffix("dB")), abs=0.1)
        else:
            assert len(heard) == len(clean)
            assert np.abs(heard).max() == pytest.approx(np.abs(clean).max(), rel=0.01)


def test_runs_of_several_seeds_are_averaged_and_compared_draw_by_draw(made, tmp_path):
    dense, narrow = (Run(made / "runs" / name) for name in ("dense_s0", "narrow_64_s0"))
    both = Group("both", (dense, narrow))
    assert both.eer("trials") == pytest.approx((dense.lists["trials"]["eer"] + narrow.lists["trials"]["eer"]) / 2)
    gap, between = Group("dense", (dense,)).minus(Group("dense", (dense,)), "trials")
    assert (gap, between) in {(0.0, (0.0, 0.0)), (0.0, None)}  # nobody differs from himself
    worse, between = Group("narrow", (narrow,)).minus(Group("dense", (dense,)), "trials")
    own, theirs = narrow.draws("trials"), dense.draws("trials")
    assert worse == narrow.lists["trials"]["eer"] - dense.lists["trials"]["eer"]
    assert between == (None if own is None else pytest.approx(tuple(np.quantile(own - theirs, [0.025, 0.975]))))
    assert both.of([0]) == both
    assert both.of([1]).minus(both, "trials") is None
    elsewhere = Run(narrow.folder)
    vars(elsewhere)["lists"] = {"trials": narrow.lists["trials"] | {"checksum": "another"}}
    with pytest.raises(ValueError, match="judged by different trials"):
        Group("narrow", (elsewhere,)).minus(Group("dense", (dense,)), "trials")
    with pytest.raises(ValueError, match=r"should differ in the seed alone, and do in model.channels|target_sparsity"):
        renamed = [replace(cell, name=f"same_s{number}") for number, cell in enumerate(plan(["structure"], QUICK, [0]))]
        for cell, same in zip(plan(["structure"], QUICK, [0]), renamed, strict=True):
            (tmp_path / same.name).symlink_to(made / "runs" / cell.name)
        Finished(tmp_path, renamed)


def test_every_name_of_the_plan_is_read_by_the_tables(made, tmp_path):
    """Whatever is finished, and whatever is not: here every cell is the same run."""
    cells = plan(list(QUESTIONS), FULL, FULL.seeds)
    for cell in cells:
        (tmp_path / cell.name).symlink_to(made / "runs" / "finetuned_feedback_0.9_s0")
    found = Finished(tmp_path, cells)
    lists = ["trials"]
    for name, make in TABLES.items():
        table = make(found, lists)
        assert table.rows, name
        assert {len(row) for row in table.rows} == {len(table.heads)}, name
    rows = control_table(found, lists).rows
    assert {row[0] for row in rows} == {"ecapa_512", "ecapa", "resnet34"}
    assert [row[1:3] for row in rows[:2]] == [("adabreg", "75.00%"), ("adabreg", "90.00%")]
    with house_style():
        missing = [name for name, draw in FIGURES.items() if not draw(found, lists)]
    assert missing == ["noise"]  # which this run was not judged in


def test_what_ended_near_the_target_is_counted(made, tmp_path):
    for name, sparsity in (("near", 0.904), ("far", 0.906)):
        shutil.copytree(made / "runs" / "finetuned_feedback_0.9_s0", tmp_path / name)
        results = json.loads((tmp_path / name / "results.json").read_text()) | {"sparsity_tracked": sparsity}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    cells = plan(["insensitivity"], FULL, [0])
    for cell in cells:
        (tmp_path / cell.name).symlink_to(
            tmp_path / ("near" if cell.name in {"start_1e0_s0", "fixed_1e0_s0"} else "far")
        )
    words = near_target(Finished(tmp_path, [cell for cell in cells if cell.name != "start_1e1_s0"]))
    assert words == "Within 0.5 points of the target end 1 of 2 different starts of feedback, and 1 of 2 fixed λ."


def test_a_run_is_in_its_band_from_the_step_that_says_so(made):
    run = Finished(made / "runs", plan(["finetuning"], QUICK, [0]))["finetuned_feedback_0.9"].runs[0]
    steps, sparsity = run.path()
    first, last = run.entered()
    inside = abs(sparsity - 0.9) <= 0.005
    if first is None:
        assert not inside.any()
    else:
        assert inside[list(steps).index(first)]
        assert last is None or inside[list(steps).index(last) :].all()
