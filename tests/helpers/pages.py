"""README.md and the pages of docs/: the commands and programs in them."""

import re

from helpers.tiny import ROOT

PAGES = {"README": ROOT / "README.md"} | {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}


def text(page: str) -> str:
    return PAGES[page].read_text()


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language: sh and python are run by tests; shell and text are not."""
    pattern = rf"^( *)```{language}[^\n]*\n(.*?)^\1```"
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
