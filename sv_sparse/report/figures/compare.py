"""Figures of a comparison of runs: error rates against sparsity, and distance to the target."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from sv_sparse.report.figures import style
from sv_sparse.report.figures.style import FigureFile
from sv_sparse.report.format import percent

if TYPE_CHECKING:
    # report/compare.py imports this module.
    from sv_sparse.report.compare import RunResult

_SPARSITY_TICKS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.998, 0.999)
# Of the axis of sparsity, which is logarithmic in the density: a run beyond is drawn here.
_MIN_DENSITY = 1e-4
# Between two ticks, as a fraction of the axis: a label takes that much.
_TICK_DISTANCE = 0.08
# Labels of targets that fit side by side.
_MAX_TARGETS = 8


class _Series(NamedTuple):
    """Runs of the same network and controller, drawn alike and ``offset`` places from the middle."""

    label: str
    color: str
    marker: str
    offset: float
    members: list["RunResult"]


def comparison_figures(results: Sequence["RunResult"], sparse_runs: Sequence["RunResult"]) -> list[FigureFile]:
    """Draw the figures of all runs and lists, and of the runs with a target sparsity; inside ``report_style``."""
    by_list: dict[str, list[RunResult]] = {}
    for result in results:
        # A run without trial lists has no EER.
        if result.evaluation["eer"] is not None:
            by_list.setdefault(result.list_name, []).append(result)
    figures = [_eer_figure(list_name, members) for list_name, members in by_list.items()]
    if sparse_runs:
        figures.append(_targets_figure(sparse_runs))
    return figures


def _eer_figure(list_name: str, results: Sequence["RunResult"]) -> FigureFile:
    """Draw the EER against the final sparsity, on a logarithmic axis of the density."""
    series = _series(results)
    # Each series has a line in the legend.
    figure, (axes,) = style.new_figure(2.9 + 0.16 * len(series))
    targets = [result.results["target_sparsity"] for result in results]
    _set_sparsity_axis(axes, [1 - result.results["sparsity"] for result in results], targets)
    handles = []
    for _, color, marker, offset, members in series:
        points = []
        for result in members:
            # Equal sparsities would hide each other: runs end exactly at their target.
            density = 1.05**offset * max(_MIN_DENSITY, 1 - result.results["sparsity"])
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
    style.legend_above(figure, handles, [label for label, *_ in series], columns=1)
    best = min(results, key=lambda result: result.evaluation["eer"])
    alt_text = (
        f"EER on {list_name} against the final sparsity. Runs: {len(results)}. Lowest EER: "
        f"{100 * best.evaluation['eer']:.2f} % at {100 * best.results['sparsity']:.2f} % sparsity ({best.run_name}). "
        "Vertical lines: 95 % intervals."
    )
    return style.render_figure(f"eer_{list_name}", f"EER and sparsity on {list_name}", alt_text, figure)


def _set_sparsity_axis(axes: Axes, densities: Sequence[float], targets: Sequence[float]) -> None:
    """Set a logarithmic axis of the density, with the targets as ticks and others where there is room."""
    low = max(_MIN_DENSITY, min(0.5, *densities)) / 1.3
    # Dense is on the left, and the sparsity grows to the right.
    axes.set_xlim(1.3, low)
    axes.set_xscale("log")
    ticks: list[float] = []
    for sparsity in (*sorted(set(targets)), *_SPARSITY_TICKS):
        places = [math.log(1.3 / (1 - tick)) for tick in (sparsity, *ticks) if tick < 1]
        distances = [abs(place - places[0]) for place in places[1:]]
        if 1 - sparsity >= low and min(distances, default=1.0) > _TICK_DISTANCE * math.log(1.3 / low):
            ticks.append(sparsity)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([1 - sparsity for sparsity in ticks], [f"{100 * sparsity:g}" for sparsity in ticks])
    axes.set_xlabel("sparsity (%)")


def _targets_figure(results: Sequence["RunResult"]) -> FigureFile:
    """Draw how far from its target each run's tracked sparsity ended."""
    series = _series(results)
    figure, (axes,) = style.new_figure(2.9 + 0.16 * len(series))
    axes.axhline(0, color=style.TEXT, linewidth=0.8)
    handles = []
    targets = sorted({result.results["target_sparsity"] for result in results})
    for _, color, marker, offset, members in series:
        # Targets are equally far apart, since 95, 98 and 99 % would lie upon each other.
        places = [targets.index(result.results["target_sparsity"]) + 0.6 * offset / len(series) for result in members]
        errors = [100 * result.sparsity_error for result in members]
        handles += axes.plot(places, errors, marker, markeredgecolor=color, markersize=6.5, **style.HOLLOW)
    # Feedback ends within hundredths of a point, a fixed lambda tens of points away.
    axes.set_yscale("symlog", linthresh=0.01, linscale=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.12)
    axes.set_xlim(-0.6, len(targets) - 0.4)
    step = math.ceil(len(targets) / _MAX_TARGETS)
    axes.set_xticks(range(0, len(targets), step), [f"{100 * target:.6g}" for target in targets[::step]])
    axes.set_xlabel("target sparsity (%)")
    axes.set_ylabel("points above or below the target")
    style.legend_above(figure, handles, [label for label, *_ in series], columns=1)
    farthest = max(results, key=lambda result: abs(result.sparsity_error))
    alt_text = (
        f"Tracked sparsity minus target sparsity, before finalization. Runs: {len(results)}. Largest difference: "
        f"{farthest.run_name}, target {percent(farthest.results['target_sparsity'])}, tracked "
        f"{percent(farthest.results['sparsity_tracked'], 3)}."
    )
    return style.render_figure("targets", "Tracked sparsity minus target", alt_text, figure)


def _series(results: Sequence["RunResult"]) -> list[_Series]:
    by_label: dict[str, list[RunResult]] = {}
    for result in results:
        label = f"{result.network}, {result.controller.replace('fixed', 'fixed λ')}"
        by_label.setdefault(label, []).append(result)
    middle = (len(by_label) - 1) / 2
    series = []
    for index, (label, members) in enumerate(by_label.items()):
        look = style.SERIES[index % len(style.SERIES)], style.MARKERS[index % len(style.MARKERS)]
        series.append(_Series(label, *look, index - middle, members))
    return series
