"""Laws of sweeps: many runs by one command, one after the other or at once."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
from helpers.pages import blocks
from helpers.tiny import ROOT, TINY, Outcome, Tones
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from sv_sparse.config.overrides import check_command_line, parse_command_line
from sv_sparse.config.schema import Config, load_config
from sv_sparse.report.format import DASH
from sv_sparse.report.sweep import SweepTable, print_sweep_table
from sv_sparse.training.run_dir import create_run_dir

SHORT = (*TINY, "trainer.epochs=1", "trainer.num_bn_crops=4")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def sweep(folder: Path, *settings: str) -> Outcome:
    command = [sys.executable, str(ROOT / "train.py"), "-m", *SHORT, *settings]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, env=environment)
    return Outcome(done.returncode, done.stdout, done.stderr)


def results(folder: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in folder.glob("*/results.json")]


@pytest.fixture(scope="module")
def swept(tones: Tones, tmp_path_factory) -> tuple[Outcome, Path]:
    """Two targets by two seeds on two processes, whose names differ by the target alone."""
    folder = tmp_path_factory.mktemp("swept")
    settings = (*tones.settings(), "target_sparsity=0.5,0.75", "seed=0,1", "trainer.num_workers=1")
    return sweep(folder, *settings, *JOBLIB), folder


def test_a_sweep_on_several_processes_leaves_a_folder_for_each_job(swept):
    done, folder = swept
    assert done.status == 0, done.err
    seeds = [OmegaConf.load(file).seed for file in (folder / "runs").glob("*/config.yaml")]
    assert sorted(seeds) == [0, 0, 1, 1]
    assert sorted(run["target_sparsity"] for run in results(folder / "runs")) == [0.5, 0.5, 0.75, 0.75]


def test_a_sweep_ends_with_a_table_of_its_runs(swept):
    done, folder = swept
    (path,) = (folder / "runs" / ".sweep").glob("*/table.md")
    text = path.read_text()
    assert text in done.out
    header, _, *lines = text.splitlines()[2:]
    assert text.startswith("Sweep: 4 jobs, 0 failed")
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    assert columns == ["job", "settings", "target", "final sparsity", "EER", "minDCF", "run folder"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    targets = [("0.5", "50.00%"), ("0.5", "50.00%"), ("0.75", "75.00%"), ("0.75", "75.00%")]
    for num, (row, (target, percent)) in enumerate(zip(rows, targets, strict=True)):
        assert row[:3] == [str(num), f"target_sparsity={target} seed={num % 2}", percent]
        result = json.loads((folder / row[6] / "results.json").read_text())
        assert row[3:6] == [f"{result['sparsity']:.4%}", f"{result['eer']:.2%}", f"{result['min_dcf']:.3f}"]


def test_each_of_several_processes_takes_its_share_of_the_cores(swept):
    for file in (swept[1] / "runs").glob("*/environment.json"):
        environment = json.loads(file.read_text())
        assert environment["threads"] <= max(1, environment["cores"] // 2)


def test_a_sweep_writes_nothing_beside_the_runs(swept):
    assert [path.name for path in swept[1].iterdir()] == ["runs"]
    assert (swept[1] / "runs" / ".sweep" / "multirun.yaml").is_file()


@pytest.mark.parametrize("launcher", [(), JOBLIB], ids=["basic", "joblib"])
def test_a_failing_job_says_which_it_is_and_the_others_are_run(launcher, tones, tmp_path):
    done = sweep(tmp_path, *tones.settings(), "optim.lr=1e38,0.01", "seed=3", "target_sparsity=0.5", *launcher)
    assert done.status == 1
    said = [line for line in done.err.splitlines() if line.startswith("error in job 0 (")]
    assert said
    assert "optim.lr=1e+38" in said[0]
    assert "seed=3" in said[0]
    assert "the loss or its gradient is not finite" in said[0]
    assert len(results(tmp_path / "runs")) == 1
    assert "Traceback" not in done.err
    assert "Sweep: 2 jobs, 1 failed" in done.out
    failed, finished = done.out.rpartition("| --- |")[2].splitlines()[1:3]
    assert re.fullmatch(rf"\| 0 +\| optim\.lr=1e\+38 +\|( {DASH} +\|){{4}} failed +\|", failed)
    assert re.fullmatch(r"\| 1 +\| optim\.lr=0\.01 +\| 50\.00% .*runs/.*_0\.5(_2)? +\|", finished)


def test_a_sweep_that_cannot_begin_has_no_table(tones, tmp_path):
    done = sweep(tmp_path, *tones.settings(), "hydra.sweeper.max_batch_size=0", "seed=0,1")
    assert done.status != 0
    assert "sv-sparse compare" not in done.out


@pytest.fixture
def begin(tmp_path, monkeypatch) -> Callable[..., SweepTable]:
    """A function that begins a sweep, whose jobs left these notes."""
    monkeypatch.setattr(SweepTable, "current", None)

    def begin(*statuses: str, runs_dir: str = "runs") -> SweepTable:
        table = SweepTable()
        table.on_multirun_start(OmegaConf.create({"runs_dir": runs_dir, "hydra": {"sweep": {"dir": str(tmp_path)}}}))
        for num, status in enumerate(statuses):
            job = OmegaConf.create({"hydra": {"job": {"num": num}, "overrides": {"task": [f"seed={num}"]}}})
            table.on_job_start(job)
            overrides = job.hydra.overrides.task
            if status == "finished":
                run_dir = str(tmp_path / f"run_{num}")
                table.on_job_end(job, JobReturn(overrides, status=JobStatus.COMPLETED, _return_value=run_dir))
            elif status == "failed":
                table.on_job_end(job, JobReturn(overrides, status=JobStatus.FAILED, _return_value=ValueError()))
        return table

    return begin


def test_jobs_that_leave_no_notes_here_are_named_with_the_command_of_their_table(begin, capsys):
    table = begin(runs_dir="my runs")
    print_sweep_table()
    assert capsys.readouterr().out == ""
    table.on_multirun_end(OmegaConf.create())
    print_sweep_table()
    assert "sv-sparse compare 'my runs'/*" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("statuses", "is_complete", "summary"),
    [
        (["finished"], True, "Sweep: 1 job, 0 failed"),
        (["failed", "finished"], False, "Sweep: 2 jobs, 1 failed"),
        (["finished", "failed", "killed"], False, "Sweep interrupted: 2 jobs ended, 1 failed"),
        (["finished"], False, "Sweep interrupted: 1 job ended, 0 failed"),
    ],
)
def test_a_sweep_that_was_cut_says_so(begin, capsys, statuses, is_complete, summary):
    table = begin(*statuses)
    if is_complete:
        table.on_multirun_end(OmegaConf.create())
    print_sweep_table()
    out = capsys.readouterr().out
    assert summary in out.splitlines()
    assert out.count("| not ended") == statuses.count("killed")


def test_a_finished_job_without_results_is_a_row(begin, capsys):
    begin("finished").on_multirun_end(OmegaConf.create())
    print_sweep_table()
    assert re.search(rf"^\| 0 +\| +\|( {DASH} +\|){{4}} no results +\|$", capsys.readouterr().out, re.MULTILINE)


def full_disk(path: Path, text: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_a_full_disk_does_not_replace_the_ending_of_the_sweep(begin, capsys, monkeypatch):
    begin("failed")
    monkeypatch.setattr("sv_sparse.report.sweep.write_text", full_disk)
    with pytest.raises(SystemExit, match="7"):
        try:
            raise SystemExit(7)
        finally:
            print_sweep_table()
    captured = capsys.readouterr()
    assert "Sweep: 1 job, 1 failed" in captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("warning: no table of the sweep: ")
    assert os.strerror(errno.ENOSPC) in line


def test_a_damaged_note_is_a_warning(begin, capsys):
    table = begin("finished")
    (table.folder / "job_0.json").write_text("{")
    print_sweep_table()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("warning: no table of the sweep: ")


def test_settings_of_launchers_and_sweepers_are_not_taken_for_our_own():
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=60"]
    check_command_line(["-m", "seed=0,1", *launcher, "hydra.sweep.dir=elsewhere", "+hydra.launcher.ray.x=1"])
    check_command_line(["--multirun", *JOBLIB, "hydra.sweeper.max_batch_size=2", "target_sparsity=0.5,0.9"])


def test_the_cluster_commands_of_the_manual_name_settings_that_exist():
    (block,) = [block for block in blocks("distributed", "shell") if "hydra/launcher=" in block]
    lines = [line for line in block.replace("\\\n", "").splitlines() if line]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert [word for words in commands for word in words if word.startswith("hydra/launcher=")] == [
        *("hydra/launcher=submitit_slurm", "hydra/launcher=ray")
    ]
    for words in commands:
        check_command_line(words[2:])
        for name in re.findall(r"\$\{(\w+)\}", " ".join(words)):
            assert name in {setting.name for setting in fields(Config)}


def run_dir_name(config: Config) -> str:
    return create_run_dir(config, {"precision": "fp32"}).name


def test_runs_of_one_name_that_start_at_once_get_a_folder_each(tmp_path):
    config = load_config(parse_command_line([]).compose(["run_name=same", f"runs_dir={tmp_path / 'runs'}"]))
    with ProcessPoolExecutor(4) as pool:
        names = list(pool.map(run_dir_name, [config] * 16))
    assert len(set(names)) == 16
    assert {path.name for path in (tmp_path / "runs").iterdir()} == set(names)
