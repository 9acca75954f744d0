"""Laws of several processes: they compute what one computes, and one that is killed costs its last steps."""

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.tiny import ROOT, TINY, damage_middle, write_tones, write_trial_list

from sv_sparse import checkpoint
from sv_sparse.distributed import agree_on_store_prefix
from sv_sparse.training.logging import read_rows

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# LinBreg, whose step is linear in the gradient: Adam's first steps are signs, which rounding flips
SETTINGS = (*TINY, "optim=linbreg", "optim.lr=0.05", "target_sparsity=0.8", "trainer.batch_size=8", "trainer.epochs=3")
TIMING = {"utterances_per_second", "data_wait_fraction"}

# train.py, of which process 1 is killed once in its 5th update, at the first start, and is late afterwards
KILLED = """
import os, runpy, signal, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
updates = []
def after_update(*_):
    updates.append(None)
    if len(updates) == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
register_optimizer_step_post_hook(after_update)
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
    time.sleep(5)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# train.py beside a thread that is inside torch when the process ends; Python's finalization aborts a process for that
# (until 3.13)
BUSY = """
import runpy, sys, threading, torch
def multiply():
    while True:
        torch.mm(torch.ones(300, 300), torch.ones(300, 300))
threading.Thread(target=multiply, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*words: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[str]:
    """Settings of a tiny corpus, some of whose training recordings are damaged: parts of batches are unequal."""
    folder = tmp_path_factory.mktemp("distributed")
    keys = write_tones(folder / "wav", [f"id1000{number}" for number in range(9)])
    for key in (keys[1], keys[7], keys[13]):
        damage_middle(folder / "wav" / key)
    write_trial_list(folder / "trials.txt", [key for key in keys if key[6] in "678"])
    others = ["data.val_fraction=0.3", "data.max_unreadable_fraction=0.2", "data.evaluate_untrained=true"]
    return ["data=folder", f"data.root={folder / 'wav'}", f"data.trial_lists={folder / 'trials.txt'}", *others]


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = run(sys.executable, str(ROOT / "train.py"), *SETTINGS, *corpus, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def together(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "run"
    done = run(*TORCHRUN, str(ROOT / "train.py"), *SETTINGS, *corpus, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def rows(folder: Path) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name not in TIMING}
        for row in read_rows(folder / "metrics.jsonl")
    ]


def network(folder: Path) -> dict:
    return checkpoint.load(folder / "checkpoints" / "model.pt", checkpoint.NETWORK_KEYS)["model"]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_two_processes_have_the_loss_curve_of_one_with_the_same_batch(alone, together):
    one, two = rows(alone), rows(together)
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for left, right in zip(one, two, strict=True):
        for name in left.keys() - {"dual_histogram", "layers"}:
            assert right[name] == pytest.approx(left[name], rel=1e-3, abs=1e-5), (left["step"], name)
    assert len([row for row in one if "loss" in row]) >= 6


def test_two_processes_deliver_the_network_of_one(alone, together):
    for name, value in network(alone).items():
        torch.testing.assert_close(network(together)[name], value, rtol=1e-2, atol=1e-3)
    assert results(together)["sparsity"] == results(alone)["sparsity"]
    assert results(together)["untrained_eer"] == results(alone)["untrained_eer"]
    assert tuple(results(folder)["training"]["processes"] for folder in (alone, together)) == (1, 2)


def test_the_log_says_what_a_batch_is_and_who_lost_what(together):
    log = (together / "train.log").read_text()
    assert "(processes 2 x accumulated 1 x 4)" in log
    assert "peak lr: sparse weights 0.05, other parameters 0.05" in log
    losses = (together / "metrics.jsonl").read_text().count('"loss"')
    progress = checkpoint.load(together / "checkpoints" / "last.pt", checkpoint.TRAINING_KEYS)["progress"]
    assert progress["utterances_seen"] == 8 * losses
    assert progress["unreadable"] > 0


def test_embeddings_are_gathered_to_the_last_bit(alone, tmp_path):
    copy = shutil.copytree(alone, tmp_path / "copy")
    before = (copy / "scores" / "trials.txt").read_bytes()
    (copy / "scores" / "trials.txt").unlink()
    done = run(*TORCHRUN, str(ROOT / "train.py"), f"resume_from={copy}")
    assert done.returncode == 0, done.stderr
    assert (copy / "scores" / "trials.txt").read_bytes() == before
    assert np.array_equal(results(copy)["evaluations"], results(alone)["evaluations"])


def test_two_processes_learn_from_a_teacher_what_one_learns(alone, corpus, tmp_path):
    words = [*SETTINGS, *corpus, "data.evaluate_untrained=false", "trainer.epochs=2"]
    words += [f"init_from={alone}", "teacher=self", "head=none"]
    for name, command in (("one", (sys.executable,)), ("two", TORCHRUN)):
        done = run(*command, str(ROOT / "train.py"), *words, f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(two)
    for left, right in zip(one, two, strict=True):
        for name in ("loss", "teacher_cosine", "validation_teacher_cosine"):
            assert (name in left) == (name in right)
            if name in left:
                assert right[name] == pytest.approx(left[name], rel=1e-3, abs=1e-4), (left["step"], name)
    assert any("teacher_cosine" in row for row in one)
    for name in ("teacher_cosine", "min_teacher_cosine", "teacher_recordings"):
        assert results(tmp_path / "two")[name] == pytest.approx(results(tmp_path / "one")[name], abs=1e-3)


def test_a_process_whose_work_is_done_ends_well_whatever_its_threads_do(alone, tmp_path):
    script, copy = tmp_path / "busy.py", shutil.copytree(alone, tmp_path / "copy")
    script.write_text(BUSY)
    done = run(*TORCHRUN, str(script), str(ROOT / "train.py"), f"resume_from={copy}")
    assert done.returncode == 0, done.stderr


def test_a_killed_process_is_started_again_and_the_run_goes_on_from_its_last_checkpoint(together, corpus, tmp_path):
    script, folder = tmp_path / "killed.py", tmp_path / "run"
    script.write_text(KILLED)
    words = [*SETTINGS, *corpus, f"run_dir={folder}"]
    done = run(*TORCHRUN, "--max-restarts=2", str(script), str(ROOT / "train.py"), *words)
    assert done.returncode == 0, done.stderr
    assert_resumed_to(together, folder)


def test_machines_begin_again_where_another_ones_process_was_killed(together, corpus, tmp_path):
    script, folder = tmp_path / "killed.py", tmp_path / "run"
    script.write_text(KILLED)
    with socket.create_server(("localhost", 0)) as free:
        where = f"--rdzv-endpoint=localhost:{free.getsockname()[1]}"
    machine = (*TORCHRUN[:3], "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", where, "--max-restarts=2")
    words = [*machine, str(script), str(ROOT / "train.py"), *SETTINGS, *corpus, f"run_dir={folder}"]
    with ThreadPoolExecutor(2) as pool:
        ended = [pool.submit(run, *words).result for _ in range(2)]
        for done in (result() for result in ended):
            assert done.returncode == 0, done.stderr
    assert_resumed_to(together, folder)


def assert_resumed_to(together: Path, folder: Path) -> None:
    assert "resuming" in (folder / "train.log").read_text()
    assert rows(folder) == rows(together)
    for name, value in network(folder).items():
        assert torch.equal(value, network(together)[name]), name


def test_the_processes_of_a_start_agree_on_a_prefix_that_no_earlier_start_had():
    store = dist.HashStore()
    with ThreadPoolExecutor(3) as pool:
        starts = [
            set(pool.map(lambda number: agree_on_store_prefix(store, number, 3), order))
            for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1))
        ]
    assert [len(names) for names in starts] == [1] * 4
    assert len(set.union(*starts)) == 4


def test_restarts_need_a_folder_and_the_same_settings(corpus, alone, train, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    done = train(*SETTINGS, *corpus)
    assert done.status == 2
    assert "torchrun --max-restarts needs run_dir=PATH" in done.err
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS")
    for variable in ("SLURM_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.setenv(variable, "1")
        done = train(*SETTINGS, *corpus, f"run_dir={alone}", "head.scale=31")
        assert done.status == 2
        assert f"run_dir={alone} holds a run with other settings: head.scale" in done.err
        monkeypatch.delenv(variable)
    done = train(*SETTINGS, *corpus, f"run_dir={alone}")
    assert done.status == 2
    assert f"run_dir={alone} exists" in done.err


def test_a_return_to_an_epoch_is_made_once_not_at_each_restart(alone, tmp_path, train, monkeypatch):
    copy = shutil.copytree(alone, tmp_path / "copy")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    done = train(f"resume_from={copy}/checkpoints/epoch_0002.pt")
    assert done.status == 2
    assert f"return without it, or continue with resume_from={copy}" in done.err
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    done = train(f"resume_from={copy}/checkpoints/epoch_0002.pt")
    assert done.status == 0, done.err
    assert not list(copy.rglob("last_before_rollback.pt"))


def test_a_problem_of_the_first_process_is_said_once_and_ends_all(corpus):
    done = run(*TORCHRUN, str(ROOT / "train.py"), *SETTINGS, *corpus, "data.root=/nowhere")
    assert done.returncode != 0
    assert done.stderr.count("error: data.root=/nowhere") == 1
