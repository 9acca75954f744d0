"""Write the tables of the evidence from finished runs: one Markdown file for each question.

python recipes/evidence/tables.py runs/evidence/runs --out runs/evidence/tables

Runs are found by the names that run.sh gives them, NAME_sSEED. Runs that differ in the seed alone are one group, and
their error rates are averaged. Intervals contain 95 % of resamples of the test speakers; differences are taken resample
by resample on the same trials.
"""

import argparse
import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from sv_sparse.evaluation.score_files import bootstrap_eers
from sv_sparse.report import format as fmt
from sv_sparse.report.format import DASH
from sv_sparse.report.results import all_evaluations
from sv_sparse.report.tables import Table
from sv_sparse.scoring.bootstrap import interval
from sv_sparse.training.logging import read_rows

BAND = 0.005  # half a percentage point around the target
METHODS = {
    "dense": "dense, Adam",
    "sgd": "dense, SGD",
    "feedback": "feedback, AdaBreg",
    "l0": "feedback, AdaBreg, l0 from a dense start",
    "linbreg": "feedback, LinBreg",
    "quantile": "quantile, AdaBreg",
    "oracle": "λ fixed at the end of feedback, not finalized",
    "magnitude": "magnitude pruning",
    "layerwise": "magnitude pruning by layer",
    "proxsgd": "feedback, ProxSGD",
}
NOISE_CONDITIONS = ("noise_20dB", "noise_10dB", "noise_5dB", "noise_0dB", "speech_20dB", "speech_10dB", "room")
SEED_SETTINGS = ("seed", "data.val_seed", "run_dir", "run_name", "init_from", "optim.lambda_init")


@dataclass(frozen=True)
class Run:
    """Finished run.

    Attributes:
        folder: its run folder.
        results: its results.json.
        evaluations: its results on each trial list by name, those of later evaluations among them.
    """

    folder: Path
    results: dict[str, Any]
    evaluations: dict[str, Any]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl."""
        return read_rows(self.folder / "metrics.jsonl")

    @property
    def sparsity_error(self) -> float:
        """Tracked sparsity minus its target, a difference of fractions."""
        return float(self.results["sparsity_tracked"] - self.results["target_sparsity"])

    def epochs(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl at the ends of epochs."""
        return [row for row in self.rows if "validation_eer" in row and "epoch" in row]

    def steps_in_band(self) -> str:
        """First logged step within ``BAND`` of the target, and the step from which on the sparsity stays there."""
        logged = [row for row in self.rows if "loss" in row]
        errors = np.array([row["sparsity/regularized"] for row in logged]) - self.results["target_sparsity"]
        inside = np.abs(errors) <= BAND
        if not inside.any():
            return DASH
        outside = np.flatnonzero(~inside)
        stays = outside[-1] + 1 if len(outside) else 0
        last = logged[stays]["step"] if stays < len(logged) else DASH
        return f"{logged[inside.argmax()]['step']}, stays from {last}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        name: name of their folders without the seed.
        runs: one for each seed.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        """First word of the name."""
        return self.name.partition("_")[0]

    @property
    def value(self) -> str:
        """Number at the end of the name: a target, λ, a learning rate or a width; empty without one."""
        word = self.name.rpartition("_")[2]
        return word if re.fullmatch(r"[\d.e+-]+", word) else ""

    @property
    def target(self) -> str:
        """Target of the name in words."""
        return f"{float(self.value):.2%}" if self.value else DASH

    @property
    def label(self) -> str:
        """Method and target in words."""
        return f"{METHODS[self.method]} {float(self.value):.0%}" if self.value else METHODS[self.method]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [int(run.results["seed"]) for run in self.runs]

    def with_seeds(self, seeds: Sequence[int]) -> "Group":
        """The group of the runs that have one of these seeds."""
        return Group(self.name, tuple(run for run in self.runs if run.results["seed"] in seeds))

    def mean(self, key: str) -> float:
        """Mean of a number of results.json."""
        return float(np.mean([run.results[key] for run in self.runs]))

    def eers(self, trial_list: str) -> list[float]:
        """EER of each run as a fraction."""
        return [float(run.evaluations[trial_list]["eer"]) for run in self.runs]

    def eer(self, trial_list: str) -> float:
        """Mean EER as a fraction."""
        return float(np.mean(self.eers(trial_list)))

    def eer_of_each_seed(self, trial_list: str) -> str:
        """EER of each run in percent, in words."""
        return ", ".join(f"{100 * eer:.2f}" for eer in self.eers(trial_list))

    def untrained_eer(self, trial_list: str) -> str:
        """Mean EER before training in words."""
        eers = [run.evaluations[trial_list].get("untrained_eer") for run in self.runs]
        return DASH if None in eers else f"{np.mean(eers):.2%}"

    def resampled_eers(self, trial_list: str) -> NDArray[np.float64] | None:
        """Mean EER of the runs for each resample of the test speakers; None for too few or unknown speakers."""
        resamples = [bootstrap_eers(run.folder / "scores" / f"{trial_list}.txt") for run in self.runs]
        if any(eers is None for eers in resamples):
            return None
        return np.mean(np.array(resamples), axis=0)

    def eer_with_interval(self, trial_list: str) -> str:
        """Mean EER and its interval in words."""
        resamples = self.resampled_eers(trial_list)
        words = f"{self.eer(trial_list):.2%}"
        if resamples is None:
            return words
        low, high = interval(resamples)
        return f"{words} [{100 * low:.2f}, {100 * high:.2f}]"

    def difference(self, other: "Group | None", trial_list: str) -> str:
        """EER minus that of another group in percentage points, over the seeds that both have, in words.

        Raises:
            ValueError: the groups were evaluated on different trials.
        """
        if other is None or other.name == self.name:
            return DASH
        seeds = set(self.seeds) & set(other.seeds)
        if not seeds:
            return DASH
        left, right = self.with_seeds(list(seeds)), other.with_seeds(list(seeds))
        checksums = {run.evaluations[trial_list]["checksum"] for run in (*left.runs, *right.runs)}
        if len(checksums) > 1:
            raise ValueError(f"{trial_list}: {self.name} and {other.name} were evaluated on different trials")
        words = f"{100 * (left.eer(trial_list) - right.eer(trial_list)):+.2f}"
        left_eers, right_eers = left.resampled_eers(trial_list), right.resampled_eers(trial_list)
        if left_eers is None or right_eers is None:
            return words
        low, high = interval(left_eers - right_eers)
        return f"{words} [{100 * low:+.2f}, {100 * high:+.2f}]"


