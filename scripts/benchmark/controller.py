"""How far from the target a run stays in its last fifth, and when it got there: every cell, rule against rule.

The cells are both optimizers x five targets x five starting lambdas from 1e-4 to 1e2, on a small convolutional network
and a noisy problem that is never solved. Each rule has one setting for all of them, its defaults. In its last fifth a
run ends with lambda frozen.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from sv_sparse.optim import (
    AdaBreg,
    BregmanOptimizer,
    DecayingFeedbackController,
    FeedbackController,
    LinBreg,
    partition,
    sparse_init_,
    sparsity,
)
from sv_sparse.optim import warmup_exponential as factor

LAMBDAS = (1e-4, 1e-2, 1e-1, 1.0, 1e2)
TARGETS = (0.5, 0.75, 0.9, 0.95, 0.99)
OPTIMIZERS = {"LinBreg": (LinBreg, 1e-1), "AdaBreg": (AdaBreg, 1e-2)}
RULES = {
    "feedback": FeedbackController,
    "decaying": DecayingFeedbackController,
    "trend=0": partial(FeedbackController, trend=0.0),
}
ALLOWED = 0.2  # points


@dataclass(frozen=True)
class Cell:
    """One run."""

    rule: str
    optimizer: str
    target: float
    start: float
    seed: int
    steps: int
    width: int


@dataclass(frozen=True)
class Found:
    """What a run did: largest distance in the last fifth, the update from which it stays near, the last lambda."""

    gap: float
    settled: int | None
    lambda_: float


def network(width: int, seed: int) -> nn.Sequential:
    """Two convolutions and a classifier."""
    torch.manual_seed(seed)
    first = [nn.Conv1d(8, width, 3, padding=1), nn.BatchNorm1d(width), nn.ReLU()]
    second = [nn.Conv1d(width, 2 * width, 3, padding=1), nn.BatchNorm1d(2 * width), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def gaps(cell: Cell) -> tuple[list[float], float]:
    """Distance from the target in points after every update of a run, and the last lambda."""
    model = network(cell.width, cell.seed)
    groups = partition(model)
    sparse_init_(groups, generator=torch.Generator().manual_seed(cell.seed))
    kind, lr = OPTIMIZERS[cell.optimizer]
    optimizer: BregmanOptimizer = kind(groups, lr=lr, lambda_=cell.start)
    controller = RULES[cell.rule](optimizer, cell.target, cell.steps)
    generator = torch.Generator().manual_seed(cell.seed)
    patterns = torch.randn(10, 8, 12, generator=generator)
    path = []
    for step in range(cell.steps):
        y = torch.randint(10, (16,), generator=generator)
        x = patterns[y] + 2 * torch.randn(16, 8, 12, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor(step, cell.steps)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        controller.step()
        path.append(100 * abs(sparsity(controller.params).item() - cell.target))
    return path, controller.lambda_.item()


def measure(cell: Cell) -> Found:
    """Run a cell."""
    path, lambda_ = gaps(cell)
    far = [update for update, gap in enumerate(path, start=1) if gap > ALLOWED]
    settled = far[-1] + 1 if far else 1
    return Found(max(path[-(len(path) // 5) :]), settled if settled <= len(path) else None, lambda_)


def table(results: dict[Cell, Found], rules: Sequence[str]) -> str:
    """A row per optimizer, target and starting lambda; of several seeds the one with the largest gap."""
    worst: dict[tuple[str, float, float], dict[str, Found]] = {}
    for cell, found in results.items():
        row = worst.setdefault((cell.optimizer, cell.target, cell.start), {})
        row[cell.rule] = max(row.get(cell.rule, found), found, key=lambda one: one.gap)
    columns = [f"{rule}: {what}" for rule in rules for what in ("gap", "from", "last lambda")]
    head = " | ".join(["optimizer", "target", "first lambda", *columns])
    lines = [f"| {head} |", "|---|" + "---:|" * (2 + len(columns))]
    for (optimizer, target, start), row in worst.items():
        entries = [f"{row[r].gap:.3f} | {row[r].settled or 'never'} | {row[r].lambda_:.4g}" for r in rules]
        lines.append(f"| {optimizer} | {target} | {start:g} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def summary(found: Sequence[Found]) -> dict[str, float]:
    """A rule in four figures."""
    distances = [one.gap for one in found]
    return {
        "worst_gap": round(max(distances), 4),
        "median_gap": round(statistics.median(distances), 4),
        "cells": len(found),
        "beyond": sum(gap > ALLOWED for gap in distances),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def arguments() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=int, default=64, help="channels of the first convolution")
    parser.add_argument("--seeds", type=int, default=1, help="runs per cell; the table shows the worst")
    parser.add_argument("--rule", nargs="+", choices=RULES, default=list(RULES), help="which rules to run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    return parser.parse_args()


def report(results: dict[Cell, Found], chosen: argparse.Namespace) -> tuple[str, dict[str, dict[str, float]]]:
    """What is printed and stored, and the summary of each rule."""
    figures = {rule: summary([found for cell, found in results.items() if cell.rule == rule]) for rule in chosen.rule}
    lines = [
        f"{rule}: worst gap {one['worst_gap']:.3f} points, median {one['median_gap']:.3f}, "
        f"{one['beyond']} of {one['cells']} runs beyond {ALLOWED} points"
        for rule, one in figures.items()
    ]
    about = (
        f"{chosen.steps} updates, width {chosen.width}, seeds {chosen.seeds}; torch {torch.__version__}, "
        f"{processor()}.\n"
        "`gap`: largest distance from the target over the last fifth of the updates, in points. `from`: first update\n"
        f"from which the run stays within {ALLOWED} points. `feedback` is FeedbackController, `trend=0` the same\n"
        "without drift, `decaying` DecayingFeedbackController; all with their defaults."
    )
    bullets = "\n".join(f"- {line}" for line in lines)
    return f"{about}\n\n{bullets}\n\n{table(results, chosen.rule)}", figures


def main() -> None:
    """Run the cells, print the table, a line per rule and one of JSON."""
    chosen = arguments()
    axes = (chosen.rule, OPTIMIZERS, TARGETS, LAMBDAS, range(chosen.seeds))
    cells = [Cell(*choice, chosen.steps, chosen.width) for choice in itertools.product(*axes)]
    with multiprocessing.get_context("spawn").Pool(chosen.jobs, torch.set_num_threads, (1,)) as pool:
        found = tqdm(pool.imap(measure, cells), total=len(cells), unit="run", dynamic_ncols=True)
        results = dict(zip(cells, found, strict=True))
    text, figures = report(results, chosen)
    print(text)
    if chosen.out:
        command = " ".join(["python scripts/benchmark/controller.py", *sys.argv[1:]])
        chosen.out.write_text(f"# Distance from the target\n\n`{command}`\n\n{text}\n", encoding="utf-8")
    far = [
        [cell.rule, cell.optimizer, cell.target, cell.start, cell.seed, round(one.gap, 3)]
        for cell, one in results.items()
        if one.gap > ALLOWED
    ]
    print(json.dumps({"benchmark": "controller", "rules": figures, "allowed": ALLOWED, "runs_beyond": far}))


if __name__ == "__main__":
    main()
