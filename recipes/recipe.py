"""A corpus on a disk to a table of runs, stage by stage; the same command goes on where it was stopped.

Run by the run.sh of each recipe. Every command is printed before it runs, in the form in which it can be run by hand
from the project's folder; --dry-run prints them all and runs none.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).resolve().parent.parent
TINY = (
    *("trainer.epochs=1", "trainer.batch_size=4", "trainer.crop_seconds=0.3", "trainer.statistics_crops=8"),
    *("trainer.workers=0", "trainer.device=cpu", "trainer.precision=fp32"),
)
TINY_ECAPA = ("model.channels=16", "model.mfa_channels=24", "model.se_channels=8", "model.attention_channels=8")
TINY_RESNET = ("model.base_channels=4",)

Command = list[str]


@dataclass(frozen=True)
class Recipe:
    """What is a recipe's own.

    Attributes:
        data: The choice of ``data=``.
        experiments: How its experiments in conf/ begin; empty where it has none.
        stages: All that it has, in order; those in ``spare`` run when they are asked for.
        models: By default.
        targets: By default.
        lists: Trial lists of the prepared corpus: runs are judged by the first, the stage ``evaluate`` takes all.
    """

    data: str
    experiments: str
    stages: tuple[str, ...]
    models: tuple[str, ...]
    targets: tuple[str, ...] = ("0", "0.75", "0.9", "0.95", "0.99")
    spare: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


CORPUS = ("prepare", "noise", "train", "lmft", "evaluate", "table")
RECIPES = {
    "voxceleb": Recipe(
        "voxceleb",
        "vox",
        CORPUS,
        ("ecapa", "resnet34"),
        lists=("vox1_O_cleaned", "vox1_E_cleaned", "vox1_H_cleaned"),
    ),
    "cnceleb": Recipe(
        "cnceleb", "cn", CORPUS, ("ecapa", "resnet34"), lists=("cnceleb_average", "cnceleb_concatenated")
    ),
    "demo": Recipe("demo", "", ("train", "lmft", "table"), ("ecapa_512",), spare=("lmft",)),
    "own_data": Recipe("folder", "", ("train", "lmft", "table"), ("ecapa",), ("0", "0.9"), spare=("lmft",)),
}


class Run(NamedTuple):
    """One network of the grid."""

    model: str
    optim: str
    target: str


class Stages:
    """The commands of each stage.

    Args:
        name: Of the recipe.
        chosen: The command line.
    """

    def __init__(self, name: str, chosen: argparse.Namespace) -> None:
        self.name, self.recipe, self.chosen = name, RECIPES[name], chosen
        self.out: Path = chosen.out
        self.prepared = self.out / "prepared"
        self.store = self.out / "noise"
        self.grid = [Run(m, o, t) for m in chosen.models for o in chosen.optims for t in chosen.targets]

    def prepare(self) -> Iterator[Command]:
        """The corpus to a prepared folder."""
        command = ["sv-sparse", "prepare", self.name, "--root", *map(str, self.chosen.root)]
        if self.name == "voxceleb" and self.chosen.lists:
            command += ["--lists", *map(str, self.chosen.lists)]
        flags = ["--flac"] * self.chosen.flac + ["--partial"] * (self.chosen.partial or self.chosen.tiny)
        yield [*command, "--out", str(self.prepared), *flags]

    def noise(self) -> Iterator[Command]:
        """Noise and rooms to a store, for the variant that is augmented."""
        if self.chosen.variant == "strong":
            yield ["sv-sparse", "prepare", "noise", "--root", *map(str, self.chosen.noise), "--out", str(self.store)]

    def train(self) -> Iterator[Command]:
        """Every network of the grid, where it is not finished."""
        for run in self.grid:
            settings = [*self._network(run), *self._method(run), *self._baseline(run)]
            if self.chosen.variant == "strong":
                settings.append(f"augment.store={quoted(self.store)}")
            yield from self._run(self.folder(run), settings + self.chosen.settings)

    def lmft(self) -> Iterator[Command]:
        """Large-margin fine-tuning of every network of the grid."""
        for run in self.grid:
            settings = ["experiment=lmft", f"init_from={quoted(self.folder(run))}", f"model={run.model}"]
            settings += [f"data={self.recipe.data}", *self._method(run)]
            if self.chosen.variant == "strong":  # whose runs hold nobody out, and end at a smaller rate
                settings += ["data.validation_share=0.0", "trainer.lr_factor=0.001"]
            yield from self._run(self.folder(run, "-lmft"), settings + self.chosen.settings)

    def evaluate(self) -> Iterator[Command]:
        """Every finished network on the corpus's lists, and on those of other corpora."""
        lists = [f"{self.prepared}:{name}" for name in self.recipe.lists] + self.chosen.on
        yield ["sv-sparse", "evaluate", *map(str, self._folders()), "--on", *lists]

    def table(self) -> Iterator[Command]:
        """All finished runs in one table."""
        yield ["python", "scripts/compare.py", *map(str, self._folders()), "--out", str(self.out / "table.md")]

    def folder(self, run: Run, ending: str = "") -> Path:
        """Where a run's results are."""
        variant = f"_{self.chosen.variant}" if self.chosen.variant else ""
        return self.out / "runs" / f"{run.model}{variant}_{run.optim}_{run.target}{ending}"

    def _folders(self) -> list[Path]:
        """Of all finished runs; in a dry run, of those that its stages would make."""
        endings = [ending for ending, stage in (("", "train"), ("-lmft", "lmft")) if stage in self.chosen.stages]
        found = [self.folder(run, ending) for run in self.grid for ending in ("", "-lmft")]
        if self.chosen.dry_run:
            return [self.folder(run, ending) for run in self.grid for ending in endings]
        return [folder for folder in found if (folder / "results.json").is_file()]

    def _run(self, folder: Path, settings: Sequence[str]) -> Iterator[Command]:
        """A new run, or the rest of one that was stopped, or nothing where it is finished."""
        if not self.chosen.dry_run and (folder / "results.json").is_file():
            print(f"finished before: {folder}", flush=True)
        elif not self.chosen.dry_run and (folder / "checkpoints" / "last.pt").is_file():
            yield ["python", "train.py", f"resume={quoted(folder)}"]
        else:
            yield ["python", "train.py", f"folder={quoted(folder)}", *settings]

    def _network(self, run: Run) -> list[str]:
        if self.recipe.experiments:
            return [f"experiment={self.recipe.experiments}_{run.model}_{self.chosen.variant}"]
        return [f"model={run.model}", f"data={self.recipe.data}"]

    def _method(self, run: Run) -> list[str]:
        """Target, optimizer and data; LinBreg's dense baseline is SGD with momentum."""
        optim = "sgd" if _is_sgd(run) else run.optim
        settings = [f"optim={optim}", f"target_sparsity={run.target}"]
        if "prepare" in self.recipe.stages:
            settings += [f"data.prepared={quoted(self.prepared)}", f"data.trials={self.recipe.lists[0]}"]
        elif self.name == "own_data":
            lists = ",".join(quoted(path) for path in self.chosen.trials)
            settings += [f"data.root={quoted(self.chosen.root[0])}", f"data.trials=[{lists}]"]
        if self.chosen.tiny:
            settings += [*TINY, *(TINY_RESNET if run.model == "resnet34" else TINY_ECAPA)]
        return settings

    def _baseline(self, run: Run) -> list[str]:
        """The rates of the published dense baselines by SGD."""
        rates = {"paper": ["trainer.final_lr=0.0005"], "strong": ["optim.lr.dense=0.4"]}
        return rates.get(self.chosen.variant, []) if _is_sgd(run) else []