Groups = dict[str, Group]


def load_groups(runs_dir: Path) -> Groups:
    """Load the finished runs of a folder.

    Args:
        runs_dir: folder of run folders named NAME_sSEED; those without results.json are left out.

    Raises:
        ValueError: no run is finished, or runs of one group differ in more than the seed.
    """
    runs: dict[str, list[Run]] = {}
    for path in sorted(runs_dir.glob("*_s[0-9]*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        run = Run(path.parent, results, all_evaluations(path.parent, results))
        runs.setdefault(path.parent.name.rpartition("_s")[0], []).append(run)
    if not runs:
        raise ValueError(f"{runs_dir}: no finished run NAME_sSEED")
    for group in runs.values():
        settings = [_settings_but_seed(run.folder) for run in group]
        for run, other in zip(group, settings, strict=True):
            different = [name for name in other if other[name] != settings[0].get(name, other[name])]
            if different:
                raise ValueError(
                    f"{run.folder} and {group[0].folder} differ in {', '.join(different)}, not in the seed alone"
                )
    return {name: Group(name, tuple(group)) for name, group in runs.items()}


def _settings_but_seed(folder: Path) -> dict[str, str]:
    """Settings of a run by their dotted names, without those that differ between seeds."""
    settings: dict[str, str] = {}

    def add(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                add(value, f"{prefix}{key}.")
            elif prefix + key not in SEED_SETTINGS:
                settings[prefix + key] = str(value)

    add(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")), "")
    return settings


def trial_lists_of(groups: Groups) -> list[str]:
    """Trial lists on which every run was evaluated when it ended."""
    evaluations = [run.results["evaluations"] for group in groups.values() for run in group.runs]
    return [name for name in evaluations[0] if all(name in lists for lists in evaluations)]


def starting_with(groups: Groups, *prefixes: str) -> list[Group]:
    """Groups whose names start with one of these words, in the order of their last words as numbers."""
    matches = [group for name, group in groups.items() if name.startswith(prefixes)]
    return sorted(matches, key=lambda group: float(group.value or 0))


def eer_heads(trial_lists: Sequence[str], suffix: str = "") -> list[str]:
    """Return the heads of the columns of EERs, one for each trial list."""
    return [f"EER {name}{suffix}" for name in trial_lists]


def eers_with_intervals(group: Group, trial_lists: Sequence[str]) -> list[str]:
    """Return the EERs of a group with their intervals, one for each trial list."""
    return [group.eer_with_interval(name) for name in trial_lists]


def eer_cells(groups: Sequence[Group], trial_list: str) -> list[str]:
    """Return the EERs on a trial list, one for each group."""
    return [f"{group.eer(trial_list):.2%}" for group in groups]


def quality_table(groups: Groups, trial_lists: Sequence[str]) -> Table:
    """Error rates of each method, and their differences to the dense network and to magnitude pruning."""
    heads = ["method", "target", "tracked sparsity", "seeds"]
    for name in trial_lists:
        heads += [f"EER {name} [95 %]", "of each seed", "minus dense", "minus magnitude", "minus by layer"]
    rows = []
    if "dense" in groups:
        untrained = ["dense, before training", DASH, DASH, str(len(groups["dense"].runs))]
        for name in trial_lists:
            untrained += [groups["dense"].untrained_eer(name), DASH, DASH, DASH, DASH]
        rows.append(untrained)
    compared = [group for name, group in groups.items() if name == "dense" or name.rpartition("_")[0] in METHODS]
    for group in sorted(compared, key=lambda group: (float(group.value or 0), list(METHODS).index(group.method))):
        row = [METHODS[group.method], group.target, f"{group.mean('sparsity_tracked'):.3%}", str(len(group.runs))]
        for name in trial_lists:
            row += [group.eer_with_interval(name), group.eer_of_each_seed(name)]
            for other in ("dense", f"magnitude_{group.value}", f"layerwise_{group.value}"):
                row.append(group.difference(groups.get(other), name))
        rows.append(row)
    return Table("", heads, rows)


def convergence_table(groups: Groups, trial_lists: Sequence[str]) -> Table:
    """EER of held-out training speakers and sparsity after each epoch, over the seeds that all columns have."""
    names = [name for name in ("dense", "feedback_0.9", "oracle_0.9", "magnitude_0.9") if name in groups]
    if not names:
        return Table("", ["epoch"], [])
    # Other seeds hold out other speakers, so that only common seeds can be compared.
    seeds = sorted(set.intersection(*(set(groups[name].seeds) for name in names)))
    columns = [groups[name].with_seeds(seeds) for name in names]
    rows = []
    num_epochs = min(len(run.epochs()) for group in columns for run in group.runs)
    for epoch in range(num_epochs):
        row = [str(epoch + 1)]
        for group in columns:
            ends = [run.epochs()[epoch] for run in group.runs]
            eer, sparsity = (np.mean([end[key] for end in ends]) for key in ("validation_eer", "sparsity"))
            row.append(f"{eer:.2%} at {sparsity:.1%}")
        rows.append(row)
    return Table("", [f"epoch (seeds {', '.join(map(str, seeds))})", *(group.label for group in columns)], rows)


def noise_table(groups: Groups, trial_lists: Sequence[str]) -> Table:
    """EER in noise and rooms, and as a multiple of the EER on clean speech."""
    names = ("dense", "feedback_0.9", "feedback_0.95", "feedback_0.99", "magnitude_0.9", "magnitude_0.99")
    columns = [groups[name] for name in names if name in groups]
    rows = []
    for name in trial_lists:
        rows.append([name, "clean", *eer_cells(columns, name)])
        for condition in NOISE_CONDITIONS:
            noisy = f"{name}_{condition}"
            cells = []
            for group in columns:
                if all(noisy in run.evaluations for run in group.runs):
                    cells.append(f"{group.eer(noisy):.2%} ({group.eer(noisy) / group.eer(name):.2f} times)")
                else:
                    cells.append(DASH)
            if any(cell != DASH for cell in cells):
                rows.append([name, condition.replace("_", " "), *cells])
    return Table(
        "", ["list", "condition", *(group.label for group in columns)], rows if len(rows) > len(trial_lists) else []
    )


def control_table(groups: Groups, trial_lists: Sequence[str]) -> Table:
    """Targets, and the sparsity that was tracked before it was made exact."""
    heads = ["network", "optimizer", "target", "tracked sparsity", "points off", "steps", "within 0.5 points from step"]
    heads += ["λ at the end", *eer_heads(trial_lists, " (untrained)")]
    rows = []
    for group in starting_with(groups, "control_"):
        run = group.runs[0]
        model, optimizer, target = group.name.removeprefix("control_").rsplit("_", 2)
        row = [model, optimizer, f"{float(target):.2%}", f"{group.mean('sparsity_tracked'):.3%}"]
        row += [fmt.points(run.sparsity_error, 3), str(run.results["training"]["steps"]), run.steps_in_band()]
        row.append(f"{run.results['lambda']:.3g}")
        row += [f"{group.eer(name):.2%} ({group.untrained_eer(name)})" for name in trial_lists]
        rows.append(row)
    return Table("", heads, rows)


def insensitivity_table(groups: Groups, trial_lists: Sequence[str]) -> Table:
    """Sparsity and EER by the start of λ, and by the same λ fixed."""
    rows = []
    for group in starting_with(groups, "start_", "fixed_"):
        run = group.runs[0]
        in_band = "yes" if abs(run.sparsity_error) <= BAND else "no"
        row = [
            group.value,
            group.method,
            f"{group.mean('sparsity_tracked'):.3%}",
            in_band,
            f"{group.mean('lambda'):.3g}",
        ]
        rows.append([*row, *(f"{group.eer(name):.2%}" for name in trial_lists)])
    heads = ["λ", "feedback starts there, or fixed", "tracked sparsity", "within 0.5 points", "λ at the end"]
    return Table("", [*heads, *eer_heads(trial_lists)], rows)


def structure_table(groups: Groups, trial_lists: Sequence[str], runtime: Path) -> Table:
    """Sparse networks and narrow dense ones by size and latency.

    Args:
        groups: all groups.
        trial_lists: names of trial lists.
        runtime: JSON file of scripts/benchmark/runtime.py; without it the table is empty.
    """
    measured = json.loads(runtime.read_text(encoding="utf-8")) if runtime.is_file() else {"latency": [], "files": []}
    file_bytes = {row["run"]: row["fp32_bytes"] for row in measured["files"]}
    rows = []
    engines: list[str] = []
    for latency in measured["latency"]:
        group = groups.get(latency["run"].rpartition("_s")[0])
        if group is None:
            continue
        engines = list(latency["ms"])
        name = f"dense, {group.value} channels" if group.method == "narrow" else group.label
        row = [name, str(len(group.runs)), f"{group.runs[0].results['nonzero_parameters']:,}"]
        row += [
            f"{file_bytes[latency['run']] / 1e6:.2f} MB",
            *(f"{latency['ms'][engine]:.1f} ms" for engine in engines),
        ]
        rows.append([*row, *eers_with_intervals(group, trial_lists)])
    heads = ["network", "seeds", "nonzero parameters", "file", *engines]
    return Table("", [*heads, *eer_heads(trial_lists, " [95 %]")], rows)


def foreign_table(groups: Groups, trial_lists: Sequence[str]) -> Table:
    """EER after training on all sources, on as many utterances of all sources, and on other sources alone."""
    heads = ["method", "utterances: all, as many, other"]
    for name in trial_lists:
        heads += [f"{name}: all sources", "as many", "other sources", "other sources minus dense"]
    rows = []
    for group in starting_with(groups, "foreign_"):
        name = group.name.removeprefix("foreign_")
        trainings = [groups.get(name), groups.get(f"subset_{name}"), group]
        same_seeds = [other.with_seeds(group.seeds) if other else None for other in trainings]
        counts = [f"{g.runs[0].results['training']['utterances']:,}" if g else DASH for g in same_seeds]
        row = [Group(name, ()).label, ", ".join(counts)]
        for trial_list in trial_lists:
            row += [other.eer_with_interval(trial_list) if other else DASH for other in same_seeds]
            row.append(group.difference(groups.get("foreign_dense"), trial_list))
        rows.append(row)
    return Table("", heads, rows)


def finetuning_table(groups: Groups, trial_lists: Sequence[str]) -> Table:
    """EER from a trained dense network, beside EER from scratch."""
    rows = []
    for finetuned in starting_with(groups, "finetuned_"):
        scratch = groups.get(finetuned.name.removeprefix("finetuned_"))
        if scratch is not None:
            rows.append(_finetuning_row(scratch.with_seeds(finetuned.seeds), "from scratch", trial_lists))
        rows.append(_finetuning_row(finetuned, "from the dense network", trial_lists))
    heads = ["method", "start", "steps", "tracked sparsity", *eer_heads(trial_lists, " [95 %]")]
    return Table("", heads, rows)


def length_table(groups: Groups, trial_lists: Sequence[str]) -> Table:
    """EER after longer training, and its differences to dense networks and to magnitude pruning of that length."""
    heads = ["epochs", "method", "target", "seeds"]
    for name in trial_lists:
        heads += [f"EER {name} [95 %]", "of each seed", "minus dense", "minus magnitude"]
    rows = []
    for group in sorted(starting_with(groups, "epochs"), key=lambda group: int(group.method.removeprefix("epochs"))):
        length, _, name = group.name.partition("_")
        method = METHODS[Group(name, ()).method]
        row = [length.removeprefix("epochs"), method, group.target, str(len(group.runs))]
        for trial_list in trial_lists:
            row += [group.eer_with_interval(trial_list), group.eer_of_each_seed(trial_list)]
            for other in (f"{length}_dense", f"{length}_magnitude_{group.value}"):
                row.append(group.difference(groups.get(other), trial_list))
        rows.append(row)
    return Table("", heads, rows)


def _finetuning_row(group: Group, start: str, trial_lists: Sequence[str]) -> list[str]:
    label = Group(group.name.removeprefix("finetuned_"), ()).label
    row = [label, start, str(group.runs[0].results["training"]["steps"]), f"{group.mean('sparsity_tracked'):.3%}"]
    return [*row, *eers_with_intervals(group, trial_lists)]


def search_table(groups: Groups, trial_lists: Sequence[str]) -> Table:
    """Learning rates beside the defaults, at 90 % zeros and one seed."""
    rows = []
    for method in ("dense", "sgd", "magnitude", "feedback", "linbreg", "proxsgd"):
        default = groups.get("dense" if method == "dense" else f"{method}_0.9")
        tried = starting_with(groups, f"search_{method}_")
        for group in [default, *tried] if default and tried else tried:
            run = group.runs[0]
            row = [METHODS[method], f"{run.results['training']['lr']:g}{' (default)' if group is default else ''}"]
            row += [f"{run.results['sparsity_tracked']:.3%}", f"{run.results['validation_eer']:.2%}"]
            rows.append([*row, *(f"{run.evaluations[name]['eer']:.2%}" for name in trial_lists)])
    heads = ["method", "learning rate", "tracked sparsity", "validation EER", *eer_heads(trial_lists)]
    return Table("", heads, rows)


TABLES: dict[str, Callable[[Groups, Sequence[str]], Table]] = {
    "quality": quality_table,
    "convergence": convergence_table,
    "noise": noise_table,
    "control": control_table,
    "insensitivity": insensitivity_table,
    "foreign": foreign_table,
    "finetuning": finetuning_table,
    "search": search_table,
    "length": length_table,
}


def conditions(groups: Groups) -> str:
    """Training data, trial lists, machines and commits of the runs as a Markdown list."""
    trained, evaluated, machines = set(), set(), set()
    hours = 0.0
    for run in (run for group in groups.values() for run in group.runs):
        training = run.results["training"]
        environment = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
        hours += run.results["wall_time_s"] / 3600
        trained.add(
            f"{training['speakers']:,} speakers, {training['utterances']:,} utterances, {training['precision']}"
        )
        for name, evaluation in run.results["evaluations"].items():
            evaluated.add(f"{name} ({evaluation['trials']:,} trials of {evaluation['speakers']} speakers)")
        machine = environment["gpu"] or environment["processor"]
        machines.add(f"{machine}, torch {environment['packages']['torch']}, commit {str(environment['commit'])[:7]}")
    count = sum(len(group.runs) for group in groups.values())
    lines = [f"- {count} finished runs of all questions, {hours:.1f} hours of training."]
    for title, values in (("Trained on", trained), ("Evaluated on", evaluated), ("Computed by", machines)):
        lines.append(f"- {title}: {'; '.join(sorted(values))}.")
    return "\n".join(lines)


def main() -> None:
    """Write the table of each question that has finished runs, and the ends of all epochs as epochs.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs_dir", type=Path, help="folder of run folders")
    parser.add_argument("--runtime", type=Path, default=Path(), help="JSON file of scripts/benchmark/runtime.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()
    try:
        groups = load_groups(args.runs_dir)
        trial_lists = trial_lists_of(groups)
        tables = {question: table(groups, trial_lists) for question, table in TABLES.items()}
    except ValueError as error:
        parser.error(str(error))
    tables["structure"] = structure_table(groups, trial_lists, args.runtime)
    args.out.mkdir(parents=True, exist_ok=True)
    for question, table in tables.items():
        if table.rows:
            text = f"# {question.capitalize()}\n\n{conditions(groups)}\n\n{table.markdown()}\n"
            (args.out / f"{question}.md").write_text(text, encoding="utf-8")
            print(args.out / f"{question}.md")
    with open(args.out / "epochs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        keys = ("epoch", "step", "validation_eer", "sparsity")
        writer.writerow(["run", *keys])
        for run in (run for group in groups.values() for run in group.runs):
            writer.writerows([run.folder.name, *(row[key] for key in keys)] for row in run.epochs())


if __name__ == "__main__":
    main()
