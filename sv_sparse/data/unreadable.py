"""The one rule for recordings that cannot be used: how many may be left out (DECISIONS 70)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnreadableLimit:
    """Limit for the number of recordings that are left out because they cannot be used.

    Args:
        fraction: largest fraction of the recordings, in [0, 1]. With 0 none may be left out.
        setting: text before the value in messages.

    Raises:
        ValueError: the fraction is not in [0, 1].

    >>> [UnreadableLimit(0.01).max_count(recordings) for recordings in (20, 5000)]
    [10, 50]
    """

    fraction: float
    setting: str = "data.max_unreadable_fraction="

    # One of 20 recordings says little about a fraction.
    ALWAYS_ALLOWED = 10

    def __post_init__(self) -> None:
        is_number = isinstance(self.fraction, Real) and not isinstance(self.fraction, bool)
        if not is_number or not 0 <= self.fraction <= 1:
            raise ValueError(f"{self}: expected a fraction from 0 to 1")

    def __str__(self) -> str:
        return f"{self.setting}{self.fraction}"

    def max_count(self, recordings: int) -> int:
        """Return how many of so many recordings may be left out."""
        return max(self.ALWAYS_ALLOWED, int(self.fraction * recordings)) if self.fraction else 0


class UnreadableCounter:
    """Count of the utterances drawn in training, of which a fraction in [0, 1] may be unreadable."""

    def __init__(self, max_fraction: float) -> None:
        self.limit = UnreadableLimit(max_fraction)
        self.num_drawn = 0
        self.num_unreadable = 0

    def warn(self, messages: Sequence[str]) -> None:
        """Log a warning for each utterance that a batch lost."""
        # The main process logs, since workers of a data loader have no log of their own.
        for message in messages:
            logger.warning("left out of a batch: %s", message)

    def add(self, num_drawn: int, num_unreadable: int) -> None:
        """Count the utterances of a batch; a ValueError says that more were unreadable than the limit allows."""
        self.num_drawn += num_drawn
        self.num_unreadable += num_unreadable
        if self.num_unreadable > self.limit.max_count(self.num_drawn):
            raise ValueError(
                f"{self.limit}: {self.num_unreadable} of {self.num_drawn} utterances drawn "
                f"({100 * self.num_unreadable / self.num_drawn:.1f} %) could not be read; the log names them"
            )
