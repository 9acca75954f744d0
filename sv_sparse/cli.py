"""The console script: sv-sparse train | prepare | shard | evaluate."""

import argparse
import runpy
import sys
from pathlib import Path

from sv_sparse import commands
from sv_sparse.run import clear_errors


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand; ``sv-sparse train`` takes the same settings as ``python train.py``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:
        _train(arguments[1:])
        return
    chosen = parser().parse_args(arguments)
    with clear_errors():
        chosen.run(chosen)


def parser() -> argparse.ArgumentParser:
    """The command line but for ``train``; each subcommand has its function as ``run``."""
    whole = argparse.ArgumentParser(prog="sv-sparse", description="Sparse speaker verification.")
    listed = whole.add_subparsers(required=True, metavar="COMMAND")
    listed.add_parser("train", help="the same as python train.py; sv-sparse train --help tells more")
    for name, text, add, run in (
        ("prepare", "corpora and noise to what training reads", commands.add_prepare, commands.prepare),
        ("shard", "a prepared corpus to tar files", commands.add_shard, commands.shard),
        ("evaluate", "score trial lists with a trained network", commands.add_evaluate, commands.evaluate),
    ):
        command = listed.add_parser(name, help=text)
        add(command)
        command.set_defaults(run=run)
    return whole


def _train(arguments: list[str]) -> None:
    """Run train.py, which lies in the package in an installed wheel and beside it in a checkout."""
    package = Path(__file__).parent
    home = package if (package / "train.py").is_file() else package.parent
    sys.argv = [str(home / "train.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
