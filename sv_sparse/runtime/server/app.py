"""Local web page on which two recordings are compared: nothing is stored, nothing is logged."""

import asyncio
import math
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
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

from sv_sparse.runtime.audio import iter_audio
from sv_sparse.runtime.decision import CONSENT, NOT_DETECTED, NOT_DIFFERENT, DecisionRule, EmbeddedRecording, Outcome
from sv_sparse.runtime.server.connection import Connection
from sv_sparse.runtime.server.limits import Limits
from sv_sparse.runtime.verifier import Verifier

# All that a browser loads: no framework, no script from elsewhere.  DECISIONS 62
_MEDIA_TYPES = {
    "index.html": "text/html",
    "style.css": "text/css",
    "page.js": "text/javascript",
    "recorder.js": "text/javascript",
}
_ORDINALS = ("first", "second")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SECURITY_HEADERS = {
    # The page needs its own files, the answers of this program, and recordings that it holds itself. Nothing else.
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
    """Error for a request that is refused: HTTP status, sentence for people, index of the recording, time to wait."""

    def __init__(
        self, status: int, text: str, recording: int | None = None, retry_seconds: float | None = None
    ) -> None:
        super().__init__(text)
        content: dict[str, Any] = {"error": text, "recording": None}
        if recording is not None:
            content |= {"outcome": Outcome.REFUSED_INPUT, "recording": recording + 1}
        # The remainder of a refused body is not read, so nothing else can come on this connection.
        headers = {"Connection": "close"}
        if retry_seconds is not None:
            headers["Retry-After"] = str(math.ceil(retry_seconds))
        self.response = JSONResponse(content, status, headers)


def make_app(
    verifier: Verifier, limits: Limits, host: str = "127.0.0.1", allowed_hosts: Sequence[str] = ()
) -> Starlette:
    """Return the web application: the page and the interface that it uses.

    ``GET /`` is the page; ``GET /model`` describes the model and the limits. ``POST /verify`` takes the
    bytes of two recordings, one after the other, with the length of the first in the header
    ``First-Length``. It answers in JSON: ``score``, ``llr``, ``probability``, ``prior``, ``calibration`` and
    ``warning`` in words, and ``decisions``, one for each false-alarm rate with a threshold, each with its
    ``outcome``. A refused request has a status from 400 on, ``error``, a sentence, and ``recording``, 1 or 2
    where one of them is the reason; its ``outcome`` is "refused input" then.

    Args:
        verifier: Model that decides.
        limits: Limits of each request.
        host: Name or address of the server. Its addresses and ``localhost`` are always allowed.
        allowed_hosts: Names of reverse proxies, with a port where it is not that of http or https.

    Raises:
        ValueError: An allowed host is not a name, or a name and a port.
    """
    api = _Api(verifier, limits)
    static_files = resources.files("sv_sparse.runtime.server") / "static"
    routes = [Route("/model", api.model), Route("/verify", api.verify, methods=["POST"])]
    for name, media_type in _MEDIA_TYPES.items():
        # Read once: a page that is served needs the disk no more.
        response = Response((static_files / name).read_bytes(), media_type=media_type)
        routes.append(Route("/" if name == "index.html" else f"/{name}", response, methods=["GET"]))
    return Starlette(
        routes=routes,
        middleware=[Middleware(_HostCheckMiddleware, host=host, allowed=_parse_allowed_hosts(allowed_hosts))],
        exception_handlers={
            RequestError: lambda _, error: error.response,
            # Starlette's own, of unknown paths and methods.
            HTTPException: lambda _, error: RequestError(error.status_code, f"{error.detail}.").response,
            # Nobody reads it.
            ClientDisconnect: lambda *_: RequestError(400, "The recordings did not arrive.").response,
            Exception: lambda *_: RequestError(500, "The program failed; its terminal says more.").response,
        },
    )


def make_server(app: Starlette, limits: Limits) -> uvicorn.Server:
    """Return the server of an application; its ``run`` returns after a stop signal, or once ``should_exit`` is set."""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]  # called like a class
        loop="asyncio",
        server_header=False,
        ws="none",
        lifespan="off",
        # Not before the clock of connection.py.
        timeout_keep_alive=math.ceil(limits.idle_seconds),
        # Reached only when a request is under way on each.
        limit_concurrency=limits.max_connections + 1,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


