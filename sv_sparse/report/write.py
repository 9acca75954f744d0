"""Results, figures and pages into a run folder."""

import json
from collections.abc import Sequence
from pathlib import Path

from sv_sparse.io import write_json, write_text
from sv_sparse.report.draw import draw_run
from sv_sparse.report.page import run_markdown, run_page
from sv_sparse.report.record import judged_lists, read_record
from sv_sparse.report.results import Results
from sv_sparse.report.style import Drawn, standalone
from sv_sparse.report.tables import results_table


def write_results(folder: Path, results: Results) -> str:
    """Write results.json into a run folder.

    Returns:
        The table of a run's results, in Markdown.
    """
    write_json(folder / "results.json", results)
    return results_table(results)


def write_report(folder: Path, results: Results, figures: Sequence[Drawn]) -> None:
    """Write figures/*.svg, report.html and report.md into a run folder.

    Args:
        folder: of the run, with its scores.
        results: what ``collect`` returned, with all lists that are to be shown.
        figures: what ``draw_run`` returned.

    Raises:
        OSError: a file of the run folder is missing, or something cannot be written.
    """
    write_figures(folder, figures)
    record = read_record(folder, results)
    write_text(folder / "report.html", run_page(record, figures))
    write_text(folder / "report.md", run_markdown(record, figures))


def refresh_report(folder: Path) -> None:
    """Write a finished run's figures and pages again, with all lists that it has been judged by since.

    Raises:
        OSError: a file of the run folder is missing, or something cannot be written.
    """
    results: Results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["evaluations"] = judged_lists(folder, results)
    write_report(folder, results, draw_run(folder, results))


def write_figures(folder: Path, figures: Sequence[Drawn]) -> None:
    """Write each figure to figures/ in a folder."""
    (folder / "figures").mkdir(exist_ok=True)
    for figure in figures:
        write_text(folder / "figures" / f"{figure.name}.svg", standalone(figure))
