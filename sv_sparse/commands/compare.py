"""Command ``sv-sparse compare``: finished runs in one table, with figures."""

import argparse
import sys
from pathlib import Path

from sv_sparse.report.compare import add_eer_differences, compare_text, read_run_results, write_comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse compare``."""
    runs_help = "run folders; unfinished ones are named and left out"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=runs_help)
    parser.add_argument("--list", metavar="ID", help="trial list to compare on (default: all lists of each run)")
    out_help = "folder for compare.html, compare.md, compare.csv and figures"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=out_help)


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse compare``."""
    results, messages = read_run_results(args.runs, args.list)
    # On stderr, so that the tables alone can be piped.
    for message in messages:
        print(message, file=sys.stderr)
    add_eer_differences(results)
    print(compare_text(results))
    if args.out is not None:
        write_comparison(args.out, results)
