"""A sweep in figures: error rates against sparsity, targets and what came out, what it cost."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from sv_sparse.report.cost import Found
from sv_sparse.report.style import (
    INK,
    MARKERS,
    PAPER,
    SERIES,
    Drawn,
    drawn,
    legend_above,
    log_ticks,
    new_figure,
    shortened,
)
from sv_sparse.report.sweep import Entry
from sv_sparse.report.words import percent

_SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.998, 0.999)
_LEAST = 1e-3  # points; nearer to a target than this is drawn here


def sweep_figures(entries: Sequence[Entry], found: Sequence[Found]) -> list[Drawn]:
    """Those of which there is something to see; inside ``house_style``."""
    figures = [_errors(name, entries) for name in dict.fromkeys(entry.one["name"] for entry in entries)]
    runs = [run for run in {entry.run: entry for entry in entries}.values() if not run.dense]
    if runs:
        figures.append(_targets(runs))
    return [*figures, _costs(found)] if found else figures


def _errors(name: str, entries: Sequence[Entry]) -> Drawn:
    """EER against the sparsity that was delivered, on the logarithm of what is kept."""
    own = [entry for entry in entries if entry.one["name"] == name]
    styles = _styles(own)
    figure, (axes,) = new_figure(2.9 + 0.16 * len(styles))
    _sparsity_axis(axes, [1 - entry.results["sparsity"] for entry in own])
    handles, labels = [], []
    for number, (series, color, marker) in enumerate(styles):
        aside = 1.05 ** (number - (len(styles) - 1) / 2)  # equal sparsities are drawn a little apart
        of_series = [entry for entry in own if entry.series == series]
        points = sorted(
            ((aside * max(1e-4, 1 - e.results["sparsity"]), e.one) for e in of_series), key=lambda pair: -pair[0]
        )
        x, y = [kept for kept, _ in points], [100 * one["eer"] for _, one in points]
        for kept, one in points:
            if one["eer_interval"] is not None:
                axes.vlines(kept, *(100 * end for end in one["eer_interval"]), color=color, linewidth=1.3, alpha=0.55)
        axes.plot(x, y, color=color, linewidth=1, alpha=0.6, linestyle="-" if len(points) > 1 else "none")
        (dots,) = axes.plot(x, y, marker, color=color, markersize=5.5, linestyle="none")
        handles.append(dots)
        labels.append(series)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, (low + high) / 2 - 1), max(high, (low + high) / 2 + 1))  # at least two points of EER
    axes.set_ylabel("EER (%)")
    legend_above(figure, handles, [shortened(label, 44) for label in labels], columns=1)
    best = min(own, key=lambda entry: entry.one["eer"])
    text = (
        f"EER on {name} against the sparsity delivered, of {len(own)} runs; the lowest is {percent(best.one['eer'])} "
        f"at {percent(best.results['sparsity'])} ({best.name}). Upright lines are 95% intervals, where they are known."
    )
    return drawn(f"eer_{name}", f"EER and sparsity on {name}", text, figure)


def _sparsity_axis(axes: Axes, kept: Sequence[float]) -> None:
    low = max(1e-4, min(0.5, *kept)) / 1.3
    axes.set_xlim(1.3, low)  # dense is left
    axes.set_xscale("log")
    ticks = [sparsity for sparsity in _SPARSITIES if 1 - sparsity >= low]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([1 - sparsity for sparsity in ticks], [f"{100 * sparsity:g}" for sparsity in ticks])
    axes.set_xlabel("sparsity (%)")


def _targets(runs: Sequence[Entry]) -> Drawn:
    """How far from its target each run ended by itself."""
    styles = _styles(runs)
    figure, (axes,) = new_figure(2.9 + 0.16 * len(styles))
    axes.axhline(0, color=INK, linewidth=0.8)
    handles, labels = [], []
    for number, (series, color, marker) in enumerate(styles):
        aside = 0.4 * (number - (len(styles) - 1) / 2)
        own = [run.results for run in runs if run.series == series]
        x = [100 * one["target_sparsity"] + aside for one in own]
        y = [100 * (one["sparsity_tracked"] - one["target_sparsity"]) for one in own]
        style: dict[str, Any] = {"markerfacecolor": PAPER, "markeredgewidth": 1.5, "linestyle": "none"}
        handles += axes.plot(x, y, marker, markeredgecolor=color, markersize=6.5, **style)
        labels.append(series)
    axes.set_yscale("symlog", linthresh=0.01, linscale=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("target (%)")
    axes.set_ylabel("points from the target")
    legend_above(figure, handles, [shortened(label, 44) for label in labels], columns=1)
    far = max(runs, key=lambda run: abs(run.results["sparsity_tracked"] - run.results["target_sparsity"]))
    text = (
        f"Sparsity before landing, less its target, of {len(runs)} runs; the farthest, {far.name}, was asked for "
        f"{percent(far.results['target_sparsity'])} and came to {percent(far.results['sparsity_tracked'], 3)}."
    )
    return drawn("targets", "What was asked and what came", text, figure)


def _costs(found: Sequence[Found]) -> Drawn:
    """Minutes and distance to the target: fixed lambdas together, the others each."""
    figure, (axes,) = new_figure(3.3)
    handles, labels = [], []
    targets = sorted({one.target for one in found})
    for (target, fixed), color in ((key, SERIES[key[1]]) for key in ((t, f) for f in (True, False) for t in targets)):
        own = [one for one in found if one.target == target and one.fixed == fixed]
        marker = MARKERS[targets.index(target) % len(MARKERS)]
        style: dict[str, Any] = {} if fixed else {"markerfacecolor": PAPER, "markeredgewidth": 1.5}
        minutes, points = [one.minutes for one in own], [max(_LEAST, one.points) for one in own]
        handles += axes.plot(minutes, points, marker, color=color, markersize=6.5, linestyle="none", **style)
        labels.append(f"{100 * target:g}%, {'all fixed λ' if fixed else 'one run each'}")
    axes.set_xlim(0, 1.1 * max(one.minutes for one in found))
    away = np.clip([one.points for one in found], _LEAST, None)
    axes.set_ylim(away.min() / 2, 2 * away.max())
    log_ticks(axes)
    axes.set_xlabel("minutes")
    axes.set_ylabel("points from the target")
    legend_above(figure, handles, labels)
    fixed_minutes = max(one.minutes for one in found if one.fixed)
    others = [one for one in found if not one.fixed]
    text = (
        f"Minutes of all runs with a fixed λ together, {fixed_minutes:.1f}, and how near the nearest of them came to "
        f"each target, against each other run alone: at most {max(one.minutes for one in others):.1f} minutes, at most "
        f"{max(one.points for one in others):.3f} points away before landing. "
        f"What is nearer than {_LEAST:g} points is drawn there."
    )
    return drawn("cost", "What it costs to reach a target", text, figure)


def _styles(entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """Each series with its colour and marker."""
    series = dict.fromkeys(entry.series for entry in entries)
    return list(zip(series, cycle(SERIES), cycle(MARKERS)))
