"""The console script: ``sv-sparse COMMAND``; ``sv-sparse --help`` lists the commands."""

import argparse
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from sv_sparse import signals as interrupts
from sv_sparse.io import harden_output, install_command


class Command(NamedTuple):
    """A module of sv_sparse.commands, of which only the one at hand is loaded.

    Attributes:
        text: what it does.
        trains: whether it needs what only the extra ``train`` brings.
    """

    text: str
    trains: bool = False


COMMANDS = {
    "prepare": Command("corpora and noise to what training reads", trains=True),
    "shard": Command("a prepared corpus to tar files", trains=True),
    "evaluate": Command("score trial lists with a trained network", trains=True),
    "compare": Command("finished runs in one table, with figures", trains=True),
    "export": Command("a trained network to one file for use", trains=True),
    "autotune": Command("measure how a model is computed fastest on this machine"),
    "embed": Command("recordings to embeddings"),
    "verify": Command("whether two recordings are of one speaker"),
    "enroll": Command("recordings of a speaker to the store"),
    "identify": Command("which speaker of the store a recording is of"),
    "serve": Command("compare recordings on a local web page"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand; ``sv-sparse train`` takes the same settings as ``python train.py``."""
    harden_output()
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    if name == "train":
        with _train_extra(name):
            _train(arguments[1:])
    elif name in COMMANDS and COMMANDS[name].trains:
        with _train_extra(name):
            _run(arguments, import_module("sv_sparse.training.errors").clear_errors)
    else:
        # Threads that wait spin by default. Where another program has the cores, that takes the time of those that
        # work: a comparison of 30 ms was up to a second. OpenMP reads this when torch is loaded, with the command.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        _run(arguments, interrupts.clear_errors)


def _run(arguments: list[str], clear_errors: Callable[[], AbstractContextManager[None]]) -> None:
    chosen = parser(arguments).parse_args(arguments)
    with clear_errors():
        chosen.main(chosen)


@contextmanager
def _train_extra(name: str) -> Iterator[None]:
    """Say in one line that a command needs packages which a light installation does not have."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "sv_sparse":
            raise
        print(f"error: sv-sparse {name} needs {error.name}: {install_command('train')}", file=sys.stderr)
        raise SystemExit(2) from None


def parser(arguments: list[str]) -> argparse.ArgumentParser:
    """What reads a command line other than ``train``'s; the subcommand that it names has its function as ``main``."""
    whole = argparse.ArgumentParser(prog="sv-sparse", description="Sparse speaker verification.")
    listed = whole.add_subparsers(required=True, metavar="COMMAND")
    listed.add_parser("train", help="the same as python train.py; sv-sparse train --help tells more")
    for name, about in COMMANDS.items():
        command = listed.add_parser(name, help=about.text)
        if arguments[:1] == [name]:
            module = import_module(f"sv_sparse.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(main=module.main)
    return whole


def _train(arguments: list[str]) -> None:
    """Run train.py, which lies in the package in an installed wheel and beside it in a checkout."""
    package = Path(__file__).parents[1]
    home = package if (package / "train.py").is_file() else package.parent
    sys.argv = [str(home / "train.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
