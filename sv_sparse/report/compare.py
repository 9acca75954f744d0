"""Comparison of finished runs: a table for each trial list, with figures, as HTML, Markdown and CSV."""

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sv_sparse.config.schema import Config, read_config
from sv_sparse.evaluation.evaluate import read_json
from sv_sparse.evaluation.score_files import eer_difference
from sv_sparse.io import write_text
from sv_sparse.report import format as fmt
from sv_sparse.report.figures.compare import comparison_figures
from sv_sparse.report.figures.style import report_style
from sv_sparse.report.html import write_pages
from sv_sparse.report.results import NO_EVALUATION, NO_TRIAL_LIST, Results, all_evaluations
from sv_sparse.report.tables import Evaluation, Facts, Table, conditions, corpus_name, duration

# Values of a run and a list by their CSV names; None where one is not known.
Row = dict[str, Any]

# Columns of a table in a terminal.
_MAX_WIDTH = 120
# Columns to leave out of a table that is too wide; the first choice is tried first.
_LEFT_OUT = (
    ("minutes",),
    ("minutes", "minDCF"),
    ("minutes", "settings", "minDCF"),
    ("minutes", "settings", "minDCF", "final sparsity"),
)
# Last columns of the CSV. Tables of runs have none of them: they stand once above each.
_CONDITIONS = ("enrollment", "score_norm", "calibration", "speakers", "targets")


@dataclass
class RunResult:
    """Finished run and its evaluation on one trial list.

    Attributes:
        run_dir: the run folder.
        run_name: shortest end of the path that no other run has.
        results: content of results.json.
        config: settings of the run.
        list_name: name of the list; lists of other trials under the same name have another one.
        evaluation: evaluation of the list, as in ``evaluations`` of results.json.
        eer_difference: EER less the first run's, and the ends of its 95 % interval; None if unknown.
    """

    run_dir: Path
    run_name: str
    results: Results
    config: Config
    list_name: str
    evaluation: Evaluation
    eer_difference: tuple[float, float, float] | None = None

    @property
    def controller(self) -> str:
        """Name of the controller, or "dense"."""
        return self.config.sparsity.controller_name if self.results["target_sparsity"] else "dense"

    @property
    def network(self) -> str:
        """Model and optimizer."""
        return f"{self.results['training']['model']}, {self.config.optim.name}"

    @property
    def minutes(self) -> float:
        """Minutes of the run, without interruptions."""
        return float(self.results["wall_time_s"]) / 60

    @property
    def sparsity_error(self) -> float:
        """Tracked sparsity less the target."""
        return float(self.results["sparsity_tracked"] - self.results["target_sparsity"])


def read_run_results(run_dirs: Sequence[Path], list_id: str | None = None) -> tuple[list[RunResult], list[str]]:
    """Read finished runs: a result for each run and list, and a message for each run that is left out.

    Args:
        run_dirs: run folders; it is a ValueError if all are left out.
        list_id: id of the trial list to compare on; None means all lists of each run.
    """
    results: list[RunResult] = []
    messages = []
    for run_dir, run_name in zip(run_dirs, _unique_names(run_dirs), strict=True):
        if not run_dir.exists():
            raise ValueError(f"{run_dir}: no such folder")
        if not (run_dir / "results.json").is_file():
            messages.append(f"{run_dir}: not finished, left out")
            continue
        try:
            config = read_config(run_dir)
        except ValueError as error:
            # A run of an earlier version: one of them must not keep the others from being compared.
            messages.append(f"{error}; left out")
            continue
        run_results = read_json(run_dir / "results.json")
        evaluations = all_evaluations(run_dir, run_results)
        if list_id is not None and list_id not in evaluations:
            others = ", ".join(evaluations) or NO_TRIAL_LIST
            messages.append(f"{run_dir}: not evaluated on {list_id}, left out; it has {others}")
        for name, evaluation in (evaluations or {NO_TRIAL_LIST: NO_EVALUATION}).items():
            if list_id in {None, name}:
                results.append(RunResult(run_dir, run_name, run_results, config, name, evaluation))
    if not results:
        raise ValueError(f"there is nothing to compare: {'; '.join(messages)}")
    _make_list_names_unique(results)
    return results, messages


