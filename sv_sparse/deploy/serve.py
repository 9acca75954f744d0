"""A local web page on which two recordings are compared: nothing is kept, nothing is logged."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
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

from sv_sparse.deploy.audio import pieces
from sv_sparse.deploy.decision import Heard
from sv_sparse.deploy.verifier import Verifier

_PAGE = {
    "index.html": "text/html",
    "style.css": "text/css",
    "page.js": "text/javascript",
    "recorder.js": "text/javascript",
}
_ORDINALS = ("first", "second")
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


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Args:
        seconds: longest recording.
        megabytes: largest recording, in millions of bytes.
        at_once: comparisons under way; further ones are refused.
        patience: seconds that a client may take to send its recordings.

    Raises:
        ValueError: a limit is not a number above 0.
    """

    seconds: float
    megabytes: float
    at_once: int = 4
    patience: float = 60.0

    def __post_init__(self) -> None:
        for name in ("seconds", "megabytes", "at_once", "patience"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name.replace('_', ' ')} must be a number above 0, got {getattr(self, name)}")

    @property
    def bytes(self) -> int:
        """Largest recording."""
        return int(self.megabytes * 1e6)


class RequestError(Exception):
    """A request that is not done.

    Args:
        status: of HTTP.
        text: a sentence for people.
        recording: 0 or 1 where one of the two is the reason.
    """

    def __init__(self, status: int, text: str, recording: int | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.recording = status, text, recording


def make_app(verifier: Verifier, limits: Limits, host: str = "127.0.0.1") -> Starlette:
    """The page and what it asks.

    ``GET /`` is the page, ``GET /model`` says what the model is and what the limits are. ``POST /verify`` takes the
    bytes of two recordings, one behind the other, with the length of the first in the header ``First-Length``, and
    answers in JSON: ``score``, ``llr``, ``probability``, and ``decisions``, one for each share of false alarms with a
    known threshold. What is refused has a status from 400 on, ``error``, a sentence, and ``recording``, 1 or 2 where
    one of them is the reason.

    Args:
        verifier: what decides.
        limits: for each request.
        host: name or address that the server is asked for; it is always asked for by addresses and as localhost too.
    """
    desk = _Desk(verifier, limits)
    folder = resources.files("sv_sparse.deploy") / "page"
    routes = [
        Route("/" if name == "index.html" else f"/{name}", _file((folder / name).read_bytes(), kind))
        for name, kind in _PAGE.items()
    ]
    routes += [Route("/model", desk.model), Route("/verify", desk.verify, methods=["POST"])]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Door, host=host)],
        exception_handlers={
            RequestError: lambda _, problem: _error(problem.status, problem.text, problem.recording),
            HTTPException: lambda _, problem: _error(problem.status_code, f"{problem.detail}."),
            ClientDisconnect: lambda *_: _error(400, "The recordings did not arrive."),  # nobody reads it
            Exception: lambda *_: _error(500, "The program failed; its terminal says more."),
        },
    )


def make_server(app: Starlette) -> uvicorn.Server:
    """What serves it: ``run(sockets=[...])`` returns after a stop signal, or when ``should_exit`` is set."""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        http="h11",
        loop="asyncio",
        server_header=False,
        ws="none",
        lifespan="off",
        limit_concurrency=64,  # connections
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def _file(content: bytes, kind: str) -> Callable[[Request], Response]:
    return lambda _: Response(content, media_type=kind)


def _error(status: int, text: str, recording: int | None = None) -> JSONResponse:
    """A refusal; the connection ends, since what else is sent on it is not read."""
    said = {"error": text, "recording": None if recording is None else recording + 1}
    return JSONResponse(said, status, {"Connection": "close"})


class _Desk:
    """What is asked of a verifier."""

    def __init__(self, verifier: Verifier, limits: Limits) -> None:
        self._verifier, self._limits = verifier, limits
        self._free = asyncio.Semaphore(limits.at_once)

    async def model(self, _: Request) -> JSONResponse:
        """What the model is, and the limits."""
        backend = self._verifier.backend
        calibration = backend.calibration
        return JSONResponse(
            {
                "max_seconds": self._limits.seconds,
                "max_bytes": self._limits.bytes,
                "normalization": backend.normalization,
                "calibration": calibration.words if calibration is not None else None,
                "false_alarms": list(calibration.thresholds) if calibration is not None else [],
                "card": self._verifier.card,
            }
        )

    async def verify(self, request: Request) -> JSONResponse:
        """Compare two recordings; waiting for what is sent, and for the verifier, holds nobody else up."""
        if self._free.locked():
            raise RequestError(503, "Other recordings are being compared. Try again in a moment.")
        async with self._free:
            try:
                async with asyncio.timeout(self._limits.patience):
                    recordings = await self._received(request)
            except TimeoutError:
                raise RequestError(
                    408, f"The recordings did not arrive in {self._limits.patience:g} seconds."
                ) from None
            return JSONResponse(await run_in_threadpool(self._compared, recordings))

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
        known = self._verifier.backend.calibration
        found = self._verifier.verify(*sides)
        decided = [self._verifier.verify(*sides, false_alarms=share) for share in (known.thresholds if known else ())]
        return {
            "score": found.score,
            "llr": found.llr,
            "probability": found.probability,
            "prior": found.prior,
            "decisions": [
                {name: getattr(each, name) for name in ("false_alarms", "threshold", "accepted")} for each in decided
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

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

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
        if not _is_ours(host, self._host):
            app = _error(403, "The program is asked for by an address or as localhost, not by another name.")
        elif origin is not None and origin != f"http://{host}":
            app = _error(403, "Another site's page asked; only the program's own page may.")
        await app(scope, receive, send_with_headers)


def _is_ours(header: str, host: str) -> bool:
    """Whether a Host header names this server: names of others can be made to lead here, addresses cannot."""
    try:
        name = urlsplit(f"//{header}").hostname or ""
        return name in {"localhost", host.lower()} or bool(ip_address(name))
    except ValueError:
        return False
