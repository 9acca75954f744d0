"""README.md and the pages of docs/: the commands and programs in them, which run here, their links, their prose."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.tiny import ROOT

PAGES = {"README": ROOT / "README.md"} | {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}
# Written from the code by scripts/docs/reference.py.
GENERATED = ("settings", "commands")


def text(page: str) -> str:
    return PAGES[page].read_text()


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language: sh and python are run by tests; shell and text are not."""
    pattern = rf"^( *)```{language}\b[^\n]*\n(.*?)^\1```"
    matches = re.findall(pattern, text(page), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in matches]


def commands(page: str) -> list[str]:
    """Return the lines of a page's sh blocks, each a command; a line that ends with a backslash goes on."""
    lines = []
    for block in blocks(page, "sh"):
        lines += block.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


def snippets(page: str) -> list[str]:
    return blocks(page, "python")


def snippet(page: str, word: str) -> str:
    """Return the one python block of a page that has this word."""
    (code,) = [code for code in snippets(page) if word in code]
    return code


def words_of(command: str) -> list[str]:
    """Return the words as a shell reads them, without the comment."""
    return shlex.split(command, comments=True)


def fill(words: Sequence[str], places: Mapping[str, object]) -> list[str]:
    """Put paths in place of the words in capitals that stand for them, such as ``PATH``."""
    pattern = re.compile(rf"(?<![A-Za-z_])({'|'.join(places)})(?![A-Za-z_])")
    return [pattern.sub(lambda match: str(places[match[1]]), word) for word in words]


def environment(**variables: str) -> dict[str, str]:
    """Return this environment, in which its own programs come first, with more variables."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"} | variables


def run(words: Sequence[str], folder: Path, status: int = 0, **variables: str) -> str:
    """Run a command in a folder, and return its output."""
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False, env=environment(**variables))
    assert done.returncode == status, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def run_block(code: str, folder: Path, monkeypatch) -> dict[str, Any]:
    """Run a python block in a folder, and return its names."""
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {"__name__": "page"}
    exec(code, scope)
    return scope


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a Markdown file outside its fenced blocks, with their numbers."""
    fence = ""
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        mark = re.match(r" *(```+)", line)
        if fence:
            fence = "" if mark and mark[1] == fence else fence
        elif mark:
            fence = mark[1]
        else:
            yield number, line


def is_table_row(line: str) -> bool:
    return line.lstrip().startswith("|")


def inline_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what stands between backticks in the prose of a Markdown file, with the number of its line."""
    for number, line in prose(path):
        for code in re.findall(r"`([^`]+)`", line):
            yield number, code


def links(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the relative targets of a Markdown file's links and pictures, with the numbers of their lines."""
    for number, line in prose(path):
        bare = re.sub(r"`[^`]*`", "", line)
        targets = re.findall(r"\]\(([^()\s]+)\)", bare) + re.findall(r'(?:href|src|srcset)="([^"]+)"', bare)
        yield from ((number, target) for target in targets if not re.match(r"[a-z]+:", target))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a Markdown file's headings, as code hosts and MkDocs make them."""
    names: set[str] = set()
    for _, line in prose(path):
        heading = re.match(r"#+ +(.*?) *$", line)
        if heading:
            plain = re.sub(r"[^\w\s-]", "", heading[1]).strip().lower()
            names |= {plain.replace(" ", "-"), re.sub(r"[-\s]+", "-", plain)}
    return names
