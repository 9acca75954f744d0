"""Finished runs side by side: one entry for each run and list, and what they are as a table."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple


from sv_sparse.evaluation.score_files import eer_difference
from sv_sparse.config.schema import Config, read_config
from sv_sparse.report.record import judged_lists
from sv_sparse.report.tables import Table
from sv_sparse.report.words import ABSENT, count, interval, number, percent, point_name

Differences = Mapping[Path, Mapping[str, tuple[float, float, float]]]  # of EERs by run and list: itself, low, high


@dataclass(frozen=True)
class Entry:
    """A finished run on one list.

    Attributes:
        run: its folder.
        name: of the run, unlike those of the others.
        results: as in results.json.
        config: its settings.
        one: the list, as in ``evaluations``.
    """

    run: Path
    name: str
    results: Mapping[str, Any]
    config: Config
    one: Mapping[str, Any]

    @property
    def dense(self) -> bool:
        """Whether nothing was to be sparse."""
        return not self.results["target_sparsity"]

    @property
    def optimizer(self) -> str:
        """Its class."""
        return str(self.config.optim.name)

    @property
    def controller(self) -> str:
        """Its class, or dense."""
        return "dense" if self.dense else str(self.config.sparsity.controller.name)

    @property
    def fixed(self) -> bool:
        """Whether lambda stayed where it was, so that the sparsity is what that made of it."""
        return self.controller == "fixed"

    @property
    def series(self) -> str:
        """What it is drawn with."""
        word = "fixed λ" if self.fixed else self.controller
        return f"{self.results['training']['model']}, {self.optimizer}, {word}"


class Column(NamedTuple):
    """Of the table, and of its CSV file.

    Attributes:
        head: for people.
        keys: for programs, one for each value.
        values: of an entry.
        words: of those values, for people.
    """

    head: str
    keys: tuple[str, ...]
    values: Callable[[Entry], Sequence[Any]]
    words: Callable[..., str] = str


def read_entries(runs: Sequence[Path], wanted: str | None) -> tuple[list[Entry], list[str]]:
    """An entry for each run and list, and a line on each run that is left out.

    Args:
        runs: run folders.
        wanted: the name of a list; None for all.

    Raises:
        ValueError: none of the runs is finished, or none was judged on the list.
    """
    finished = [run for run in runs if (run / "results.json").is_file()]
    left_out = [f"{run}: not finished, left out" for run in runs if run not in finished]
    if not finished:
        raise ValueError(f"none of these runs is finished: {', '.join(map(str, runs))}")
    found, known = [], dict[str, None]()
    for run, name in zip(finished, _names(finished), strict=True):
        results = json.loads((run / "results.json").read_text(encoding="utf-8"))
        if "size" not in results:
            left_out.append(f"{run}: evaluated by an earlier version, which measured less; left out")
            continue
        config = read_config(run)
        lists = judged_lists(run, results)
        known |= dict.fromkeys(lists)
        chosen = [key for key in lists if wanted in {None, key}]
        found += [Entry(run, name, results, config, lists[key] | {"name": key}) for key in chosen]
        if not chosen:
            left_out.append(f"{run}: not judged on {wanted}, left out; it has {', '.join(lists)}")
    if not known:
        raise ValueError("; ".join(left_out))
    found = _told_apart(found)
    if not found:
        raise ValueError(f"no trial list {wanted!r}; there are {', '.join(known)}")
    return found, left_out


def _told_apart(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, with lists of one name and other trials under names of their own."""
    digests: dict[str, set[str]] = {}
    for entry in entries:
        digests.setdefault(entry.one["name"], set()).add(entry.one["checksum"])
    return [
        replace(entry, one={**entry.one, "name": f"{entry.one['name']} ({entry.one['checksum'][:6]})"})
        if len(digests[entry.one["name"]]) > 1
        else entry
        for entry in entries
    ]


