"""Laws of the source itself."""

import re
import tomllib

from helpers.tiny import ROOT


def test_the_entry_point_is_a_paragraph():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 60


def test_every_dependency_has_its_line_in_the_decisions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w-]+", entry)[0] for entries in lists for entry in entries}
    decisions = (ROOT / "DECISIONS.md").read_text()
    assert len(names) >= 30
    assert not {name for name in names if name not in decisions}
