"""Commands of the documentation, with files and folders of a test in place of the reader's."""

import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.pages import blocks, commands

BIN = Path(sys.executable).parent
SCRIPT = str(BIN / "sv-sparse")
SNIPPETS = blocks("README", "python")


def of(program: str) -> list[str]:
    """Commands of the README that begin so."""
    return [command for command in commands("README") if command.startswith(program)]


def words_of(command: str) -> list[str]:
    """Words as a shell reads them, without the comment."""
    return shlex.split(command, comments=True)


def fill(words: Sequence[str], places: Mapping[str, object]) -> list[str]:
    """Put paths in place of the words in capitals that stand for them, such as ``PATH``."""
    pattern = re.compile(rf"(?<![A-Za-z_])({'|'.join(places)})(?![A-Za-z_])")
    return [pattern.sub(lambda match: str(places[match[1]]), word) for word in words]


def environment(home: Path) -> dict[str, str]:
    """Environment of a user with this project's programs and ``model.safetensors`` at hand, whose home is a folder."""
    homes = {f"XDG_{kind}_HOME": str(home / kind) for kind in ("CACHE", "DATA")}
    return os.environ | homes | {"PATH": f"{BIN}:{os.environ['PATH']}", "SV_SPARSE_MODEL": "model.safetensors"}


def run(words: Sequence[str], folder: Path, status: int = 0) -> str:
    """Run a command in a folder, and return its output."""
    options = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run(words, cwd=folder, env=environment(folder), **options)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def answer(address: str, wanted: str) -> str:
    """Text that the server answers once it has ``wanted``; waits up to a minute for it to start and to load."""
    text = ""
    for _ in range(120):
        try:
            with urllib.request.urlopen(address, timeout=5) as response:
                text = response.read().decode()
        except OSError:
            pass
        if wanted in text:
            break
        time.sleep(0.5)
    return text
