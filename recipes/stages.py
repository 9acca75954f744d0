"""The commands of each stage of a recipe: what a person would type, as lists of words."""

import json
import re
import shlex
import sys
from argparse import Namespace
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
TINY_RESNET = ("model.base_channels=16",)

# What a setting may begin with that is for training and not for fine-tuning, which has conf/experiment/lmft.yaml.
SCHEDULE = (
    *("trainer.epochs", "trainer.batch_size", "trainer.crop_seconds", "trainer.warmup", "trainer.final_lr", "augment"),
    *("trainer.lr_factor", "trainer.margin", "head.margin", "optim.lr"),
)

PASSED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # by torchrun by itself, and an early warning of schedulers

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

    def __init__(self, name: str, chosen: Namespace) -> None:
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
        if self.chosen.variant == "strong" and (self.chosen.dry_run or not (self.store / "index.parquet").is_file()):
            yield ["sv-sparse", "prepare", "noise", "--root", *map(str, self.chosen.noise), "--out", str(self.store)]

    def train(self) -> Iterator[Command]:
        """Every network of the grid, where it is not finished."""
        for run in self.grid:
            settings = [*self._network(run), *self._method(run), *self._baseline(run)]
            if self.chosen.variant == "strong":
                settings.append(f"augment.store={quoted(self.store)}")
            yield from self._run(self.folder(run), settings + [*TINY] * self.chosen.tiny + self.chosen.settings)

    def lmft(self) -> Iterator[Command]:
        """Large-margin fine-tuning of every network of the grid."""
        for run in self.grid:
            settings = ["experiment=lmft", f"init_from={quoted(self.folder(run))}"]
            settings.append(f"optim={_optim(run)}")  # at its own rates, also where a baseline's were others
            if self.chosen.variant == "strong":  # whose runs end at a smaller rate
                settings.append("trainer.lr_factor=0.001")
            if self.chosen.variant:
                settings.append("trainer.statistics_crops=8192")
            if self.chosen.variant == "paper":
                settings.append("trainer.precision=fp32")
            if self.chosen.tiny:
                settings += TINY
            own = [word for word in self.chosen.settings if not word.startswith(SCHEDULE)]
            yield from self._run(self.folder(run, "-lmft"), settings + own)

    def evaluate(self) -> Iterator[Command]:
        """Every finished network on the corpus's lists, and on those of other corpora."""
        there = [name for name in self.recipe.lists if self.chosen.dry_run or self._has_list(name)]
        lists = [f"{self.prepared}:{name}" for name in there] + self.chosen.on
        names = {name for word in lists for name in word.rpartition(":")[2].split(",")}
        folders = [folder for folder in self._folders() if not names <= _judged_by(folder)]
        if folders and lists:
            yield ["sv-sparse", "evaluate", *map(str, folders), "--trial-sets", *lists]

    def table(self) -> Iterator[Command]:
        """All finished runs in one table, those of other choices too."""
        folders = self._folders()
        if not self.chosen.dry_run:
            folders = sorted(file.parent for file in (self.out / "runs").glob("*/results.json"))
        if folders:
            yield ["python", script("scripts/compare.py"), *map(str, folders), "--out", str(self.out / "table")]
        else:
            print("no run is finished yet", file=sys.stderr)

    def folder(self, run: Run, ending: str = "") -> Path:
        """Where a run's results are."""
        variant = f"_{self.chosen.variant}" if self.chosen.variant else ""
        return self.out / "runs" / f"{run.model}{variant}_{run.optim}_{run.target}{ending}"

    def _has_list(self, name: str) -> bool:
        return any((self.prepared / "trials" / f"{name}{ending}").is_file() for ending in (".txt", ".parquet"))

    def _folders(self) -> list[Path]:
        """Of all finished runs; in a dry run, of those that its stages would make."""
        endings = [ending for ending, stage in (("", "train"), ("-lmft", "lmft")) if stage in self.chosen.stages]
        found = [self.folder(run, ending) for run in self.grid for ending in ("", "-lmft")]
        if self.chosen.dry_run and endings:
            return [self.folder(run, ending) for run in self.grid for ending in endings]
        return [folder for folder in found if self.chosen.dry_run or (folder / "results.json").is_file()]

    def _run(self, folder: Path, settings: Sequence[str]) -> Iterator[Command]:
        """A new run, or the rest of one that was stopped, or nothing where it is finished."""
        words = training(folder, settings, pretend=self.chosen.dry_run)
        if words:
            yield [*self._trainer(), *words]
        else:
            print(f"finished before: {folder}", flush=True)

    def _trainer(self) -> Command:
        """What trains, in as many processes as were chosen."""
        count = self.chosen.processes
        together = ["torchrun", "--standalone", f"--nproc-per-node={count}", f"--signals-to-handle={PASSED_ON}"]
        return [*(together if count > 1 else ["python"]), script("train.py")]

    def _network(self, run: Run) -> list[str]:
        if self.recipe.experiments:
            return [f"experiment={self.recipe.experiments}_{run.model}_{self.chosen.variant}"]
        return [f"model={run.model}", f"data={self.recipe.data}"]

    def _method(self, run: Run) -> list[str]:
        """Target, optimizer and data; LinBreg's dense baseline is SGD with momentum."""
        settings = [f"optim={_optim(run)}", f"target_sparsity={run.target}"]
        if "prepare" in self.recipe.stages:
            settings += [f"data.prepared={quoted(self.prepared)}", f"data.trials={self.recipe.lists[0]}"]
        elif self.name == "own_data":
            lists = ",".join(quoted(path) for path in self.chosen.trials)
            settings += [f"data.root={quoted(self.chosen.root[0])}", f"data.trials=[{lists}]"]
        if self.chosen.tiny:
            settings += TINY_RESNET if run.model == "resnet34" else TINY_ECAPA
        return settings

    def _baseline(self, run: Run) -> list[str]:
        """The rates of the published dense baselines by SGD."""
        rates = {"paper": ["trainer.final_lr=0.0005"], "strong": ["optim.lr.dense=0.4"]}
        return rates.get(self.chosen.variant, []) if _is_sgd(run) else []


