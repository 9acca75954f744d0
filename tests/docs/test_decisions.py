"""DECISIONS.md: entries of one form, and every number that code and documentation refer to."""

import re

import pytest
from helpers.tiny import ROOT

TEXT = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
HEADING = re.compile(r"^### (\d+)\. (.+)$", flags=re.MULTILINE)
PARTS = ("- **Context.** ", "- **Decision.** ", "- **Alternatives.** ")
REFERENCE = re.compile(r"DECISIONS(?:\.md)?\]?(?:\([^)]*\))?,? (\d+)")
SUFFIXES = {".py", ".cpp", ".sh", ".md", ".yaml", ".toml", ".yml"}
FOLDERS = ("sv_sparse", "conf", "recipes", "scripts", "tests", "docs")


def entries() -> dict[int, str]:
    """Return the text of each entry by its number."""
    parts = HEADING.split(TEXT)[1:]
    return {int(number): body for number, body in zip(parts[::3], parts[2::3], strict=True)}


def references() -> dict[int, str]:
    """Return the numbers that files refer to, with a file for each."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    numbers: dict[int, str] = {}
    for path in [*paths, *ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]:
        for number in REFERENCE.findall(path.read_text(encoding="utf-8")):
            numbers[int(number)] = str(path.relative_to(ROOT))
    return numbers


def test_entries_are_numbered_without_gaps():
    assert list(entries()) == list(range(1, len(entries()) + 1))
    assert len(entries()) >= 103


@pytest.mark.parametrize("number", entries())
def test_an_entry_has_three_parts_or_is_not_valid_any_more(number):
    body = entries()[number].partition("\n## ")[0].strip()
    match = re.match(r"(?:Superseded by (\d+)\.|Withdrawn: .+\.)$", body, flags=re.DOTALL)
    if match:
        assert match[1] is None or int(match[1]) in entries()
    else:
        positions = [body.find(part) for part in PARTS]
        assert -1 not in positions
        assert positions == sorted(positions)
        assert [body.count(part) for part in PARTS] == [1, 1, 1]


def test_every_number_that_is_referred_to_exists():
    numbers = references()
    assert len(numbers) > 50
    assert not {number: path for number, path in numbers.items() if number not in entries()}


def test_lines_are_short():
    assert not [line for line in TEXT.splitlines() if len(line) > 100]
