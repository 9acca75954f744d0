"""Every command in the README runs, shortened only by a tiny network and tiny data."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import trees
from helpers.tiny import ROOT, TINY, Tones

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if line.strip()
]
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
TINY_DEMO = (
    "data.synthesize.train_speakers=6",
    "data.synthesize.test_speakers=4",
    "data.synthesize.trials=40",
    "data.synthesize.sessions=3",
)
SCRIPT = str(Path(sys.executable).with_name("sv-sparse"))
TINY_RESNET = (*(word for word in TINY if not word.startswith("model.")), "model.base_channels=16")


def of(program: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(program)]


def run(words: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_every_kind_of_command():
    programs = {command.split()[0] for command in COMMANDS}
    assert programs == {"python", "make", "tensorboard", "sv-sparse", "sh"}
    assert len(of("python train.py")) >= 7


class Prepared(NamedTuple):
    """Folders made by the README's own commands."""

    voxceleb: Path
    cnceleb: Path
    store: Path
    shards: Path

    def put_into(self, word: str, corpus: Path) -> str:
        """A word of a command with the folders in place of their names."""
        for name, folder in (("PREPARED", corpus), ("STORE", self.store), ("SHARDS", self.shards)):
            word = word.replace(name, str(folder))
        return word


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    """Corpora as they are released, in small, prepared as the README says."""
    folder = tmp_path_factory.mktemp("prepared")
    trees.released(folder / "vox")
    trees.write_vox_lists(folder / "lists")
    trees.write_cnceleb(folder / "cn")
    for kind in ("musan/noise", "musan/music", "musan/speech", "RIRS_NOISES/simulated_rirs"):
        trees.write(folder / kind / "1.wav", kind)
    found = Prepared(folder / "voxceleb", folder / "cnceleb", folder / "store", folder / "shards")
    known = {"MUSAN": folder / "musan", "RIRS_NOISES": folder / "RIRS_NOISES", "STORE": found.store}
    for command in of("sv-sparse prepare"):
        words = shlex.split(command, comments=True)[1:]
        what = words[1]
        if what == "verify-archives":
            continue
        places = iter([folder / "vox", folder / "lists"] if what == "voxceleb" else [folder / "cn"])
        words = [str(next(places) if word == "PATH" else known.get(word, word)) for word in words]
        words = [word.replace("PREPARED", str(getattr(found, what, ""))) for word in words]
        run([SCRIPT, *words, *(["--allow-partial"] if what != "noise" else [])], folder)
    for command in of("sv-sparse shard"):
        words = shlex.split(command, comments=True)[1:]
        run([SCRIPT, *(found.put_into(word, found.voxceleb) for word in words)], folder)
    return found


def test_archives_are_compared_with_what_was_published(tmp_path):
    (tmp_path / "DOWNLOADS").mkdir()
    (tmp_path / "DOWNLOADS" / "musan.tar.gz").write_bytes(b"no archive")
    (command,) = of("sv-sparse prepare verify-archives")
    words = [SCRIPT, *shlex.split(command, comments=True)[1:]]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "musan.tar.gz: DIFFERENT from what was published" in done.stdout


@pytest.mark.parametrize("command", of("python"))
def test_a_python_command_of_the_readme_runs(command, tones: Tones, finished, tmp_path, cache, prepared):
    known = {"data.root=PATH": f"data.root={tones.root}", "data.trial_lists=FILE": f"data.trial_lists={tones.trials}"}
    copy = shutil.copytree(finished, tmp_path / "finished")
    known |= {"resume_from=RUN": f"resume_from={copy}", "init_from=RUN": f"init_from={copy}"}
    words = [known.get(word, word) for word in shlex.split(command, comments=True)][1:]
    if words[0] == "train.py" and "--help" not in words and f"resume_from={copy}" not in words:
        words += [
            *(TINY_RESNET if "model=resnet34" in words else TINY),
            "trainer.epochs=1",
            "trainer.num_bn_crops=4",
        ]
        corpora = {"data=voxceleb": prepared.voxceleb, "experiment=vox_ecapa_paper": prepared.voxceleb}
        corpora |= {"experiment=cn_ecapa_paper": prepared.cnceleb}
        corpus = next((word for word in words if word in corpora), None)
        if corpus is not None:
            words = [prepared.put_into(word, corpora[corpus]) for word in words]
            words += ["data.val_fraction=0"]
        elif "data=folder" not in words and f"init_from={copy}" not in words:
            words += [f"data.cache_dir={cache}", *TINY_DEMO]
    out = run([sys.executable, str(ROOT / words[0]), *words[1:]], tmp_path)
    assert "| EER" in out or "Choices (GROUP=CHOICE)" in out


