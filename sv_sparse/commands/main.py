"""The console script: ``sv-sparse COMMAND``; ``sv-sparse --help`` lists the commands."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

from sv_sparse import __version__, signals
from sv_sparse.io import harden_output, install_command


class Command(NamedTuple):
    """Command whose module, of the same name, has ``add_arguments`` and ``main``.

    ``main`` raises ValueError for an argument or file that is not as expected, and OSError for one that cannot be
    read or written; messages name it. Both become one line on stderr and exit status 2.
    """

    help: str
    needs_train_extra: bool = False


COMMANDS = {
    "train": Command("train a network to a target sparsity", needs_train_extra=True),
    "prepare": Command("turn corpora and noise into what training reads", needs_train_extra=True),
    "shard": Command("write a prepared corpus as tar files", needs_train_extra=True),
    "evaluate": Command("score trial lists with a trained network", needs_train_extra=True),
    "compare": Command("finished runs in one table, with figures", needs_train_extra=True),
    "export": Command("write a trained network to one file for use", needs_train_extra=True),
    "autotune": Command("measure how a model is computed fastest on this machine"),
    "embed": Command("recordings to embeddings"),
    "verify": Command("tell whether two recordings are of one speaker"),
    "enroll": Command("add recordings of a speaker to the database"),
    "identify": Command("tell which speaker of the database a recording is of"),
    "serve": Command("compare recordings on a local web page"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; ``arguments`` are without the program's name, by default those of this process."""
    harden_output()
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    # Hydra reads the arguments of this one.
    if name == "train":
        with _named_missing_package(name):
            module = import_module("sv_sparse.commands.train")
        module.main(arguments[1:])
        return
    if name not in COMMANDS or not COMMANDS[name].needs_train_extra:
        # OpenMP's waiting threads spin by default. Where another program has the cores, that takes the time of those
        # that work: a comparison of 30 ms took up to a second. OpenMP reads this when the command imports torch.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _named_missing_package(name):
        args = build_parser(arguments).parse_args(arguments)
        with signals.report_errors():
            args.main(args)


def build_parser(arguments: list[str]) -> argparse.ArgumentParser:
    """Return the parser of all commands; only that of ``arguments[0]`` has its own arguments."""
    parser = argparse.ArgumentParser(prog="sv-sparse", description="Sparse speaker verification.")
    parser.add_argument("--version", action="version", version=f"sv-sparse {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help)
        # Other modules are not imported: torch alone takes seconds.
        if arguments[:1] == [name]:
            module = import_module(f"sv_sparse.commands.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(main=module.main)
    return parser


@contextmanager
def _named_missing_package(name: str) -> Iterator[None]:
    """Say in one line that a command needs a package which a light installation does not have."""
    try:
        yield
    except ModuleNotFoundError as error:
        is_missing_extra = error.name is not None and error.name.partition(".")[0] != "sv_sparse"
        if not is_missing_extra or name not in COMMANDS or not COMMANDS[name].needs_train_extra:
            raise
        print(f"error: sv-sparse {name} needs {error.name}: {install_command('train')}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
