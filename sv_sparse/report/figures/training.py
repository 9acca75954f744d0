"""Figures of a run's training: loss, sparsity, lambda, support changes, validation, layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sv_sparse.report.figures import style
from sv_sparse.report.figures.style import FigureFile
from sv_sparse.report.results import RunReport
from sv_sparse.training.logging import Row

# Of a curve: more cannot be seen, and make large files.
_MAX_POINTS = 600
# Percentage points of sparsity around the target in the close-up.
_NEAR_TARGET = 2.0
# Inches.
_BAR_HEIGHT = 0.145


def training_figures(report: RunReport) -> list[FigureFile]:
    """Draw the training curves that the run has data for; to be called inside ``report_style``."""
    stride = max(1, len(report.steps) // _MAX_POINTS)
    # Backwards, so that the last row is among them.
    rows = report.steps[::-1][::stride][::-1]
    figures = []
    if rows:
        figures.append(_loss_figure(rows))
        if "teacher_cosine" in rows[0]:
            figures.append(_teacher_figure(rows))
        if not report.is_dense:
            figures.append(_sparsity_figure(report, rows))
        # A dense run has no lambda, and magnitude pruning makes zeros without one.
        if any(row["lambda"] > 0 for row in rows):
            figures.append(_lambda_figure(rows))
        support_rows = [row for row in rows if "support/activated" in row]
        if support_rows and not report.is_dense:
            figures.append(_support_figure(support_rows))
    if len(report.validations) > 1:
        figures.append(_validation_figure(report.validations))
    return figures


def layers_figure(report: RunReport) -> FigureFile:
    """Draw each layer's sparsity and fraction of dead output channels; inside ``report_style``."""
    layers = report.results["layers"]
    names = [style.shorten(name.removesuffix(".weight"), 26) for name in layers]
    sparsities = [100 * layer["zeros"] / layer["parameters"] for layer in layers.values()]
    dead = [100 * layer["dead_channels"] / layer["channels"] for layer in layers.values()]
    positions = range(len(layers))
    figure, (axes,) = style.new_figure(max(1.8, 0.75 + _BAR_HEIGHT * len(layers)))
    bars = axes.barh(positions, sparsities, color=style.SERIES[0], height=0.62, alpha=0.75)
    handles: list[Any] = [bars]
    labels = ["zeros"]
    # A mark at 0 would look like a warning.
    dead_points = [(fraction, place) for fraction, place in zip(dead, positions, strict=True) if fraction]
    if dead_points:
        fractions, places = zip(*dead_points, strict=True)
        handles += axes.plot(fractions, places, "D", color=style.SERIES[1], markersize=3.2, clip_on=False)
        labels.append("dead output channels")
    if not report.is_dense:
        target = 100 * report.results["target_sparsity"]
        handles.append(axes.axvline(target, color=style.TEXT, linestyle="--", linewidth=1))
        labels.append(f"target {target:.4g}%")
    style.label_rows(axes, positions, names, len(layers), size=8)
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")
    style.legend_above(figure, handles, labels, columns=3)
    low, low_layer = min(zip(sparsities, layers, strict=True))
    high, high_layer = max(zip(sparsities, layers, strict=True))
    num_dead = sum(layer["dead_channels"] for layer in layers.values())
    alt_text = (
        f"Sparsity of {len(layers)} layers, from {low:.2f} % ({low_layer}) to {high:.2f} % ({high_layer}). "
        f"Dead output channels (all weights 0): {f'{num_dead:,}' if num_dead else 'none'}."
    )
    return style.render_figure("layers", "Sparsity of each layer", alt_text, figure)


def _loss_figure(rows: Sequence[Row]) -> FigureFile:
    figure, (axes,) = style.new_figure(2.6)
    _plot_curve(axes, rows, "loss", style.SERIES[0])
    axes.set_ylabel("loss")
    alt_text = f"Training loss by step, from {rows[0]['loss']:.2f} to {rows[-1]['loss']:.2f}."
    return style.render_figure("loss", "Training loss", alt_text, figure)


def _teacher_figure(rows: Sequence[Row]) -> FigureFile:
    figure, (axes,) = style.new_figure(2.6)
    _plot_curve(axes, rows, "teacher_cosine", style.SERIES[0])
    axes.set_ylabel("mean cosine")
    alt_text = (
        f"Mean cosine between the embeddings of the network and of its teacher on training batches, by step, from "
        f"{rows[0]['teacher_cosine']:.3f} to {rows[-1]['teacher_cosine']:.3f}."
    )
    return style.render_figure("teacher", "Cosine to the teacher", alt_text, figure)


