"""Latency of ``sv-sparse verify`` where other programs use the cores: it depends on how threads wait.

python scripts/benchmark/busy.py [--rounds 15] [--busy N]

The model is a full-size ECAPA-TDNN with random weights, 90 % of them zero; the recordings are noise of three seconds.
Each comparison is a process of its own, as a person starts it. Three starts take turns: threads that wait passively, as
the command sets it; threads that spin, as OpenMP does by itself (``GOMP_SPINCOUNT=300000``, libgomp's own number); and
``--threads 1``. All of it first on the machine as it is, then beside N processes that compute without a break (one a
core), which this script starts and ends. Printed are medians and the slowest: of the comparison itself, which the
command prints, and of the whole process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch

from sv_sparse.export.package import write_package
from sv_sparse.models.registry import build_model
from sv_sparse.scoring.backend import Backend

RATE, MEL_BINS, SECONDS, DENSITY = 16000, 80, 3, 0.1
MODEL = {"_target_": "sv_sparse.models.ecapa_tdnn.ECAPA"}
FOREVER = "while True: pass"


class Start(NamedTuple):
    """Start of the command: arguments beside the recordings, and variables of its environment."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str]


STARTS = {
    "passive": Start((), {}),
    "spinning": Start((), {"GOMP_SPINCOUNT": "300000"}),
    "one thread": Start(("--threads", "1"), {}),
}


def main() -> None:
    """Measure with free and with busy cores, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="processes beside (one a core)")
    args = parser.parse_args()
    print(
        "| busy processes | threads | comparison, ms | slowest | x one thread | process, s | slowest | x one thread |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        for count in (0, args.busy):
            with busy(count):
                seconds = measure(Path(folder), args.rounds)
            for row in rows(seconds):
                print(f"| {count} | {row} |", flush=True)


@torch.no_grad()
def write_inputs(folder: Path) -> None:
    """Write the model and two recordings."""
    torch.manual_seed(0)
    network = build_model(MODEL, MEL_BINS).eval()
    for param in network.parameters():
        if param.ndim > 1:
            param.mul_(torch.rand(param.shape) < DENSITY)
    size = network(torch.randn(1, MEL_BINS, 50)).shape[1]
    features = {"sample_rate": RATE, "mel_bins": MEL_BINS}
    write_package(
        folder / "model.safetensors", network, MODEL, Backend(np.zeros(size, np.float32)), {}, features=features
    )
    generator = np.random.default_rng(0)
    for name in ("a.wav", "b.wav"):
        soundfile.write(folder / name, 0.1 * generator.normal(size=SECONDS * RATE), RATE)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep ``count`` cores busy inside the context."""
    processes = [subprocess.Popen([sys.executable, "-c", FOREVER]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(folder: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Measure the seconds of the comparison and of the process by start, after one round that is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for counted in range(-1, rounds):
        for name, start in STARTS.items():
            command = [
                sys.executable,
                "-m",
                "sv_sparse.commands.main",
                "verify",
                "a.wav",
                "b.wav",
                "--json",
                *start.arguments,
            ]
            environment = {**os.environ, "SV_SPARSE_MODEL": "model.safetensors", **start.variables}
            start_time = time.perf_counter()
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
            if counted >= 0:
                seconds[name].append((json.loads(done.stdout)["seconds"], time.perf_counter() - start_time))
    return seconds


def rows(seconds: Mapping[str, list[tuple[float, float]]]) -> Iterator[str]:
    """Yield a row of the table for each start."""
    single = [statistics.median(values) for values in zip(*seconds["one thread"], strict=True)]
    for name, values in seconds.items():
        comparison, process = zip(*values, strict=True)
        comparison_median, process_median = statistics.median(comparison), statistics.median(process)
        yield (
            f"{name} | {1e3 * comparison_median:.0f} | {1e3 * max(comparison):.0f} | "
            f"{comparison_median / single[0]:.2f} | "
            f"{process_median:.2f} | {max(process):.2f} | {process_median / single[1]:.2f}"
        )


if __name__ == "__main__":
    main()