def script(name: str) -> str:
    """A program of the project, as it is called from here."""
    return name if Path.cwd() == HOME else str(HOME / name)


def _judged_by(folder: Path) -> set[str]:
    """The lists that a run has been evaluated on since it was finished."""
    path = folder / "evaluations.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {one["name"] for one in found.values()}


def training(folder: Path, settings: Sequence[str], *, pretend: bool = False) -> list[str]:
    """What train.py is told for a new run, or for the rest of one that was stopped; nothing where it is finished.

    Args:
        folder: Of the run.
        settings: Of the run, but for its folder.
        pretend: As if nothing was there yet.

    Raises:
        ValueError: The run was begun with other settings.
    """
    words = [f"folder={quoted(folder)}", *settings]
    if pretend or not (folder / "checkpoints" / "last.pt").is_file():
        return words
    _refuse_others(folder, words)
    return [] if (folder / "results.json").is_file() else [f"resume={quoted(folder)}"]


def _refuse_others(folder: Path, words: Sequence[str]) -> None:
    """Raise a ValueError if a run was begun with other settings than would be given now."""
    began = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["command"]
    before = shlex.split(began)[2:]
    if set(before) != set(words):
        gone = " ".join(word for word in before if word not in words)
        new = " ".join(word for word in words if word not in before)
        raise ValueError(
            f"{folder} was begun with {gone or 'fewer settings'}, where it would be {new or 'without'} now; "
            f"give --out another folder, or remove that one"
        )


def _is_sgd(run: Run) -> bool:
    return run.optim == "linbreg" and float(run.target) == 0


def _optim(run: Run) -> str:
    return "sgd" if _is_sgd(run) else run.optim


def quoted(path: Path) -> str:
    """A path as train.py's settings read it, in quotes where it needs them."""
    if re.fullmatch(r"[\w./-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("'", "\\'") + "'"
