"""Laws of files, names and streams."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.tiny import ROOT

import sv_sparse.io
from sv_sparse.io import (
    ESCAPE,
    atomic_write,
    file_lock,
    harden_output,
    install_command,
    printable,
    write_json,
    write_text,
)


def test_a_written_file_takes_the_place_of_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_old_file_and_no_temporary(tmp_path, error):
    def interrupted_write():
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise error

    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        interrupted_write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_noticed_before_the_old_file_is_replaced(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic_write(tmp_path / "nowhere" / "file"):
        pass


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_text_is_utf_8_with_line_feeds(tmp_path):
    write_text(tmp_path / "a.txt", "λ\nδ\n")
    assert (tmp_path / "a.txt").read_bytes() == "λ\nδ\n".encode()


def test_json_reads_back(tmp_path):
    value = {"eer": 0.01, "lists": ["O", "E"], "name": "λ"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_json_refuses_numbers_that_other_readers_would_choke_on_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_name_that_is_not_utf_8_is_written_escaped_and_read_from_json_as_it_was(tmp_path):
    write_text(tmp_path / "a.txt", "b\udcffd.wav \u03bb\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "b\\xffd.wav \u03bb\n"
    write_json(tmp_path / "a.json", {"file": "b\udcffd.wav"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file": "b\udcffd.wav"}


def test_a_second_process_is_refused(tmp_path):
    with (
        file_lock(tmp_path, "first"),
        pytest.raises(ValueError, match="it is locked"),
        file_lock(tmp_path, "it is locked"),
    ):
        pass


def test_a_system_without_locks_says_so_once_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sv_sparse.io, "fcntl", None)
    for _ in range(2):
        with file_lock(tmp_path, "refused"):
            write_text(tmp_path / "a.txt", "written")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: there are no file locks here; let no other process write into it"
    ]


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
    """Run lines of a program with hardened output; it makes the file ``done`` at its end."""

    def run(lines: str, *flags: str, **options: object) -> "subprocess.CompletedProcess[str]":
        program = f"from sv_sparse.io import harden_output\nharden_output()\n{lines}\nopen('done', 'w').close()"
        command = [sys.executable, *flags, "-c", program]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.run(command, text=True, check=False, cwd=tmp_path, env=environment, **options)

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
        done = run("print('text', flush=True)", stdout=full)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr


def test_a_stream_of_somebody_else_stays_the_same_object(monkeypatch):
    stream, screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", screen)
    harden_output()
    assert sys.stdout is stream
    assert sys.stderr is screen
    print("\udcff", end="", flush=True)
    assert stream.buffer.getvalue() == b"\\xff"


def test_a_program_without_a_terminal_runs(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    harden_output()
    assert sys.stdout is None


def test_a_checkout_is_installed_from_where_it_is():
    assert install_command("serve") == f'pip install -e "{ROOT}[serve]"'


def test_an_installed_package_names_no_folder_that_it_does_not_have(monkeypatch, tmp_path):
    monkeypatch.setattr(sv_sparse.io, "__file__", str(tmp_path / "site-packages" / "sv_sparse" / "io.py"))
    assert install_command("serve") == 'pip install ".[serve]" in a copy of this project\'s source'


def test_no_message_advises_to_install_from_a_registry():
    for path in (ROOT / "sv_sparse").rglob("*.py"):
        assert "install 'sv-sparse" not in path.read_text(encoding="utf-8").replace('"', "'"), path