def _names(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [run.resolve().parts for run in runs]
    length = 1
    while len({path[-length:] for path in parts}) < len(set(parts)):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def differences_to_first(entries: Sequence[Entry]) -> Differences:
    """How each run's EER differs from that of the first run, on the lists that both scored."""
    first = entries[0].run
    digests = {entry.one["id"]: entry.one["checksum"] for entry in entries if entry.run == first}
    found: dict[Path, dict[str, tuple[float, float, float]]] = {}
    for entry in entries:
        name = f"{entry.one['id']}.txt"
        ours, theirs = entry.run / "scores" / name, first / "scores" / name
        same_trials = digests.get(entry.one["id"]) == entry.one["checksum"]
        if entry.run != first and same_trials and ours.is_file() and theirs.is_file():
            difference = eer_difference(ours, theirs)
            if difference is not None:
                found.setdefault(entry.run, {})[entry.one["name"]] = (difference[0], *difference[1])
    return found


def columns(entries: Sequence[Entry], differences: Differences) -> list[Column]:
    """What the table has; one that no entry has a value for is left out.

    Args:
        entries: the rows.
        differences: of the EER to the first run's, for those runs and lists where it is known.
    """
    found = [*_settings_columns(), *_sparsity_columns(), *_error_columns(entries)]
    if differences:
        found.append(_difference_column(differences))
    found += [
        Column("EER at start", ("untrained_eer",), lambda e: [e.one.get("untrained_eer")], percent),
        Column("minutes", ("minutes",), lambda e: [e.results["seconds"] / 60], lambda value: number(value, ".1f")),
        Column("seed", ("seed",), lambda e: [e.results["seed"]]),
    ]
    return [column for column in found if any(value is not None for e in entries for value in column.values(e))]


def _settings_columns() -> list[Column]:
    return [
        Column("run", ("run",), lambda e: [e.name]),
        Column("list", ("list",), lambda e: [e.one["name"]]),
        Column("trials", ("trials",), lambda e: [e.one["trials"]], count),
        Column("left out", ("trials_left_out", "recordings_left_out"), _left_out_values, _left_out_words),
        Column("model", ("model",), lambda e: [e.results["training"]["model"]]),
        Column("optimizer", ("optimizer",), lambda e: [e.optimizer]),
        Column("lr", ("lr",), lambda e: [e.results["training"]["lr"]], lambda value: number(value, "g")),
        Column("controller", ("controller",), lambda e: [e.controller]),
        Column("lambda", ("lambda",), lambda e: [None if e.dense else e.results["lambda"]], lambda v: number(v, ".3g")),
    ]


def _left_out_values(entry: Entry) -> Sequence[Any]:
    """Trials and recordings that were left out; None where none were."""
    if not entry.one.get("recordings_left_out"):
        return [None, None]
    return [entry.one["trials_left_out"], entry.one["recordings_left_out"]]


def _left_out_words(trials: int | None, recordings: int | None) -> str:
    if trials is None:
        return ABSENT
    return f"{count(trials)} trials (unusable recordings: {count(recordings)})"


def _sparsity_columns() -> list[Column]:
    return [
        Column("target", ("target_sparsity",), lambda e: [e.results["target_sparsity"]], percent),
        Column(
            "before landing",
            ("sparsity_tracked",),
            lambda e: [e.results["sparsity_tracked"]],
            lambda value: percent(value, 3),
        ),
        Column("after landing", ("sparsity",), lambda e: [e.results["sparsity"]], lambda value: percent(value, 4)),
        Column("kept", ("kept",), lambda e: [e.results["nonzero_parameters"] / e.results["parameters"]], percent),
    ]


def _error_columns(entries: Sequence[Entry]) -> list[Column]:
    """Error rates; a column for each operating point that there is."""
    points = dict.fromkeys(point_name(cost) for entry in entries for cost in entry.one["dcf"])
    found = [
        Column("EER", ("eer",), lambda e: [e.one["eer"]], percent),
        Column("95% interval", ("eer_low", "eer_high"), lambda e: e.one["eer_interval"] or [None, None], _between),
    ]
    found += [_cost_column("minDCF", "min_dcf", point) for point in points]
    found += [_cost_column("actDCF", "act_dcf", point) for point in points]
    return [*found, Column("Cllr", ("cllr",), lambda e: [e.one["cllr"]], number)]


def _cost_column(head: str, key: str, point: str) -> Column:
    def values(entry: Entry) -> Sequence[Any]:
        return [next((cost[key] for cost in entry.one["dcf"] if point_name(cost) == point), None)]

    return Column(f"{head}({point})", (f"{key}({point})",), values, number)


def _difference_column(differences: Differences) -> Column:
    def values(entry: Entry) -> Sequence[Any]:
        return differences.get(entry.run, {}).get(entry.one["name"], (None, None, None))

    def words(difference: float | None, low: float | None, high: float | None) -> str:
        if difference is None or low is None or high is None:
            return ABSENT
        return f"{100 * difference:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"

    keys = ("eer_difference", "eer_difference_low", "eer_difference_high")
    return Column("EER less the first run's [95% interval]", keys, values, words)


def _between(low: float | None, high: float | None) -> str:
    return interval(None if low is None or high is None else (low, high))


def table(entries: Sequence[Entry], of: Sequence[Column]) -> Table:
    """The entries in words."""
    rows = [[column.words(*column.values(entry)) for column in of] for entry in entries]
    return Table("Runs", [column.head for column in of], rows)


def conditions_table(entries: Sequence[Entry]) -> Table:
    """What the error rates were made of and by."""
    rows: dict[tuple[str, ...], set[Path]] = {}
    for entry in entries:
        one = entry.one
        speakers = "not known" if one["speakers"] is None else count(one["speakers"])
        subtracted = entry.results["scoring"]["mean_embedding"]
        words = (one["enrollment"], subtracted, one["score_norm"], one["calibration"] or "none")
        key = (one["name"], count(one["trials"]), count(one["targets"]), speakers, *words)
        rows.setdefault(key, set()).add(entry.run)
    heads = ("list", "trials", "targets", "speakers", "enrollment", "mean embedding", "score norm", "calibration", "runs")
    return Table("Lists", heads, [(*key, str(len(runs))) for key, runs in rows.items()])
