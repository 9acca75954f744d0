"""Results and figures into a run folder; the table is what a run prints last."""

from collections.abc import Sequence
from pathlib import Path

from sv_sparse.report.draw import draw_run
from sv_sparse.report.page import run_markdown, run_page
from sv_sparse.report.record import read_record
from sv_sparse.report.results import Results
from sv_sparse.report.style import Drawn, standalone
from sv_sparse.report.tables import results_table
from sv_sparse.storage import write_json, write_text


def write_report(folder: Path, results: Results, figures: Sequence[Drawn] | None = None) -> str:
    """Write results.json, figures/*.svg, report.html and report.md into a run folder.

    Args:
        folder: of the run, with its scores.
        results: what ``collect`` returned.
        figures: what ``draw_run`` returned; drawn here if not given.

    Returns:
        The table, in Markdown.

    Raises:
        OSError: a file of the run folder is missing, or something cannot be written.
    """
    write_json(folder / "results.json", results)
    figures = draw_run(folder, results) if figures is None else figures
    write_figures(folder, figures)
    record = read_record(folder, results)
    write_text(folder / "report.html", run_page(record, figures))
    table = results_table(results)
    write_text(folder / "report.md", run_markdown(record, figures, table))
    return table


def write_figures(folder: Path, figures: Sequence[Drawn]) -> None:
    """Write each figure to figures/ in a folder."""
    (folder / "figures").mkdir(exist_ok=True)
    for figure in figures:
        write_text(folder / "figures" / f"{figure.name}.svg", standalone(figure))
