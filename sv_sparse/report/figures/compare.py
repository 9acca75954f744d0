"""Figures of a comparison of runs: error rates against sparsity, and distance to the target."""

from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from sv_sparse.report.figures.style import (
    HOLLOW,
    MARKERS,
    SERIES,
    TEXT,
    FigureFile,
    legend_above,
    new_figure,
    render_figure,
)
from sv_sparse.report.format import percent

if TYPE_CHECKING:
    # report/compare.py imports this module.
    from sv_sparse.report.compare import RunResult

_SPARSITY_TICKS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.998, 0.999)
# Of the axis of sparsity, which is logarithmic in the density: a run beyond is drawn here.
_MIN_DENSITY = 1e-4


def comparison_figures(results: Sequence["RunResult"], sparse_runs: Sequence["RunResult"]) -> list[FigureFile]:
    """Draw the figures that the runs have data for; to be called inside ``report_style``.

    Args:
        results: runs and lists, at least one.
        sparse_runs: one result of each run with a target sparsity; may be empty.
    """
    by_list: dict[str, list[RunResult]] = {}
    for result in results:
        by_list.setdefault(result.list_name, []).append(result)
    figures = [_eer_figure(list_name, members) for list_name, members in by_list.items()]
    if sparse_runs:
        figures.append(_targets_figure(sparse_runs))
    return figures


def _eer_figure(list_name: str, results: Sequence["RunResult"]) -> FigureFile:
    """Draw the EER against the final sparsity, on a logarithmic axis of the density."""
    series = list(_series(results))
    figure, (axes,) = new_figure(2.9 + 0.16 * len(series))
    _set_sparsity_axis(axes, [1 - result.results["sparsity"] for result in results])
    handles = []
    labels = []
    for index, (label, color, marker, members) in enumerate(series):
        labels.append(label)
        # Equal sparsities would hide each other: runs end exactly at their target.
        shift = 1.05 ** (index - (len(series) - 1) / 2)
        points = []
        for result in members:
            density = shift * max(_MIN_DENSITY, 1 - result.results["sparsity"])
            points.append((density, 100 * result.evaluation["eer"]))
            interval = result.evaluation["eer_interval"]
            if interval is not None:
                axes.vlines(density, 100 * interval[0], 100 * interval[1], color=color, linewidth=1.3, alpha=0.55)
        points.sort(key=lambda point: -point[0])
        densities, eers = zip(*points, strict=True)
        if len(points) > 1:
            axes.plot(densities, eers, color=color, linewidth=1, alpha=0.6)
        handles += axes.plot(densities, eers, marker, color=color, markersize=5.5, linestyle="none")
    low, high = axes.get_ylim()
    middle = (low + high) / 2
    # At least two points of EER, so that small differences do not look large.
    axes.set_ylim(min(low, middle - 1), max(high, middle + 1))
    axes.set_ylabel("EER (%)")
    legend_above(figure, handles, labels, columns=1)
    best = min(results, key=lambda result: result.evaluation["eer"])
    alt_text = (
        f"EER on {list_name} against the final sparsity, of {len(results)} runs; the lowest is "
        f"{percent(best.evaluation['eer'])} at {percent(best.results['sparsity'])} ({best.run_name}). "
        "Vertical lines are 95% intervals, where they are known."
    )
    return render_figure(f"eer_{list_name}", f"EER and sparsity on {list_name}", alt_text, figure)


def _set_sparsity_axis(axes: Axes, densities: Sequence[float]) -> None:
    low = max(_MIN_DENSITY, min(0.5, *densities)) / 1.3
    # Dense is on the left, and the sparsity grows to the right.
    axes.set_xlim(1.3, low)
    axes.set_xscale("log")
    ticks = [sparsity for sparsity in _SPARSITY_TICKS if 1 - sparsity >= low]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([1 - sparsity for sparsity in ticks], [f"{100 * sparsity:g}" for sparsity in ticks])
    axes.set_xlabel("sparsity (%)")


def _targets_figure(results: Sequence["RunResult"]) -> FigureFile:
    """Draw how far from its target each run's tracked sparsity ended."""
    series = list(_series(results))
    figure, (axes,) = new_figure(2.9 + 0.16 * len(series))
    axes.axhline(0, color=TEXT, linewidth=0.8)
    handles = []
    labels = []
    for index, (label, color, marker, members) in enumerate(series):
        labels.append(label)
        shift = 0.4 * (index - (len(series) - 1) / 2)
        targets = []
        errors = []
        for result in members:
            targets.append(100 * result.results["target_sparsity"] + shift)
            errors.append(100 * result.sparsity_error)
        handles += axes.plot(targets, errors, marker, markeredgecolor=color, markersize=6.5, **HOLLOW)
    # Feedback ends within hundredths of a point, a fixed lambda tens of points away.
    axes.set_yscale("symlog", linthresh=0.01, linscale=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("target (%)")
    axes.set_ylabel("points from the target")
    legend_above(figure, handles, labels, columns=1)
    farthest = max(results, key=lambda result: abs(result.sparsity_error))
    alt_text = (
        f"Tracked sparsity less its target, of {len(results)} runs; the farthest, {farthest.run_name}, had the target "
        f"{percent(farthest.results['target_sparsity'])} and reached "
        f"{percent(farthest.results['sparsity_tracked'], 3)}."
    )
    return render_figure("targets", "Tracked sparsity less its target", alt_text, figure)


def _series(results: Sequence["RunResult"]) -> Iterator[tuple[str, str, str, list["RunResult"]]]:
    """Yield label, color, marker and members of each series."""
    by_label: dict[str, list[RunResult]] = {}
    for result in results:
        by_label.setdefault(result.series, []).append(result)
    for (label, members), color, marker in zip(by_label.items(), cycle(SERIES), cycle(MARKERS)):
        yield label, color, marker, members
