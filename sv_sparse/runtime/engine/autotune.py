"""Autotuning: measures which kernel computes each layer of a network fastest on this machine."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from sv_sparse.runtime.engine.bindings import MAX_TILE
from sv_sparse.runtime.engine.executor import SparseEngine, uniform_plan
from sv_sparse.runtime.engine.plan import USE_DENSE, Plan
from sv_sparse.runtime.engine.program import Float32Array, Program

TILES = (2, 4, 6, 8, 10, MAX_TILE)
# Three seconds. Of noise: the time does not depend on the values.
NUM_FRAMES = 300
NUM_TIMING_ROUNDS = 9


def autotune(program: Program, machine: str, *, threads: int = 1, rounds: int = NUM_TIMING_ROUNDS) -> Plan:
    """Return the plan of the fastest kernel for each layer, by the median of ``rounds`` measurements.

    Args:
        program: Program of the network.
        machine: Name of the machine in the plan.
        threads: Number of threads that the plan is for.
        rounds: Number of measurements of each kernel.
    """
    filterbank = _noise(program)
    with torch_threads(threads):
        engines = []
        # Dense first: among equals the first one wins.
        for tile in (USE_DENSE, *reversed(TILES)):
            engine = SparseEngine(program, threads=threads, plan=uniform_plan(program, tile))
            engine(filterbank)
            engines.append(engine)
        tiles = {}
        for layer in program.layers:
            candidates = {engine.plan.layers[layer.name]: engine.bench_layer(layer.name) for engine in engines}
            seconds = _median_seconds(candidates, rounds)
            tiles[layer.name] = min(seconds, key=seconds.__getitem__)
    return Plan(tiles, f"{machine}, {threads} threads")


def benchmark_ms(program: Program, plan: Plan | None, *, threads: int) -> float:
    """Return the median time in milliseconds for three seconds of noise by a plan; None: by the layers' densities."""
    engine = SparseEngine(program, threads=threads, plan=plan)
    filterbank = _noise(program)
    with torch_threads(threads):
        engine(filterbank)
        seconds = _median_seconds({0: lambda: engine(filterbank)}, NUM_TIMING_ROUNDS)
    return 1e3 * seconds[0]


def _noise(program: Program) -> Float32Array:
    return np.random.default_rng(0).standard_normal((1, program.mel_bins, NUM_FRAMES), np.float32)


def _median_seconds(candidates: Mapping[int, Callable[[], object]], rounds: int) -> dict[int, float]:
    seconds: dict[int, list[float]] = {tile: [] for tile in candidates}
    # Candidates take turns, so that a disturbance meets them all.
    for _ in range(rounds):
        for tile, run in candidates.items():
            start_time = time.perf_counter()
            run()
            seconds[tile].append(time.perf_counter() - start_time)
    return {tile: statistics.median(times) for tile, times in seconds.items()}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside the block."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
