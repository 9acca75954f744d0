"""All figures of a run."""

import logging
from collections.abc import Mapping
from pathlib import Path

from sv_sparse.evaluation.score_files import read_scores
from sv_sparse.report.error_figures import error_figures
from sv_sparse.report.figures import layers_figure, training_figures
from sv_sparse.report.record import read_record
from sv_sparse.report.results import Results
from sv_sparse.report.scored import Scored, look_at
from sv_sparse.report.style import Drawn, house_style

logger = logging.getLogger(__name__)


def draw_run(folder: Path, results: Results) -> list[Drawn]:
    """The figures of a finished run, from its results, rows and scores; each score file is read once.

    Raises:
        OSError: a file of the run folder, other than scores, is missing or cannot be read.
    """
    record, lists = read_record(folder, results), results["evaluations"]
    scored = _scored(folder, lists)
    drawable = {name: one for name, one in lists.items() if name in scored}
    with house_style():
        errors = error_figures(drawable, scored) if drawable else []
        return [*errors, *training_figures(record), layers_figure(record)]


def _scored(folder: Path, lists: Mapping[str, Results]) -> dict[str, Scored]:
    """What is drawn of each list's scores, where they are still there."""
    files = {name: folder / "scores" / f"{name}.txt" for name in lists}
    for name, file in files.items():
        if not file.is_file():
            logger.warning("%s is not there any more: the report has no curves of %s", file, name)
    return {name: look_at(*read_scores(file), lists[name]["dcf"]) for name, file in files.items() if file.is_file()}
