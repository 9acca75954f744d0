"""Each answer into a folder of its own: answer.md, figures, and CSV files for programs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.figures import FIGURES
from evidence.results import Finished, near_target
from evidence.tables import TABLES, curves, structure_table
from sv_sparse.io import write_text
from sv_sparse.report.compare import as_csv
from sv_sparse.report.page import figure_links
from sv_sparse.report.style import Drawn, house_style
from sv_sparse.report.sweep import Column, columns, read_entries
from sv_sparse.report.write import write_figures

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
SECTIONS = {"quality": ("quality", "convergence")}  # of the questions that have more than one table
NOTES = {
    "control": "Sparsity as it was before landing, which makes it exact. Runs are short on purpose; but for the size "
    "of a batch, and what the command says, all settings are the defaults. In so few steps some networks have learnt "
    "next to nothing: compare the EER before training.",
    "insensitivity": "Target 90 %, in fewer epochs than the error rates. Feedback that is to start above the size of "
    "the living weights starts at that size, which the run's log says. A fixed λ has no target: its sparsity is what "
    "comes of it, and its EER belongs to that sparsity.",
    "quality": "Means of the seeds. In brackets, 95 % of draws of other test speakers, for these seeds. Differences, "
    "in points, are taken draw by draw on the same trials, over the seeds that both have; they say something about "
    "speakers where the brackets leave out 0, and of the spread of seeds the column of each seed says what is known. A "
    "fixed λ is not landed: its EER belongs to the sparsity that it has.",
    "convergence": "EER of training speakers that are held out, 40 at most, and sparsity, after each epoch. Few of "
    "their trials are targets, so that a pair more or less may be more than a point, and no interval is known. Other "
    "seeds hold out other speakers, so only seeds that all columns have are averaged.",
    "noise": "Both sides of every trial, each with a stretch of noise or a room of its own. In brackets: times the EER "
    "on clean speech. The noise is from",
    "foreign": "The same trials, heard by networks that were trained on all sources, on as many utterances of all "
    "sources as the others have, and on nothing of the trials' source.",
    "structure": "3 s of speech, one utterance, one thread. Channels are cut out before torch and onnxruntime are "
    "measured; the file and the sparse engine have the whole network, its zeros left out. Narrow networks have an MFA "
    "of three times, attention and squeeze-excitation of half their channels. Measured on",
    "finetuning": "Fine-tuning starts from the dense network of the same seed, without a ramp for feedback.",
    "search": "Seed 0, 90 %; the default is what the other tables have.",
}


def write_evidence(
    folder: Path,
    questions: Mapping[str, Finished],
    measured: Mapping[str, Any],
    made_by: str,
    noise: str,
) -> None:
    """Write a folder for each question: answer.md, figures, runs.csv, epochs.csv; measured.json beside the structures.

    Questions of which nothing is finished are left as they are: their answers may be of another time or place.

    Args:
        folder: Made if absent.
        questions: What is finished of the cells of each, those that it compares with among them.
        measured: As ``read_measured`` returns it.
        made_by: The command.
        noise: Where noise and rooms are from.

    Raises:
        ValueError: No cell is finished.
    """
    asked = {name: own for name, own in questions.items() if own}
    if not asked:
        raise ValueError("no run of these questions is finished yet")
    for question, own in asked.items():
        _write_answer(folder / question, question, own, measured, made_by, noise)


def _write_answer(
    folder: Path, question: str, own: Finished, measured: Mapping[str, Any], made_by: str, noise: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lists = own.lists()
    ends = {
        "insensitivity": f" {near_target(own)}",
        "noise": f" {noise}.",
        "structure": f" {', '.join(sorted({one['machine'] for one in measured.values()}))}.",
    }
    lines = [f"# Evidence: {question}", "", f"    {made_by}", "", *_conditions(own), ""]
    for name in SECTIONS.get(question, (question,)):
        table = structure_table(own, measured, lists) if name == "structure" else TABLES[name](own, lists)
        if table.rows:
            lines += [f"## {TITLES[name]}", "", table.markdown(), "", NOTES[name] + ends.get(name, ""), ""]
            lines += figure_links(_draw(folder, name, own, lists))
    write_text(folder / "answer.md", "\n".join(lines).rstrip() + "\n")
    entries, _ = read_entries([run.folder for run in own.runs()], None)
    entries = [entry for entry in entries if entry.one["id"] in lists or question == "noise"]
    write_text(folder / "runs.csv", as_csv(entries, [*columns(entries, {}), _COMMIT]))
    write_text(folder / "epochs.csv", _csv(curves(own.runs())))
    if question == "structure":
        write_text(folder / "measured.json", json.dumps(measured, indent=1) + "\n")


def _environment(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return found


_COMMIT = Column("commit", ("commit",), lambda entry: [str(_environment(entry.run)["commit"])[:7]])


def _draw(folder: Path, name: str, found: Finished, lists: Sequence[str]) -> list[Drawn]:
    """Write the figures of a table."""
    with house_style():
        figures = FIGURES[name](found, lists) if name in FIGURES else []
    if figures:
        write_figures(folder, figures)
    return figures


def _conditions(found: Finished) -> list[str]:
    """What the runs have in common, or all that they have."""
    runs = found.runs()
    heard: dict[str, None] = {}
    machines: dict[str, None] = {}
    commits: dict[str, None] = {}
    for run in runs:
        environment = _environment(run.folder)
        how = run.results["training"]
        speech = f"{how['speakers']:,} speakers, {how['utterances']:,} utterances, {how['hours']:.2f} hours"
        heard |= {f"{speech}, in {how['precision']}": None}
        machine = f"{environment['gpu'] or environment['processor']}, {environment['threads']} thread(s) a run"
        machines |= {f"{machine}, torch {environment['packages']['torch']}": None}
        commits |= {str(environment["commit"])[:7]: None}
    listed = {
        f"{name} ({one['trials']:,} trials of {one['speakers']} speakers)": None
        for run in runs
        for name, one in run.results["evaluations"].items()
    }
    lines = [
        f"{len(runs)} runs, {sum(run.results['seconds'] for run in runs) / 3600:.1f} hours of training.",
        f"- Trained on: {'; '.join(heard)}.",
        f"- Judged on: {'; '.join(listed)}.",
        f"- Computed by: {'; '.join(machines)}; commits {', '.join(commits)}.",
    ]
    return [*lines, *([f"- Not finished: {', '.join(found.missing)}."] if found.missing else [])]


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
