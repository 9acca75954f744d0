import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny import ROOT

from sv_sparse.io import ESCAPE, harden_output, printable


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain.wav", "plain.wav"),
        ("José 李.wav".encode(), "José 李.wav"),
        (b"b\xffd.wav", r"b\xffd.wav"),
        (b"\x80\xfe", r"\x80\xfe"),
    ],
)
def test_a_name_is_printed_as_it_is_but_for_bytes_that_are_not_utf_8(name, text):
    assert printable(Path(os.fsdecode(name))) == text


def test_a_lone_surrogate_of_another_system_is_printed_too():
    assert printable("a\ud800b") == r"a\ud800b"


def test_the_error_handler_is_for_writing_alone():
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", ESCAPE)


@pytest.fixture
def run(tmp_path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run lines of a program after its output was hardened; what it says of its work is in the file ``done``."""

    def run(lines: str, *flags: str, **how: object) -> "subprocess.CompletedProcess[str]":
        program = f"from sv_sparse.io import harden_output\nharden_output()\n{lines}\nopen('done', 'w').close()"
        words = [sys.executable, *flags, "-c", program]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"}
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
        return subprocess.run(words, text=True, check=False, cwd=tmp_path, env=environment, **how)

    return run


def test_names_are_printed_where_the_terminal_has_ascii_only(run):
    done = run(r"import sys; print('caf\udce9 \u03bb', flush=True); print('\udcff', file=sys.stderr)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9 \\u03bb\n", "\\xff\n")


@pytest.mark.parametrize("flags", [(), ("-u",)], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("streams", [("stdout",), ("stdout", "stderr")], ids=["| head", "2>&1 | head"])
def test_a_program_whose_reader_goes_away_does_its_work_quietly(run, tmp_path, streams, flags):
    reading, writing = os.pipe()
    os.close(reading)
    lines = (
        "import logging, sys\n"
        "logging.basicConfig(stream=sys.stdout, level=logging.INFO)\n"
        "for _ in range(3): print('x' * 20_000, flush=True); print('more'); logging.info('y')\n"
    )
    if "stderr" in streams:
        lines += "print('z', file=sys.stderr)\n"
    done = run(lines, *flags, **dict.fromkeys(streams, writing))
    os.close(writing)
    assert done.returncode == 0
    assert not done.stderr
    assert (tmp_path / "done").exists()


def test_a_full_disk_is_still_an_error(run):
    with open("/dev/full", "w") as full:
        done = run("print('lost', flush=True)", stdout=full)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


def test_a_stream_of_somebody_else_stays_the_same_object(monkeypatch):
    own, screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), io.StringIO()
    monkeypatch.setattr(sys, "stdout", own)
    monkeypatch.setattr(sys, "stderr", screen)
    harden_output()
    assert sys.stdout is own
    assert sys.stderr is screen
    print("\udcff", end="", flush=True)
    assert own.buffer.getvalue() == b"\\xff"


def test_a_program_without_a_terminal_runs(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    harden_output()
    assert sys.stdout is None
