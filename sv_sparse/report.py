"""Run folder to results.json, figures and report.md; the table is what a run prints last."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import DetCurveDisplay

from sv_sparse.build import Experiment, split_size
from sv_sparse.distributed import ranks
from sv_sparse.judgement import Evaluation
from sv_sparse.monitor import Row, read_rows
from sv_sparse.optim import count_zeros, sparsity
from sv_sparse.score_files import read_scores
from sv_sparse.size import size_of
from sv_sparse.storage import atomic_write, write_json, write_text

Results = dict[str, Any]

_DPI = 120


def collect(
    experiment: Experiment,
    landing: dict[str, Any],
    evaluations: Sequence[Evaluation],
    at_start: Sequence[dict[str, Any]],
    seconds: float,
) -> Results:
    """All figures of a finished run as plain data.

    Args:
        experiment: the run, landed.
        landing: what ``land`` returned.
        evaluations: of the delivered network, one per trial list.
        at_start: the same lists before training, as plain data.
        seconds: the whole run's time, interruptions left out.

    Returns:
        Figures of the run; ``eer``, ``min_dcf`` and ``start_eer`` at the top are the first list's, and
        ``evaluations`` holds every list's. Rates and sparsities are fractions.
    """
    settings, network = experiment.settings, experiment.network
    before = {evaluation["name"]: evaluation["eer"] for evaluation in at_start}
    lists = {e.key: e.as_dict() | {"start_eer": before[e.name]} for e in evaluations}
    first = lists[evaluations[0].key]
    params = list(network.parameters())
    total, zeros = sum(param.numel() for param in params), int(count_zeros(params))
    return {
        "target_sparsity": settings["target_sparsity"],
        **landing,
        "sparsity_network": float(sparsity(list(experiment.sparse_params.values()))),
        "sparsity_all": zeros / total,
        "parameters": total,
        "kept_parameters": total - zeros,
        "eer": first["eer"],
        "min_dcf": first["costs"][0]["min_dcf"],
        "start_eer": first["start_eer"],
        "seconds": seconds,
        "seed": settings["seed"],
        "training": _training(experiment),
        "evaluations": lists,
        **size_of(network, experiment.sparse_params, experiment.head),
    }


def _training(experiment: Experiment) -> dict[str, Any]:
    """What was trained, on what, how long."""
    speakers, utterances, hours = split_size(experiment.corpus.manifest, "train")
    return {
        "model": type(experiment.network).__name__,
        "speakers": speakers,
        "utterances": utterances,
        "hours": hours,
        "epochs": experiment.settings["trainer"]["epochs"],
        "steps": experiment.total_steps,
        "lr": experiment.optimizer.param_groups[0]["initial_lr"],
        "device": str(experiment.compute.device),
        "precision": experiment.compute.precision,
        "processes": ranks(),
    }


def write_report(folder: Path, results: Results) -> str:
    """Write results.json, figures/*.png and report.md into a run folder.

    Returns:
        The table, in Markdown.
    """
    write_json(folder / "results.json", results)
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    rows = read_rows(folder / "metrics.jsonl")
    _save(control_figure(rows, results["target_sparsity"]), figures / "control.png")
    _save(layers_figure(results["layers"], results["target_sparsity"]), figures / "layers.png")
    _save(det_figure(folder, list(results["evaluations"])), figures / "det.png")
    table = results_table(results)
    write_text(folder / "report.md", _page(folder, results, table))
    return table


def results_table(results: Results) -> str:
    """One row per trial list, in Markdown."""
    point = next(iter(results["evaluations"].values()))["costs"][0]
    heads = (
        *(
            "list",
            "target",
            "before landing",
            "after landing",
            "kept parameters",
            "EER",
            f"minDCF({point['p_target']})",
        ),
        *("EER at start", "minutes"),
    )
    lines = []
    for name, one in results["evaluations"].items():
        kept, share = results["kept_parameters"], results["kept_parameters"] / results["parameters"]
        cells = (
            name,
            f"{results['target_sparsity']:.2%}",
            f"{results['sparsity_before_landing']:.3%}",
            f"{results['sparsity']:.4%}",
            f"{kept:,} ({share:.1%})",
            f"{one['eer']:.2%}",
            f"{one['costs'][0]['min_dcf']:.3f}",
            f"{one['start_eer']:.2%}",
            f"{results['seconds'] / 60:.1f}",
        )
        lines.append(cells)
    widths = [max(len(row[column]) for row in (heads, *lines)) for column in range(len(heads))]
    rule = ["-" * width for width in widths]
    table = [heads, rule, *lines]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in table)


def control_figure(rows: Sequence[Row], target: float) -> Figure:
    """Sparsity and lambda against the step, with the target line."""
    steps = [row for row in rows if "lambda" in row]
    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    x = [row["step"] for row in steps]
    upper.plot(x, [100 * row["sparsity/trained"] for row in steps], label="measured")
    upper.axhline(100 * target, color="black", linestyle="--", linewidth=1, label=f"target {target:.1%}")
    upper.set_ylabel("sparsity (%)")
    upper.legend()
    lower.plot(x, [row["lambda"] for row in steps], color="tab:red")
    if any(row["lambda"] > 0 for row in steps):
        lower.set_yscale("log")
    lower.set_ylabel("lambda")
    lower.set_xlabel("step")
    return figure


def layers_figure(layers: dict[str, dict[str, int]], target: float) -> Figure:
    """Sparsity of each layer, in the network's order."""
    names = list(layers)
    shares = [100 * layer["zeros"] / layer["parameters"] for layer in layers.values()]
    figure, axes = plt.subplots(figsize=(7, max(3.0, 0.17 * len(names))), layout="constrained")
    axes.barh(np.arange(len(names)), shares)
    axes.axvline(100 * target, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(np.arange(len(names)), [name.removesuffix(".weight") for name in names], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("sparsity (%)")
    return figure


def det_figure(folder: Path, names: Sequence[str]) -> Figure:
    """Detection error trade-off of every list, from the scores in the run folder."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    for name in names:
        scores, is_target = read_scores(folder / "scores" / f"{name}.txt")
        DetCurveDisplay.from_predictions(is_target, scores, name=name, ax=axes)
    axes.set_xlabel("false alarms")
    axes.set_ylabel("misses")
    axes.grid(visible=True, linewidth=0.3)
    axes.legend(loc="upper right")
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)
    plt.close(figure)


def _page(folder: Path, results: Results, table: str) -> str:
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    how = results["training"]
    lines = [f"# {folder.name}", "", table, ""]
    lines.append(
        f"{how['model']}, trained on {how['speakers']:,} speakers, {how['utterances']:,} utterances, "
        f"{how['hours']:.2f} hours, for {how['epochs']} epochs or {how['steps']:,} steps on {how['device']} "
        f"in {how['precision']}."
    )
    gap = results["sparsity_before_landing"] - results["target_sparsity"]
    lines.append(f"Before landing the sparsity stood {100 * gap:+.3f} points from the target.")
    if "validation_eer" in results:
        lines.append(
            f"Landing moved the EER on held-out training speakers from {results['validation_eer_before_landing']:.2%} "
            f"to {results['validation_eer']:.2%}."
        )
    lines += ["", "Sparsity is the fraction of exact zeros:", ""]
    lines.append(f"- in all weights that the target speaks of {results['sparsity']:.4%},")
    lines.append(f"- in the network's convolution and linear weights {results['sparsity_network']:.4%},")
    lines.append(f"- in all of the network's parameters {results['sparsity_all']:.4%}.")
    lines += ["", "| list | trials | EER threshold | minDCF threshold | operating point |", "|---|---:|---:|---:|---|"]
    for name, one in results["evaluations"].items():
        cost = one["costs"][0]
        point = f"p_target {cost['p_target']}, c_miss {cost['c_miss']}, c_fa {cost['c_fa']}"
        thresholds = f"{one['eer_threshold']:.4f} | {cost['min_dcf_threshold']:.4f}"
        lines.append(f"| {name} | {one['trials']:,} | {thresholds} | {point} |")
    lines += ["", "Scores are cosines of mean-subtracted embeddings of whole utterances, without score normalization."]
    lines += ["", "![sparsity and lambda](figures/control.png)", "", "![sparsity per layer](figures/layers.png)"]
    lines += ["", "![DET curve](figures/det.png)", "", "## How this was made", ""]
    lines += [f"    {environment['command']}", ""]
    lines += [f"- {name}: {value}" for name, value in environment.items() if name not in {"command", "packages"}]
    lines += [f"- {name} {version}" for name, version in environment["packages"].items()]
    return "\n".join(lines) + "\n"
