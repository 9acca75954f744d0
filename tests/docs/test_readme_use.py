"""What the README says of using a network runs: from a trained run to its decisions, the page included."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile
from helpers.documented import SCRIPT, SNIPPETS, answer, of
from helpers.tiny import Tones

USES = ("verify", "autotune", "embed", "enroll", "identify")


@pytest.fixture(scope="module")
def place(tones: Tones, finished, tmp_path_factory) -> Path:
    """A folder with recordings a, b and c, and the model that the README's command makes of a run."""
    folder = tmp_path_factory.mktemp("place")
    utterances = sorted(tones.root.rglob("*.flac"))
    for name, source in zip("abc", (utterances[0], utterances[3], utterances[6]), strict=True):
        soundfile.write(folder / f"{name}.wav", *soundfile.read(source))
    (command,) = of("sv-sparse export")
    words = [str(finished) if word == "RUN" else word for word in shlex.split(command, comments=True)]
    subprocess.run([SCRIPT, *words[1:]], cwd=folder, check=True)
    return folder


def around(place: Path) -> dict[str, str]:
    """The environment of a user whose home is the folder."""
    homes = {f"XDG_{kind}_HOME": str(place / kind) for kind in ("CACHE", "DATA")}
    return os.environ | homes | {"SV_SPARSE_MODEL": "model.safetensors"}


def test_every_way_to_use_a_network_is_in_the_readme():
    found = {command.split()[1] for command in of("sv-sparse")}
    assert found == {"export", "serve", "prepare", "shard", "evaluate", "compare", *USES}


def test_a_network_is_used_as_the_readme_says(place):
    for use in USES:
        for command in of(f"sv-sparse {use}"):
            words = shlex.split(command, comments=True)
            done = subprocess.run(
                [SCRIPT, *words[1:]], cwd=place, env=around(place), capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout
    assert (place / "embeddings.npz").is_file()


def test_the_page_answers(place):
    (command,) = of("sv-sparse serve")
    words = shlex.split(command, comments=True)
    server = subprocess.Popen(
        [SCRIPT, *words[1:], "--port", "18427"], cwd=place, env=around(place), stdout=subprocess.DEVNULL
    )
    try:
        assert "<html" in answer("http://127.0.0.1:18427/", expected="<html")
    finally:
        server.terminate()
        server.wait()


def test_the_python_of_the_readme_decides(place, monkeypatch, capsys, tmp_path):
    (snippet,) = [code for code in SNIPPETS if "Verifier" in code]
    shutil.copytree(place, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    exec(snippet, {})
    assert capsys.readouterr().out.split()[-1] in {"True", "False", "None"}
