"""What a sparsity costs to find: all runs with a fixed lambda together, against each run that finds it by itself."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sv_sparse.report.sweep import Entry
from sv_sparse.report.tables import Table
from sv_sparse.report.words import percent


class Found(NamedTuple):
    """How near a target was come to, and in what time.

    Attributes:
        network: model and optimizer.
        target: sparsity that was asked for.
        way: by what.
        fixed: whether by runs with a fixed lambda.
        runs: how many.
        minutes: of all of them.
        sparsity: the nearest, before landing.
    """

    network: str
    target: float
    way: str
    fixed: bool
    runs: int
    minutes: float
    sparsity: float

    @property
    def points(self) -> float:
        """Distance to the target, in points of per cent."""
        return 100 * abs(self.sparsity - self.target)


def ways(entries: Sequence[Entry]) -> list[Found]:
    """For each network and target the runs with a fixed lambda together, and each other run; empty without either."""
    runs = list({entry.run: entry for entry in entries if not entry.dense}.values())
    found = []
    for network in dict.fromkeys(map(_network, runs)):
        own = [run for run in runs if _network(run) == network]
        fixed, others = [run for run in own if run.fixed], [run for run in own if not run.fixed]
        if not fixed or not others:
            continue
        for target in sorted({run.results["target_sparsity"] for run in others}):
            at = [run for run in others if run.results["target_sparsity"] == target]
            found.append(_together(network, target, fixed))
            found += [_alone(network, target, run) for run in at]
    return found


def cost_table(found: Sequence[Found]) -> Table:
    """The ways in words."""
    heads = ("network", "target", "by", "runs", "minutes", "nearest before landing", "points from the target")
    rows = [
        (
            *(one.network, percent(one.target), one.way, str(one.runs), f"{one.minutes:.1f}"),
            *(percent(one.sparsity, 3), f"{one.points:.3f}"),
        )
        for one in found
    ]
    return Table("What it costs to reach a target", heads, rows)


def _network(run: Entry) -> str:
    return f"{run.results['training']['model']}, {run.optimizer}"


def _together(network: str, target: float, fixed: Sequence[Entry]) -> Found:
    nearest = min(fixed, key=lambda run: abs(run.results["sparsity_tracked"] - target))
    way = f"fixed λ, the nearest {nearest.results['lambda']:.3g}"
    sparsity = nearest.results["sparsity_tracked"]
    return Found(network, target, way, True, len(fixed), _minutes(fixed), sparsity)


def _alone(network: str, target: float, run: Entry) -> Found:
    sparsity = run.results["sparsity_tracked"]
    return Found(network, target, f"{run.controller}: {run.name}", False, 1, _minutes([run]), sparsity)


def _minutes(runs: Iterable[Entry]) -> float:
    return float(sum(run.results["seconds"] for run in runs)) / 60
