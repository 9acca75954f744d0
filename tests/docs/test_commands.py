"""Every sh command of README.md and of docs/ runs, shortened only by a tiny network and tiny data."""

import re
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
from helpers.pages import PAGES, commands, environment, fill, run, snippets, words_of
from helpers.small import assert_exact
from helpers.tiny import ROOT, TINY, Tones

from sv_sparse.data.corpora.cnceleb import prepare_cnceleb
from sv_sparse.data.corpora.voxceleb import prepare_voxceleb
from sv_sparse.data.noise import build_noise_store
from sv_sparse.data.shards import write_shards

# Pages whose commands and programs have tests of their own.
TESTED_ELSEWHERE = {
    "deployment": "test_deployment_page.py",
    "optimizer": "test_optimizer_page.py",
    "extending": "test_extending_page.py",
}
TINY_RESNET = (*(word for word in TINY if not word.startswith("model.")), "model.base_channels=16")
TINY_DEMO = (
    "data.synthesize.train_speakers=6",
    "data.synthesize.test_speakers=4",
    "data.synthesize.trials=40",
    "data.synthesize.sessions=3",
)


def distinct_commands() -> Iterator[object]:
    """Yield each command once, with the first page that has it."""
    first_pages: dict[str, str] = {}
    for page in PAGES:
        if page not in TESTED_ELSEWHERE:
            for command in commands(page):
                first_pages.setdefault(shlex.join(words_of(command)), page)
    for command, page in first_pages.items():
        yield pytest.param(command, id=f"{page}: {command}")


class Workshop:
    """Places of one test: the folder that it works in, and what stands for the words in capitals.

    Args:
        folder: an empty folder.
        request: finds fixtures once a command needs them.
    """

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder = folder
        self.request = request

    @property
    def tones(self) -> Tones:
        return self.request.getfixturevalue("tones")

    @property
    def prepared(self) -> "Prepared":
        return self.request.getfixturevalue("prepared")

    @property
    def finished(self) -> Path:
        return self.request.getfixturevalue("finished")

    def copy_of_run(self) -> Path:
        """A finished run that the command may write into."""
        copies = len([*self.folder.glob("run_*")])
        return shutil.copytree(self.finished, self.folder / f"run_{copies}")

    def places(self, words: list[str]) -> dict[str, object]:
        """Paths for the words in capitals of a command."""
        text = " ".join(words)
        places: dict[str, object] = {"PATH": self.tones.root, "FILE": self.tones.trials}
        places |= {"FOLDER": self.folder / "folder", "EXP": self.folder / "exp"}
        if re.search("PREPARED|SHARDS|STORE", text):
            is_cnceleb = "cnceleb" in text or "cn_" in text
            places["PREPARED"] = self.prepared.cnceleb if is_cnceleb else self.prepared.voxceleb
            places |= {"SHARDS": self.prepared.shards, "STORE": self.prepared.store}
        return places

    def fill(self, words: list[str]) -> list[str]:
        """Put paths in place of the words in capitals; each RUN, or folder in runs/, is a run of its own."""
        words = ["RUN" if re.fullmatch(r"runs/[\w/]+[*]?", word) else word for word in words]
        words = fill(words, self.places(words))
        return [fill([word], {"RUN": self.copy_of_run()})[0] if re.search(r"\bRUN\b", word) else word for word in words]


class Prepared(NamedTuple):
    """Prepared folders."""

    voxceleb: Path
    cnceleb: Path
    store: Path
    shards: Path