def _is_sgd(run: Run) -> bool:
    return run.optim == "linbreg" and float(run.target) == 0


def quoted(path: Path) -> str:
    """A path as train.py's settings read it, in quotes where it needs them."""
    if re.fullmatch(r"[\w./-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("'", "\\'") + "'"


def parse(name: str, words: Sequence[str]) -> argparse.Namespace:
    """The command line, complete.

    Raises:
        SystemExit: Something is missing or not allowed; said on stderr.
    """
    recipe = RECIPES[name]
    parser = argparse.ArgumentParser(
        prog=f"recipes/{name}/run.sh",
        description=__doc__.split("\n", maxsplit=1)[0],
        epilog="SETTING=VALUE, anywhere, goes to every training run: trainer.epochs=3",
    )
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
    parser.add_argument("--out", type=Path, default=HOME / "runs" / name, help=f"default: runs/{name}")
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
    parser.add_argument("--tiny", action="store_true", help="tiny networks, one epoch: does everything run?")
    parser.add_argument("--dry-run", action="store_true", help="print every command, run none")
    settings = [word for word in words if re.match(r"[a-z_][\w.]*=", word)]
    chosen = parser.parse_args([word for word in words if word not in settings])
    chosen.settings = settings
    return _complete(parser, name, chosen)


def _target(word: str) -> str:
    """A target sparsity, in one spelling."""
    if not 0 <= float(word) < 1:
        raise ValueError
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
    chosen.out = chosen.out.expanduser().absolute()
    return chosen


def execute(command: Command) -> int:
    """Run a command of a recipe in the project's folder."""
    programs = {"python": [sys.executable], "sv-sparse": [sys.executable, "-m", "sv_sparse.cli"]}
    try:
        return subprocess.run([*programs[command[0]], *command[1:]], cwd=HOME, check=False).returncode
    except KeyboardInterrupt:  # it reached the command too, which has saved what it had
        return 130


def main(words: Sequence[str]) -> int:
    """Print and run the commands of the chosen stages; the exit status of the first that fails."""
    name = words[0]
    chosen = parse(name, words[1:])
    stages = Stages(name, chosen)
    for stage in [stage for stage in RECIPES[name].stages if stage in chosen.stages]:
        for command in getattr(stages, stage)():
            print(shlex.join(command), flush=True)
            status = 0 if chosen.dry_run else execute(command)
            if status:
                print(f"error: stage {stage} stopped with status {status}; the same command goes on", file=sys.stderr)
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
