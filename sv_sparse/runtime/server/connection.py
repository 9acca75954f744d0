"""HTTP connections that end when a client does nothing, or hardly anything, with them."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from sv_sparse.runtime.server.limits import Limits


class Connection(H11Protocol):
    """HTTP/1.1 connection that is closed when it is idle, and of too many connections the idlest first.

    A connection is idle while no request is under way on it. The application limits the time of a request.
    """

    # uvicorn itself closes only connections that were idle after an answer. One that never sends a request, sends its
    # head one byte at a time, or does not read its answer would stay, and a few would keep everybody out: DECISIONS 73
    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        # Runs from when the connection became idle, whatever bytes arrive; None while a request is under way.
        self.clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the clock of a new connection; close the idlest one if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._close_idlest()
        self._update_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._stop_clock()

    def data_received(self, data: bytes) -> None:
        """Stop the clock if the data complete the head of a request."""
        super().data_received(data)
        self._update_clock()

    def on_response_complete(self) -> None:
        """Start the clock, unless the next request is there already."""
        super().on_response_complete()
        self._update_clock()

    def pause_writing(self) -> None:
        """Start the clock: the client does not read its answer."""
        super().pause_writing()
        self._update_clock()

    def resume_writing(self) -> None:
        """Stop the clock if a request is under way."""
        super().resume_writing()
        self._update_clock()

    def _update_clock(self) -> None:
        """Start the clock if the connection is idle and it does not run yet; stop it if a request is under way."""
        is_under_way = self.cycle is not None and not self.cycle.response_complete
        if is_under_way and not self.flow.write_paused:
            self._stop_clock()
        # Also where the connection ends as soon as its last answer is read.
        elif self.clock is None:
            self.clock = self.loop.call_later(self.limits.idle_seconds, self.transport.abort)

    def _stop_clock(self) -> None:
        if self.clock is not None:
            self.clock.cancel()
            self.clock = None

    def _close_idlest(self) -> None:
        """Close the other connection whose clock has been running longest."""
        ends: dict[float, Connection] = {}
        for other in self.connections:
            if isinstance(other, Connection) and other.clock is not None:
                ends.setdefault(other.clock.when(), other)
        if ends:
            idlest = ends[min(ends)]
            # The next connection too many must close another one.
            idlest._stop_clock()
            idlest.transport.abort()
