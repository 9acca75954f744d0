"""How well the network tells speakers apart: DET curves, scores, and groups of trials."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sv_sparse.report.scored import Scored, probit
from sv_sparse.report.style import (
    DASHES,
    INK,
    MARKERS,
    PAPER,
    SERIES,
    SOFT,
    Drawn,
    drawn,
    legend_above,
    new_figure,
    shortened,
)
from sv_sparse.report.words import count, percent, point_name

List = dict[str, Any]
_TICKS = (1e-6, 1e-5, 1e-4, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
_KINDS = {"seconds": "duration"}  # of groups of trials, in other words than results.json's


def error_figures(lists: Mapping[str, List], scored: Mapping[str, Scored]) -> list[Drawn]:
    """The DET curves, and for each list its scores and groups; inside ``house_style``."""
    found = [det_figure(lists, scored)]
    for name, one in lists.items():
        found.append(_histograms(name, one, scored[name]))
        if any(one["breakdown"].values()):
            found.append(_groups(name, one))
    return found


def det_figure(lists: Mapping[str, List], scored: Mapping[str, Scored]) -> Drawn:
    """Misses against false alarms of every list, on probit axes, with EER and the smallest costs marked."""
    figure, (axes,) = new_figure(4.6)
    low, high = _rates(scored.values(), max(one["eer"] for one in lists.values()))
    hollow: dict[str, Any] = {"markersize": 6, "markerfacecolor": PAPER, "markeredgewidth": 1.5, "linestyle": "none"}
    curves: list[Line2D] = []
    used: dict[str, Line2D] = {}
    for (name, one), color, dashes in zip(lists.items(), cycle(SERIES), cycle(DASHES)):
        seen = scored[name]
        (line,) = axes.plot(probit(seen.p_fa), probit(seen.p_miss), color=color, linestyle=dashes)
        curves.append(line)
        marks = {"EER": (one["eer"], one["eer"])}
        marks |= {f"minDCF({point_name(c)})": at for c, at in zip(one["dcf"], seen.best, strict=True)}
        for marker, (label, (fa, miss)) in zip(cycle(MARKERS), marks.items()):
            at = probit(np.clip([fa, miss], low, high))  # what lies outside is marked at the edge
            axes.plot(at[:1], at[1:], marker, markeredgecolor=color, clip_on=False, zorder=3, **hollow)
            used.setdefault(label, Line2D([], [], marker=marker, markeredgecolor=SOFT, **hollow))
    _probit_axes(axes, low, high)
    handles = [*curves, *used.values()]
    legend_above(figure, handles, [*(shortened(name, 24) for name in lists), *used])
    rates = ", ".join(f"{name} {percent(one['eer'])}" for name, one in lists.items())
    text = f"Misses against false alarms for every threshold; where they are equal: {rates}."
    return drawn("det", "DET curve" if len(lists) == 1 else "DET curves", text, figure)


def _rates(scored: Iterable[Scored], worst: float) -> tuple[float, float]:
    """The smallest and the largest rate to draw: as far as the curves have trials to tell them."""
    high = 0.97 if worst > 0.25 else 0.5
    pairs = [pair for seen in scored for pair in ((seen.p_fa, seen.p_miss), (seen.p_miss, seen.p_fa))]
    seen_rates = np.concatenate([rate[(other <= high) & (rate > 0)] for rate, other in pairs])
    return max(1e-6, min([0.02, *seen_rates.tolist()])), high


def _probit_axes(axes: Axes, low: float, high: float) -> None:
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    for axis, label in ((axes.xaxis, "false alarms (%)"), (axes.yaxis, "misses (%)")):
        axis.set_ticks(probit(np.array(ticks)).tolist(), [f"{100 * tick:g}" for tick in ticks])
        axis.set_label_text(label)
    start, end = probit(np.array([low, high])) + np.array([-0.08, 0.08])
    axes.set(xlim=(start, end), ylim=(start, end))
    axes.set_box_aspect(1)


def _histograms(name: str, one: List, seen: Scored) -> Drawn:
    """Scores of targets and of nontargets, each with an area of one, and the thresholds."""
    figure, (axes,) = new_figure(2.9)
    handles: list[Any] = []
    for shares, color, dashes in ((seen.nontargets, SERIES[1], DASHES[1]), (seen.targets, SERIES[0], DASHES[0])):
        axes.stairs(100 * shares, seen.edges, fill=True, color=color, alpha=0.22)
        handles.append(axes.stairs(100 * shares, seen.edges, color=color, linestyle=dashes, linewidth=1.3))
    labels = ["nontargets", "targets"]
    thresholds = {"EER": one["eer_threshold"]}
    thresholds |= {f"minDCF({point_name(cost)})": cost["min_dcf_threshold"] for cost in one["dcf"]}
    for dashes, (label, threshold) in zip(cycle(DASHES[2:] + DASHES[1:2]), thresholds.items()):
        handles.append(axes.axvline(threshold, color=INK, linestyle=dashes, linewidth=1.1))
        labels.append(label)
    axes.set_xlabel("score")
    axes.set_ylabel("% of trials")
    axes.set_ylim(bottom=0)
    legend_above(figure, handles, labels, columns=3)
    text = (
        f"Scores of {count(one['targets'])} targets and {count(one['trials'] - one['targets'])} nontargets of {name}, "
        f"and the thresholds of the EER, {one['eer_threshold']:.3f}, and of the smallest costs."
    )
    return drawn(f"scores_{name}", f"Scores of {name}", text, figure)


def _groups(name: str, one: List) -> Drawn:
    """EER of each genre, duration and sex, with the whole list's as a line."""
    rows: list[tuple[str, float | None]] = []
    for kind, groups in one["breakdown"].items():
        for label, found in groups.items():
            rows.append((f"{_label(kind, label)}  ({count(found['trials'])})", found["eer"]))
        if rows and rows[-1][0]:
            rows.append(("", None))  # a gap
    rows = rows[:-1]
    figure, (axes,) = new_figure(1.1 + 0.18 * len(rows))
    places = [place for place, (_, eer) in enumerate(rows) if eer is not None]
    rates = [100 * eer for _, eer in rows if eer is not None]
    line = axes.axvline(100 * one["eer"], color=INK, linestyle="--", linewidth=1)
    axes.hlines(places, 100 * one["eer"], rates, color=SERIES[0], linewidth=1.4, alpha=0.6)
    (dots,) = axes.plot(rates, places, "o", color=SERIES[0], markersize=5)
    axes.set_yticks(places, [shortened(rows[place][0], 28) for place in places])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * max([*rates, 100 * one["eer"], 1]))
    axes.set_xlabel("EER (%)")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    legend_above(figure, [dots, line], ["group (trials)", f"all trials, {percent(one['eer'])}"])
    known = sorted((eer, label.rpartition("  ")[0]) for label, eer in rows if eer is not None)
    text = (
        f"EER of {len(known)} groups of the trials of {name}, from {percent(known[0][0])} ({known[0][1]}) to "
        f"{percent(known[-1][0])} ({known[-1][1]}); all trials {percent(one['eer'])}."
    )
    return drawn(f"groups_{name}", f"EER within {name}", text, figure)


def _label(kind: str, label: str) -> str:
    words = {("sex", "f"): "female", ("sex", "m"): "male"}
    return words.get((kind, label), f"{label} s" if kind == "seconds" else label)


def group_rows(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Sequence[tuple[str, ...]]:
    """Kind, group, trials, targets and EER of each group, in words."""
    return [
        (_KINDS.get(kind, kind), _label(kind, label), count(own["trials"]), count(own["targets"]), percent(own["eer"]))
        for kind, found in groups.items()
        for label, own in found.items()
    ]
