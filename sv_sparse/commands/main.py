"""The console script: ``sv-sparse COMMAND``; ``sv-sparse --help`` lists the commands."""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from sv_sparse import __version__, signals
from sv_sparse.commands.help_format import HelpFormatter, format_epilog
from sv_sparse.io import harden_output, install_command


class Command(NamedTuple):
    """Command whose module, of the same name, has ``add_arguments`` and ``main``.

    ``main`` raises ValueError for an argument or file that is not as expected, and OSError for one that cannot be
    read or written; messages name it. Both become one line on stderr and exit status 2.
    """

    # One sentence without its period.
    help: str
    # What follows "sv-sparse COMMAND"; "|" separates alternatives.
    usage: str = ""
    # Command lines, which a test parses.
    examples: tuple[str, ...] = ()
    needs_train_extra: bool = False


COMMANDS = {
    "train": Command(
        # config.help has its usage and examples.
        "Train a network to a target sparsity",
        needs_train_extra=True,
    ),
    "prepare": Command(
        "Prepare corpora and noise for training",
        "SUBCOMMAND ...",
        (
            "sv-sparse prepare voxceleb --root PATH --lists PATH --out PREPARED",
            "sv-sparse prepare noise --root MUSAN RIRS_NOISES --out STORE",
        ),
        needs_train_extra=True,
    ),
    "shard": Command(
        "Write a prepared corpus as tar files, for network disks",
        "PREPARED --out SHARDS [options]",
        (
            "sv-sparse shard PREPARED --out SHARDS",
            "sv-sparse shard PREPARED --out SHARDS --utts-per-shard 4096",
        ),
        needs_train_extra=True,
    ),
    "evaluate": Command(
        "Score trial lists with a trained network",
        "RUN [RUN ...] [options]",
        (
            "sv-sparse evaluate RUN",
            "sv-sparse evaluate RUN --trial-sets PREPARED:voxceleb1-o,e,h",
            "sv-sparse evaluate RUN --audio-root PATH --trials FILE --score-norm as_norm --top-n 300",
        ),
        needs_train_extra=True,
    ),
    "compare": Command(
        "Compare finished runs, in one table for each trial list",
        "RUN [RUN ...] [options]",
        ("sv-sparse compare RUN RUN", "sv-sparse compare RUN RUN --out FOLDER"),
        needs_train_extra=True,
    ),
    "export": Command(
        "Write a trained network to one file for use",
        "RUN --output FILE [options]",
        (
            "sv-sparse export RUN --output model.safetensors",
            "sv-sparse export RUN --output model.safetensors --dtype bf16 --license CC-BY-4.0",
            "sv-sparse export RUN --output model.onnx --int8",
        ),
        needs_train_extra=True,
    ),
    "verify": Command(
        "Decide whether two recordings are of the same speaker",
        "ENROLLMENT TEST [options]",
        (
            "sv-sparse verify a.wav b.wav --model model.safetensors",
            "sv-sparse verify a.wav b.wav --target-far 0.05 --json",
        ),
    ),
    "enroll": Command(
        "Add recordings of a speaker to the database, list or remove speakers",
        "NAME FILE [FILE ...] [options] | --list [options] | --remove NAME [options]",
        (
            "sv-sparse enroll NAME a.wav b.wav --model model.safetensors",
            "sv-sparse enroll --list",
            "sv-sparse enroll --remove NAME",
        ),
    ),
    "identify": Command(
        "Find the enrolled speaker of a recording",
        "FILE [options]",
        (
            "sv-sparse identify c.wav --model model.safetensors",
            "sv-sparse identify c.wav --top 1 --json",
        ),
    ),
    "embed": Command(
        "Write the embeddings of recordings to a file",
        "PATH [PATH ...] --output FILE [options]",
        (
            "sv-sparse embed a.wav b.wav --output embeddings.npz --model model.safetensors",
            "sv-sparse embed FOLDER --output embeddings.csv",
        ),
    ),
    "serve": Command(
        "Serve a local web page and HTTP interface that compare recordings",
        "[options]",
        (
            "sv-sparse serve --model model.safetensors",
            "sv-sparse serve --port 8080 --allowed-host voice.example",
        ),
    ),
    "autotune": Command(
        "Measure the fastest kernel of each layer on this machine",
        "[options]",
        (
            "sv-sparse autotune --model model.safetensors",
            "sv-sparse autotune --threads 2 --verbose",
        ),
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; ``arguments`` are without the program's name, by default those of this process."""
    harden_output()
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    # Hydra reads the arguments of this one.
    if name == "train":
        with _named_missing_package(arguments):
            module = import_module("sv_sparse.commands.train")
        module.main(arguments[1:])
        return
    if name not in COMMANDS or not COMMANDS[name].needs_train_extra:
        # OpenMP's waiting threads spin by default. Where another program has the cores, that takes the time of those
        # that work: a comparison of 30 ms took up to a second. OpenMP reads this when the command imports torch.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _show_compilation(), _named_missing_package(arguments):
        args = _parse(arguments)
        with signals.report_errors():
            args.main(args)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; what is unknown is refused with the usage of its command and the nearest name."""
    parser = build_parser(arguments)
    if not arguments:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    name = arguments[0]
    if name not in COMMANDS and not name.startswith("-"):
        parser.error(f"unknown command {name!r}; the commands are {', '.join(COMMANDS)}{_suggestion(name, COMMANDS)}")
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        # argparse would print the usage of all commands.
        subparser = subparsers_of(parser)[name]
        options = [option for action in subparser._actions for option in action.option_strings]
        subparser.error(f"unrecognized arguments: {' '.join(unknown)}{_suggestion(unknown[0], options)}")
    return args


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a parser's commands by name; none where it has no commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _suggestion(word: str, valid: Iterable[str]) -> str:
    near = get_close_matches(word.partition("=")[0], list(valid), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def build_parser(arguments: list[str]) -> argparse.ArgumentParser:
    """Return the parser of all commands; only that of ``arguments[0]`` has its own arguments.

    Settings of ``train`` are no arguments of a parser: ``config.help.format_help`` describes them.
    """
    with_train_extra = [name for name, command in COMMANDS.items() if command.needs_train_extra]
    parser = argparse.ArgumentParser(
        prog="sv-sparse",
        usage="sv-sparse [--version] COMMAND ...",
        description="Train, evaluate and run sparse speaker-verification networks.",
        epilog="Run sv-sparse COMMAND --help for the arguments and examples of a command. "
        f"The extra train is needed by {', '.join(with_train_extra)}.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sv-sparse {__version__}", help="print the version")
    subparsers = parser.add_subparsers(
        # Otherwise argparse takes the usage line for the program's name.
        prog=parser.prog,
        required=True,
        metavar="COMMAND",
        title="commands",
    )
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.help,
            usage="\n       ".join(f"sv-sparse {name} {words.strip()}" for words in command.usage.split("|")),
            description=f"{command.help}.",
            formatter_class=HelpFormatter,
        )
        # Other modules are not imported: torch alone takes seconds. Hydra reads the arguments of train.
        if arguments[:1] == [name] and name != "train":
            module = import_module(f"sv_sparse.commands.{name}")
            module.add_arguments(subparser)
            subparser.set_defaults(main=module.main)
        subparser.epilog = format_epilog(subparser.epilog, command.examples)
    return parser


@contextmanager
def _show_compilation() -> Iterator[None]:
    """Let the first command on a machine say on stderr that it compiles kernels, which takes many seconds."""
    compiler = logging.getLogger("sv_sparse.optim.cpp.compiler")
    compiler.setLevel(logging.INFO)
    # Not the root logger: each command configures its own log.
    handler = logging.StreamHandler()
    compiler.addHandler(handler)
    try:
        yield
    finally:
        compiler.removeHandler(handler)


@contextmanager
def _named_missing_package(arguments: list[str]) -> Iterator[None]:
    """Say in one line that a command needs a package which a light installation does not have; help is printed."""
    name = arguments[0] if arguments else ""
    try:
        yield
    except ModuleNotFoundError as error:
        is_missing_extra = error.name is not None and error.name.partition(".")[0] != "sv_sparse"
        if not is_missing_extra or name not in COMMANDS or not COMMANDS[name].needs_train_extra:
            raise
        need = f"sv-sparse {name} needs {error.name}: {install_command('train')}"
        if {"-h", "--help"} & set(arguments):
            # Without its arguments, since they are in the module that cannot be imported.
            subparsers_of(build_parser([]))[name].print_help()
            print(f"\n{need}")
            raise SystemExit(0) from None
        print(f"error: {need}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
