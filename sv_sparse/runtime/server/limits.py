"""Limits of the local server, in a module of their own: the command's help needs them without Starlette."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Limits of what clients may ask of the server; raises ValueError for a limit that is not a number above 0.

    >>> Limits(max_seconds=60, max_megabytes=20).max_bytes
    20000000
    """

    # Of one recording; a megabyte is a million bytes.
    max_seconds: float
    max_megabytes: float
    # Number of comparisons that are computed at once.
    max_concurrent: int = 4
    # In which a client sends its two recordings.
    upload_seconds: float = 60.0
    # That a comparison waits for its turn.
    queue_seconds: float = 30.0
    # After which a connection is closed on which no request is under way: none has come, its head is not complete, or
    # its answer is not read.
    idle_seconds: float = 10.0
    # Number of comparisons whose recordings are received and in memory at once.
    max_uploads: int = 16
    # One more closes the one that has been idle longest.
    max_connections: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if not 0 < limit < float("inf"):
                raise ValueError(f"{field.name} must be a number above 0, got {limit}")

    @property
    def max_bytes(self) -> int:
        """Largest recording in bytes."""
        return int(self.max_megabytes * 1e6)
