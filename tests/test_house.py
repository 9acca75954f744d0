"""Laws of the source itself."""

import ast
import re
from pathlib import Path

import pytest
from tiny import ROOT

SOURCES = [
    ROOT / "train.py",
    *sorted(path for room in ("sv_sparse", "scripts", "tests") for path in (ROOT / room).rglob("*.py")),
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
    project = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|demo|dev) = \[(.*?)\]$", project, re.DOTALL | re.MULTILINE)
    names = {name for block in lists for name in re.findall(r'"([A-Za-z][\w-]*)', block)}
    decisions = (ROOT / "DECISIONS.md").read_text()
    assert len(names) >= 15
    assert not {name for name in names if name not in decisions}
