"""docs/results.md says what the stored tables of the evidence say."""

import csv
import re
from pathlib import Path

import pytest
from evidence import tables
from helpers import pages
from helpers.tiny import ROOT

STORED = ROOT / "recipes" / "evidence" / "results"
LISTS = ("veri_test", "veri_test_matched")


def sections(page: str) -> dict[str, str]:
    """Return the sections of a page by their titles."""
    return {part.splitlines()[0]: part for part in re.split(r"^## ", pages.text(page), flags=re.MULTILINE)[1:]}


SECTIONS = sections("results")
# Sections whose tables and paragraphs quote files of the repository.
QUOTING = {title: section for title, section in SECTIONS.items() if title != "Conditions and limits"}
QUOTING |= {title: sections("benchmarks")[title] for title in ("Controller", "Averaging")}
# Sections with rows that join rows of the file.
JOINED = {"Are the learning rates right?", "Synthetic voices", "Controller"}
# Figures that are computed here from those in the files, or from the stored runs.
COMPUTED = {
    "Does sparsity cost accuracy?": {"25.05", "34.88"},
    "Is the target met?": {"0.07"},
    "Does the start of lambda matter?": {"0.007"},
    "Controller": {"2,000"},
}
# A difference with its interval, and whether it is bold.
DIFFERENCE = re.compile(r"(\*\*)?[-+][\d.]+ \[([-+][\d.]+), ([-+][\d.]+)\]")


def rows_of(section: str) -> list[list[str]]:
    """Return the cells of the rows of a section's tables, without heads."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    heads = [number for number, line in enumerate(lines) if re.fullmatch(r"[|-]+", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for number, row in enumerate(cells) if number not in heads and number + 1 not in heads]


def stored_groups(question: str) -> tables.Groups:
    """Return the runs of a stored table as tables.py groups them; the runs themselves are not stored."""
    runs: dict[str, tables.Run] = {}
    lines = (STORED / question / "runs.csv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(lines):
        results = {"seed": int(row["seed"]), "sparsity_tracked": float(row["sparsity_before_landing"])}
        run = runs.setdefault(row["run"], tables.Run(Path(row["run"]), results, {}))
        eers = {"eer": float(row["eer"]), "untrained_eer": float(row["start_eer"]), "checksum": row["list"]}
        run.evaluations[row["list"]] = eers
    names = {name.rpartition("_s")[0] for name in runs}
    return {
        group: tables.Group(group, tuple(run for name, run in runs.items() if name.rpartition("_s")[0] == group))
        for group in names
    }


def test_the_main_table_is_that_of_the_stored_runs(monkeypatch):
    monkeypatch.setattr(tables.Group, "resampled_eers", lambda *_: None)  # from scores, which are not stored
    table = tables.quality_table(stored_groups("quality"), LISTS)
    expected = {}
    for method, target, _, seeds, *cells in table.rows:
        eer, _, minus_dense, _, _, matched_eer, _, matched_minus_dense, _, _ = cells
        expected[method, target] = [seeds, eer, matched_eer, minus_dense, matched_minus_dense]
    rows = rows_of(SECTIONS["Does sparsity cost accuracy?"])
    assert len(rows) == 12
    for method, zeros, *cells in rows:
        numbers = [re.sub(r" \[.*", "", cell).strip("*") for cell in cells]
        size = 3 if "by layer" in method else 5  # differences of pruning by layer are of one seed
        assert numbers[:size] == expected[method, zeros][:size]


def figures_of(text: str) -> set[str]:
    """Return the numbers with a decimal point and those with thousands."""
    return set(re.findall(r"(?<![\d.])\d+\.\d+|\d+(?:,\d{3})+", re.sub(r"\]\([^)]*\)", "]", text)))


def source_lines(section: str) -> list[str]:
    """Return the lines of the files that a section quotes and links."""
    links = re.findall(r"\]\((\.\./(?:recipes|scripts)/[^)]+\.md)\)", section)
    return [line for link in links for line in (ROOT / "docs" / link).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("title", QUOTING)
def test_every_figure_of_a_section_is_in_a_file_that_it_links(title):
    section = QUOTING[title]
    assert figures_of(section)
    missing = figures_of(section) - set().union(*map(figures_of, source_lines(section)))
    assert missing == COMPUTED.get(title, set())


@pytest.mark.parametrize("title", sorted(set(QUOTING) - JOINED))
def test_the_figures_of_a_row_are_those_of_one_row_of_the_file(title):
    stored_rows = [figures_of(line) for line in source_lines(QUOTING[title])]
    for row in rows_of(QUOTING[title]):
        figures = figures_of(" ".join(row)) - COMPUTED.get(title, set())
        assert any(figures <= stored for stored in stored_rows), row


def test_differences_are_bold_where_their_interval_excludes_zero():
    differences = DIFFERENCE.findall(pages.text("results"))
    assert len(differences) > 40
    for bold, low, high in differences:
        assert bool(bold) == (float(low) > 0 or float(high) < 0), (low, high)
