"""The console script: sv-sparse train | prepare | shard | evaluate | compare."""

import argparse
import runpy
import sys
from importlib import import_module
from pathlib import Path

from sv_sparse.interrupts import clear_errors

COMMANDS = {  # modules of sv_sparse.commands, of which only the one at hand is loaded
    "prepare": "corpora and noise to what training reads",
    "shard": "a prepared corpus to tar files",
    "evaluate": "score trial lists with a trained network",
    "compare": "finished runs in one table, with figures",
}


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand; ``sv-sparse train`` takes the same settings as ``python train.py``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:
        _train(arguments[1:])
        return
    chosen = parser(arguments).parse_args(arguments)
    with clear_errors():
        chosen.run(chosen)


def parser(arguments: list[str]) -> argparse.ArgumentParser:
    """What reads a command line other than ``train``'s; the subcommand that it names has its function as ``run``."""
    whole = argparse.ArgumentParser(prog="sv-sparse", description="Sparse speaker verification.")
    listed = whole.add_subparsers(required=True, metavar="COMMAND")
    listed.add_parser("train", help="the same as python train.py; sv-sparse train --help tells more")
    for name, text in COMMANDS.items():
        command = listed.add_parser(name, help=text)
        if arguments[:1] == [name]:
            module = import_module(f"sv_sparse.commands.{name}")
            module.add(command)
            command.set_defaults(run=module.run)
    return whole


def _train(arguments: list[str]) -> None:
    """Run train.py, which lies in the package in an installed wheel and beside it in a checkout."""
    package = Path(__file__).parent
    home = package if (package / "train.py").is_file() else package.parent
    sys.argv = [str(home / "train.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
