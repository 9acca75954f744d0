"""Times several functions in turn, so that a change of the machine's speed hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each function over ``rounds`` rounds, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for counted in range(-1, rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if counted >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}
