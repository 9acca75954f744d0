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


def run(words: Sequence[str], folder: Path, status: int = 0) -> str:
    """Run a command, with this environment's programs, in a folder; return its output."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False, env=environment)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


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