def _unique_names(run_dirs: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths, of equal depth, that are all different."""
    paths = [run_dir.resolve().parts for run_dir in run_dirs]
    # Runs of two sweeps may have the same names in different folders.
    depth = 1
    while len({parts[-depth:] for parts in paths}) < len(set(paths)):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in paths]


def _make_list_names_unique(results: Iterable[RunResult]) -> None:
    """Add the checksum to names of lists that hold other trials in other runs."""
    checksums: dict[str, set[str]] = {}
    for result in results:
        checksums.setdefault(result.list_name, set()).add(result.evaluation["checksum"])
    for result in results:
        if len(checksums[result.list_name]) > 1:
            result.list_name += f" ({result.evaluation['checksum'][:6]})"


def add_eer_differences(results: Sequence[RunResult]) -> None:
    """Set the differences to the first run's EERs, on lists whose scores both runs have."""
    first_run = results[0].run_dir
    first_checksums = {}
    for result in results:
        list_id = result.evaluation["id"]
        if result.run_dir == first_run:
            first_checksums[list_id] = result.evaluation["checksum"]
        # Only on the same trials: most of the variation between speakers is common then, and
        # cancels. Names and sizes of lists do not tell (DECISIONS 71).
        elif first_checksums.get(list_id) == result.evaluation["checksum"]:
            paths = [run_dir / "scores" / f"{list_id}.txt" for run_dir in (result.run_dir, first_run)]
            difference = eer_difference(*paths) if all(path.is_file() for path in paths) else None
            if difference is not None:
                value, (low, high) = difference
                result.eer_difference = (value, low, high)


def sparse_runs(results: Iterable[RunResult]) -> list[RunResult]:
    """Return one result of each run that had a target sparsity."""
    by_run = {result.run_dir: result for result in results if result.controller != "dense"}
    return list(by_run.values())


def compare_text(results: Sequence[RunResult]) -> str:
    """Return what the command prints: the settings that all runs share, and a table for each trial list."""
    common, differing = _settings(results)
    blocks = [textwrap.fill(_header(results, common), _MAX_WIDTH, break_on_hyphens=False)]
    hidden: dict[str, None] = {}
    for list_name, members in _by_list(results).items():
        # How scores were normalized and calibrated is on the page.
        facts = [fact for fact in _conditions(members) if fact[0] in {"trials", "left out", "speakers"}]
        table, headers = _runs_table(list_name, members, differing).fit(_MAX_WIDTH, _LEFT_OUT)
        hidden |= dict.fromkeys(headers)
        blocks += [f"{list_name}: {_text(facts)}", table.markdown()]
    if hidden:
        blocks.append(f"Columns left out, the line would be too long: {', '.join(hidden)}. --out FOLDER has them.")
    return "\n\n".join(blocks)


def _header(results: Iterable[RunResult], common: Facts) -> str:
    """Return sentences on the settings that all runs share, and on how to read the tables."""
    sentences = [f"Same in all runs: {_text(common)}."] if common else []
    sentences.append("Brackets: 95 % intervals.")
    if any(result.eer_difference for result in results):
        sentences.append("Differences to the first run are in percentage points of EER, on the same trials.")
    return " ".join(sentences)


def _text(facts: Facts) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts)


