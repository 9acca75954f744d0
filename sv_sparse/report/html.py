"""Files of a run's report: results.json, report.html, report.md, figures/*.svg."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from sv_sparse.evaluation.evaluate import read_json
from sv_sparse.io import write_json, write_text
from sv_sparse.report import format as fmt
from sv_sparse.report import tables
from sv_sparse.report.figures.run import draw_run
from sv_sparse.report.figures.style import FigureFile, css_variables, inline_svg, standalone_svg
from sv_sparse.report.results import (
    NO_EVALUATION,
    NO_TRIAL_LIST,
    Results,
    RunReport,
    all_evaluations,
    read_run_report,
)
from sv_sparse.runtime.decision import LIMITS_OF_USE, NOT_DIFFERENT, SYNTHETIC_WARNING, Outcome

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    # Names of speakers, lists and layers may hold anything.
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write_results(run_dir: Path, results: Results) -> str:
    """Write results.json into a run folder, and return the table of the results in Markdown."""
    write_json(run_dir / "results.json", results)
    return tables.results_table(results).markdown()


def write_report(run_dir: Path, results: Results) -> list[FigureFile]:
    """Write figures/*.svg, report.html and report.md into the folder of a finished run, and return the figures.

    Args:
        run_dir: folder of the run; a missing file is an OSError.
        results: content of results.json, with the evaluations to show.
    """
    report = read_run_report(run_dir, results)
    sections = draw_run(report)
    figures = list(chain.from_iterable(sections.values()))
    write_pages(run_dir, "report", figures, _page_values(report) | sections)
    return figures


def refresh_report(run_dir: Path) -> None:
    """Write the report of a finished run again, with the evaluations that were added since."""
    results = read_json(run_dir / "results.json")
    results["evaluations"] = all_evaluations(run_dir, results)
    write_report(run_dir, results)


def write_pages(folder: Path, name: str, figures: Sequence[FigureFile], values: dict[str, Any]) -> None:
    """Write figures/*.svg, an HTML page that holds them, and a Markdown page that links them.

    Args:
        folder: folder of the files.
        name: name of both pages and of their templates, without a suffix.
        figures: figures of the pages.
        values: other variables of the templates.
    """
    (folder / "figures").mkdir(exist_ok=True)
    for figure in figures:
        write_text(folder / "figures" / f"{figure.name}.svg", standalone_svg(figure))
    # One HTML document holds all figures, so their ids must differ.
    prefixes = {figure.name: f"f{index}" for index, figure in enumerate(figures)}
    css = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    values = values | {
        "figures": figures,
        "style": css_variables() + css,
        "svg": lambda figure: inline_svg(figure, prefixes[figure.name]),
        "quote": quote,
    }
    # The HTML page needs no other file, so that it can be mailed; Markdown is for terminals.
    for suffix in ("html", "md"):
        write_text(folder / f"{name}.{suffix}", _TEMPLATES.get_template(f"{name}.{suffix}").render(values))


def _page_values(report: RunReport) -> dict[str, Any]:
    """Return the variables of the templates report.html and report.md, without the figures."""
    results = report.results
    training = results["training"]
    environment = report.environment
    evaluations = []
    for name, evaluation in results["evaluations"].items():
        section: dict[str, Any] = {"name": name, "conditions": tables.conditions(evaluation, results["scoring"])}
        section["metrics"] = tables.metrics_table(evaluation)
        section["thresholds"] = tables.thresholds_table(evaluation)
        section["breakdown"] = tables.breakdown_table(evaluation)
        evaluations.append(section)
    notes = [
        f'Decisions: a pair whose LLR reaches the threshold is "{Outcome.ACCEPTED}". Any other pair is '
        f'"{Outcome.NOT_ACCEPTED}"; {NOT_DIFFERENT}.'
    ]
    # A card of a demo network must not look like one of people's voices.
    if report.config.is_synthetic:
        notes.append(f"Warning: {SYNTHETIC_WARNING}.")
    notes.append(f"Limits of use: {LIMITS_OF_USE}.")
    # The page has these elsewhere.
    other_facts = {name: value for name, value in environment.items() if name not in {"command", "packages", "corpus"}}
    return {
        "name": report.run_dir.resolve().name,
        "summary": (
            f"{training['model']}, trained for {tables.duration(results, report.config)} on {training['device']} in "
            f"{training['precision']}. Corpus: {tables.corpus_name(results)}, {tables.corpus_size(results)}."
        ),
        "cards": _cards(report),
        "results": tables.results_table(results),
        "evaluations": evaluations,
        "evaluate_command": tables.EVALUATE_COMMAND,
        "decision_notes": notes,
        "teacher": tables.teacher_table(results),
        "sparsity": tables.sparsity_table(results),
        "size": tables.size_table(results["size"]),
        "latency": tables.latency_note(results["size"]),
        "next_commands": tables.NEXT_COMMANDS,
        "layers": tables.layers_table(results["layers"]),
        "facts": tables.training_facts(results, report.config),
        "command": environment["command"],
        "environment": [(name, value) for name, value in other_facts.items() if value is not None],
        "packages": list(environment["packages"].items()),
    }


def _cards(report: RunReport) -> list[tuple[str, str, str]]:
    """Return the most important numbers: name, number, note."""
    results = report.results
    size = results["size"]
    training = results["training"]
    name, evaluation = next(iter(results["evaluations"].items()), (NO_TRIAL_LIST, NO_EVALUATION))
    sparsity_note = "dense"
    if not report.is_dense:
        target = fmt.percent(results["target_sparsity"])
        tracked = fmt.percent(results["sparsity_tracked"], 3)
        sparsity_note = f"target {target}, tracked {tracked}"
    eer_note = name
    if evaluation["eer_interval"] is not None:
        eer_note += f", 95% interval {fmt.interval(evaluation['eer_interval'])}"
    nnz = results["nonzero_parameters"]
    num_params = results["parameters"]
    nonzero_macs = fmt.percent(size["nonzero_macs"] / size["macs"], 1)
    size_note = f"{fmt.percent(nnz / num_params, 1)} of {num_params:,}; {nonzero_macs} of the multiply-accumulates"
    steps_note = f"{training['steps']:,} steps on {training['device']}"
    cards = [
        ("Final sparsity", fmt.percent(results["sparsity"], 4), sparsity_note),
        ("EER", fmt.percent(evaluation["eer"]), eer_note),
        ("Nonzero parameters", fmt.count(nnz), size_note),
        ("Time", f"{results['wall_time_s'] / 60:.1f} min", steps_note),
    ]
    if "teacher_cosine" in results:
        lowest = fmt.number(results["min_teacher_cosine"], ".4f")
        note = f"mean of {results['teacher_recordings']:,} trial recordings, lowest {lowest}"
        cards.append(("Cosine to the teacher", fmt.number(results["teacher_cosine"], ".4f"), note))
    return cards
