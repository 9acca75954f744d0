"""Finished cells as tables and figures read them: runs of one cell and several seeds together."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evidence.plan import Cell
from sv_sparse.config.settings import flat, read_settings
from sv_sparse.evaluation.score_files import bootstrap_eers
from sv_sparse.report.record import judged_lists
from sv_sparse.scoring.bootstrap import Interval, interval
from sv_sparse.training.logging import read_rows

BAND = 0.005  # of the sparsity around its target: half a point
_OWN = ("seed", "data.validation_seed", "folder", "name", "init_from", "optim.lambda_")


@dataclass(frozen=True)
class Run:
    """A finished cell."""

    folder: Path

    @cached_property
    def results(self) -> dict[str, Any]:
        """As in results.json."""
        found: dict[str, Any] = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def lists(self) -> dict[str, Any]:
        """Every list that it was judged by, by name."""
        return judged_lists(self.folder, self.results)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of metrics.jsonl."""
        return read_rows(self.folder / "metrics.jsonl")

    def path(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps, and the sparsity after each, of those that were logged."""
        logged = [(row["step"], row["sparsity/trained"]) for row in self.rows if "loss" in row]
        steps, sparsity = zip(*logged, strict=True)
        return np.array(steps), np.array(sparsity)

    def epochs(self) -> list[tuple[int, int, float, float]]:
        """Epoch, step, EER of held-out speakers and sparsity, after each epoch."""
        own = [row for row in self.rows if "validation_eer" in row and "epoch" in row]
        return [(row["epoch"], row["step"], row["validation_eer"], row["sparsity"]) for row in own]

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return int(self.results["training"]["steps"])

    @property
    def gap(self) -> float:
        """Sparsity before landing less its target, in points of per cent."""
        return 100 * float(self.results["sparsity_before_landing"] - self.results["target_sparsity"])

    def entered(self) -> tuple[int | None, int | None]:
        """The first logged step inside the band around the target, and that from which on it was never left."""
        steps, sparsity = self.path()
        inside = np.abs(sparsity - self.results["target_sparsity"]) <= BAND
        if not inside.any():
            return None, None
        outside = np.flatnonzero(~inside)
        after = int(outside[-1]) + 1 if len(outside) else 0
        return int(steps[inside.argmax()]), int(steps[after]) if after < len(steps) else None

    @cache  # noqa: B019 (a handful of runs, as long as the program)
    def draws(self, name: str) -> NDArray[np.float64] | None:
        """EERs of draws of other speakers, on a list."""
        return bootstrap_eers(self.folder / "scores" / f"{name}.txt")


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed; their error rates are averaged."""

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return [int(run.results["seed"]) for run in self.runs]

    def of(self, seeds: Sequence[int]) -> "Group":
        """Its runs of these seeds alone."""
        return Group(self.name, tuple(run for run in self.runs if run.results["seed"] in seeds))

    def judged(self, name: str) -> bool:
        """Whether every run was judged by a list."""
        return all(name in run.lists for run in self.runs)

    def eers(self, name: str) -> list[float]:
        """EER of each run on a list."""
        return [float(run.lists[name]["eer"]) for run in self.runs]

    def eer(self, name: str) -> float:
        """Mean EER on a list."""
        return float(np.mean(self.eers(name)))

    def untrained_eer(self, name: str) -> float | None:
        """Mean EER on a list before training; None where it is not known."""
        found = [run.lists[name].get("untrained_eer") for run in self.runs]
        return None if None in found else float(np.mean(found))

    def draws(self, name: str) -> NDArray[np.float64] | None:
        """Mean EER of the runs, of each draw of speakers."""
        found = [run.draws(name) for run in self.runs]
        known = [each for each in found if each is not None]
        return np.mean(known, axis=0) if len(known) == len(found) else None

    def interval(self, name: str) -> Interval | None:
        """95 % of draws of other speakers; the seeds are those that they are."""
        draws = self.draws(name)
        return interval(draws) if draws is not None else None

    def minus(self, other: "Group", name: str) -> tuple[float, Interval | None] | None:
        """How its mean EER differs from another group's, with the interval of that, over the seeds that both have.

        Returns:
            None where they have no seed in common.

        Raises:
            ValueError: They were judged by different trials.
        """
        common = sorted({*self.seeds} & {*other.seeds})
        if not common:
            return None
        left, right = self.of(common), other.of(common)
        trials = {run.lists[name]["checksum"] for run in (*left.runs, *right.runs)}
        if len(trials) > 1:
            raise ValueError(f"{self.name} and {other.name} were judged by different trials, both in a list {name}")
        own, theirs = left.draws(name), right.draws(name)
        gap = left.eer(name) - right.eer(name)
        return gap, interval(own - theirs) if own is not None and theirs is not None else None

    def mean(self, name: str) -> float:
        """Mean of a figure of results.json."""
        return float(np.mean([run.results[name] for run in self.runs]))


class Finished(Mapping[str, Group]):
    """Groups by the name of their cells without the seed.

    Args:
        folder: Of the runs.
        cells: Of the plan; those that are not finished are left out.
        accepted: What else a run has to be, not to be left out.

    Raises:
        ValueError: Runs of one cell differ in more than the seed.
    """

    def __init__(
        self, folder: Path, cells: Iterable[Cell], accepted: Callable[[Run], bool] = lambda _run: True
    ) -> None:
        runs: dict[str, list[Run]] = {}
        self.missing: list[str] = []
        for cell in dict.fromkeys(cells):
            run = Run(folder / cell.name)
            if (run.folder / "results.json").is_file() and accepted(run):
                runs.setdefault(cell.group, []).append(run)
            else:
                self.missing.append(cell.name)
        self._groups = {name: Group(name, tuple(own)) for name, own in runs.items()}
        for group in self._groups.values():
            _refuse_different(group)

    def __getitem__(self, name: str) -> Group:
        return self._groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def starting(self, *beginnings: str) -> list[Group]:
        """Groups whose names begin in one of these ways."""
        return [group for name, group in self._groups.items() if name.startswith(beginnings)]

    def lists(self) -> list[str]:
        """Trial lists that every run was judged by when it ended."""
        own = [run.results["evaluations"] for run in self.runs()]
        return [name for name in own[0] if all(name in evaluations for evaluations in own)] if own else []

    def runs(self) -> list[Run]:
        """All of them."""
        return [run for group in self._groups.values() for run in group.runs]


def near_target(found: Finished) -> str:
    """How many starts of lambda, and how many fixed lambdas, ended in the band around the target: a sweep's price.

    Starts that were lowered to the same are one.
    """
    words = []
    for beginning in ("start_", "fixed_"):
        runs = [group.runs[0] for group in found.starting(beginning)]
        gaps = {(run.results["lambda"], run.gap): abs(run.gap) for run in runs}
        words.append(f"{sum(gap <= 100 * BAND for gap in gaps.values())} of {len(gaps)}")
    starts, fixed = words
    return f"Within {100 * BAND:g} points of the target end {starts} different starts of feedback, and {fixed} fixed λ."


def _refuse_different(group: Group) -> None:
    first, *others = ((run.folder, _settings(run), _lists(run)) for run in group.runs)
    for folder, settings, lists in others:
        both = settings.keys() & first[1]  # another version may have had fewer
        different = sorted(name for name in both if settings[name] != first[1][name])
        if different or lists != first[2]:
            what = ", ".join(different) or "their trial lists"
            raise ValueError(f"{folder} and {first[0]} should differ in the seed alone, and do in {what}")


def _settings(run: Run) -> dict[str, Any]:
    """By name, but for what has to be different: lambda, too, of those that are told it."""
    found = flat(read_settings(run.folder))
    return {name: value for name, value in found.items() if name not in _OWN}


def _lists(run: Run) -> dict[str, str]:
    return {name: one["checksum"] for name, one in run.results["evaluations"].items()}
