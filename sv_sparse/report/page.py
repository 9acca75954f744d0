"""A run's report.html, one file with all its figures, and report.md, which links them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sv_sparse.report import tables
from sv_sparse.report.error_figures import group_rows
from sv_sparse.report.record import Record
from sv_sparse.report.style import Drawn, inline, theme
from sv_sparse.report.tables import Table
from sv_sparse.report.words import count, interval, percent, share
from sv_sparse.runtime.decision import LIMITS_OF_USE, NOT_DIFFERENT, SYNTHETIC_WARNING, Outcome

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_OF_ERRORS = ("det", "scores_", "groups_")


def render(template: str, figures: Sequence[Drawn], **values: Any) -> str:
    """A page that needs nothing but itself; everything in it is escaped.

    Args:
        template: its file's name.
        figures: that it shows, under ``svg(figure)``; the ids of each begin with its number.
        values: what else it shows.
    """
    numbers = {figure.name: number for number, figure in enumerate(figures)}
    style = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")

    def svg(figure: Drawn) -> str:
        return inline(figure, f"f{numbers[figure.name]}")

    whole = {"style": style, "theme": theme(), "svg": svg, "figures": figures}
    return _TEMPLATES.get_template(template).render(**whole, **values)


def run_page(record: Record, figures: Sequence[Drawn]) -> str:
    """A run's report in HTML."""
    results = record.results
    lists = results["evaluations"]
    about = record.environment | {"packages": None, "command": None, "corpus": None}  # which the facts say
    packages = record.environment["packages"]
    return render(
        "run.html",
        figures,
        name=record.name,
        summary=summary(record),
        cards=_cards(record),
        lists=tables.lists_table(lists) if len(lists) > 1 else None,
        errors=[_list_of(name, one, results["scoring"]) for name, one in lists.items()],
        decision_notes=decision_notes(record),
        error_figures=[figure for figure in figures if figure.name.startswith(_OF_ERRORS)],
        training_figures=[figure for figure in figures if not figure.name.startswith((*_OF_ERRORS, "layers"))],
        layer_figures=[figure for figure in figures if figure.name == "layers"],
        sparsity=tables.sparsity_table(results),
        size=tables.size_table(results["size"]),
        latency=tables.latency(results["size"]),
        layers=tables.layers_table(results["layers"]),
        facts=tables.training_facts(results),
        command=record.environment["command"],
        environment=[(name, value) for name, value in about.items() if value is not None],
        packages=list(packages.items()),
    )


def decision_notes(record: Record) -> list[str]:
    """Return sentences on what the network's decisions mean, and on what they do not tell."""
    reached, missed = Outcome.ACCEPTED, Outcome.NOT_ACCEPTED
    notes = [f'A pair whose evidence reaches the threshold is "{reached}", any other "{missed}"; {NOT_DIFFERENT}.']
    if record.config.is_synthetic:
        notes.append(f"Warning: {SYNTHETIC_WARNING}.")
    return [*notes, f"Limits of use: {LIMITS_OF_USE}."]


def _list_of(name: str, one: Mapping[str, Any], scoring: Mapping[str, Any]) -> dict[str, Any]:
    """What a page says of one list."""
    rows = group_rows(one["breakdown"])
    groups = Table(f"Groups of {name}", ("kind", "group", "trials", "targets", "EER"), rows)
    return {
        "name": name,
        "table": tables.errors_table(one),
        "decisions": tables.decisions_table(one),
        "conditions": tables.conditions(one, scoring),
        "groups": groups if rows else None,
    }


def _cards(record: Record) -> list[tuple[str, str, str]]:
    """The few numbers that matter: name, number, and what to know about it."""
    results = record.results
    name, first = next(iter(results["evaluations"].items()))
    size = results["size"]
    target = "dense" if record.dense else f"target {percent(results['target_sparsity'])}"
    before = "" if record.dense else f", {percent(results['sparsity_tracked'], 3)} before landing"
    between = "" if first["eer_interval"] is None else f", 95% interval {interval(first['eer_interval'])}"
    how = results["training"]
    return [
        ("Sparsity", percent(results["sparsity"], 4), target + before),
        ("EER", percent(first["eer"]), f"{name}{between}"),
        (
            "Kept parameters",
            count(results["nonzero_parameters"]),
            f"{share(results['nonzero_parameters'], results['parameters'])} of {count(results['parameters'])}; "
            f"{share(size['nonzero_macs'], size['macs'])} of multiply-accumulates",
        ),
        ("Minutes", f"{results['seconds'] / 60:.1f}", f"{count(how['steps'])} steps on {how['device']}"),
    ]


def summary(record: Record) -> str:
    """What was trained, in a sentence."""
    how = record.results["training"]
    corpus = f" of {tables.corpus_name(record.results)}" if "corpus" in record.results else ""
    return (
        f"{how['model']}, trained on {count(how['speakers'])} speakers{corpus}, {count(how['utterances'])} utterances, "
        f"{how['hours']:.2f} hours, for {how['epochs']} epochs or {count(how['steps'])} steps on {how['device']} "
        f"in {how['precision']}."
    )


def run_markdown(record: Record, figures: Sequence[Drawn]) -> str:
    """A run's report in Markdown."""
    results = record.results
    lists = results["evaluations"]
    lines = [f"# {record.name}", "", tables.results_table(results), "", summary(record)]
    gap = 100 * (results["sparsity_tracked"] - results["target_sparsity"])
    lines.append(f"Before landing the sparsity stood {gap:+.3f} points from the target.")
    if results.get("validation_eer") is not None:
        lines.append(
            f"Landing moved the EER on held-out training speakers from "
            f"{percent(results['validation_eer_tracked'])} to {percent(results['validation_eer'])}."
        )
    lines += ["", "The same in more detail: report.html."]
    for name, one in lists.items():
        lines += ["", f"## {name}", "", tables.errors_table(one).markdown(), ""]
        decisions = tables.decisions_table(one)
        lines += [decisions.markdown(), ""] if decisions is not None else []
        lines += [f"- {what}: {value}" for what, value in tables.conditions(one, results["scoring"])]
    lines += ["", *(f"{note}\n" for note in decision_notes(record))]
    lines += ["## Sparsity", "", tables.sparsity_table(results).markdown(), ""]
    lines += [tables.size_table(results["size"]).markdown(), "", tables.latency(results["size"]), "", "## Figures", ""]
    lines += figure_links(figures)
    about = record.environment
    lines += ["## How this was made", "", f"    {about['command']}", ""]
    lines += [f"- {name}: {value}" for name, value in tables.corpus_facts(results)]
    lines += [f"- {name}: {value}" for name, value in about.items() if name not in {"command", "packages", "corpus"}]
    lines += [f"- {name} {version}" for name, version in about["packages"].items()]
    return "\n".join(lines) + "\n"


def figure_links(figures: Sequence[Drawn]) -> list[str]:
    """Lines of Markdown that show figures/*.svg."""
    lines = []
    for figure in figures:
        title = figure.title.replace("[", "(").replace("]", ")")
        lines += [f"![{title}](figures/{quote(figure.name)}.svg)", ""]
    return lines