def write_comparison(folder: Path, results: Sequence[RunResult]) -> None:
    """Write compare.html, compare.md, compare.csv and figures/*.svg into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with report_style():
        figures = comparison_figures(results, sparse_runs(results))
    common, differing = _settings(results)
    lists = []
    for list_name, members in _by_list(results).items():
        table = _runs_table(list_name, members, differing)
        lists.append({"name": list_name, "table": table, "conditions": _conditions(members)})
    num_runs = len({result.run_dir for result in results})
    values = {
        "name": "Comparison of runs",
        "summary": f"Runs: {num_runs}. {_header(results, common)} All values: compare.csv.",
        "lists": lists,
        "cost": cost_table(results),
    }
    write_pages(folder, "compare", figures, values)
    # Fractions and minutes without rounding, for programs.
    rows = [_row(result) for result in results]
    file = io.StringIO()
    keys = [*_keys_with_values(rows), *_CONDITIONS]
    writer = csv.DictWriter(file, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "compare.csv", file.getvalue())


def _by_list(results: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    by_list: dict[str, list[RunResult]] = {}
    for result in results:
        by_list.setdefault(result.list_name, []).append(result)
    return by_list


def _settings(results: Sequence[RunResult]) -> tuple[Facts, dict[Path, str]]:
    """Return the settings that all runs share, and for each run the others as text."""
    by_run: dict[Path, tuple[dict[str, str], dict[str, str]]] = {}
    for result in results:
        training = result.results["training"]
        controller = result.controller
        if controller == "fixed":
            controller = f"fixed λ {result.results['lambda']:.3g}"
        # Their values tell what they are.
        plain = {
            "corpus": corpus_name(result.results),
            "model": result.config.model_text,
            "optimizer": result.config.optim.name,
            "controller": controller,
        }
        labeled = {
            "lr": f"{training['lr']:g}",
            "duration": duration(result.results, result.config),
            "seed": str(result.results["seed"]),
        }
        # The duration leaves out what the run started from.
        if result.config.init_from is not None:
            labeled["init_from"] = Path(result.config.init_from).name
        if result.config.teacher is not None:
            labeled["teacher"] = Path(result.config.teacher).name
        by_run[result.run_dir] = (plain, labeled)
    first, *others = (plain | labeled for plain, labeled in by_run.values())
    common = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
    differing = {}
    for run_dir, (plain, labeled) in by_run.items():
        words = [value for name, value in plain.items() if name not in common]
        words += [f"{name} {value}" for name, value in labeled.items() if name not in common]
        differing[run_dir] = ", ".join(words)
    return list(common.items()), differing


def _conditions(results: Sequence[RunResult]) -> Facts:
    """Return the conditions under which the runs were evaluated on a list; where they differ, with the runs."""
    by_result = [dict(conditions(result.evaluation, result.results["scoring"])) for result in results]
    facts = []
    # Most runs leave no trials out, and lack that fact alone.
    for name in max(by_result, key=len):
        runs_by_value: dict[str, list[str]] = {}
        for result, values in zip(results, by_result, strict=True):
            runs_by_value.setdefault(values.get(name, "none"), []).append(result.run_name)
        texts = list(runs_by_value)
        if len(texts) > 1:
            texts = [f"{value} ({', '.join(run_names)})" for value, run_names in runs_by_value.items()]
        facts.append((name, "; ".join(texts)))
    return facts


def _row(result: RunResult) -> Row:
    run = result.results
    evaluation = result.evaluation
    row = {
        "run": result.run_name,
        "list": result.list_name,
        "trials": evaluation["trials"],
        # A column of zeros would say nothing.
        "trials_left_out": evaluation.get("trials_left_out") or None,
        "recordings_left_out": evaluation.get("recordings_left_out") or None,
        "model": run["training"]["model"],
        "optimizer": result.config.optim.name,
        "lr": run["training"]["lr"],
        "controller": result.controller,
        "lambda": None if result.controller == "dense" else run["lambda"],
        "target_sparsity": run["target_sparsity"],
        "sparsity_tracked": run["sparsity_tracked"],
        "sparsity": run["sparsity"],
        "nonzero_fraction": run["nonzero_parameters"] / run["parameters"],
        "eer": evaluation["eer"],
    }
    row["eer_low"], row["eer_high"] = evaluation["eer_interval"] or (None, None)
    for key in ("min_dcf", "act_dcf"):
        for cost in evaluation["dcf"]:
            row[f"{key}({fmt.point_name(cost)})"] = cost[key]
    row["cllr"] = evaluation["cllr"]
    difference = result.eer_difference or (None, None, None)
    row["eer_difference"], row["eer_difference_low"], row["eer_difference_high"] = difference
    row["untrained_eer"] = evaluation.get("untrained_eer")
    row["teacher_cosine"] = run.get("teacher_cosine")
    row["min_teacher_cosine"] = run.get("min_teacher_cosine")
    row["minutes"] = result.minutes
    row["seed"] = run["seed"]
    return row | {key: evaluation[key] for key in _CONDITIONS}


def _keys_with_values(rows: Sequence[Row]) -> list[str]:
    """Return the keys, in order, for which a row has a value, without the conditions."""
    # All rows, since lists may have different operating points.
    has_value = dict.fromkeys(chain.from_iterable(rows), False)
    for row in rows:
        for key, value in row.items():
            has_value[key] |= value is not None
    return [key for key in has_value if has_value[key] and key not in _CONDITIONS]


def _runs_table(title: str, members: Sequence[RunResult], settings: Mapping[Path, str]) -> Table:
    """Return the table of the runs that were evaluated on a list, in at most eight columns.

    Args:
        title: title of the table.
        members: results on the list.
        settings: for each run, those in which the runs differ.
    """
    point = fmt.point_name(members[0].evaluation["dcf"][0])
    rows = []
    for result in members:
        evaluation = result.evaluation
        eer = fmt.percent(evaluation["eer"])
        if evaluation["eer_interval"] is not None:
            eer += " " + fmt.brackets(evaluation["eer_interval"])
        difference = fmt.DASH
        if result.eer_difference is not None:
            value, low, high = result.eer_difference
            difference = f"{fmt.points(value)} {fmt.brackets((low, high), signed=True)}"
        min_dcfs = {fmt.point_name(cost): cost["min_dcf"] for cost in evaluation["dcf"]}
        row = {
            "run": result.run_name,
            "settings": settings[result.run_dir],
            "target": fmt.percent(result.results["target_sparsity"]),
            "final sparsity": fmt.percent(result.results["sparsity"], 4),
            "EER": eer,
            "minus first run": difference,
            f"minDCF({point})": fmt.number(min_dcfs.get(point)),
            "minutes": fmt.number(result.minutes, ".1f"),
        }
        # The time is in the CSV then.
        if any("teacher_cosine" in other.results for other in members):
            del row["minutes"]
            row["cosine to teacher"] = _teacher_cosine(result)
        # Runs that do not differ, or were not compared.
        if not any(settings.values()):
            del row["settings"]
        if all(other.eer_difference is None for other in members):
            del row["minus first run"]
        rows.append(row)
    return Table(title, list(rows[0]), [list(row.values()) for row in rows])


def _teacher_cosine(result: RunResult) -> str:
    """Return mean and lowest cosine to the teacher's embeddings on the recordings of the trials."""
    mean, lowest = result.results.get("teacher_cosine"), result.results.get("min_teacher_cosine")
    return fmt.DASH if mean is None else f"{fmt.number(mean, '.4f')}, lowest {fmt.number(lowest, '.4f')}"


