"""All figures of a run."""

from collections.abc import Mapping
from pathlib import Path

from sv_sparse.report.error_figures import error_figures
from sv_sparse.report.figures import layers_figure, training_figures
from sv_sparse.report.record import read_record
from sv_sparse.report.results import Results
from sv_sparse.report.scored import Scored, look_at
from sv_sparse.report.style import Drawn, house_style
from sv_sparse.score_files import read_scores


def draw_run(folder: Path, results: Results) -> list[Drawn]:
    """The figures of a finished run, from its results, rows and scores; each score file is read once.

    Raises:
        OSError: a file of the run folder is missing or cannot be read.
    """
    record, lists = read_record(folder, results), results["evaluations"]
    scored = _scored(folder, lists)
    with house_style():
        return [*error_figures(lists, scored), *training_figures(record), layers_figure(record)]


def _scored(folder: Path, lists: Mapping[str, Results]) -> dict[str, Scored]:
    """What is drawn of each list's scores."""
    return {name: look_at(*read_scores(folder / "scores" / f"{name}.txt"), one["costs"]) for name, one in lists.items()}
