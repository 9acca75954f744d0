"""Measures which engine computes each layer of a network fastest on this machine."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from sv_sparse.runtime.engine.bindings import WIDEST_TILE
from sv_sparse.runtime.engine.executor import SparseEngine, uniform_plan
from sv_sparse.runtime.engine.plan import DENSE, Plan
from sv_sparse.runtime.engine.program import Program

TILES = (2, 4, 6, 8, 10, WIDEST_TILE)
FRAMES = 300
_ROUNDS = 9


def measured_plan(program: Program, machine: str, *, threads: int = 1, rounds: int = _ROUNDS) -> Plan:
    """The plan of the fastest choice for each layer, measured by itself on three seconds of noise.

    Args:
        program: of the network.
        machine: its name in the plan.
        threads: that the plan is for.
        rounds: of each choice, in turn with the others; medians decide.

    Raises:
        OSError: the kernels cannot be compiled.
    """
    speech = torch.randn(1, program.mel_bins, FRAMES)
    with torch_threads(threads):
        engines = [SparseEngine(program, threads=threads, plan=uniform_plan(program, tile)) for tile in (*TILES, DENSE)]
        for engine in engines:
            engine(speech)
        layers = {layer.name: _fastest(layer.name, engines, rounds) for layer in program.layers}
    return Plan(layers, f"{machine}, {threads} threads")


def milliseconds(program: Program, plan: Plan | None, *, threads: int, rounds: int = _ROUNDS) -> float:
    """Median time for three seconds of noise by a plan; by density if not given."""
    engine, speech = SparseEngine(program, threads=threads, plan=plan), torch.randn(1, program.mel_bins, FRAMES)
    with torch_threads(threads):
        engine(speech)
        return 1e3 * _seconds({0: lambda: engine(speech)}, rounds)[0]


def _fastest(name: str, engines: list[SparseEngine], rounds: int) -> int:
    """The tile, or DENSE, with which a layer was fastest."""
    choices = {engine.plan.layers[name]: engine.alone(name) for engine in reversed(engines)}
    seconds = _seconds(choices, rounds)
    return min(seconds, key=lambda tile: seconds[tile])


def _seconds(choices: Mapping[int, Callable[[], object]], rounds: int) -> dict[int, float]:
    """Medians, the choices in turn."""
    found: dict[int, list[float]] = {tile: [] for tile in choices}
    for _ in range(rounds):
        for tile, run in choices.items():
            began = time.perf_counter()
            run()
            found[tile].append(time.perf_counter() - began)
    return {tile: statistics.median(times) for tile, times in found.items()}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
