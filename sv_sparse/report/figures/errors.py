"""Figures of error rates: DET curves, score histograms, EER of groups of trials."""

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sv_sparse.report.figures import style
from sv_sparse.report.figures.score_stats import ScoreSummary, probit
from sv_sparse.report.figures.style import FigureFile
from sv_sparse.report.format import percent, point_name
from sv_sparse.report.tables import Evaluation, group_label

_RATE_TICKS = (1e-6, 1e-5, 1e-4, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)


def error_figures(evaluations: Mapping[str, Evaluation], summaries: Mapping[str, ScoreSummary]) -> list[FigureFile]:
    """Draw the DET curves, and each list's scores and groups, from both by id; inside ``report_style``."""
    figures = [_det_figure(evaluations, summaries)]
    for result_id, evaluation in evaluations.items():
        figures.append(_scores_figure(result_id, evaluation, summaries[result_id]))
        if any(evaluation["breakdown"].values()):
            figures.append(_breakdown_figure(result_id, evaluation))
    return figures


def _det_figure(evaluations: Mapping[str, Evaluation], summaries: Mapping[str, ScoreSummary]) -> FigureFile:
    """Draw misses against false alarms on probit axes, and mark the EER and the smallest costs."""
    figure, (axes,) = style.new_figure(4.6)
    low, high = _rate_limits(summaries.values(), max(evaluation["eer"] for evaluation in evaluations.values()))
    curves: list[Line2D] = []
    marker_handles: dict[str, Line2D] = {}
    # Color and dashes change together: a print in gray still tells the lists apart.
    for (result_id, evaluation), color, dashes in zip(evaluations.items(), cycle(style.SERIES), cycle(style.DASHES)):
        summary = summaries[result_id]
        (curve,) = axes.plot(probit(summary.p_fa), probit(summary.p_miss), color=color, linestyle=dashes)
        curves.append(curve)
        marks = {"EER": (evaluation["eer"], evaluation["eer"])}
        for cost, rates in zip(evaluation["dcf"], summary.min_dcf_rates, strict=True):
            marks[f"minDCF({point_name(cost)})"] = rates
        for marker, (label, rates) in zip(cycle(style.MARKERS), marks.items()):
            # A mark outside, as of an EER of 0, is drawn at the edge.
            x, y = probit(np.clip(rates, low, high))
            axes.plot([x], [y], marker, markeredgecolor=color, markersize=6, clip_on=False, zorder=3, **style.HOLLOW)
            marker_handles[label] = Line2D(
                [], [], marker=marker, markeredgecolor=style.MUTED, markersize=6, **style.HOLLOW
            )
    _set_probit_axes(axes, low, high)
    labels = [style.shorten(result_id, 24) for result_id in evaluations]
    style.legend_above(figure, [*curves, *marker_handles.values()], [*labels, *marker_handles])
    eers = [f"{result_id} {percent(evaluation['eer'])}" for result_id, evaluation in evaluations.items()]
    title = "DET curve" if len(evaluations) == 1 else "DET curves"
    alt_text = f"Miss rate against false-alarm rate, for every threshold. EER: {', '.join(eers)}."
    return style.render_figure("det", title, alt_text, figure)


def _rate_limits(summaries: Iterable[ScoreSummary], max_eer: float) -> tuple[float, float]:
    """Return the smallest and the largest rate of the axes."""
    # Above a miss rate of one half a curve tells nothing, unless the network is that bad.
    high = 0.97 if max_eer > 0.25 else 0.5
    # The axes end where the curves do: smaller rates than one trial's are not measured.
    low = 0.02
    for summary in summaries:
        for rate, other in ((summary.p_fa, summary.p_miss), (summary.p_miss, summary.p_fa)):
            visible = rate[(other <= high) & (rate > 0)]
            low = min(low, visible.min(initial=low))
    return max(1e-6, float(low)), high


