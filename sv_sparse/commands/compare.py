"""Command ``sv-sparse compare``: finished runs in one table, with figures."""

import argparse
import sys
from pathlib import Path

from sv_sparse.report.compare import add_eer_differences, compare_table, read_run_results, write_comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders; unfinished ones are named and left out"
    )
    parser.add_argument("--list", metavar="ID", help="trial list to compare on (default: all lists of each run)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write compare.html, compare.md and compare.csv here"
    )


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ValueError: no run is finished, or none was evaluated on the list.
        OSError: a file cannot be read or written.
    """
    results, messages = read_run_results(args.runs, args.list)
    for message in messages:
        print(message, file=sys.stderr)
    add_eer_differences(results)
    print(compare_table(results))
    if args.out is not None:
        write_comparison(args.out, results)
