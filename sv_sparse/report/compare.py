"""Finished runs to one table, and to compare.html, compare.md and compare.csv."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from sv_sparse.io import write_text
from sv_sparse.report.cost import cost_table, ways
from sv_sparse.report.page import figure_links, render
from sv_sparse.report.style import house_style
from sv_sparse.report.sweep import Column, Differences, Entry, columns, conditions_table, table
from sv_sparse.report.sweep_figures import sweep_figures
from sv_sparse.report.tables import corpus_name
from sv_sparse.report.write import write_figures


def compare_table(entries: Sequence[Entry], differences: Differences) -> str:
    """One row for each run and list, in Markdown."""
    return table(entries, columns(entries, differences)).markdown()


def write_comparison(folder: Path, entries: Sequence[Entry], differences: Differences) -> None:
    """Write compare.html, compare.md, compare.csv and figures/*.svg.

    Args:
        folder: made if absent.
        entries: what ``read_entries`` returned.
        differences: see ``columns``.

    Raises:
        OSError: something cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen, found = columns(entries, differences), ways(entries)
    with house_style():
        figures = sweep_figures(entries, found)
    write_figures(folder, figures)
    runs, lists, costs = table(entries, chosen), conditions_table(entries), cost_table(found) if found else None
    counts = [len({entry.run for entry in entries}), len({entry.one["name"] for entry in entries})]
    words = [f"{count} {word}{'s' * (count != 1)}" for count, word in zip(counts, ("run", "list"), strict=True)]
    corpora = sorted({corpus_name(entry.results) for entry in entries})
    summary = f"{words[0]}, {words[1]}; trained on: {', '.join(corpora)}"
    html = render("compare.html", figures, name="Runs compared", summary=summary, tables=[runs, lists], costs=costs)
    write_text(folder / "compare.html", html)
    lines = ["# Runs compared", "", f"{summary}.", "", runs.markdown(), "", lists.markdown(), ""]
    lines += [costs.markdown(), ""] if costs is not None else []
    write_text(folder / "compare.md", "\n".join([*lines, *figure_links(figures)]).rstrip() + "\n")
    write_text(folder / "compare.csv", as_csv(entries, chosen))


def as_csv(entries: Sequence[Entry], of: Sequence[Column]) -> str:
    """The entries as they are: fractions, minutes, nothing where something is not known."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    kept = ("enrollment", "score_norm", "calibration", "speakers", "targets")
    writer.writerow([*(key for column in of for key in column.keys), *kept])
    for entry in entries:
        values = [value for column in of for value in column.values(entry)]
        writer.writerow([*values, *(entry.one[key] for key in kept)])
    return file.getvalue()
