"""The README's figure shows the stored results."""

import csv
import re

import numpy as np
import pytest
from evidence import figure
from helpers.tiny import ROOT

from sv_sparse.report.figures.style import fixed_svg

NUMBER = re.compile(r"-?\d+\.\d+|-?\b\d+\b")
HASHED_ID = re.compile(r"f-\w+")


@pytest.fixture(scope="module")
def points() -> list[figure.Point]:
    return figure.read_points(figure.TABLE, "veri_test")


def test_the_points_are_the_means_of_the_stored_runs(points):
    runs = list(csv.DictReader((figure.TABLE.parent / "runs.csv").read_text().splitlines()))
    names = dict(zip(figure.METHODS, ("feedback", "magnitude", "layerwise"), strict=True))
    for point in points:
        prefix = "dense" if point.method == figure.DENSE else f"{names[point.method]}_{point.sparsity / 100:g}"
        eers = [float(run["eer"]) for run in runs if re.fullmatch(rf"{prefix}_s\d", run["run"])
                and run["list"] == "veri_test"]  # fmt: skip
        assert len(eers) == point.seeds == 3
        assert point.eer == pytest.approx(100 * np.mean(eers), abs=0.006)
        assert point.low < point.eer < point.high
    assert [point.sparsity for point in points if point.method in figure.METHODS] == 3 * [90] + 3 * [95] + 3 * [99]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_stored_figure_is_what_the_script_draws(points, scheme):
    path = ROOT / "docs" / "images" / f"eer_sparsity_{scheme}.svg"
    texts = path.read_text(), fixed_svg(figure.draw(points, "veri_test"), scheme)
    stored, drawn = (HASHED_ID.sub("id", text) for text in texts)
    assert NUMBER.sub("", stored) == NUMBER.sub("", drawn)
    # Points of 72 an inch, which another version of matplotlib may round otherwise.
    numbers = [np.array(NUMBER.findall(text), float) for text in (stored, drawn)]
    assert np.abs(numbers[0] - numbers[1]).max() < 0.5
    for point in points:
        assert f"{point.eer:.2f} [{point.low:.2f}, {point.high:.2f}]" in stored


def test_the_two_files_differ_in_their_colors_alone():
    light, dark = (
        (ROOT / "docs" / "images" / f"eer_sparsity_{scheme}.svg").read_text() for scheme in ("light", "dark")
    )
    assert light != dark
    color = re.compile("#[0-9a-f]{6}")
    assert color.sub("", light) == color.sub("", dark)
    assert not set(color.findall(light)) & set(color.findall(dark))
