"""All figures of a run."""

import logging

from sv_sparse.evaluation.score_files import read_scores
from sv_sparse.report.figures.errors import error_figures
from sv_sparse.report.figures.score_stats import summarize_scores
from sv_sparse.report.figures.style import FigureFile, report_style
from sv_sparse.report.figures.training import layers_figure, training_figures
from sv_sparse.report.results import RunReport

logger = logging.getLogger(__name__)


def draw_run(report: RunReport) -> dict[str, list[FigureFile]]:
    """Draw the figures of a finished run, by the variables of the templates that show them."""
    evaluations = {}
    summaries = {}
    for result_id, evaluation in report.results["evaluations"].items():
        # Score files are large, and may be removed after the run.
        path = report.run_dir / "scores" / f"{result_id}.txt"
        if not path.is_file():
            logger.warning("%s does not exist: the report has no score figures of %s", path, result_id)
            continue
        scores, is_target = read_scores(path)
        evaluations[result_id] = evaluation
        summaries[result_id] = summarize_scores(scores, is_target, evaluation["dcf"])
    with report_style():
        return {
            "error_figures": error_figures(evaluations, summaries) if evaluations else [],
            "training_figures": training_figures(report),
            "layer_figures": [layers_figure(report)],
        }
