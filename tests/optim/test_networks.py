"""Three kinds of network, as scripts/benchmark/networks.py runs them, in small."""

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "benchmark" / "networks.py"))


@pytest.mark.filterwarnings("ignore:finalizing from:UserWarning")  # 80 updates bring some only to within a point
@pytest.mark.parametrize("start", SCRIPT["STARTS"])
@pytest.mark.parametrize("network", SCRIPT["NETWORKS"])
def test_at_ninety_percent_zeros_the_loss_is_at_most_twice_that_of_adamw(network, start):
    cell = SCRIPT["measure"](network, start, steps=80)
    assert cell.sparsity == pytest.approx(0.9, abs=1e-4)
    assert cell.ratio <= SCRIPT["MAX_RATIO"]
