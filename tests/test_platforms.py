"""Laws of systems that lack what only POSIX or Linux have; it is hidden here from this package's modules."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from helpers import deployed
from helpers.tiny import ROOT, tone

from sv_sparse.export.package import write_package

# Windows has none of these. Other packages may use what they use on this system: they have ways of their own there.
MODULES = ("fcntl", "resource", "pwd", "grp", "termios")
SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGKILL", "SIGPIPE", "SIGCHLD", "alarm", "setitimer")
FUNCTIONS = (
    *("preadv", "pread", "pwritev", "fork", "sched_getaffinity", "getuid", "geteuid", "register_at_fork", "killpg"),
    *("setsid", "getpgid", "getloadavg", "sysconf", "statvfs", "uname", "posix_fadvise", "mkfifo"),
)
PROGRAM = f"""
import builtins, json, os, signal, sys

class Lacking:
    '''A module without some of its names.'''
    def __init__(self, module, names):
        self.module, self.names = module, names
    def __getattr__(self, name):
        if name in self.names:
            raise AttributeError(f"module {{self.module.__name__!r}} has no attribute {{name!r}}")
        return getattr(self.module, name)

LACKING = {{"os": Lacking(os, {FUNCTIONS!r}), "signal": Lacking(signal, {SIGNALS!r})}}
import_ = builtins.__import__

def on_windows(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__name__", "")
    if importer.partition(".")[0] == "sv_sparse":
        if name in {MODULES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        if name in LACKING:
            return LACKING[name]
    return import_(name, globals, locals, fromlist, level)

builtins.__import__ = on_windows
"""
EVERY_MODULE = """
import pkgutil, sv_sparse
from importlib import import_module
names = [module.name for module in pkgutil.walk_packages(sv_sparse.__path__, "sv_sparse.")]
for name in names:
    import_module(name)
print(json.dumps(names))
"""
COMMANDS = """
from sv_sparse.commands.main import main
for words in json.loads(sys.argv[1]):
    main(words)
"""


def windows(program: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-c", PROGRAM + program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(cwd)}
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def test_what_is_hidden_is_hidden_from_this_package_alone(tmp_path):
    probe = "exec('import fcntl', {'__name__': 'sv_sparse.any'})"
    assert "No module named 'fcntl'" in windows(probe, cwd=tmp_path).stderr
    probe = "exec('import signal; signal.SIGUSR1', {'__name__': 'sv_sparse.any'})"
    assert "no attribute 'SIGUSR1'" in windows(probe, cwd=tmp_path).stderr
    assert windows("import fcntl; signal.SIGUSR1; os.fork", cwd=tmp_path).returncode == 0


def test_every_module_is_imported_without_what_only_posix_has(tmp_path):
    done = windows(EVERY_MODULE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"sv_sparse.io", "sv_sparse.runtime.server.app", "sv_sparse.training.trainer"} <= set(
        json.loads(done.stdout)
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    network = deployed.trained(deployed.ECAPA)
    write_package(
        tmp_path / "model.safetensors", network, deployed.ECAPA, deployed.backend(), {}, features=deployed.FEATURES
    )
    for speaker in range(2):
        soundfile.write(tmp_path / f"{speaker}.flac", tone(speaker, 0, 1.0), 16000)
    return tmp_path


def test_a_network_is_used_and_files_are_written_without_what_only_posix_has(folder):
    lock = (
        "from pathlib import Path\nfrom sv_sparse.io import file_lock, write_text\n"
        "with file_lock(Path('.'), 'refused'):\n    write_text('written.txt', 'whole')\n"
    )
    model = ("--model", "model.safetensors")
    commands = [
        ["verify", "0.flac", "1.flac", *model],
        ["embed", "0.flac", "1.flac", "--output", "e.npz", *model],
        ["enroll", "A", "0.flac", *model],
        ["identify", "0.flac", "--threshold=-99", *model],
    ]
    done = windows(lock + COMMANDS, json.dumps(commands), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "written.txt").read_text() == "whole"
    assert done.stderr.splitlines() == [".: there are no file locks here; let no other process write into it"]
    for words in ("score ", "2 recordings, 16 numbers each", "A: 1 recording", "\nA\n"):
        assert words in done.stdout