def _set_probit_axes(axes: Axes, low: float, high: float) -> None:
    ticks = [tick for tick in _RATE_TICKS if low <= tick <= high]
    for axis, label in ((axes.xaxis, "false alarms (%)"), (axes.yaxis, "misses (%)")):
        axis.set_ticks(probit(np.array(ticks)).tolist(), [f"{100 * tick:g}" for tick in ticks])
        axis.set_label_text(label)
    start, end = probit(np.array([low, high])) + np.array([-0.08, 0.08])
    axes.set(xlim=(start, end), ylim=(start, end))
    # Misses and false alarms have the same scale, so that the EER lies on the diagonal.
    axes.set_box_aspect(1)


def _scores_figure(result_id: str, evaluation: Evaluation, summary: ScoreSummary) -> FigureFile:
    """Draw histograms of the targets' and nontargets' scores, and the thresholds."""
    figure, (axes,) = style.new_figure(2.9)
    handles: list[Any] = []
    labels = ["nontargets", "targets"]
    for index, fractions in ((1, summary.nontargets), (0, summary.targets)):
        look: dict[str, Any] = {"color": style.SERIES[index], "linestyle": style.DASHES[index], "linewidth": 1.3}
        axes.stairs(100 * fractions, summary.edges, fill=True, color=style.SERIES[index], alpha=0.22)
        handles.append(axes.stairs(100 * fractions, summary.edges, **look))
    # Thresholds have dashes that neither histogram has.
    thresholds = {"EER": evaluation["eer_threshold"]}
    for cost in evaluation["dcf"]:
        thresholds[f"minDCF({point_name(cost)})"] = cost["min_dcf_threshold"]
    for dashes, (label, threshold) in zip(cycle(style.DASHES[2:] + style.DASHES[1:2]), thresholds.items()):
        handles.append(axes.axvline(threshold, color=style.TEXT, linestyle=dashes, linewidth=1.1))
        labels.append(label)
    axes.set_xlabel("score")
    axes.set_ylabel("% of trials")
    axes.set_ylim(bottom=0)
    style.legend_above(figure, handles, labels, columns=3)
    nontargets = evaluation["trials"] - evaluation["targets"]
    alt_text = (
        f"Scores of {evaluation['targets']:,} target and {nontargets:,} nontarget trials of {result_id}. Vertical "
        f"lines: thresholds of the EER ({evaluation['eer_threshold']:.3f}) and of minDCF."
    )
    return style.render_figure(f"scores_{result_id}", f"Scores of {result_id}", alt_text, figure)


def _breakdown_figure(result_id: str, evaluation: Evaluation) -> FigureFile:
    """Draw the EER of each genre, duration and sex beside that of all trials."""
    labels: list[str] = []
    rates: list[float] = []
    positions: list[int] = []
    for gaps, (kind, groups) in enumerate(evaluation["breakdown"].items()):
        for label, group in groups.items():
            # A gap after each kind.
            positions.append(len(rates) + gaps)
            labels.append(f"{group_label(kind, label)}  ({group['trials']:,})")
            rates.append(100 * group["eer"])
    num_rows = positions[-1] + 1
    eer = 100 * evaluation["eer"]
    figure, (axes,) = style.new_figure(1.1 + 0.18 * num_rows)
    line = axes.axvline(eer, color=style.TEXT, linestyle="--", linewidth=1)
    axes.hlines(positions, eer, rates, color=style.SERIES[0], linewidth=1.4, alpha=0.6)
    (dots,) = axes.plot(rates, positions, "o", color=style.SERIES[0], markersize=5)
    style.label_rows(axes, positions, [style.shorten(label, 28) for label in labels], num_rows, size=9)
    # From 0 to at least 1 %, so that differences of hundredths do not look large.
    axes.set_xlim(0, 1.08 * max([*rates, eer, 1]))
    axes.set_xlabel("EER (%)")
    style.legend_above(figure, [dots, line], ["group (trials)", f"all trials, {eer:.2f}%"])
    by_rate = sorted(zip(rates, labels, strict=True))
    low, low_label = by_rate[0]
    high, high_label = by_rate[-1]
    alt_text = (
        f"EER of {len(rates)} groups of the trials of {result_id}, from {low:.2f} % ({low_label.rpartition('  ')[0]}) "
        f"to {high:.2f} % ({high_label.rpartition('  ')[0]}). All trials: {eer:.2f} %."
    )
    return style.render_figure(f"groups_{result_id}", f"EER within {result_id}", alt_text, figure)
