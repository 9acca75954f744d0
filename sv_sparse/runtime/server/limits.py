"""Limits of the local server, apart from what serves: the command states them where no server is installed."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Limits of what clients may ask of the server.

    Args:
        seconds: Longest recording, in seconds.
        megabytes: Largest recording, in millions of bytes.
        at_once: Number of comparisons that are computed at once. Default: 4.
        upload_seconds: Longest time in which a client sends its two recordings. Default: 60.
        queue_seconds: Longest time that a comparison waits for its turn. Default: 30.
        idle_seconds: Time after which a connection is closed on which no request is under way: none has come, its
            head is not complete, or its answer is not read. Default: 10.
        uploads: Number of comparisons whose recordings are received and held in memory at once. Default: 16.
        connections: Number of connections. One more closes the one that has been idle longest. Default: 256.

    Raises:
        ValueError: a limit is not a number above 0.
    """

    seconds: float
    megabytes: float
    at_once: int = 4
    upload_seconds: float = 60.0
    queue_seconds: float = 30.0
    idle_seconds: float = 10.0
    uploads: int = 16
    connections: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if not 0 < limit < float("inf"):
                raise ValueError(f"{field.name.replace('_', ' ')} must be a number above 0, got {limit}")

    @property
    def bytes(self) -> int:
        """Largest recording."""
        return int(self.megabytes * 1e6)
