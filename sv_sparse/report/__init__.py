"""Reports on finished runs: results.json, tables, figures and pages."""

from sv_sparse.report.html import refresh_report, write_report, write_results
from sv_sparse.report.results import build_results

__all__ = ["build_results", "refresh_report", "write_report", "write_results"]