@pytest.mark.parametrize("command", of("make"))
def test_a_make_command_of_the_readme_is_a_target(command):
    assert run([*shlex.split(command, comments=True), "--dry-run", "--always-make"], ROOT)


@pytest.mark.parametrize("command", of("sv-sparse evaluate"))
def test_an_evaluation_by_the_console_script_runs(command, tones: Tones, finished, tmp_path, prepared):
    known = {"PATH": str(tones.root), "FILE": str(tones.trials), "FOLDER": str(tmp_path / "scores")}
    copy = shutil.copytree(finished, tmp_path / "finished")
    words = [known.get(word, word.replace("RUN", str(copy))) for word in shlex.split(command, comments=True)]
    words = [prepared.put_into(word, prepared.cnceleb) for word in words]
    out = run([SCRIPT, *words[1:]], tmp_path)
    assert "trials: EER" in out or "cnceleb_concatenated: EER" in out


@pytest.mark.parametrize("command", of("sv-sparse compare"))
def test_a_comparison_by_the_console_script_runs(command, finished, tmp_path):
    words = shlex.split(command, comments=True)[1:]
    copies = iter(shutil.copytree(finished, tmp_path / name) for name in ("one", "two"))
    known = {"runs/compared/*": lambda: str(finished), "RUN": lambda: str(next(copies))}
    out = run([SCRIPT, *(known[word]() if word in known else word for word in words)], tmp_path)
    assert "| EER" in out
    folder = tmp_path / words[words.index("--out") + 1]
    assert {path.suffix for path in folder.glob("compare.*")} == {".html", ".md", ".csv"}


@pytest.mark.parametrize("command", of("sh recipes"))
def test_a_recipe_of_the_readme_says_what_it_would_do(command):
    last = "train.py" if "evidence" in command else "sv-sparse compare"
    assert last in run(shlex.split(command, comments=True), ROOT)


@pytest.mark.parametrize("command", of("tensorboard"))
def test_tensorboard_serves_the_runs(command, finished):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = shlex.split(command.replace("runs", str(finished.parent)))
    script = str(Path(sys.executable).with_name(words[0]))
    server = subprocess.Popen(
        [script, *words[1:], "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert finished.name in answer(f"http://127.0.0.1:{port}/data/runs", wanted=finished.name)
    finally:
        server.terminate()
        server.wait()


def answer(address: str, wanted: str) -> str:
    """What the server says once it says ``wanted``; waits up to a minute for it to start and to load."""
    said = ""
    for _ in range(120):
        try:
            with urllib.request.urlopen(address, timeout=5) as response:
                said = response.read().decode()
        except OSError:
            pass
        if wanted in said:
            break
        time.sleep(0.5)
    return said


@pytest.mark.parametrize("snippet", [code for code in SNIPPETS if "finalize()" in code and "speechbrain" not in code])
def test_the_python_of_the_readme_runs_and_ends_at_the_target(snippet):
    scope: dict = {}
    exec(snippet, scope)
    weights = [param for param in scope["model"].parameters() if param.ndim > 1]
    size, zeros = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
    assert size - zeros == round(0.1 * size)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache") / "demo"