class _Api:
    """Answers about a verifier, for one server."""

    def __init__(self, verifier: Verifier, limits: Limits) -> None:
        self._verifier = verifier
        self._limits = limits
        self._uploads = asyncio.Semaphore(limits.max_uploads)
        self._comparisons = asyncio.Semaphore(limits.max_concurrent)
        calibration = verifier.backend.calibration
        self._target_fars = sorted(calibration.thresholds) if calibration is not None else []

    async def model(self, _: Request) -> JSONResponse:
        """Answer with the description of the model and the limits."""
        backend = self._verifier.backend
        return JSONResponse(
            {
                "max_seconds": self._limits.max_seconds,
                "max_bytes": self._limits.max_bytes,
                "score_norm": backend.score_norm,
                **self._verifier.basis,
                "target_fars": self._target_fars,
                "default_target_far": DecisionRule.from_backend(backend).target_far,
                "outcomes": {outcome.name.lower(): outcome.value for outcome in Outcome},
                "not_different": NOT_DIFFERENT,
                "limits_of_use": [NOT_DETECTED, CONSENT],
                "card": self._verifier.card,
            }
        )

    async def verify(self, request: Request) -> JSONResponse:
        """Compare two recordings; statuses as of ``make_app``."""
        # Two queues: a client that sends slowly takes none of the places of those that are computed.
        timeout = self._limits.upload_seconds
        async with self._turn(self._uploads):
            try:
                async with asyncio.timeout(timeout):
                    recordings = await self._read_body(request)
            except TimeoutError:
                raise RequestError(408, f"The recordings did not arrive in {timeout:g} seconds.") from None
            async with self._turn(self._comparisons):
                # The client gave up while it waited.
                if await request.is_disconnected():
                    raise ClientDisconnect
                return JSONResponse(await run_in_threadpool(self._compare, recordings))

    @asynccontextmanager
    async def _turn(self, queue: asyncio.Semaphore) -> AsyncIterator[None]:
        """Wait for one of the places of a queue, first come, first served, and free it afterwards."""
        timeout = self._limits.queue_seconds
        try:
            async with asyncio.timeout(timeout):
                await queue.acquire()
        except TimeoutError:
            text = f"Other recordings are being compared: no place was free in {timeout:g} seconds. Try again later."
            raise RequestError(503, text, None, timeout) from None
        try:
            yield
        finally:
            queue.release()

    async def _read_body(self, request: Request) -> list[bytes]:
        """Return both recordings; no more is read than is allowed."""
        header = request.headers.get("First-Length", "")
        # isdigit alone takes digits of other scripts, and a long number takes int() long.
        if not (header.isascii() and header.isdigit() and len(header) < 16):
            raise RequestError(400, "The header First-Length must say how many bytes the first recording has.")
        first_length = int(header)
        too_large = f"is too large: at most {self._limits.max_megabytes:g} MB are accepted"
        if first_length > self._limits.max_bytes:
            raise _refusal(413, 0, too_large)
        max_length = first_length + self._limits.max_bytes
        if int(request.headers.get("Content-Length", 0)) > max_length:
            raise _refusal(413, 1, too_large)
        body = bytearray()
        # A chunked body has no Content-Length.
        async for chunk in request.stream():
            if len(body) + len(chunk) > max_length:
                raise _refusal(413, 1, too_large)
            body += chunk
        recordings = [bytes(body[:first_length]), bytes(body[first_length:])]
        if b"" in recordings:
            raise _refusal(400, recordings.index(b""), "is empty")
        return recordings

    def _compare(self, recordings: list[bytes]) -> dict[str, Any]:
        """Return scores and decisions as they are answered."""
        first, second = [self._embed(recording, index) for index, recording in enumerate(recordings)]
        verification = self._verifier.verify(first, second)
        answer: dict[str, Any] = dict(self._verifier.basis)
        for name in ("score", "llr", "probability", "prior"):
            answer[name] = getattr(verification, name)
        answer["decisions"] = []
        for target_far in self._target_fars:
            # The recordings are embedded already, so this compares two vectors.
            decision = self._verifier.verify(first, second, target_far=target_far)
            names = ("target_far", "threshold", "accepted", "outcome")
            answer["decisions"].append({name: getattr(decision, name) for name in names})
        return answer

    def _embed(self, recording: bytes, index: int) -> EmbeddedRecording:
        """Return the embedding of a recording, of which no more than is allowed is ever decoded."""
        sample_rate = self._verifier.sample_rate
        pieces = []
        num_samples = 0
        try:
            for piece in iter_audio(recording, sample_rate):
                num_samples += len(piece)
                if num_samples > self._limits.max_seconds * sample_rate:
                    limit = f"at most {self._limits.max_seconds:g} seconds are accepted"
                    raise _refusal(413, index, f"is too long: {limit}")
                pieces.append(piece)
            return self._verifier.embed_recording((np.concatenate(pieces), sample_rate))
        except ValueError as error:
            # Errors are "NAME: cannot be ... (details.)"; here the ordinal is the name.
            raise _refusal(400, index, str(error).partition(": ")[2].replace(".)", ")")) from error