def _sparsity_figure(report: RunReport, rows: Sequence[Row]) -> FigureFile:
    """Draw the tracked sparsity, and below it a close-up around the target."""
    target = 100 * report.results["target_sparsity"]
    tolerance = 100 * report.config.trainer.best_sparsity_tolerance
    steps = [row["step"] for row in rows]
    # They change on a ramp.
    targets = [100 * row["target_sparsity"] for row in rows]
    figure, (upper, lower) = style.new_figure(3.9, rows=2)
    for axes in (upper, lower):
        measured = _plot_curve(axes, rows, "sparsity/regularized", style.SERIES[0], factor=100)
        (line,) = axes.plot(steps, targets, color=style.TEXT, linestyle="--", linewidth=1)
        band = axes.axhspan(target - tolerance, target + tolerance, color=style.SERIES[2], alpha=0.22, linewidth=0)
    upper.set_ylabel("sparsity (%)")
    lower.set_ylabel("near the target (%)")
    # In the full range a distance of half a point cannot be seen.
    lower.set_ylim(target - _NEAR_TARGET, min(100, target + _NEAR_TARGET))
    labels = ["tracked", f"target {target:.4g}%", f"within {tolerance:g} points"]
    style.legend_above(figure, [measured, line, band], labels, columns=3)
    tracked = f"{100 * report.results['sparsity_tracked']:.3f} %"
    alt_text = (
        f"Tracked sparsity by step; below, the range around the target of {target:.4g} %. Last value: {tracked}. Band: "
        "trainer.best_sparsity_tolerance. Only an epoch that ends within it can be the best."
    )
    return style.render_figure("sparsity", "Tracked sparsity and its target", alt_text, figure)


def _lambda_figure(rows: Sequence[Row]) -> FigureFile:
    figure, (axes,) = style.new_figure(2.6)
    _plot_curve(axes, rows, "lambda", style.SERIES[1])
    if min(row["lambda"] for row in rows) > 0:
        style.log_ticks(axes)
    axes.set_ylabel("λ")
    alt_text = f"λ, the strength of the penalty, by step, from {rows[0]['lambda']:.3g} to {rows[-1]['lambda']:.3g}."
    return style.render_figure("lambda", "λ, the strength of the penalty", alt_text, figure)


def _support_figure(rows: Sequence[Row]) -> FigureFile:
    figure, (axes,) = style.new_figure(2.8)
    activated = _plot_curve(axes, rows, "support/activated", style.SERIES[0], factor=100)
    deactivated = _plot_curve(axes, rows, "support/deactivated", style.SERIES[1], factor=100, dashes=style.DASHES[1])
    rates = np.array([(row["support/activated"], row["support/deactivated"]) for row in rows])
    positive_rates = rates[rates > 0].tolist()
    if positive_rates and max(positive_rates) > 30 * min(positive_rates):
        # A linear axis would show the first steps alone. Zeros have no place on a logarithmic one.
        axes.set_ylim(80 * min(positive_rates), 150 * max(positive_rates))
        style.log_ticks(axes)
    axes.set_ylabel("% of regularized weights")
    style.legend_above(figure, [activated, deactivated], ["activated", "deactivated"])
    last = rows[-1]
    alt_text = (
        "Regularized weights that became nonzero (activated) or zero (deactivated) in one step. Last values: "
        f"{100 * last['support/activated']:.3f} % and {100 * last['support/deactivated']:.3f} %."
    )
    return style.render_figure("support", "Activated and deactivated weights", alt_text, figure)


def _validation_figure(rows: Sequence[Row]) -> FigureFile:
    figure, (axes,) = style.new_figure(2.6)
    _plot_curve(axes, rows, "validation_eer", style.SERIES[2], factor=100)
    axes.set_ylabel("EER (%)")
    # From 0, so that noise between epochs does not look like a trend.
    axes.set_ylim(0, 108 * max(row["validation_eer"] for row in rows) + 1)
    alt_text = (
        f"EER on held-out training speakers after each epoch, from "
        f"{100 * rows[0]['validation_eer']:.2f} % to {100 * rows[-1]['validation_eer']:.2f} %."
    )
    return style.render_figure("validation", "EER on held-out training speakers", alt_text, figure)


def _plot_curve(
    axes: Axes, rows: Sequence[Row], key: str, color: str, factor: float = 1, dashes: Any = style.DASHES[0]
) -> Any:
    """Plot a column of metrics.jsonl against the step, and return the line."""
    steps = [row["step"] for row in rows]
    values = [factor * row[key] for row in rows]
    # A line of one point would not be seen.
    marker = "o" if len(rows) <= 12 else None
    (line,) = axes.plot(steps, values, color=color, linestyle=dashes, marker=marker, markersize=3)
    subplot = axes.get_subplotspec()
    if subplot is not None and subplot.is_last_row():
        axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(color=style.MUTED, length=3)
    return line
