"""train.py run as a user runs it, on the tiny corpus."""

import random
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import torch
from helpers import trees
from helpers.attempts import Attempts
from helpers.fake_cuda import fake_cuda_process  # noqa: F401  # a fixture
from helpers.tiny import ROOT, THREE_EPOCHS, TINY, Outcome, Tones, write_tones, write_trial_list
from hydra.core.global_hydra import GlobalHydra

from sv_sparse.training.init_from_config import register_init_sources


def _hide_lazy_modules() -> None:
    """Spare SpeechBrain's lazy modules hypothesis' question where they lie, at which they load, or fail to."""
    loaded = sys.modules.get("speechbrain.utils.importutils")
    if loaded is not None:
        loaded.LazyModule.__file__ = None


# Files that take a minute or more, the longest first: begun last, they would leave all processes but one without work.
LONG = (
    *("test_commands.py", "test_recipes.py", "test_evidence.py", "test_distributed.py", "test_sweeps.py"),
    *("test_stopped.py", "test_chaos.py", "test_fake_cuda.py", "test_unusable.py", "test_odd_files.py"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _hide_lazy_modules()
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


@pytest.fixture(autouse=True)
def _lazy_modules_hidden() -> None:
    _hide_lazy_modules()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Draw the same numbers in a test, whichever ran before it in the same process."""
    random.seed(0)
    numpy.random.seed(0)  # what code under test may draw from
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tones(tmp_path_factory) -> Tones:
    folder = tmp_path_factory.mktemp("tones")
    keys = write_tones(folder / "wav", [f"id1000{number}" for number in range(9)])
    write_trial_list(folder / "trials.txt", [key for key in keys if key[6] in "678"])
    return Tones(folder / "wav", folder / "trials.txt")


@pytest.fixture(scope="session")
def released(tmp_path_factory) -> Path:
    """Corpora as they are released, in small: vox, its lists, cn, musan and RIRS_NOISES."""
    folder = tmp_path_factory.mktemp("released")
    trees.released(folder / "vox")
    trees.write_vox_lists(folder / "lists")
    trees.write_cnceleb(folder / "cn")
    for kind in ("musan/noise", "musan/music", "musan/speech", "RIRS_NOISES/simulated_rirs"):
        trees.write(folder / kind / "1.wav", kind)
    return folder


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
        register_init_sources([])  # none; other tests compose in this process
        return Outcome(status, *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="session")
def attempts(tmp_path_factory) -> Iterator[Attempts]:
    """Run train.py in a fork, where it can be struck by signals."""
    made = Attempts(tmp_path_factory.mktemp("attempts"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def uninterrupted(tones, attempts, tmp_path_factory) -> Path:
    """The folder of a run of three epochs."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = attempts(*THREE_EPOCHS, *tones.settings(), f"run_dir={folder}")
    assert done.status == 0, done.err
    return folder


@pytest.fixture(scope="session")
def finished(tones, tmp_path_factory) -> Path:
    """The folder of a finished tiny run, trained by the command line in a process of its own."""
    runs = tmp_path_factory.mktemp("finished")
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *TINY,
        *tones.settings(),
        "target_sparsity=0.8",
        "data.evaluate_untrained=true",
        f"runs_dir={runs}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=runs, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = runs.iterdir()
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
