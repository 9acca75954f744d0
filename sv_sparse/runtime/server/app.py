"""A local web page on which two recordings are compared: nothing is kept, nothing is logged."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sv_sparse.runtime.audio import pieces
from sv_sparse.runtime.decision import CONSENT, NOT_DETECTED, NOT_DIFFERENT, Heard, Outcome, Rule
from sv_sparse.runtime.server.connection import connection_class
from sv_sparse.runtime.server.limits import Limits
from sv_sparse.runtime.verifier import Verifier

_PAGE = {
    "index.html": "text/html",
    "style.css": "text/css",
    "page.js": "text/javascript",
    "recorder.js": "text/javascript",
}
_ORDINALS = ("first", "second")
_PORTS = {"http": 80, "https": 443}
_HEADERS = {
    # All that the page needs is its own files, the answers of this program, and recordings that it holds itself.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class RequestError(Exception):
    """A request that is not done.

    Args:
        status: of HTTP.
        text: a sentence for people.
        recording: 0 or 1 where one of the two is the reason.
        retry_seconds: after which it is worth trying again.
    """

    def __init__(
        self, status: int, text: str, recording: int | None = None, *, retry_seconds: float | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.text, self.recording, self.retry_seconds = status, text, recording, retry_seconds


def make_app(
    verifier: Verifier, limits: Limits, host: str = "127.0.0.1", allowed_hosts: Sequence[str] = ()
) -> Starlette:
    """The page and what it asks.

    ``GET /`` is the page, ``GET /model`` says what the model is and what the limits are. ``POST /verify`` takes the
    bytes of two recordings, one behind the other, with the length of the first in the header ``First-Length``, and
    answers in JSON: ``score``, ``llr``, ``probability``, ``calibration`` and ``warning`` in words, and ``decisions``,
    one for each share of false alarms with a known threshold, each with its ``outcome``. What is refused has a status
    from 400 on, ``error``, a sentence, and ``recording``, 1 or 2 where one of them is the reason; its ``outcome`` is
    "refused input" then. A comparison that has waited too long for its turn gets status 503 with ``Retry-After``.

    Args:
        verifier: what decides.
        limits: for each request.
        host: name or address that the server is asked for; it is always asked for by addresses and as localhost too.
        allowed_hosts: further names, with a port where it is not that of http or https: those of reverse proxies.

    Raises:
        ValueError: an allowed host is not a name, or a name and a port.
    """
    desk = _Desk(verifier, limits)
    folder = resources.files("sv_sparse.runtime.server") / "static"
    routes = [
        Route("/" if name == "index.html" else f"/{name}", _file((folder / name).read_bytes(), kind))
        for name, kind in _PAGE.items()
    ]
    routes += [Route("/model", desk.model), Route("/verify", desk.verify, methods=["POST"])]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Door, host=host, allowed=_places(allowed_hosts))],
        exception_handlers={
            RequestError: lambda _, problem: _error(
                problem.status, problem.text, problem.recording, problem.retry_seconds
            ),
            HTTPException: lambda _, problem: _error(problem.status_code, f"{problem.detail}."),
            ClientDisconnect: lambda *_: _error(400, "The recordings did not arrive."),  # nobody reads it
            Exception: lambda *_: _error(500, "The program failed; its terminal says more."),
        },
    )


def make_server(app: Starlette, limits: Limits) -> uvicorn.Server:
    """What serves it: ``run(sockets=[...])`` returns after a stop signal, or when ``should_exit`` is set.

    Args:
        app: what ``make_app`` returned.
        limits: of connections.
    """
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        http=connection_class(limits),
        loop="asyncio",
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_keep_alive=math.ceil(limits.idle_seconds),  # no sooner than our own clock
        limit_concurrency=limits.connections + 1,  # reached when a request is under way on each
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def _file(content: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda _: Response(content, media_type=kind)


def _error(status: int, text: str, recording: int | None = None, retry_seconds: float | None = None) -> JSONResponse:
    """A refusal; the connection ends, since what else is sent on it is not read."""
    said: dict[str, Any] = {"error": text, "recording": None}
    if recording is not None:
        said |= {"outcome": Outcome.REFUSED_INPUT, "recording": recording + 1}
    headers = {"Connection": "close"}
    if retry_seconds is not None:
        headers["Retry-After"] = str(math.ceil(retry_seconds))
    return JSONResponse(said, status, headers)


class _Desk:
    """What is asked of a verifier."""

    def __init__(self, verifier: Verifier, limits: Limits) -> None:
        self._verifier, self._limits = verifier, limits
        self._uploads = asyncio.Semaphore(limits.uploads)
        self._comparisons = asyncio.Semaphore(limits.at_once)

    async def model(self, _: Request) -> JSONResponse:
        """What the model is, and the limits."""
        backend = self._verifier.backend
        calibration = backend.calibration
        return JSONResponse(
            {
                "max_seconds": self._limits.seconds,
                "max_bytes": self._limits.bytes,
                "normalization": backend.score_norm,
                **self._verifier.basis,
                "false_alarms": sorted(calibration.thresholds) if calibration is not None else [],
                "default_false_alarms": Rule.of(backend).false_alarms,
                "outcomes": {outcome.name.lower(): outcome.value for outcome in Outcome},
                "not_different": NOT_DIFFERENT,
                "limits_of_use": [NOT_DETECTED, CONSENT],
                "card": self._verifier.card,
            }
        )

    async def verify(self, request: Request) -> JSONResponse:
        """Compare two recordings. A client that sends slowly takes none of the places of those that are computed."""
        patience = self._limits.upload_seconds
        async with self._turn(self._uploads):
            try:
                async with asyncio.timeout(patience):
                    recordings = await self._received(request)
            except TimeoutError:
                raise RequestError(408, f"The recordings did not arrive in {patience:g} seconds.") from None
            async with self._turn(self._comparisons):
                if await request.is_disconnected():  # gave up while it waited
                    raise ClientDisconnect
                return JSONResponse(await run_in_threadpool(self._compared, recordings))

    @asynccontextmanager
    async def _turn(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        """Hold one of the places, which are given in the order in which they were asked for."""
        patience = self._limits.queue_seconds
        try:
            async with asyncio.timeout(patience):
                await places.acquire()
        except TimeoutError:
            problem = (
                f"Other recordings are being compared: no place was free in {patience:g} seconds. Try again later."
            )
            raise RequestError(503, problem, retry_seconds=patience) from None
        try:
            yield
        finally:
            places.release()

    async def _received(self, request: Request) -> list[bytes]:
        """Both recordings; not more is read than may be."""
        told = request.headers.get("First-Length", "")
        if not (told.isascii() and told.isdigit() and len(told) < 16):
            raise RequestError(400, "The header First-Length must say how many bytes the first recording has.")
        first = int(told)
        if first > self._limits.bytes:
            raise self._too_large(0)
        most = first + self._limits.bytes
        if int(request.headers.get("Content-Length", 0)) > most:
            raise self._too_large(1)
        body = bytearray()
        async for piece in request.stream():
            if len(body) + len(piece) > most:
                raise self._too_large(1)
            body += piece
        recordings = [bytes(body[:first]), bytes(body[first:])]
        for index, recording in enumerate(recordings):
            if not recording:
                raise RequestError(400, f"The {_ORDINALS[index]} recording is empty.", index)
        return recordings

    def _too_large(self, index: int) -> RequestError:
        most = f"{self._limits.megabytes:g} MB"
        return RequestError(413, f"The {_ORDINALS[index]} recording is too large: at most {most} are accepted.", index)

    def _compared(self, recordings: list[bytes]) -> dict[str, Any]:
        """Scores and decisions, as they are answered."""
        sides = [self._heard(recording, index) for index, recording in enumerate(recordings)]
        calibration = self._verifier.backend.calibration
        shares = sorted(calibration.thresholds) if calibration is not None else []
        found = self._verifier.verify(*sides)
        decided = [self._verifier.verify(*sides, false_alarms=share) for share in shares]
        return {
            **self._verifier.basis,
            "score": found.score,
            "llr": found.llr,
            "probability": found.probability,
            "prior": found.prior,
            "decisions": [
                {name: getattr(each, name) for name in ("false_alarms", "threshold", "accepted", "outcome")}
                for each in decided
            ],
        }

    def _heard(self, recording: bytes, index: int) -> Heard:
        """The embedding of a recording, of which no more than may be is ever decoded."""
        rate, parts, samples = self._verifier.sample_rate, [], 0
        try:
            for part in pieces(recording, rate):
                samples += len(part)
                if samples > self._limits.seconds * rate:
                    most = f"at most {self._limits.seconds:g} seconds are accepted"
                    raise RequestError(413, f"The {_ORDINALS[index]} recording is too long: {most}.", index)
                parts.append(part)
            return self._verifier.hear((np.concatenate(parts), rate))
        except ValueError as error:
            problem = str(error).partition(": ")[2].replace(".)", ")")  # "the recording: cannot be ..."
            raise RequestError(400, f"The {_ORDINALS[index]} recording {problem}.", index) from error


class _Door:
    """Lets in what this page asks, and what comes from no page; every answer says what a browser may do with it."""

    def __init__(self, app: ASGIApp, host: str, allowed: Collection[tuple[str, int]]) -> None:
        self._app, self._allowed = app, allowed
        self._names = {"localhost", host.lower()} | {name for name, _ in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("Host", ""), headers.get("Origin")
        app = self._app
        if not _is_ours(host, self._names):
            app = _error(
                403, "The program is asked for by an address or as localhost; --allowed-host NAME allows another name."
            )
        elif origin is not None and not _is_own(origin, host, self._allowed):
            app = _error(
                403,
                "Another site's page asked; only the program's own page may. If a proxy offers it under another name "
                "or port, sv-sparse serve needs --allowed-host NAME or NAME:PORT.",
            )
        await app(scope, receive, send_with_headers)


def _places(allowed_hosts: Sequence[str]) -> set[tuple[str, int]]:
    """Names and ports of pages that a proxy offers; without a port, those of http and https.

    Raises:
        ValueError: one is not NAME or NAME:PORT.
    """
    places = set()
    for host in allowed_hosts:
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname, parts.port
        except ValueError:
            name, port = None, None
        if not name or parts.netloc != host or "@" in host:
            raise ValueError(f"--allowed-host {host}: expected NAME or NAME:PORT, such as voice.example")
        places |= {(name, port)} if port is not None else {(name, usual) for usual in _PORTS.values()}
    return places


def _is_ours(header: str, names: Collection[str]) -> bool:
    """Whether a Host header names this server: names of others can be made to lead here, addresses cannot."""
    try:
        name = urlsplit(f"//{header}").hostname or ""
        return name in names or bool(ip_address(name))
    except ValueError:
        return False


def _is_own(origin: str, host: str, allowed: Collection[tuple[str, int]]) -> bool:
    """Whether an Origin header, SCHEME://NAME:PORT, is of this server's own page.

    A proxy that adds https keeps the Host header, which then has the page's name and port, or puts its own in, as nginx
    does; the page's must be allowed then. The scheme itself says nothing: what the proxy speaks is not seen here.
    """
    try:
        page, asked = urlsplit(origin), urlsplit(f"//{host}")
        usual = _PORTS.get(page.scheme)
        if usual is None or not page.hostname:
            return False
        place = (page.hostname, page.port or usual)
        return place == (asked.hostname, asked.port or usual) or place in allowed
    except ValueError:
        return False
