"""What a run did while it trained, and what it left: loss, sparsity, lambda, births and deaths, layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sv_sparse.report.record import Record
from sv_sparse.report.style import INK, SERIES, SOFT, Drawn, drawn, legend_above, log_ticks, new_figure, shortened
from sv_sparse.report.words import percent
from sv_sparse.training.logging import Row

_MOST = 600  # points of a curve
_CLOSE = 2.0  # points of sparsity around the target that are looked at closely
_BAR = 0.145  # inches


def training_figures(record: Record) -> list[Drawn]:
    """Those of which there is something to see; inside ``house_style``."""
    rows = _thinned(record.rows)
    found = []
    if rows:
        found.append(_loss(rows))
        if not record.dense:
            found.append(_sparsity(record, rows))
        if any(row["lambda"] > 0 for row in rows):
            found.append(_lambda(rows))
        if any("support/births" in row for row in rows) and not record.dense:
            found.append(_births_and_deaths(rows))
    if len(record.validations) > 1:
        found.append(_validation(record.validations))
    return found


def layers_figure(record: Record) -> Drawn:
    """Sparsity of each layer in the network's order, and how many of its output channels are dead."""
    layers, target = record.results["layers"], record.results["target_sparsity"]
    names = [shortened(name.removesuffix(".weight"), 26) for name in layers]
    shares = [100 * layer["zeros"] / layer["parameters"] for layer in layers.values()]
    dead = [100 * layer["dead_channels"] / layer["channels"] for layer in layers.values()]
    figure, (axes,) = new_figure(max(1.8, 0.75 + _BAR * len(names)))
    places = np.arange(len(names))
    bars = axes.barh(places, shares, color=SERIES[0], height=0.62, alpha=0.75)
    (dots,) = axes.plot(dead, places, "D", color=SERIES[1], markersize=3.2, clip_on=False)
    handles: list[Any] = [bars, dots]
    labels = ["zeros", "dead output channels"]
    if not record.dense:
        handles.append(axes.axvline(100 * target, color=INK, linestyle="--", linewidth=1))
        labels.append(f"target {100 * target:.4g}%")
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    legend_above(figure, handles, labels, columns=3)
    least, most = min(zip(shares, layers, strict=True)), max(zip(shares, layers, strict=True))
    text = (
        f"Sparsity of each of {len(names)} layers, from {least[0]:.2f}% in {least[1]} to {most[0]:.2f}% in {most[1]}; "
        f"{sum(layer['dead_channels'] for layer in layers.values()):,} output channels are dead."
    )
    return drawn("layers", "Sparsity of each layer", text, figure)


def _thinned(rows: Sequence[Row]) -> list[Row]:
    """At most about _MOST rows, evenly apart, with the last."""
    every = max(1, len(rows) // _MOST)
    return list(rows[::-1][::every][::-1])


def _loss(rows: Sequence[Row]) -> Drawn:
    figure, (axes,) = new_figure(2.6)
    losses = [row["loss"] for row in rows]
    _curve(axes, rows, "loss", 0)
    axes.set_ylabel("loss")
    text = f"Training loss against the step, from {losses[0]:.2f} to {losses[-1]:.2f}."
    return drawn("loss", "Training loss", text, figure)


def _sparsity(record: Record, rows: Sequence[Row]) -> Drawn:
    """The whole way, and below it the surroundings of the target with the band in which a network can be the best."""
    target, band = 100 * record.results["target_sparsity"], 100 * record.config.trainer.best_sparsity_tolerance
    before = record.results["sparsity_tracked"]
    figure, (upper, lower) = new_figure(3.9, rows=2)
    for axes in (upper, lower):
        measured = _curve(axes, rows, "sparsity/regularized", 0, factor=100)
        moving = len({row["target_sparsity"] for row in rows}) > 1  # along a ramp
        asked = [100 * row["target_sparsity"] if moving else target for row in rows]
        (line,) = axes.plot([row["step"] for row in rows], asked, color=INK, linestyle="--", linewidth=1)
        within = axes.axhspan(target - band, target + band, color=SERIES[2], alpha=0.22, linewidth=0)
    upper.set_ylabel("sparsity (%)")
    lower.set_ylabel("near the target (%)")
    lower.set_ylim(target - _CLOSE, min(100, target + _CLOSE))
    labels = ["measured", f"target {target:.4g}%", f"within {band:g} points"]
    legend_above(figure, [measured, line, within], labels, columns=3)
    text = (
        f"Sparsity against the step, and closely around the target of {target:.4g}%; before landing it stood at "
        f"{percent(before, 3)}. The band is the setting trainer.band, within which a network can be the best."
    )
    return drawn("sparsity", "Sparsity and its target", text, figure)


def _lambda(rows: Sequence[Row]) -> Drawn:
    figure, (axes,) = new_figure(2.6)
    _curve(axes, rows, "lambda", 1)
    if min(row["lambda"] for row in rows) > 0:
        log_ticks(axes)
    axes.set_ylabel("λ")
    text = f"The l1 weight lambda against the step, from {rows[0]['lambda']:.3g} to {rows[-1]['lambda']:.3g}."
    return drawn("lambda", "λ, the weight of the l1 norm", text, figure)


def _births_and_deaths(rows: Sequence[Row]) -> Drawn:
    rows = [row for row in rows if "support/births" in row]
    figure, (axes,) = new_figure(2.8)
    curves = [
        _curve(axes, rows, f"support/{name}", index, factor=100) for index, name in enumerate(("births", "deaths"))
    ]
    seen = [row[f"support/{name}"] for row in rows for name in ("births", "deaths") if row[f"support/{name}"] > 0]
    if seen and max(seen) > 30 * min(seen):
        axes.set_ylim(80 * min(seen), 150 * max(seen))
        log_ticks(axes)
    axes.set_ylabel("% of weights in one step")
    legend_above(figure, curves, ["births", "deaths"])
    last = rows[-1]
    text = (
        "Weights that came alive (births) and that became zero (deaths) in one update, as shares of all regulated "
        f"weights; at the end {last['support/births']:.3%} and {last['support/deaths']:.3%}."
    )
    return drawn("support", "Births and deaths of weights", text, figure)


def _validation(rows: Sequence[Row]) -> Drawn:
    figure, (axes,) = new_figure(2.6)
    _curve(axes, rows, "validation_eer", 2, factor=100)
    axes.set_ylabel("EER (%)")
    axes.set_ylim(0, 108 * max(row["validation_eer"] for row in rows) + 1)
    text = (
        f"EER on held-out training speakers after each epoch, from {rows[0]['validation_eer']:.2%} to "
        f"{rows[-1]['validation_eer']:.2%}."
    )
    return drawn("validation", "EER on held-out training speakers", text, figure)


def _curve(axes: Axes, rows: Sequence[Row], name: str, index: int, factor: float = 1) -> Any:
    """A figure of the rows against their steps."""
    style: dict[str, Any] = {"color": SERIES[index], "linestyle": (0, (5, 1.5)) if name == "support/deaths" else "-"}
    style |= {"marker": "o", "markersize": 3} if len(rows) <= 12 else {}
    (line,) = axes.plot([row["step"] for row in rows], [factor * row[name] for row in rows], **style)
    axes.set_xlabel("step" if axes.get_subplotspec().is_last_row() else "")  # type: ignore[union-attr]
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(color=SOFT, length=3)
    return line
