"""Open-loop schedules: pure functions of the step, so that resuming needs the step and nothing else."""

from sv_sparse.optim.checks import check_number


def warmup_exponential(step: int, total_steps: int, *, warmup: float = 0.04, final: float = 0.01) -> float:
    """Factor on the learning rate at update number ``step`` (from 0): linear warm-up, then exponential decay.

    The first update already moves: the factor is never 0.

    Args:
        step: updates done before this one, 0 to ``total_steps - 1``.
        total_steps: length of the run.
        warmup: share of the run that warms up, in [0, 1).
        final: factor at the last update, in (0, 1].

    >>> [round(warmup_exponential(step, 101, warmup=0.01, final=0.01), 3) for step in (0, 50, 100)]
    [1.0, 0.1, 0.01]
    """
    check_number("warmup", warmup, "at least 0 and below 1", at_least=0, below=1)
    check_number("final", final, "above 0 and at most 1", above=0, at_most=1)
    rising = max(1, round(warmup * total_steps))
    if step < rising:
        return (step + 1) / rising
    return final ** ((step + 1 - rising) / max(1, total_steps - rising))
