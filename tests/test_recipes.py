"""Every recipe: what it would do composes, what it does ends in a table, and what is done is not done again."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import trees
from helpers.tiny import ROOT, Tones
from hydra import compose, initialize_config_dir
from sv_sparse.config.settings import resolve

from sv_sparse.commands import main as cli

CONF = ROOT / "conf"
SMALL = ["--tiny", "--models", "ecapa", "--optims", "linbreg", "--targets", "0", "0.8"]


def recipe(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A recipe's run.sh, from another folder than the project's."""
    command = ["sh", str(ROOT / "recipes" / name / "run.sh"), *map(str, words)]
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")


def compared(out: Path) -> list[dict[str, str]]:
    """The rows of a recipe's table."""
    with open(out / "table" / "compare.csv", newline="") as file:
        return list(csv.DictReader(file))


def planned(name: str, *words: object) -> list[list[str]]:
    done = recipe(name, "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def check_training(words: list[str]) -> dict:
    """The settings of a command that would train; composing refuses names that are not there."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose("config", ["run_name=test", *words]))


@pytest.mark.parametrize("name", ["voxceleb", "cnceleb"])
@pytest.mark.parametrize("variant", ["paper", "strong"])
def test_every_command_of_a_dry_run_is_one_that_the_programs_take(name, variant):
    commands = planned(name, "--variant", variant)
    for command in commands:
        if command[0] == "sv-sparse":
            cli.parser(command[1:]).parse_args(command[1:])
        elif command[1].endswith("train.py"):
            check_training(command[2:])
        else:
            assert (ROOT / command[1]).is_file()
    trained = [check_training(command[2:]) for command in commands if command[1].endswith("train.py")]
    assert len(trained) == 40  # two models, two optimizers, five targets, all once more with a large margin
    assert {settings["target_sparsity"] for settings in trained} == {0, 0.75, 0.9, 0.95, 0.99}
    assert {settings["trainer"]["epochs"] for settings in trained[:20]} == (
        {150} if variant == "strong" else {20 if name == "voxceleb" else 40}
    )
    assert all(settings["head"]["margin"] == 0.5 and settings["init_from"] for settings in trained[20:])
    assert {settings["augment"]["probability"] for settings in trained[20:]} == {0.0}
    assert {settings["augment"]["probability"] for settings in trained[:20]} == {0.6 if variant == "strong" else 0.0}
    stages = [command[1] for command in commands]
    assert stages.count("evaluate") == 1
    assert stages.count("prepare") == (2 if variant == "strong" else 1)
    assert stages[-1].endswith("scripts/compare.py")


@pytest.mark.parametrize("name", ["demo", "own_data"])
def test_the_small_recipes_compose(name):
    for command in planned(name, "--stages", "train", "lmft", "table"):
        if command[1].endswith("train.py"):
            check_training(command[2:])


def test_the_dense_baseline_of_linbreg_is_sgd_as_published():
    command = planned("voxceleb", "--variant", "strong", "--stages", "train", "--optims", "linbreg", "--targets", "0")[
        0
    ]
    settings = check_training(command[2:])
    assert (settings["optim"]["momentum"], settings["optim"]["nesterov"]) == (0.9, True)
    assert (settings["optim"]["weight_decay"], settings["optim"]["lr"]["dense"]) == (1e-4, 0.4)
    assert settings["trainer"]["final_lr"] == 0.0005


@pytest.fixture(scope="module")
def cn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cn corpus")  # a space in every path
    trees.write_cnceleb(folder / "root")
    return folder


def test_cnceleb_runs_from_the_disk_to_its_table_and_a_second_time_does_nothing_again(cn, tmp_path):
    out = tmp_path / "it's out"
    made = out / "tiny"
    words = ["--root", cn / "root", "--out", out, *SMALL, "data.val_fraction=0"]
    done = recipe("cnceleb", *words)
    assert done.returncode == 0, done.stderr
    rows = compared(made)
    assert len(rows) == 8  # two targets, each fine-tuned too, two lists
    assert sum(row["target_sparsity"] == "0.8" for row in rows) == 4
    assert sum(row["list"] == "cnceleb_concatenated" for row in rows) == 4
    again = recipe("cnceleb", *words)
    assert again.stdout.count("finished before: ") == 4
    assert "train.py" not in again.stdout
    assert "evaluate" not in again.stdout
    assert compared(made) == rows


def test_voxceleb_runs_augmented_and_is_judged_on_cnceleb_too(cn, tmp_path):
    trees.released(tmp_path / "root")
    trees.write_vox_lists(tmp_path / "lists")
    for kind in ("musan/noise", "musan/music", "musan/speech", "RIRS_NOISES/simulated_rirs"):
        trees.write(tmp_path / kind / "1.wav", kind)
    roots = ["--root", tmp_path / "root", "--lists", tmp_path / "lists"]
    noise = ["--noise", tmp_path / "musan", tmp_path / "RIRS_NOISES", "--variant", "strong"]
    other = tmp_path / "other"
    assert recipe("cnceleb", "--root", cn / "root", "--out", other, "--tiny", "--stages", "prepare").returncode == 0
    small = [*SMALL[:-2], "0.8", "--models", "resnet34"]
    done = recipe(
        "voxceleb", *roots, *noise, "--out", tmp_path / "out", *small, "--on", f"{other}/tiny/prepared:cnceleb_average"
    )
    assert done.returncode == 0, done.stderr
    rows = compared(tmp_path / "out" / "tiny")
    assert len(rows) == 8  # trained and fine-tuned, each on O, E, H and CN-Celeb
    assert sum(row["list"] == "cnceleb_average" for row in rows) == 2
    assert all(row["model"] == "ResNet34" for row in rows)


def test_own_data_runs_to_its_table_and_goes_on_after_a_failure(tones: Tones, tmp_path):
    words = ["--root", tones.root, "--trials", tones.trials, "--out", tmp_path / "out", "--tiny", "--models", "ecapa"]
    failed = recipe("own_data", *words, "trainer.device=cuda")
    assert failed.returncode == 2
    assert "stage train ended with status 2" in failed.stderr
    done = recipe("own_data", *words)
    assert done.returncode == 0, done.stderr
    assert len(compared(tmp_path / "out" / "tiny")) == 2


def test_what_a_recipe_needs_and_did_not_get_is_said():
    assert "--root is needed" in recipe("voxceleb").stderr
    assert "--noise is needed" in recipe("cnceleb", "--root", "/", "--variant", "strong").stderr
    assert "unrecognized arguments: word" in recipe("demo", "word").stderr
    assert "expected from 0 to below 1, got 90" in recipe("demo", "--targets", "90").stderr
    assert "expected 1 or more, got none" in recipe("demo", "--processes", "none").stderr


def test_other_settings_than_a_run_was_begun_with_are_refused(tones: Tones, tmp_path):
    words = ["--root", tones.root, "--trials", tones.trials, "--out", tmp_path, "--tiny", "--targets", "0"]
    assert recipe("own_data", *words).returncode == 0
    done = recipe("own_data", *words, "seed=3")
    assert done.returncode == 2
    assert "was begun with fewer settings, where it would be seed=3 now; give --out another folder" in done.stderr


@pytest.mark.parametrize(
    ("extra", "stop", "status"),
    [
        ([], lambda process: os.killpg(process.pid, signal.SIGINT), 130),  # as a terminal does
        (["--processes", "2"], lambda process: os.killpg(process.pid, signal.SIGINT), 130),
        (["--processes", "2"], lambda process: process.send_signal(signal.SIGUSR1), 128 + signal.SIGUSR1),
    ],
    ids=["Ctrl-C", "Ctrl-C to two processes", "a scheduler's signal to two processes"],
)
def test_a_stop_is_left_to_the_run_which_saves_and_the_same_command_goes_on(
    tones: Tones, tmp_path, extra, stop, status
):
    words = ["--root", tones.root, "--trials", tones.trials, "--out", tmp_path, "--tiny", "--targets", "0", *extra]
    command = ["sh", str(ROOT / "recipes" / "own_data" / "run.sh"), *map(str, words), "trainer.epochs=3"]
    environment = os.environ | {"PYTHON": sys.executable}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        last = tmp_path / "tiny" / "runs" / "ecapa_adabreg_0" / "checkpoints" / "last.pt"
        while not last.is_file() and process.poll() is None:
            time.sleep(0.05)
        stop(process)
        out, err = process.communicate()
    assert process.returncode == status, err
    assert f"continue with: {'torchrun --nproc-per-node=2' if extra else 'python'} train.py resume=" in out + err
    assert "the same command goes on" in err
    done = recipe("own_data", *words, "trainer.epochs=3")
    assert done.returncode == 0, done.stderr
    assert "train.py resume=" in done.stdout
