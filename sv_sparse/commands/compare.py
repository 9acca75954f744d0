"""sv-sparse compare: finished runs in one table, with figures."""

import argparse
import sys
from pathlib import Path

from sv_sparse.report.compare import compare_table, write_comparison
from sv_sparse.report.sweep import differences_to_first, read_entries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse compare``."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders; those that are not finished are named and left out",
    )
    parser.add_argument("--list", help="the trial list to compare on; all of each run's if not given")
    parser.add_argument("--out", type=Path, help="a folder to write compare.html, compare.md and compare.csv to")


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse compare``.

    Raises:
        ValueError: no run is finished, or none was judged on the list.
        OSError: something cannot be read or written.
    """
    entries, left_out = read_entries(chosen.runs, chosen.list)
    for line in left_out:
        print(line, file=sys.stderr)
    differences = differences_to_first(entries)
    print(compare_table(entries, differences))
    if chosen.out is not None:
        write_comparison(chosen.out, entries, differences)
