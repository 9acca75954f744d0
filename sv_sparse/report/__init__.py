"""Run folders to results, figures, pages and tables."""

from sv_sparse.report.draw import Drawn, draw_run
from sv_sparse.report.results import collect
from sv_sparse.report.tables import results_table
from sv_sparse.report.write import refresh_report, write_report, write_results

__all__ = ["Drawn", "collect", "draw_run", "refresh_report", "results_table", "write_report", "write_results"]
