"""A corpus on a disk to a table of runs, stage by stage; the same command goes on where it was stopped.

Run by the run.sh of each recipe. Every command is printed before it runs, in the form in which it can be run by hand
from the same folder; --dry-run prints them all and runs none.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from stages import HOME, RECIPES, Command, Stages

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # as a run's; without its imports, a dry run needs none
STOP_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def parse(name: str, words: Sequence[str]) -> argparse.Namespace:
    """The command line, complete.

    Raises:
        SystemExit: Something is missing or not allowed; said on stderr.
    """
    parser = argparse.ArgumentParser(
        prog=f"recipes/{name}/run.sh",
        description=__doc__.split("\n", maxsplit=1)[0],
        epilog="SETTING=VALUE, anywhere, goes to every training run, and but for its schedule to fine-tuning: seed=1",
    )
    _add_options(parser, name)
    settings = [word for word in words if re.match(r"[a-z_][\w.]*=", word)]
    chosen = parser.parse_args([word for word in words if word not in settings])
    chosen.settings = settings
    return _complete(parser, name, chosen)


def _add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """What can be chosen of a recipe."""
    recipe = RECIPES[name]
    corpus = "prepare" in recipe.stages
    if corpus or name == "own_data":
        parser.add_argument("--root", type=Path, nargs="+" if corpus else 1, help="where the recordings are")
    if name == "own_data":
        parser.add_argument("--trials", type=Path, nargs="+", help="trial lists, label enrolment test")
    if name == "voxceleb":
        parser.add_argument("--lists", type=Path, nargs="+", default=[], help="trial lists, or folders of them")
    if corpus:
        parser.add_argument("--noise", type=Path, nargs="+", help="MUSAN and RIRS_NOISES, for --variant strong")
        parser.add_argument("--variant", choices=["paper", "strong"], default="paper", help="default: paper")
        parser.add_argument("--on", nargs="+", default=[], metavar="PREPARED:LIST", help="lists of other corpora")
        parser.add_argument("--flac", action="store_true", help="convert everything to FLAC")
        parser.add_argument("--partial", action="store_true", help="accept a part of the corpus")
    else:
        parser.set_defaults(variant="", on=[], partial=False)
    parser.add_argument("--out", type=Path, default=Path("runs", name), help=f"default: runs/{name}")
    usual = [stage for stage in recipe.stages if stage not in recipe.spare]
    for option, choices, default in (
        ("stages", recipe.stages, usual),
        ("models", None, recipe.models),
        ("optims", ("adabreg", "linbreg"), ("adabreg", "linbreg") if corpus else ("adabreg",)),
        ("targets", None, recipe.targets),
    ):
        parser.add_argument(
            f"--{option}",
            nargs="+",
            choices=choices,
            type=_target if option == "targets" else str,
            default=list(default),
            metavar=option[:-1].upper(),
            help=f"default: {' '.join(default)}",
        )
    parser.add_argument(
        "--processes", type=_count, default=1, help="processes that train a network together, one per GPU; default: 1"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny networks, one epoch: does everything run?")
    parser.add_argument("--dry-run", action="store_true", help="print every command, run none")


def _count(word: str) -> int:
    """A number of processes."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {word}")
    return int(word)


def _target(word: str) -> str:
    """A target sparsity, in one spelling."""
    if not 0 <= float(word) < 1:
        raise argparse.ArgumentTypeError(f"expected from 0 to below 1, got {word}")
    return f"{float(word):g}"


def _complete(parser: argparse.ArgumentParser, name: str, chosen: argparse.Namespace) -> argparse.Namespace:
    """Paths made absolute; what is needed and missing is refused, or has its name for a value in a dry run."""
    needed = {"own_data": ["root", "trials"], "demo": []}.get(name, ["root"] if "prepare" in chosen.stages else [])
    needed = needed + (["noise"] if chosen.variant == "strong" and "noise" in chosen.stages else [])
    for option in needed:
        if getattr(chosen, option) is None and not chosen.dry_run:
            parser.error(f"--{option} is needed")
        setattr(chosen, option, getattr(chosen, option) or [Path(option.upper())])
    for option in ("root", "trials", "lists", "noise"):
        paths = getattr(chosen, option, None) or []
        setattr(chosen, option, [path.expanduser().absolute() for path in paths])
    for word in [] if chosen.dry_run else chosen.on:
        folder, _, list_name = word.rpartition(":")
        if not any(Path(folder, "trials", list_name + ending).is_file() for ending in (".txt", ".parquet")):
            parser.error(f"--on {word}: there is no such list in {folder or 'any folder'}/trials")
    chosen.out = chosen.out.expanduser().absolute() / ("tiny" if chosen.tiny else "")
    experiments = RECIPES[name].experiments
    kind, pattern = ("experiment", f"{experiments}_{{}}_{chosen.variant}") if experiments else ("model", "{}")
    for model in chosen.models:
        if not (HOME / "conf" / kind / f"{pattern.format(model)}.yaml").is_file():
            parser.error(f"--models {model}: there is no conf/{kind}/{pattern.format(model)}.yaml")
    return chosen


def execute(command: Command) -> int:
    """Run a command of a recipe to its end; a request to stop is the command's, which saves what it has first.

    Returns:
        Its exit status; 128 + the signal where it was asked to stop and had just finished, or cannot tell: torchrun.
    """
    programs = {
        "python": [],
        "sv-sparse": ["-m", "sv_sparse.commands.main"],
        "torchrun": ["-m", "torch.distributed.run"],
    }
    came: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if number != signal.SIGINT:  # Ctrl-C reaches the command by itself
            process.send_signal(number)

    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "100"} | os.environ  # seconds for a checkpoint, not torch's 30
    with subprocess.Popen([sys.executable, *programs[command[0]], *command[1:]], env=environment) as process:
        before = {each: signal.signal(each, pass_on) for each in STOP_SIGNALS}
        status = process.wait()
        for each, handler in before.items():
            signal.signal(each, handler)
    untold = status == 0 or (command[0] == "torchrun" and status == 1)
    return 128 + came[-1] if came and untold else status


def main(words: Sequence[str]) -> int:
    """Print and run the commands of the chosen stages; the exit status of the first that fails."""
    name = words[0]
    chosen = parse(name, words[1:])
    stages = Stages(name, chosen)
    for stage in [stage for stage in RECIPES[name].stages if stage in chosen.stages]:
        try:
            for command in getattr(stages, stage)():
                print(shlex.join(command), flush=True)
                status = 0 if chosen.dry_run else execute(command)
                if status:
                    stopped = status in {code for each in STOP_SIGNALS for code in (-each, 128 + each)}
                    later = "; the same command goes on" if stopped else ""
                    print(f"error: stage {stage} ended with status {status}{later}", file=sys.stderr)
                    return status
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
