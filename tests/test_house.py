"""Laws of the source itself."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from tiny import ROOT

SOURCES = [
    ROOT / "train.py",
    *sorted(path for room in ("sv_sparse", "recipes", "scripts", "tests") for path in (ROOT / room).rglob("*.py")),
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, node.name


def test_the_entry_point_is_a_paragraph():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 60


def test_every_dependency_has_its_line_in_the_decisions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w-]+", entry)[0] for entries in lists for entry in entries}
    decisions = (ROOT / "DECISIONS.md").read_text()
    assert len(names) >= 30
    assert not {name for name in names if name not in decisions}