def cost_table(results: Iterable[RunResult]) -> Table | None:
    """Return the table of the time to reach each target by a sweep of fixed lambdas, and by one run with a controller.

    The table is None without runs of both kinds.
    """
    rows = []
    by_network: dict[str, list[RunResult]] = {}
    for run in sparse_runs(results):
        by_network.setdefault(run.network, []).append(run)
    for network, runs in by_network.items():
        fixed = [run for run in runs if run.controller == "fixed"]
        controlled = [run for run in runs if run.controller != "fixed"]
        targets = {run.results["target_sparsity"] for run in controlled} if fixed else set()
        # Nobody knows the nearest lambda before the sweep, so all of its runs count.
        sweep_minutes = sum(run.minutes for run in fixed)
        for target in sorted(targets):
            nearest = min(fixed, key=lambda run: abs(run.results["sparsity_tracked"] - target))
            sweep = f"sweep of fixed λ, nearest {nearest.results['lambda']:.3g}"
            attempts = [(sweep, len(fixed), sweep_minutes, nearest)]
            for run in controlled:
                if run.results["target_sparsity"] == target:
                    attempts.append((f"{run.controller}: {run.run_name}", 1, run.minutes, run))
            for method, num_runs, minutes, run in attempts:
                sparsity = run.results["sparsity_tracked"]
                points = 100 * abs(sparsity - target)
                numbers = (str(num_runs), fmt.number(minutes, ".1f"), fmt.percent(sparsity, 3), fmt.number(points))
                rows.append([network, fmt.percent(target), method, *numbers])
    headers = ("network", "target", "method", "runs", "minutes", "tracked sparsity", "points from the target")
    return Table("Cost of reaching a target", headers, rows) if rows else None
