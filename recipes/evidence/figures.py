"""The answers as figures, in the look of the reports."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from evidence.noisy import CONDITIONS
from evidence.results import Finished, Group
from evidence.tables import NOISY, WAYS, converging, label
from sv_sparse.report.style import DASHES, INK, MARKERS, SERIES, Drawn, drawn, legend_above, log_ticks, new_figure
from sv_sparse.report.words import percent

DRAWN = ("feedback", "linbreg", "quantile", "oracle", "magnitude", "layerwise")  # of the ways to a sparsity


def control_figure(found: Finished, lists: Sequence[str]) -> list[Drawn]:
    """How far the sparsity is from its target, step by step, of the network with the most targets."""
    groups = found.starting("control_")
    models = [group.name.rsplit("_", 2)[0] for group in groups]
    if not groups:
        return []
    model = max(models, key=models.count)
    figure, axes = new_figure(4.6, rows=2)
    handles = {}
    own = [group for group, one in zip(groups, models, strict=True) if one == model]
    targets = sorted({group.name.rpartition("_")[2] for group in own})
    for one, optim in zip(axes, ("adabreg", "linbreg"), strict=True):
        for target, color, dashes in zip(targets, cycle(SERIES), cycle(DASHES)):
            group = found.get(f"{model}_{optim}_{target}")
            if group is not None:
                steps, sparsity = group.runs[0].path()
                away = 100 * (sparsity - float(target))
                (handles[target],) = one.plot(steps, away, color=color, linestyle=dashes, linewidth=1.3)
        one.axhline(0, color=INK, linewidth=0.8)
        one.set_yscale("symlog", linthresh=0.1)
        one.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        one.yaxis.set_minor_locator(NullLocator())
        one.set_ylabel({"adabreg": "AdaBreg: points off", "linbreg": "LinBreg: points off"}[optim])
    axes[-1].set_xlabel("step")
    legend_above(figure, list(handles.values()), [f"target {percent(float(t), 0)}" for t in handles], columns=2)
    worst = max(abs(group.runs[0].gap) for group in own)
    text = (
        f"Sparsity less its target at each step of {len(own)} runs, from a start that is 99 % sparse; before landing "
        f"all are within {worst:.3f} points. Linear below a tenth of a point."
    )
    return [drawn("control", "Target and sparsity, step by step", text, figure)]


def insensitivity_figure(found: Finished, lists: Sequence[str]) -> list[Drawn]:
    """Sparsity against lambda: where feedback starts, and where it is fixed."""
    series = {"feedback starts there": found.starting("start_"), "fixed there": found.starting("fixed_")}
    if not all(series.values()):
        return []
    figure, (axes,) = new_figure(2.9)
    handles = []
    for groups, color, marker in zip(series.values(), SERIES, MARKERS, strict=False):
        points = sorted((float(g.name.rpartition("_")[2]), 100 * g.mean("sparsity_before_landing")) for g in groups)
        handles += axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=5.5, linewidth=1)
    log_ticks(axes, "x")
    axes.set_xlabel("λ")
    axes.set_ylabel("sparsity (%)")
    legend_above(figure, handles, list(series))
    away = max(abs(group.runs[0].gap) for group in series["feedback starts there"])
    text = (
        f"Sparsity before landing for a target of 90 %, against λ: from wherever feedback starts it ends within "
        f"{away:.3f} points; where λ is fixed it is what that makes of it."
    )
    return [drawn("insensitivity", "Start of λ and sparsity", text, figure)]


def quality_figures(found: Finished, lists: Sequence[str]) -> list[Drawn]:
    """EER against sparsity by every way, on each list."""
    ways = [way for way in DRAWN if found.starting(f"{way}_")]
    return [_quality_figure(name, found, ways) for name in lists] if ways else []


def _quality_figure(name: str, found: Finished, ways: Sequence[str]) -> Drawn:
    figure, (axes,) = new_figure(2.9 + 0.16 * len(ways))
    handles = []
    if "dense" in found:
        between = found["dense"].interval(name)
        handles.append(axes.axhline(100 * found["dense"].eer(name), color=INK, linewidth=1))
        if between is not None:
            axes.axhspan(100 * between[0], 100 * between[1], color=INK, alpha=0.07, linewidth=0)
    for number, (way, color, marker) in enumerate(zip(ways, cycle(SERIES), cycle(MARKERS))):
        groups = sorted(found.starting(f"{way}_"), key=lambda group: group.mean("sparsity"))
        aside = 1.06 ** (number - (len(ways) - 1) / 2)
        kept = [aside * (1 - group.mean("sparsity")) for group in groups]
        for x, group in zip(kept, groups, strict=True):
            between = group.interval(name)
            if between is not None:
                axes.vlines(x, 100 * between[0], 100 * between[1], color=color, linewidth=1.2, alpha=0.45)
        rates = [100 * group.eer(name) for group in groups]
        handles += axes.plot(kept, rates, marker, color=color, markersize=5, linewidth=1, linestyle="-")
    axes.set_xscale("log")
    axes.invert_xaxis()
    targets = sorted({float(group.name.rpartition("_")[2]) for group in found.starting("feedback_", "magnitude_")})
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([1 - target for target in targets], [f"{100 * target:g}" for target in targets])
    axes.set_xlabel("sparsity (%)")
    axes.set_ylabel("EER (%)")
    labels = [*([WAYS["dense"]] if "dense" in found else []), *(WAYS[way] for way in ways)]
    legend_above(figure, handles, labels, columns=1)
    text = f"EER on {name} against sparsity, means of the seeds; lines and the band are 95 % intervals over speakers."
    return drawn(f"quality_{name}", f"EER and sparsity on {name}", text, figure)


def convergence_figure(found: Finished, lists: Sequence[str]) -> list[Drawn]:
    """EER of held-out speakers after each epoch."""
    groups, _ = converging(found)
    if not groups:
        return []
    figure, (axes,) = new_figure(3.6)
    handles = [_curve(axes, group, *style) for group, *style in zip(groups, cycle(SERIES), cycle(DASHES))]
    log_ticks(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel("EER of held-out speakers (%)")
    legend_above(figure, handles, [label(group) for group in groups], columns=1)
    text = "EER of held-out training speakers after each epoch, means of the seeds that all have."
    return [drawn("convergence", "Early convergence", text, figure)]


def _curve(axes: Axes, group: Group, color: str, dashes: Any) -> Line2D:
    """Means of the seeds."""
    shortest = min(len(run.epochs()) for run in group.runs)
    mean = 100 * np.mean([[one[2] for one in run.epochs()[:shortest]] for run in group.runs], axis=0)
    (line,) = axes.plot(np.arange(1, shortest + 1), mean, color=color, linestyle=dashes)
    return line


def noise_figure(found: Finished, lists: Sequence[str]) -> list[Drawn]:
    """EER against the level of noise, on the last list."""
    name = lists[-1]
    levels = [condition for condition in CONDITIONS if condition.kind == "noise"]
    noisy = [f"{name}_{condition.name}" for condition in levels]
    groups = [found[one] for one in NOISY if one in found]
    groups = [group for group in groups if all(map(group.judged, noisy))]
    if not groups:
        return []
    figure, (axes,) = new_figure(3.6)
    handles = []
    for group, color, marker in zip(groups, cycle(SERIES), cycle(MARKERS)):
        rates = [100 * group.eer(one) for one in (name, *noisy)]
        handles += axes.plot(range(len(rates)), rates, marker=marker, color=color, markersize=5, linewidth=1.2)
    axes.set_xticks(range(len(levels) + 1), ["clean", *(f"{condition.snr} dB" for condition in levels)])
    axes.set_ylabel("EER (%)")
    legend_above(figure, handles, [label(group) for group in groups], columns=1)
    text = f"EER on {name} in noise, of networks that heard none in training; means of the seeds."
    return [drawn("noise", "In noise", text, figure)]


FIGURES: dict[str, Callable[[Finished, Sequence[str]], list[Drawn]]] = {
    "control": control_figure,
    "insensitivity": insensitivity_figure,
    "quality": quality_figures,
    "convergence": convergence_figure,
    "noise": noise_figure,
}
