"""All answers into one folder: evidence.md, figures, and CSV files for programs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.figures import FIGURES, quality_figure
from evidence.results import Finished
from evidence.tables import TABLES, curves, structure_table
from sv_sparse.report.compare import as_csv
from sv_sparse.report.page import figure_links
from sv_sparse.report.style import Drawn, house_style
from sv_sparse.report.sweep import columns, read_entries
from sv_sparse.report.write import write_figures
from sv_sparse.storage import write_text

TITLES = {
    "control": "Does every run reach its target, with one default setting?",
    "insensitivity": "Does the start of λ matter?",
    "quality": "What does sparsity cost in EER, by every way to it?",
    "convergence": "How early does it get there?",
    "noise": "How does it take noise and rooms that it never heard?",
    "foreign": "How does it take other sources?",
    "structure": "Single weights, whole channels or a narrow network?",
    "finetuning": "From a dense network, or from scratch?",
    "search": "Which learning rates were tried?",
}
NOTES = {
    "control": "Sparsity as it was before landing, which makes it exact. Runs are short on purpose; all settings are "
    "the defaults.",
    "insensitivity": "Target 90 %, half as many epochs as for the error rates. A fixed λ has no target: its sparsity "
    "is what comes of it, and its EER belongs to that sparsity.",
    "quality": "Means of the seeds. Intervals are 95 % of draws of other test speakers; differences, in points, are "
    "taken draw by draw on the same trials, and say something where the interval leaves out 0.",
    "convergence": "EER of training speakers that are held out, after each epoch, means of the seeds.",
    "noise": "Both sides of every trial, each with a stretch of noise or a room of its own. In brackets: times the EER "
    "on clean speech.",
    "foreign": "The same trials, heard by networks that were trained on nothing of their source.",
    "structure": "3 s of speech, one utterance, one thread. Channels are cut out before torch and onnxruntime are "
    "measured; the sparse engine takes the whole network.",
    "finetuning": "Fine-tuning starts from the dense network of the same seed, without a ramp for feedback.",
    "search": "Seed 0; the default is what the other tables have.",
}


def write_evidence(
    folder: Path, found: Finished, measured: Mapping[str, Any], made_by: str, *, page: str = "evidence.md"
) -> None:
    """Write tables, figures, runs.csv, curves.csv and measured.json.

    Raises:
        ValueError: No cell is finished.
    """
    runs = found.runs()
    if not runs:
        raise ValueError("no run of the plan is finished yet")
    lists = list(runs[0].results["evaluations"])
    folder.mkdir(parents=True, exist_ok=True)
    with house_style():
        drawn = {name: draw(found, lists) for name, draw in FIGURES.items()}
        of_quality = [quality_figure(name, found) for name in lists]
    figures = {name: [figure] for name, figure in drawn.items() if figure is not None}
    figures["quality"] = [figure for figure in of_quality if figure is not None]
    write_figures(folder, [figure for own in figures.values() for figure in own])
    write_text(folder / page, "\n".join(_page(found, measured, figures, lists, made_by)).rstrip() + "\n")
    entries, _ = read_entries([run.folder for run in runs], None)
    write_text(folder / "runs.csv", as_csv(entries, columns(entries, {})))
    write_text(folder / "curves.csv", _csv(curves(runs)))
    write_text(folder / "measured.json", json.dumps(measured, indent=1) + "\n")


def _page(
    found: Finished,
    measured: Mapping[str, Any],
    figures: Mapping[str, Sequence[Drawn]],
    lists: Sequence[str],
    made_by: str,
) -> list[str]:
    tables = {name: make(found, lists) for name, make in TABLES.items()}
    tables["structure"] = structure_table(found, measured, lists)
    lines = ["# Evidence", "", f"    {made_by}", "", _conditions(found), ""]
    if found.missing:
        lines += [f"Not run or not finished: {', '.join(found.missing)}.", ""]
    for name, title in TITLES.items():
        if tables[name].rows:
            lines += [f"## {title}", "", tables[name].markdown(), "", NOTES[name], ""]
            lines += figure_links(figures.get(name, []))
    return lines


def _conditions(found: Finished) -> str:
    """What all runs have in common."""
    run = next(iter(found.values())).runs[0]
    environment = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
    how, lists = run.results["training"], run.results["evaluations"]
    listed = ", ".join(f"{name} ({one['trials']:,} trials, {one['speakers']} speakers)" for name, one in lists.items())
    return (
        f"{len(found.runs())} runs. Trained on {how['speakers']:,} speakers, {how['utterances']:,} utterances, "
        f"{how['hours']:.2f} hours, in {how['precision']}; judged on {listed}. "
        f"{environment['gpu'] or environment['processor']}, {environment['threads']} thread(s) a run, "
        f"torch {environment['packages']['torch']}, commit {environment['commit'][:7]}."
    )


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
