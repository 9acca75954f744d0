"""Learning-rate schedule as a function of the step alone, so that resuming needs no state of it."""

from sv_sparse.optim.validation import require_fraction, require_number


def warmup_exponential(
    step: int, total_steps: int, *, warmup_fraction: float = 0.04, final_lr_fraction: float = 0.01
) -> float:
    """Return the factor on the learning rate at an update: linear warm-up, then exponential decay.

    The factor is above 0 from the first update on.

    Args:
        step: number of updates made before this one, 0 to ``total_steps - 1``.
        total_steps: length of the run in updates.
        warmup_fraction: fraction of the run that warms up, in [0, 1). Default: 0.04.
        final_lr_fraction: factor at the last update, in (0, 1]. Default: 0.01.

    Raises:
        ValueError: a fraction is out of its bounds.

    >>> [round(warmup_exponential(step, 101, warmup_fraction=0.01), 3) for step in (0, 50, 100)]
    [1.0, 0.1, 0.01]
    """
    require_fraction("warmup_fraction", warmup_fraction)
    require_number("final_lr_fraction", final_lr_fraction, "above 0 and at most 1", above=0, at_most=1)
    warmup_steps = max(1, round(warmup_fraction * total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decay_steps = max(1, total_steps - warmup_steps)
    return final_lr_fraction ** ((step + 1 - warmup_steps) / decay_steps)
