"""Results and figures into a run folder; the table is what a run prints last."""

import json
from collections.abc import Sequence
from pathlib import Path

from sv_sparse.report.draw import draw_run
from sv_sparse.report.page import run_markdown, run_page
from sv_sparse.report.record import read_record
from sv_sparse.report.results import Results
from sv_sparse.report.style import Drawn, standalone
from sv_sparse.report.tables import results_table
from sv_sparse.storage import write_json, write_text


def write_report(folder: Path, results: Results, figures: Sequence[Drawn]) -> str:
    """Write results.json, figures/*.svg, report.html and report.md into a run folder.

    Args:
        folder: of the run, with its scores.
        results: what ``collect`` returned.
        figures: what ``draw_run`` returned.

    Returns:
        The table, in Markdown.

    Raises:
        OSError: a file of the run folder is missing, or something cannot be written.
    """
    write_json(folder / "results.json", results)
    table = results_table(results)
    _write_pages(folder, results, figures, table)
    return table


def refresh_report(folder: Path) -> None:
    """Write a finished run's figures and pages again, with all lists that it has been judged by since.

    Raises:
        OSError: a file of the run folder is missing, or something cannot be written.
    """
    results: Results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    table = results_table(results)
    later = json.loads((folder / "evaluations.json").read_text(encoding="utf-8"))
    results["evaluations"] |= {name: one for name, one in later.items() if name not in results["evaluations"]}
    _write_pages(folder, results, draw_run(folder, results), table)


def _write_pages(folder: Path, results: Results, figures: Sequence[Drawn], table: str) -> None:
    write_figures(folder, figures)
    record = read_record(folder, results)
    write_text(folder / "report.html", run_page(record, figures))
    write_text(folder / "report.md", run_markdown(record, figures, table))


def write_figures(folder: Path, figures: Sequence[Drawn]) -> None:
    """Write each figure to figures/ in a folder."""
    (folder / "figures").mkdir(exist_ok=True)
    for figure in figures:
        write_text(folder / "figures" / f"{figure.name}.svg", standalone(figure))