@pytest.fixture(scope="module")
def prepared(released, tmp_path_factory) -> Prepared:
    """Make the prepared folders by the commands of the pages."""
    folder = tmp_path_factory.mktemp("prepared")
    places = Prepared(*(folder / name for name in Prepared._fields))
    options = {"to_flac": False, "allow_partial": True}
    prepare_voxceleb([released / "vox"], places.voxceleb, lists=[released / "lists"], **options)
    prepare_cnceleb([released / "cn"], places.cnceleb, **options)
    build_noise_store([released / "musan", released / "RIRS_NOISES"], places.store)
    write_shards(places.voxceleb, places.shards)
    return places


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Folder of the demo corpus, in small."""
    return tmp_path_factory.mktemp("cache") / "demo"


@pytest.fixture
def workshop(tmp_path, request) -> Workshop:
    return Workshop(tmp_path, request)


def train(words: list[str], workshop: Workshop) -> None:
    options = {"--help", "--cfg"}.intersection(words)
    is_new = not options and "resume_from=RUN" not in words
    text = " ".join(words)
    filled = workshop.fill(words)
    if is_new:
        filled += [*(TINY_RESNET if "resnet34" in text else TINY), "trainer.epochs=1", "trainer.num_bn_crops=4"]
        if "PREPARED" in text or "SHARDS" in text:
            filled.append("data.val_fraction=0")
        elif "data=folder" not in words and "init_from=RUN" not in words:
            filled += [f"data.cache_dir={workshop.request.getfixturevalue('cache')}", *TINY_DEMO]
        if "scoring=as_norm" in words:
            filled.append("scoring.top_n=2")
    if "train.py" in filled:
        filled[filled.index("train.py")] = str(ROOT / "train.py")
    out = run(filled, workshop.folder)
    assert {"--help": "Choices (GROUP=CHOICE)", "--cfg": "trainer:"}[options.pop()] in out if options else "EER" in out
    if is_new:
        assert [*workshop.folder.rglob("report.html")]


def evaluate(words: list[str], workshop: Workshop) -> None:
    words = workshop.fill(words)
    if "--top-n" in words:
        # The tiny run has fewer training speakers.
        words[words.index("--top-n") + 1] = "2"
    assert re.search(r"^\w+: EER \d+\.\d+ %", run(words, workshop.folder), re.MULTILINE)


def compare(words: list[str], workshop: Workshop) -> None:
    words = workshop.fill(words)
    assert "EER" in run(words, workshop.folder)
    if "--out" in words:
        folder = workshop.folder / words[words.index("--out") + 1]
        assert {path.suffix for path in folder.glob("compare.*")} == {".html", ".md", ".csv"}


def prepare(words: list[str], workshop: Workshop) -> None:
    released = workshop.request.getfixturevalue("released")
    what = words[2]
    places = {"MUSAN": released / "musan", "RIRS_NOISES": released / "RIRS_NOISES", "STORE": "store"}
    roots = [released / "vox", released / "lists"] if what == "voxceleb" else [released / "cn"]
    paths = iter(roots)
    words = fill([str(next(paths)) if word == "PATH" else word for word in words], places | {"PREPARED": "prepared"})
    if what == "verify-archives":
        (workshop.folder / "DOWNLOADS").mkdir()
        (workshop.folder / "DOWNLOADS" / "musan.tar.gz").write_bytes(b"no archive")
        assert "musan.tar.gz: DIFFERENT from what was published" in run(words, workshop.folder, status=2)
        return
    if what != "noise" and "--allow-partial" not in words:
        words.append("--allow-partial")
    run(words, workshop.folder)
    written = workshop.folder / ("store/index.parquet" if what == "noise" else "prepared/manifest.parquet")
    assert written.is_file()


def shard(words: list[str], workshop: Workshop) -> None:
    run(fill(words, {"SHARDS": "shards", "PREPARED": workshop.prepared.voxceleb}), workshop.folder)
    assert [*(workshop.folder / "shards").rglob("*.tar")]


def recipe(words: list[str], workshop: Workshop) -> None:
    if "--dry-run" not in words:
        words = [*words, "--dry-run"]
    out = run(workshop.fill(words), ROOT)
    assert "train.py" in out
    assert "sv-sparse compare" in out


def make(words: list[str], _workshop: Workshop) -> None:
    assert run([*words, "--dry-run", "--always-make"], ROOT)


def script(words: list[str], workshop: Workshop) -> None:
    """Ask a program for its help: measuring takes minutes. It imports everything, and knows the options."""
    out = run([words[0], str(ROOT / words[1]), "--help"], workshop.folder)
    for word in words[2:]:
        assert not word.startswith("--") or word in out


@pytest.fixture(scope="module")
def deployed(tones: Tones, finished, tmp_path_factory) -> Path:
    """A folder with recordings a and b, and the model of a run."""
    folder = tmp_path_factory.mktemp("deployed")
    utterances = sorted(tones.root.rglob("*.flac"))
    for name, source in zip("ab", (utterances[0], utterances[3]), strict=True):
        soundfile.write(folder / f"{name}.wav", *soundfile.read(source))
    run(["sv-sparse", "export", str(finished), "--output", "model.safetensors"], folder)
    return folder


def use(words: list[str], workshop: Workshop) -> None:
    folder = shutil.copytree(workshop.request.getfixturevalue("deployed"), workshop.folder / "place")
    assert run(workshop.fill(words), folder)


def answer(address: str, expected: str) -> str:
    """Text that the server answers once it has ``expected``; waits up to a minute for it to start and to load."""
    text = ""
    for _ in range(120):
        try:
            with urllib.request.urlopen(address, timeout=5) as response:
                text = response.read().decode()
        except OSError:
            pass
        if expected in text:
            break
        time.sleep(0.5)
    return text


def tensorboard(words: list[str], workshop: Workshop) -> None:
    words = [str(workshop.finished.parent) if word == "runs" else word for word in words]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = workshop.finished.name
    server = subprocess.Popen(
        [*words, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    try:
        assert name in answer(f"http://127.0.0.1:{port}/data/runs", expected=name)
    finally:
        server.terminate()
        server.wait()


# By the beginning of the command.
KINDS: dict[str, Callable[[list[str], Workshop], None]] = {
    "python train.py": train,
    "sv-sparse train": train,
    "torchrun": train,
    "sv-sparse evaluate": evaluate,
    "sv-sparse compare": compare,
    "sv-sparse prepare": prepare,
    "sv-sparse shard": shard,
    "sv-sparse export": use,
    "sv-sparse verify": use,
    "sh recipes/": recipe,
    "make": make,
    "python scripts/": script,
    "python recipes/": script,
    "tensorboard": tensorboard,
}


def runner_of(command: str) -> Callable[[list[str], Workshop], None]:
    """Return the function that tries out a command of this kind."""
    kinds = [kind for kind in KINDS if command.startswith(kind)]
    assert kinds, f"no test runs commands such as {command!r}: give them a line in KINDS, or take another block than sh"
    return KINDS[kinds[0]]


@pytest.mark.parametrize("command", [*distinct_commands()])
def test_a_command_runs(command, workshop):
    runner_of(command)(words_of(command), workshop)


def test_a_command_that_no_test_runs_is_noticed():
    with pytest.raises(AssertionError, match="no test runs"):
        runner_of("pip install something")


def test_every_page_with_a_test_of_its_own_has_it():
    for page, name in TESTED_ELSEWHERE.items():
        assert page not in PAGES or Path(__file__).with_name(name).is_file()


def programs() -> Iterator[object]:
    """Yield the python blocks that have no test of their own."""
    for page in PAGES:
        for number, code in enumerate(snippets(page), start=1):
            if page not in TESTED_ELSEWHERE:
                yield pytest.param(code, id=f"{page}, {number}")


@pytest.mark.parametrize("code", [*programs()])
def test_a_program_runs_and_its_network_ends_at_the_target(code):
    scope: dict = {}
    exec(code, scope)
    assert_exact(scope["model"], 1 - scope["controller"].target_sparsity)
