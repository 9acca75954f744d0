"""CITATION.cff, CHANGELOG.md, CONTRIBUTING.md and the forms of issues agree with the program."""

import re
import subprocess
from datetime import date

import pytest
import yaml
from helpers.settings import setting_names
from helpers.tiny import ROOT

import sv_sparse
from sv_sparse.checkpoint import FORMAT as CHECKPOINT_FORMAT
from sv_sparse.runtime.package_header import FORMAT as PACKAGE_FORMAT
from sv_sparse.runtime.speaker_db import _VERSION as SPEAKER_DB_VERSION

CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def load_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def release() -> tuple[str, date]:
    """Return version and date of the newest release of the changelog."""
    version, day = re.search(r"^## ([\d.]+) \((\d{4}-\d\d-\d\d)\)$", CHANGELOG, flags=re.MULTILINE).groups()
    return version, date.fromisoformat(day)


def test_the_citation_is_complete_and_of_this_version():
    citation = load_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license", "type"} <= set(citation)
    assert (citation["version"], citation["date-released"]) == release()
    assert citation["version"] == sv_sparse.__version__
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year"} <= set(paper)
    assert paper["url"].endswith("2605.07892")
    assert [author["family-names"] for author in paper["authors"]] == ["Aloradi", "Roith", "Habets", "Tenbrinck"]


@pytest.mark.parametrize("name", ["bug_report", "feature_request"])
def test_a_form_for_issues_has_what_a_code_host_needs(name):
    form = load_yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    for field in form["body"]:
        assert field["type"] == "textarea"
        assert {"label", "description"} <= set(field["attributes"])


def test_the_new_names_of_settings_exist_and_the_old_ones_do_not():
    rows = re.findall(r"^  \| (`.+) \| (`.+) \|$", CHANGELOG, flags=re.MULTILINE)
    assert len(rows) > 20
    names = setting_names()
    for old_cell, new_cell in rows:
        assert expanded(new_cell) <= names, new_cell
        assert not expanded(old_cell) - {"model.implementation"} & names, old_cell


def expanded(cell: str) -> set[str]:
    """Return the settings of a cell: ``.name`` continues the group of the name before; choices are left out."""
    names, group = set(), ""
    for word in re.findall(r"`([^`]+)`", cell):
        name = group + word if word.startswith(".") else word
        group = name.rpartition(".")[0]
        if "=" not in name:
            names.add(name)
    return names


def test_the_changelog_has_no_measurements():
    assert not re.search(r"\d\s?%|\d (?:ms|MB|points)\b", CHANGELOG)


def test_the_make_commands_of_the_contributors_are_targets():
    commands = re.findall(r"^make \w+$", CONTRIBUTING, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_files_that_the_contributors_are_sent_to_exist():
    paths = re.findall(r"`((?:sv_sparse|tests|conf|docs)/[\w/.]+)`|\]\(([\w/.]+)\)", CONTRIBUTING)
    paths = [path or link for path, link in paths if "NAME" not in path]
    assert len(paths) > 8
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_versions_of_files_are_those_of_the_program():
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    versions = re.findall(r"^\| [^|]+ \| (\d+) \| `(sv_sparse/[\w/]+\.py)` \|$", text, flags=re.MULTILINE)
    assert [int(version) for version, _ in versions] == [CHECKPOINT_FORMAT, PACKAGE_FORMAT, SPEAKER_DB_VERSION]


def test_the_layout_and_the_tests_of_the_page_exist():
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    tree = re.search(r"sv_sparse/\n((?:  \S.*\n)+)", text)[1]
    names = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    folder = ROOT / "sv_sparse"
    content = {path.name for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert names == content - {"__init__.py"}
    paths = re.findall(r"`(tests/[\w/.]+)`", text)
    assert len(paths) > 8
    assert not [path for path in paths if not (ROOT / path).exists()]
