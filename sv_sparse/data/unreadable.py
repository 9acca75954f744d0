"""How many recordings may be left out: the same rule wherever recordings are read."""

from dataclasses import dataclass
from numbers import Real


@dataclass(frozen=True)
class UnreadableLimit:
    """How many recordings may be left out because they cannot be used.

    Up to ``PATIENCE`` recordings are left out even where they are a larger share, since so few say little about a
    share. With a share of 0 none is.

    Args:
        share: Largest share of the recordings, in [0, 1].
        setting: What sets the share, for messages, up to where its value begins.

    Raises:
        ValueError: The share is not in [0, 1].

    >>> [UnreadableLimit(0.01).most(recordings) for recordings in (20, 5000)]
    [10, 50]
    """

    share: float
    setting: str = "data.max_unreadable_fraction="

    PATIENCE = 10

    def __post_init__(self) -> None:
        if not isinstance(self.share, Real) or isinstance(self.share, bool) or not 0 <= self.share <= 1:
            raise ValueError(f"{self}: expected a share from 0 to 1")

    def __str__(self) -> str:
        return f"{self.setting}{self.share}"

    def most(self, recordings: int) -> int:
        """The largest number that may be left out of so many recordings."""
        return max(self.PATIENCE, int(self.share * recordings)) if self.share > 0 else 0
