"""Learning-rate schedule as a function of the step alone, so that resuming needs no state of it."""

import math

from sv_sparse.optim.validation import require, require_fraction, require_number

DECAYS = ("exponential", "linear", "cosine")


def warmup_decay(
    step: int,
    total_steps: int,
    *,
    decay: str = "exponential",
    warmup_fraction: float = 0.04,
    final_lr_fraction: float = 0.01,
) -> float:
    """Return the factor on the learning rate at an update: linear warm-up, then a decay.

    The factor is above 0 from the first update on. With the progress p from 0 to 1 after the warm-up, and the factor f
    at the end, it is ``f ** p`` (exponential), ``1 - (1 - f) * p`` (linear) or ``f + (1 - f) * (1 + cos(pi * p)) / 2``
    (cosine).

    Args:
        step: number of updates made before this one, 0 to ``total_steps - 1``.
        total_steps: length of the run in updates.
        decay: ``"exponential"``, ``"linear"`` or ``"cosine"``. Default: exponential.
        warmup_fraction: fraction of the run that warms up, in [0, 1). Default: 0.04.
        final_lr_fraction: factor at the last update, in (0, 1]. Default: 0.01.

    Raises:
        ValueError: a fraction is out of its bounds, or the decay is none of these.

    >>> [round(warmup_decay(step, 101, warmup_fraction=0.01), 3) for step in (0, 50, 100)]
    [1.0, 0.1, 0.01]
    >>> round(warmup_decay(50, 101, decay="linear", warmup_fraction=0.01), 3)
    0.505
    """
    require(decay in DECAYS, "decay", decay, f"one of {', '.join(DECAYS)}")
    require_fraction("warmup_fraction", warmup_fraction)
    require_number("final_lr_fraction", final_lr_fraction, "above 0 and at most 1", above=0, at_most=1)
    warmup_steps = max(1, round(warmup_fraction * total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decay_steps = max(1, total_steps - warmup_steps)
    progress = (step + 1 - warmup_steps) / decay_steps
    if decay == "exponential":
        return final_lr_fraction**progress
    remaining = 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return final_lr_fraction + (1 - final_lr_fraction) * remaining
