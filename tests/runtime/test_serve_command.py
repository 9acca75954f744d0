"""Laws of sv-sparse serve, the command."""

import re
import signal
import subprocess
import sys

import pytest
from helpers.serving import ask, audio, serving, tiny_verifier, verify
from helpers.tiny import ROOT

from sv_sparse.commands.main import build_parser
from sv_sparse.runtime.server.limits import Limits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def verifier(folder):
    return tiny_verifier(folder)


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_command_serves_until_it_is_stopped_and_warns_of_the_network(folder, verifier, host, warned):
    command = [sys.executable, "-m", "sv_sparse.commands.main", "serve", "--model", str(folder / "model.safetensors")]
    command += ["--host", host, "--port", "0", "--max-seconds", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(re.search(r"http://[\d.]+:(\d+) ", process.stdout.readline())[1])
            assert verify(port, audio(0), audio(0)).content["score"] == pytest.approx(1, abs=1e-5)
            assert verify(port, audio(0, 1.5), audio(0)).status == 413
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert ("anybody on the network" in err) == warned


def refused(*given: str) -> str:
    """What the command says where it does not begin."""
    chosen = build_parser(["serve"]).parse_args(["serve", *given])
    with pytest.raises(ValueError, match=r"\w") as problem:
        chosen.main(chosen)
    return str(problem.value)


def test_the_help_states_every_limit(capsys):
    with pytest.raises(SystemExit):
        build_parser(["serve"]).parse_args(["serve", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    limits = Limits(max_seconds=60, max_megabytes=20)
    for words in (
        f"longest recording (default: {limits.max_seconds:g})",
        f"largest recording (default: {limits.max_megabytes:g})",
        f"to send both recordings (default: {limits.upload_seconds:g})",
        f"again to be compared (default: {limits.queue_seconds:g})",
        f"without a complete request is closed (default: {limits.idle_seconds:g})",
        f"computed at a time; further ones wait (default: {limits.max_concurrent})",
        f"{limits.max_uploads} comparisons",
        f"{limits.max_connections} connections",
        "--allowed-host NAME",
    ):
        assert words in told


def test_limits_and_names_of_the_command_line_are_those_of_the_server(folder, verifier):
    command = [sys.executable, "-m", "sv_sparse.commands.main", "serve", "--model", str(folder / "model.safetensors")]
    command += ["--port", "0", "--upload-seconds", "0.2", "--allowed-host", "voice.example", "--max-concurrent", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(re.search(r"http://[\d.]+:(\d+) ", process.stdout.readline())[1])
            proxied = {"Host": "voice.example", "Origin": "https://voice.example"}
            assert verify(port, audio(0), audio(0), **proxied).status == 200
            late = ask(port, "POST", "/verify", First_Length="5", Content_Length="10")
            assert (late.status, late.content["error"]) == (408, "The recordings did not arrive in 0.2 seconds.")
        finally:
            process.kill()


def test_what_hinders_the_server_is_named(folder, verifier, monkeypatch):
    model = ("--model", str(folder / "model.safetensors"))
    with serving(verifier) as port:
        assert f"--port {port} cannot be used" in refused(*model, "--port", str(port))
    assert "0 to 65535" in refused(*model, "--port", "70000")
    assert "--host no.such.name.invalid" in refused(*model, "--host", "no.such.name.invalid")
    assert "max_seconds must be a number above 0, got 0" in refused(*model, "--max-seconds", "0")
    assert "upload_seconds must be a number above 0" in refused(*model, "--upload-seconds", "nan")
    assert "max_concurrent must be a number above 0, got 0" in refused(*model, "--max-concurrent", "0")
    assert "--allowed-host https://a.example: expected NAME" in refused(*model, "--allowed-host", "https://a.example")
    assert "nowhere.safetensors" in refused("--model", str(folder / "nowhere.safetensors"))
    monkeypatch.delitem(sys.modules, "sv_sparse.runtime.server.app")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert f'needs uvicorn: pip install -e "{ROOT}[serve]"' in refused(*model)
