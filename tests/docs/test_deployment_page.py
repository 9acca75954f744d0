"""Every command and program of docs/deployment.md runs, from a trained run to its decisions, the server included."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from helpers.pages import commands, environment, fill, run, snippets, text, words_of
from helpers.tiny import Tones

from sv_sparse.commands.serve import _DEFAULTS

COMMANDS = commands("deployment")
CURLS = [command for command in COMMANDS if "curl " in command]
(SERVE,) = [command for command in COMMANDS if command.startswith("sv-sparse serve")]
USES = [command for command in COMMANDS if command not in {*CURLS, SERVE}]


def variables(place: Path) -> dict[str, str]:
    """The variables of a user whose home is the folder."""
    homes = {f"XDG_{kind}_HOME": str(place / kind) for kind in ("CACHE", "DATA")}
    return homes | {"SV_SPARSE_MODEL": "model.safetensors"}


@pytest.fixture(scope="module")
def outputs(tones: Tones, finished, tmp_path_factory) -> dict[str, str]:
    """Outputs of the commands of the page, run in the page's order in one folder, whose path is at ``place``."""
    place = tmp_path_factory.mktemp("place")
    utterances = sorted(tones.root.rglob("*.flac"))
    for name, source in zip("abc", (utterances[0], utterances[3], utterances[6]), strict=True):
        soundfile.write(place / f"{name}.wav", *soundfile.read(source))
    (place / "FOLDER" / "deep").mkdir(parents=True)
    shutil.copy(place / "a.wav", place / "FOLDER" / "deep" / "a.wav")
    printed = {"place": str(place)}
    for command in USES:
        words = fill(words_of(command), {"RUN": finished})
        assert words[0] == "sv-sparse"
        printed[command] = run(words, place, **variables(place))
        assert printed[command]
    return printed


@pytest.fixture(scope="module")
def port(outputs) -> Iterator[int]:
    """The page's server on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = Path(outputs["place"])
    words = [*words_of(SERVE), "--port", str(port)]
    server = subprocess.Popen(words, cwd=place, env=environment(**variables(place)), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline().startswith(f"http://127.0.0.1:{port}")
    try:
        yield port
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def curl(command: str, place: str, port: int) -> str:
    """Return the output of a curl command of the page; waits until the server answers."""
    for _ in range(60):
        done = subprocess.run(
            ["sh", "-c", command.replace("8000", str(port))], cwd=place, capture_output=True, text=True, check=False
        )
        if done.stdout:
            break
        time.sleep(0.5)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fields(table: str) -> set[str]:
    """The names in the first column of a table of the page that begins with this head."""
    _, _, rest = text("deployment").partition(f"| {table} | meaning |\n|---|---|\n")
    rows = rest.partition("\n\n")[0].splitlines()
    return {name.rpartition(".")[2] for row in rows for name in re.findall(r"`([\w.\[\]]+)`", row.split("|")[1])}


def test_the_page_shows_every_command_of_a_model():
    names = {words_of(command)[1] for command in [*USES, SERVE]}
    assert names == {"export", "verify", "enroll", "identify", "embed", "autotune", "serve"}
    assert len(CURLS) == 2


def test_every_command_prints_and_the_files_are_there(outputs):
    place = Path(outputs["place"])
    assert len(outputs) == len(USES) + 1
    for name in ("model.safetensors", "model.onnx", "embeddings.npz", "embeddings.csv"):
        assert (place / name).is_file()
    lines = (place / "embeddings.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["file", "FOLDER/deep/a.wav"]


def test_the_lines_of_the_page_are_those_that_the_commands_print(outputs):
    """The page's numbers are those of another model; the words before them are the same."""
    (command,) = [command for command in USES if command.startswith("sv-sparse verify")]
    shown = re.search(r"```text\n(\w[^`]*time: [^`]*)```", text("deployment"))
    assert shown is not None
    names = [line.partition(":")[0] for line in shown[1].splitlines() if ": " in line]
    printed = [line.partition(":")[0] for line in outputs[command].splitlines() if ": " in line]
    # The tiny run is of no demo corpus, and has too few trials for a threshold.
    assert [name for name in names[1:] if name != "warning"] == printed[1:]


def test_the_page_is_served(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as response:
        assert "<html" in response.read().decode()


def test_the_http_interface_answers_with_the_fields_of_the_page(outputs, port):
    model, verification = (json.loads(curl(command, outputs["place"], port)) for command in CURLS)
    assert set(model) == fields("field of `GET /model`")
    per_decision = {"target_far", "threshold", "accepted", "outcome"}
    assert set(verification) | per_decision == fields("field of `POST /verify`")
    assert all(set(decision) == per_decision for decision in verification["decisions"])
    assert isinstance(verification["score"], float)


def test_a_refused_request_has_the_fields_and_status_of_the_page(outputs, port):
    command = (
        CURLS[1]
        .replace("--silent", "--silent --write-out ' %{http_code}'")
        .replace("cat a.wav b.wav", "echo x")
        .partition("| python3")[0]
    )
    answer, _, status = curl(command, outputs["place"], port).rpartition(" ")
    assert status == "400"
    assert set(json.loads(answer)) == {"error", "recording", "outcome"}
    for status in ("200", "400", "403", "404", "405", "408", "413", "500", "503"):
        assert re.search(rf"^\| [\d, ]*\b{status}\b[\d, ]* \|", text("deployment"), re.MULTILINE)


def test_the_limits_of_the_page_are_the_defaults():
    page = text("deployment")
    for row in (
        f"| {_DEFAULTS.max_seconds:g} s, {_DEFAULTS.max_megabytes:g} MB | `--max-seconds`, `--max-megabytes` |",
        f"| {_DEFAULTS.max_concurrent} | `--max-concurrent` |",
        f"| {_DEFAULTS.queue_seconds:g} s each | `--queue-seconds` |",
        f"| {_DEFAULTS.upload_seconds:g} s | `--upload-seconds` |",
        f"| {_DEFAULTS.idle_seconds:g} s | `--idle-seconds` |",
        f"| comparisons received and held in memory | {_DEFAULTS.max_uploads} |",
        f"| open connections; one more closes the idlest | {_DEFAULTS.max_connections} |",
    ):
        assert row in page


@pytest.mark.parametrize("program", snippets("deployment"))
def test_a_program_of_the_page_decides(program, outputs, monkeypatch, capsys, tmp_path):
    shutil.copytree(outputs["place"], tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    exec(program, {})
    last = capsys.readouterr().out.split("\n")[-2]
    assert last in {"True", "False", "None", "accepted", "not accepted", "no decision"}
