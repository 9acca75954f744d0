"""A tiny corpus of tones, and train.py run as a user runs it."""

import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parent.parent
RATE = 16000
TINY = (
    "model.channels=16",
    "model.mfa_channels=24",
    "model.attention_channels=8",
    "model.se_channels=8",
    "model.res2net_scale=4",
    "model.embedding_dim=16",
    "trainer.epochs=2",
    "trainer.batch_size=4",
    "trainer.crop_seconds=0.3",
    "trainer.statistics_crops=8",
    "trainer.workers=0",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "trainer.log_every=1",
)


class Tones(NamedTuple):
    """Where the tiny corpus is."""

    root: Path
    trials: Path

    def settings(self) -> list[str]:
        return ["data=folder", f"data.root={self.root}", f"data.trials={self.trials}"]


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def tone(speaker: int, session: int, seconds: float) -> np.ndarray:
    """A voice of its own pitch, in a session of its own noise."""
    generator = np.random.default_rng([speaker, session, int(1000 * seconds)])
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 100 + 35 * speaker
    voice = sum(np.sin(2 * np.pi * pitch * k * time + generator.uniform(0, 6)) / k for k in range(1, 12))
    return (0.1 * voice + 0.02 * generator.normal(size=len(time))).astype(np.float32)


def write_tones(root: Path, speakers: Sequence[str]) -> list[str]:
    keys = []
    for number, speaker in enumerate(speakers):
        for session in range(2):
            for utterance in range(3):
                key = f"{speaker}/s{session}/{utterance:05d}.flac"
                (root / key).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(root / key, tone(number, session, 0.5 + 0.1 * utterance), RATE)
                keys.append(key)
    return keys


def write_trial_list(path: Path, keys: Sequence[str]) -> None:
    lines = [f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}\n" for a, b in combinations(keys, 2)]
    path.write_text("".join(lines))


@pytest.fixture(scope="session")
def tones(tmp_path_factory) -> Tones:
    folder = tmp_path_factory.mktemp("tones")
    keys = write_tones(folder / "wav", [f"id1000{number}" for number in range(9)])
    write_trial_list(folder / "trials.txt", [key for key in keys if key[6] in "678"])
    return Tones(folder / "wav", folder / "trials.txt")


@pytest.fixture
def train(capsys, monkeypatch, tmp_path) -> Callable[..., Outcome]:
    """Run train.py in this process with runs=tmp_path/runs."""

    def run(*arguments: str) -> Outcome:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return Outcome(status, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="session")
def finished(tones, tmp_path_factory) -> Path:
    """The folder of a finished tiny run, trained by the command line in a process of its own."""
    runs = tmp_path_factory.mktemp("finished")
    command = [sys.executable, str(ROOT / "train.py"), *TINY, *tones.settings(), "target_sparsity=0.8", f"runs={runs}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=runs, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = runs.iterdir()
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
