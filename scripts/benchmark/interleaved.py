"""Timing of functions in turn, so that a change of the machine's speed hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Compute the median seconds of each function.

    Args:
        functions: functions by name; each round calls each of them once.
        rounds: rounds that count; one more before them does not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for counted in range(-1, rounds):
        for name, function in functions.items():
            start_time = time.perf_counter()
            function()
            if counted >= 0:
                seconds[name].append(time.perf_counter() - start_time)
    return {name: statistics.median(values) for name, values in seconds.items()}
