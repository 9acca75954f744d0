"""Laws of the light installation: using a network needs nothing that only training needs, and what needs it says so."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import soundfile
from helpers import deployed
from helpers.tiny import ROOT, Outcome, tone

from sv_sparse.export.package import write_package

TRAINING = (
    *("hydra", "omegaconf", "speechbrain", "scipy", "sklearn", "tensorboard", "pyarrow", "matplotlib", "jinja2"),
    *("tqdm", "joblib", "webdataset", "onnx", "onnxruntime", "onnxscript", "starlette", "uvicorn", "torchaudio"),
)
# Runs sv-sparse as if these packages were not installed.
PROGRAM = f"""
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAINING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from sv_sparse.commands.main import main
for words in __import__("json").loads(sys.argv[1]):
    main(words)
"""


def light(folder: Path, *commands: list[str]) -> Outcome:
    """One command after the other, in one process without training's packages."""
    environment = os.environ | {"SV_SPARSE_MODEL": "model.safetensors", "XDG_DATA_HOME": str(folder)}
    words = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False, env=environment)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    network = deployed.trained(deployed.ECAPA)
    write_package(
        folder / "model.safetensors",
        network,
        deployed.ECAPA,
        deployed.backend(cohort=True),
        {},
        features=deployed.FEATURES,
    )
    for speaker in range(2):
        soundfile.write(folder / f"{speaker}.flac", tone(speaker, 0, 1.0), 8000)
    return folder


def test_the_commands_that_use_a_network_run_without_trainings_packages(folder):
    done = light(
        folder,
        ["verify", "0.flac", "1.flac"],
        ["embed", "0.flac", "1.flac", "--output", "e.npz"],
        ["enroll", "A", "0.flac"],
        ["identify", "1.flac", "--threshold=-99"],
    )
    assert done.status == 0, done.err
    for words in ("score ", "AS-norm, top 4 of 6", "2 recordings, 16 numbers each", "A: 1 recording", "\nA\n"):
        assert words in done.out


NEED_TRAINING = ["train", "prepare", "shard", "evaluate", "compare", "export"]


@pytest.mark.parametrize("command", NEED_TRAINING)
def test_the_help_of_a_command_that_needs_them_is_printed(folder, command):
    done = light(folder, [command, "--help"])
    assert done.status == 0, done.err
    assert done.out.startswith(f"usage: sv-sparse {command}")
    assert f"sv-sparse {command} needs " in done.out


@pytest.mark.parametrize("command", NEED_TRAINING)
def test_a_command_that_needs_them_says_what_to_install(folder, command):
    done = light(folder, [command])
    assert done.status == 2
    assert "Traceback" not in done.err
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: sv-sparse {command} needs ")
    assert line.endswith(f': pip install -e "{ROOT}[train]"')


def test_nothing_that_uses_a_network_or_the_optimizers_imports_torchaudio():
    # Beside a torch for CPUs its import fails, and whoever finds it installed imports it too: transformers does.
    modules = (
        "sv_sparse.optim, sv_sparse.models.features, sv_sparse.models.ecapa_tdnn, sv_sparse.runtime.server.app, "
        "sv_sparse.commands.main"
    )
    program = f"import sys, {modules}; sys.exit('torchaudio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_list_of_commands_needs_nothing(folder):
    done = light(folder, ["--help"])
    assert done.status == 0, done.err
    assert "evaluate" in done.out


def test_every_package_of_the_extra_is_kept_away_here():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = {re.split("[<>=]", entry)[0] for name in ("train", "onnx", "serve") for entry in extras[name]}
    imports: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for distribution in distributions:
            imports.setdefault(distribution.lower(), set()).add(module)
    assert {name for name in required if not imports[name] & set(TRAINING)} == set()
