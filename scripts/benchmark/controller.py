"""Distance from the target sparsity in the last fifth of a run, and the update from which it stays near, by controller.

The cells are both optimizers x five targets x five starting lambdas from 1e-4 to 1e2, on a small convolutional network
and a noisy problem that is never solved. Each controller has one setting for all cells, its defaults.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from sv_sparse.optim import (
    AdaBreg,
    BregmanOptimizer,
    FeedbackController,
    LinBreg,
    PaperController,
    param_groups,
    sparse_init_,
    sparsity,
    warmup_decay,
)
from sv_sparse.optim.controllers.base import Controller

LAMBDAS = (1e-4, 1e-2, 1e-1, 1.0, 1e2)
TARGETS = (0.5, 0.75, 0.9, 0.95, 0.99)
OPTIMIZERS = {"LinBreg": (LinBreg, 1e-1), "AdaBreg": (AdaBreg, 1e-2)}
CONTROLLERS: dict[str, Callable[..., Controller]] = {
    "feedback": FeedbackController,
    "paper": PaperController,
    "drift_gain=0": partial(FeedbackController, drift_gain=0.0),
}
MAX_ERROR = 0.2  # points


@dataclass(frozen=True)
class Cell:
    """Settings of one run."""

    controller: str
    optimizer: str
    target: float
    lambda_init: float
    seed: int
    steps: int
    width: int


@dataclass(frozen=True)
class Result:
    """Outcome of one run.

    Attributes:
        error: largest distance from the target in the last fifth, in points.
        near_from: first update from which the run stays within MAX_ERROR; None: never.
        lambda_: at the end.
    """

    error: float
    near_from: int | None
    lambda_: float


def network(width: int, seed: int) -> nn.Sequential:
    """Return two convolutions and a classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(8, width, 3, padding=1),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Conv1d(width, 2 * width, 3, padding=1),
        nn.BatchNorm1d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def sparsity_errors(cell: Cell) -> tuple[list[float], float]:
    """Return the distance from the target in points after every update of a run, and the last lambda."""
    model = network(cell.width, cell.seed)
    groups = param_groups(model)
    sparse_init_(groups, generator=torch.Generator().manual_seed(cell.seed))
    optimizer_class, lr = OPTIMIZERS[cell.optimizer]
    optimizer: BregmanOptimizer = optimizer_class(groups, lr=lr, lambda_init=cell.lambda_init)
    controller = CONTROLLERS[cell.controller](optimizer, cell.target, cell.steps)
    controller.reminders.active = False
    generator = torch.Generator().manual_seed(cell.seed)
    patterns = torch.randn(10, 8, 12, generator=generator)
    errors = []
    for step in range(cell.steps):
        labels = torch.randint(10, (16,), generator=generator)
        inputs = patterns[labels] + 2 * torch.randn(16, 8, 12, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_decay(step, cell.steps)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        controller.step()
        errors.append(100 * abs(sparsity(controller.params).item() - cell.target))
    return errors, controller.lambda_.item()


def measure(cell: Cell) -> Result:
    """Make the run of a cell."""
    errors, lambda_ = sparsity_errors(cell)
    far_updates = [update for update, error in enumerate(errors, start=1) if error > MAX_ERROR]
    near_from = far_updates[-1] + 1 if far_updates else 1
    last_fifth = errors[-(len(errors) // 5) :]
    return Result(max(last_fifth), near_from if near_from <= len(errors) else None, lambda_)


def table(results: dict[Cell, Result], controllers: Sequence[str]) -> str:
    """Return a row for each optimizer, target and starting lambda; of several seeds the one with the largest error."""
    rows: dict[tuple[str, float, float], dict[str, Result]] = {}
    for cell, result in results.items():
        row = rows.setdefault((cell.optimizer, cell.target, cell.lambda_init), {})
        if cell.controller not in row or result.error > row[cell.controller].error:
            row[cell.controller] = result
    columns = [f"{name}: {column}" for name in controllers for column in ("error", "near from", "last lambda")]
    header = " | ".join(["optimizer", "target", "first lambda", *columns])
    lines = [f"| {header} |", "|---|" + "---:|" * (2 + len(columns))]
    for (optimizer, target, lambda_init), row in rows.items():
        entries = []
        for name in controllers:
            result = row[name]
            entries.append(f"{result.error:.3f} | {result.near_from or 'never'} | {result.lambda_:.4g}")
        lines.append(f"| {optimizer} | {target} | {lambda_init:g} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> dict[str, float]:
    """Return a controller's results in four figures."""
    errors = [result.error for result in results]
    return {
        "worst_error": round(max(errors), 4),
        "median_error": round(statistics.median(errors), 4),
        "cells": len(errors),
        "beyond": sum(error > MAX_ERROR for error in errors),
    }


def processor_name() -> str:
    """Return the processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def report(results: dict[Cell, Result], args: argparse.Namespace) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the text that is printed, and the summary of each controller."""
    summaries = {}
    bullets = []
    for name in args.controllers:
        figures = summary([result for cell, result in results.items() if cell.controller == name])
        summaries[name] = figures
        bullets.append(
            f"- {name}: worst error {figures['worst_error']:.3f} points, median {figures['median_error']:.3f}, "
            f"{figures['beyond']} of {figures['cells']} runs beyond {MAX_ERROR} points"
        )
    legend = (
        f"{args.steps} updates, width {args.width}, seeds {args.seeds}; torch {torch.__version__}, "
        f"{processor_name()}.\n"
        "`error`: largest distance from the target over the last fifth of the updates, in points. `near from`: first\n"
        f"update from which the run stays within {MAX_ERROR} points. `feedback` is FeedbackController,\n"
        "`drift_gain=0` the same without drift, `paper` PaperController; all with their defaults."
    )
    return "\n\n".join([legend, "\n".join(bullets), table(results, args.controllers)]), summaries


def main() -> None:
    """Make the runs; print the table, a line for each controller and one of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=int, default=64, help="channels of the first convolution")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each cell; the table shows the worst")
    parser.add_argument("--controllers", nargs="+", choices=CONTROLLERS, default=list(CONTROLLERS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--output", type=Path, help="Markdown file to write as well")
    args = parser.parse_args()
    cells = []
    for name, optimizer, target, lambda_init in itertools.product(args.controllers, OPTIMIZERS, TARGETS, LAMBDAS):
        for seed in range(args.seeds):
            cells.append(Cell(name, optimizer, target, lambda_init, seed, args.steps, args.width))
    with multiprocessing.get_context("spawn").Pool(args.jobs, torch.set_num_threads, (1,)) as pool:
        progress = tqdm(pool.imap(measure, cells), total=len(cells), unit="run", dynamic_ncols=True)
        results = dict(zip(cells, progress, strict=True))
    text, summaries = report(results, args)
    print(text)
    if args.output:
        command = " ".join(["python scripts/benchmark/controller.py", *sys.argv[1:]])
        args.output.write_text(f"# Distance from the target\n\n`{command}`\n\n{text}\n", encoding="utf-8")
    beyond = []
    for cell, result in results.items():
        if result.error > MAX_ERROR:
            key = [cell.controller, cell.optimizer, cell.target, cell.lambda_init, cell.seed]
            beyond.append([*key, round(result.error, 3)])
    print(
        json.dumps({"benchmark": "controller", "controllers": summaries, "allowed": MAX_ERROR, "runs_beyond": beyond})
    )


if __name__ == "__main__":
    main()
