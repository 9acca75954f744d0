"""README.md and the pages of docs/: the commands and programs in them, their links, their prose."""

import re
from collections.abc import Iterator
from pathlib import Path

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
