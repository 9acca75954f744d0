"""Draw the EER against the sparsity from the stored table of the question `quality`, for the README.

python recipes/evidence/figure.py

Writes docs/images/eer_sparsity_light.svg and docs/images/eer_sparsity_dark.svg, for pages in light and in dark.
"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

from matplotlib.ticker import NullLocator

from sv_sparse.report.figures import style
from sv_sparse.report.figures.style import FigureFile

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "recipes" / "evidence" / "results" / "quality" / "answer.md"
DENSE = "dense, Adam"
# Names of the table, and of the figure.
METHODS = {
    "feedback, AdaBreg": "AdaBreg with feedback",
    "magnitude pruning": "magnitude pruning",
    "magnitude pruning by layer": "magnitude pruning by layer",
}
# Inches. At 360 pixels, as on a phone, letters are 9 pixels high.
SIZE = (5.0, 3.5)

# Percent.
EER_TICKS = (7, 10, 15, 20, 30, 50)


class Point(NamedTuple):
    """EER of a method at a target, the mean of the seeds; all but the number of seeds is in percent."""

    method: str
    # 0 for the dense network.
    sparsity: float
    seeds: int
    eer: float
    # Ends of the 95 % interval.
    low: float
    high: float


def read_points(table: Path, trial_list: str) -> list[Point]:
    """Read the EERs on a trial list from a table that tables.py wrote.

    Args:
        table: Markdown file.
        trial_list: name of the list.

    Returns:
        Points of the dense network and of METHODS that are means of as many seeds as the dense network's.
    """
    rows = []
    for line in table.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if f"EER {trial_list} [95 %]" in cells:
            header = cells
        if cells[0] in {DENSE, *METHODS}:
            rows.append(dict(zip(header, cells, strict=True)))
    points = []
    for row in rows:
        method = next(iter(row.values()))
        sparsity = 0.0 if method == DENSE else float(row["target"].removesuffix("%"))
        numbers = re.findall(r"[\d.]+", row[f"EER {trial_list} [95 %]"])
        eer, low, high = map(float, numbers)
        points.append(Point(method, sparsity, int(row["seeds"]), eer, low, high))
    seeds = max(point.seeds for point in points if point.method == DENSE)
    return [point for point in points if point.seeds == seeds]


def draw(points: list[Point], trial_list: str) -> FigureFile:
    """Draw the points with their intervals, and the dense network as a line with a band."""
    with style.report_style():
        figure, (axes,) = style.new_figure(SIZE[1])
        figure.set_size_inches(SIZE)
        dense = next(point for point in points if point.method == DENSE)
        axes.axhspan(dense.low, dense.high, color=style.MUTED, alpha=0.15, linewidth=0)
        line = axes.axhline(dense.eer, color=style.TEXT, linestyle="--", linewidth=1.2)
        handles = []
        for index, method in enumerate(METHODS):
            members = [point for point in points if point.method == method]
            # Side by side, so that no interval hides another.
            densities = [(100 - point.sparsity) * 1.07 ** (1 - index) for point in members]
            eers = [point.eer for point in members]
            color = style.SERIES[index]
            axes.plot(densities, eers, color=color, linewidth=1, alpha=0.5)
            axes.vlines(densities, [p.low for p in members], [p.high for p in members], color=color, linewidth=1.6)
            handles += axes.plot(densities, eers, style.MARKERS[index], color=color, markersize=6, linestyle="none")
        # Equal factors of the number of nonzero weights are equally far apart.
        axes.set_xscale("log")
        axes.set_xlim(14, 0.75)
        sparsities = sorted({point.sparsity for point in points if point.method != DENSE})
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([100 - sparsity for sparsity in sparsities], [f"{sparsity:g}" for sparsity in sparsities])
        axes.set_xlabel("sparsity (% of regularized weights that are 0)")
        axes.set_yscale("log")
        axes.set_ylim(6.5, 55)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_yticks(EER_TICKS, map(str, EER_TICKS))
        axes.set_ylabel("EER (%) with 95 % intervals")
        labels = [*METHODS.values(), f"dense: {dense.eer:.2f} % [{dense.low:.2f}, {dense.high:.2f}]"]
        style.legend_above(figure, [*handles, line], labels)
        alt_text = f"EER in percent on {trial_list}, means of {dense.seeds} seeds with 95 % intervals. "
        alt_text += f"Dense: {dense.eer:.2f} [{dense.low:.2f}, {dense.high:.2f}]."
        for method, label in METHODS.items():
            cells = [
                f"{point.sparsity:g} % zeros {point.eer:.2f} [{point.low:.2f}, {point.high:.2f}]"
                for point in points
                if point.method == method
            ]
            alt_text += f" {label}: {'; '.join(cells)}."
        return style.render_figure("eer_sparsity", "EER and sparsity", alt_text, figure)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE, help="table of the question quality, by tables.py")
    parser.add_argument("--list", default="veri_test", help="trial list (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder of the two files")
    args = parser.parse_args()
    figure = draw(read_points(args.table, args.list), args.list)
    args.out.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        path = args.out / f"{figure.name}_{scheme}.svg"
        path.write_text(style.fixed_svg(figure, scheme), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