def _refusal(status: int, index: int, problem: str) -> RequestError:
    return RequestError(status, f"The {_ORDINALS[index]} recording {problem}.", index)


class _HostCheckMiddleware:
    """Check of Host and Origin headers; every answer also says what a browser may do with it."""

    def __init__(self, app: ASGIApp, host: str, allowed: Collection[tuple[str, int]]) -> None:
        self._app = app
        self._allowed = allowed
        self._names = {"localhost", host.lower()} | {name for name, _ in allowed}

    # Only for HTTP: make_server turns off websockets and lifespan events.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SECURITY_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("Host", "")
        origin = headers.get("Origin")
        app = self._app
        # A foreign name can be made to resolve to 127.0.0.1 (DNS rebinding).
        if not _is_server_name(host, self._names):
            text = "The program answers to its addresses and localhost; --allowed-host NAME allows another name."
            app = RequestError(403, text).response
        # A page of any site may send requests to this computer.
        elif origin is not None and not _is_own_page(origin, host, self._allowed):
            text = (
                "The request came from a page of another site; only the program's own page may send it. If a proxy "
                "offers it under another name or port, sv-sparse serve needs --allowed-host NAME or NAME:PORT."
            )
            app = RequestError(403, text).response
        await app(scope, receive, send_with_headers)


def _parse_allowed_hosts(allowed_hosts: Sequence[str]) -> set[tuple[str, int]]:
    """Return names and ports of pages that a proxy offers; without a port, those of http and https."""
    names_and_ports = set()
    for host in allowed_hosts:
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname, parts.port
        except ValueError:
            name, port = None, None
        # A path or a user's name would be left out in silence.
        if not name or parts.netloc != host or "@" in host:
            raise ValueError(f"--allowed-host {host}: expected NAME or NAME:PORT, such as voice.example")
        ports = _DEFAULT_PORTS.values() if port is None else [port]
        names_and_ports |= {(name, allowed_port) for allowed_port in ports}
    return names_and_ports


def _is_server_name(host: str, names: Collection[str]) -> bool:
    """Return whether a Host header names this server."""
    try:
        # Any address does, since none can be made to lead elsewhere.
        name = urlsplit(f"//{host}").hostname or ""
        return name in names or bool(ip_address(name))
    except ValueError:
        return False


def _is_own_page(origin: str, host: str, allowed: Collection[tuple[str, int]]) -> bool:
    """Return whether an Origin header, SCHEME://NAME:PORT, is that of this server's own page."""
    try:
        page = urlsplit(origin)
        server = urlsplit(f"//{host}")
        # The scheme says nothing else: what a proxy in between speaks is not seen here.
        default_port = _DEFAULT_PORTS.get(page.scheme)
        if default_port is None or not page.hostname:
            return False
        name_and_port = (page.hostname, page.port or default_port)
        # A proxy that adds https passes the Host header on, which then has the page's name and port, or puts its own
        # in, as nginx does; the page's must be allowed then.
        return name_and_port == (server.hostname, server.port or default_port) or name_and_port in allowed
    except ValueError:
        return False
