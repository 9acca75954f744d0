"""Limits of the local server, in a module of their own: the command's help needs them without Starlette."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Limits of what clients may ask of the server.

    Args:
        max_seconds: Longest recording, in seconds.
        max_megabytes: Largest recording, in millions of bytes.
        max_concurrent: Number of comparisons that are computed at once. Default: 4.
        upload_seconds: Longest time in which a client sends its two recordings. Default: 60.
        queue_seconds: Longest time that a comparison waits for its turn. Default: 30.
        idle_seconds: Time after which a connection is closed on which no request is under way: none has come, its
            head is not complete, or its answer is not read. Default: 10.
        max_uploads: Number of comparisons whose recordings are received and in memory at once. Default: 16.
        max_connections: Number of connections. One more closes the one that has been idle longest. Default: 256.

    Raises:
        ValueError: A limit is not a number above 0.

    >>> Limits(max_seconds=60, max_megabytes=20).max_bytes
    20000000
    """

    max_seconds: float
    max_megabytes: float
    max_concurrent: int = 4
    upload_seconds: float = 60.0
    queue_seconds: float = 30.0
    idle_seconds: float = 10.0
    max_uploads: int = 16
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
