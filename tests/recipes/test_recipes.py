"""Every recipe: its commands are ones that the programs take, it ends in a table, and nothing is done twice."""

import csv
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers.pages import environment
from helpers.published import wespeaker_resnet34
from helpers.tiny import ROOT, Tones

from sv_sparse.commands import main as cli
from sv_sparse.config.overrides import check_command_line, parse_command_line
from sv_sparse.config.schema import Config, load_config, read_config, register_schema

SMALL = ("--smoke", "--models", "ecapa", "--optims", "linbreg", "--targets", "0 0.8")


def recipe(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a recipe's run.sh from another folder than the project's."""
    command = ["sh", str(ROOT / "recipes" / name / "run.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd="/")


def printed_commands(name: str, *arguments: object) -> list[list[str]]:
    finished = recipe(name, "--dry-run", *arguments)
    assert finished.returncode == 0, finished.stderr
    return [shlex.split(line) for line in finished.stdout.splitlines()]


def compose_settings(settings: list[str]) -> Config:
    """Return the settings of a training command, all of them known and allowed."""
    register_schema()
    check_command_line(settings)
    return load_config(parse_command_line(settings).compose([*settings, "run_name=test"]))


def training_configs(commands: list[list[str]]) -> list[Config]:
    """Settings of the commands that train; the others are parsed as sv-sparse parses them."""
    configs = []
    for command in commands:
        if command[0] == "sv-sparse":
            cli.build_parser(command[1:]).parse_args(command[1:])
        else:
            assert command[:2] == ["python", "train.py"]
            configs.append(compose_settings(command[2:]))
    return configs


def table_rows(out: Path) -> list[dict[str, str]]:
    """Rows of a recipe's table."""
    with open(out / "table" / "compare.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["voxceleb", "cnceleb"])
@pytest.mark.parametrize("schedule", ["paper", "wespeaker"])
def test_the_programs_take_every_command_of_a_dry_run(name, schedule):
    arguments = ["--root", "/corpus", "--noise", "/musan /rirs", "--schedule", schedule]
    assert len(printed_commands(name, *arguments, "--stage", 2, "--stop-stage", 3)) == 40
    commands = printed_commands(name, *arguments, "--targets", "0 0.9")
    configs = training_configs(commands)
    assert len(configs) == 16  # two models, two optimizers, two targets; then fine-tuning of each
    trained, finetuned = configs[:8], configs[8:]
    assert [config.target_sparsity for config in trained] == 4 * [0, 0.9]
    epochs = {"voxceleb": 20, "cnceleb": 40}[name] if schedule == "paper" else 150
    assert {config.trainer.epochs for config in trained} == {epochs}
    assert {config.augment.aug_prob for config in trained} == {0.0 if schedule == "paper" else 0.6}
    assert {config.augment.aug_prob for config in finetuned} == {0.0}
    assert all(config.head.margin == 0.5 and config.init_from for config in finetuned)
    verbs = [command[1] for command in commands]
    assert verbs.count("prepare") == (1 if schedule == "paper" else 2)
    assert verbs.count("evaluate") == 1
    assert verbs[-1] == "compare"


@pytest.mark.parametrize(
    ("name", "arguments"), [("demo", []), ("own_data", ["--root", "/speech", "--trials", "a.txt b.txt"])]
)
def test_the_programs_take_the_commands_of_the_small_recipes(name, arguments):
    configs = training_configs(printed_commands(name, *arguments, "--lmft", "true", "seed=3"))
    assert {config.seed for config in configs} == {3}
    assert sum(config.head.margin == 0.5 for config in configs) == len(configs) // 2


def test_the_dense_baseline_of_linbreg_is_sgd_as_published():
    arguments = ["--schedule", "wespeaker", "--optims", "linbreg", "--targets", 0, "--stage", 2, "--stop-stage", 2]
    config = training_configs(printed_commands("voxceleb", *arguments))[0]
    assert (config.optim.momentum, config.optim.nesterov) == (0.9, True)
    assert (config.optim.weight_decay, config.optim.lr.dense_start) == (1e-4, 0.4)
    assert config.trainer.final_lr_fraction == 0.0005


def test_cnceleb_runs_to_its_table_and_a_second_call_trains_nothing(released, tmp_path):
    out = tmp_path / "an exp folder"
    arguments = ["--root", released / "cn", "--out", out, *SMALL, "data.val_fraction=0"]
    first = recipe("cnceleb", *arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = table_rows(out / "smoke")
    assert len(rows) == 8  # two targets, each fine-tuned too, two trial lists
    assert sum(row["target_sparsity"] == "0.8" for row in rows) == 4
    assert sum(row["list"] == "cnceleb_concatenated" for row in rows) == 4
    second = recipe("cnceleb", *arguments)
    assert second.stdout.count("finished: ") == 4
    assert "train.py" not in second.stdout
    assert table_rows(out / "smoke") == rows


def test_voxceleb_runs_augmented_and_evaluates_on_cnceleb_too(released, tmp_path):
    other = tmp_path / "other"
    assert recipe("cnceleb", "--root", released / "cn", "--out", other, "--smoke", "--stop-stage", 1).returncode == 0
    arguments = ["--root", released / "vox", "--lists", released / "lists", "--schedule", "wespeaker", "--smoke"]
    arguments += ["--noise", f"{released}/musan {released}/RIRS_NOISES", "--out", tmp_path / "out"]
    arguments += ["--models", "resnet34", "--optims", "linbreg", "--targets", 0.8]
    finished = recipe("voxceleb", *arguments, "--other-trial-sets", f"{other}/smoke/prepared:cnceleb_average")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = table_rows(tmp_path / "out" / "smoke")
    assert len(rows) == 8  # trained and fine-tuned, each on O, E, H and CN-Celeb
    assert sum(row["list"] == "cnceleb_average" for row in rows) == 2


def test_a_published_network_becomes_sparse_without_labels_and_is_compared_with_itself(tones: Tones, tmp_path):
    weights = tmp_path / "weights.pt"
    torch.save(wespeaker_resnet34(), weights)
    arguments = ["--weights", weights, "--audio", tones.root, "--out", tmp_path / "out", "--smoke", "--target", "0.5"]
    finished = recipe("published", *arguments, "--trials", tones.trials)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    published, sparse = table_rows(tmp_path / "out" / "smoke")
    assert float(published["sparsity"]) == 0
    assert float(published["teacher_cosine"]) == pytest.approx(1, abs=1e-4)
    assert float(sparse["sparsity"]) == pytest.approx(0.5, abs=1e-3)
    assert -1 < float(sparse["min_teacher_cosine"]) <= float(sparse["teacher_cosine"]) < 1
    packages = (tmp_path / "out" / "smoke" / "table" / "packages.md").read_text()
    assert [line.split("|")[1].strip() for line in packages.splitlines()[2:]] == ["published", "sparse_0.5"]
    config = read_config(tmp_path / "out" / "smoke" / "runs" / "sparse_0.5")
    assert (config.model_settings["base_channels"], config.model_settings["features"]) == (8, "wespeaker")
    assert (config.sparsity.penalty, config.freezes_batch_norm) == ("l0", True)
    file = torch.load(weights, weights_only=True)
    untrained, trained = (
        torch.load(tmp_path / "out" / "smoke" / "runs" / name / "checkpoints" / "model.pt", weights_only=True)["model"]
        for name in ("published", "sparse_0.5")
    )
    assert torch.equal(untrained["conv.weight"], file["conv1.weight"])
    assert not torch.equal(trained["conv.weight"], file["conv1.weight"])
    assert torch.equal(trained["norm.running_var"], file["bn1.running_var"])
    assert not torch.equal(trained["norm.weight"], file["bn1.weight"])
    again = recipe("published", *arguments, "--trials", tones.trials)
    assert again.stdout.count("finished: ") == 2
    other = recipe("published", *arguments)
    assert other.returncode == 2
    assert "runs/published is finished with other settings, " in other.stderr
    without_lists = recipe("published", *arguments, "--out", tmp_path / "other")
    assert without_lists.returncode == 0, without_lists.stdout + without_lists.stderr
    assert (tmp_path / "other" / "smoke" / "packages" / "sparse_0.5.safetensors").is_file()


def test_missing_and_wrong_options_are_named():
    percent = recipe("published", "--weights", "/w", "--audio", "/", "--target", "0.5 90")
    assert "--target must be fractions of zeros such as 0.8, got 90" in percent.stderr
    assert "--weights and --audio are needed" in recipe("published", "--audio", "/").stderr
    assert "--root is needed" in recipe("voxceleb").stderr
    assert "--noise is needed" in recipe("cnceleb", "--root", "/", "--schedule", "wespeaker", "--dry-run").stderr
    assert "--schedule strong: expected paper or wespeaker" in recipe("voxceleb", "--schedule", "strong").stderr
    assert "--root and --trials are needed" in recipe("own_data").stderr
    assert "expected SETTING=VALUE behind the options, got word" in recipe("demo", "word").stderr
    assert "unknown option --variant" in recipe("demo", "--variant", "strong").stderr
    assert "--targets needs a value" in recipe("demo", "--targets").stderr


@pytest.mark.parametrize("name", ["voxceleb", "cnceleb", "demo", "own_data", "published", "evidence"])
def test_help_lists_the_options(name):
    shown = recipe(name, "--help")
    assert shown.returncode == 0
    for variable in ("stage=1", "stop_stage=", "out=runs/", "dry_run=false"):
        assert variable in shown.stdout


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_stopped_run_is_resumed_by_the_same_command_and_refused_with_other_settings(tones: Tones, tmp_path, nproc):
    arguments = ["--root", tones.root, "--trials", tones.trials, "--out", tmp_path, "--smoke", "--targets", 0]
    arguments += ["--nproc", nproc]
    command = ["sh", str(ROOT / "recipes" / "own_data" / "run.sh"), *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    run_dir = tmp_path / "smoke" / "runs" / "ecapa_adabreg_0"
    with subprocess.Popen([*command, "trainer.max_steps=60"], env=environment(), **options) as process:
        while not (run_dir / "checkpoints" / "last.pt").is_file() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does at Ctrl-C
        output, _ = process.communicate()
    assert process.returncode != 0, output
    assert not (run_dir / "results.json").is_file()
    refused = recipe("own_data", *arguments, "trainer.max_steps=60", "seed=3")
    assert refused.returncode != 0
    assert "seed" in refused.stdout + refused.stderr
    finished = recipe("own_data", *arguments, "trainer.max_steps=60")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "resuming" in (run_dir / "train.log").read_text()
    assert len(table_rows(tmp_path / "smoke")) == 1
