"""sv-sparse serve: a local web page on which two recordings are compared."""

import argparse
import socket
import sys
from ipaddress import ip_address

from sv_sparse.commands.common import add_model, load_model
from sv_sparse.io import install_command
from sv_sparse.runtime.server.limits import Limits

_USUAL = Limits(seconds=60.0, megabytes=20.0)
_LIMITS = (
    f"Besides, at most {_USUAL.uploads} comparisons are received and held in memory at once, and at most "
    f"{_USUAL.connections} connections are open: one more closes the one that has been idle longest. "
    "Whoever has waited too long in the queue gets status 503 with Retry-After."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse serve``."""
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; this computer alone if not given")
    parser.add_argument("--port", type=int, default=8000, help="8000 if not given; 0 takes a free one")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which a reverse proxy offers the page, or NAME:PORT where the port is not 80 or 443; can be "
        "given several times",
    )
    for name, default, text in (
        ("--max-seconds", _USUAL.seconds, "longest recording"),
        ("--max-megabytes", _USUAL.megabytes, "largest recording"),
        ("--upload-seconds", _USUAL.upload_seconds, "longest time in which a client sends both recordings"),
        ("--queue-seconds", _USUAL.queue_seconds, "longest wait for a place to send, and again for one to be compared"),
        ("--idle-seconds", _USUAL.idle_seconds, "after which a connection without a complete request is closed"),
    ):
        parser.add_argument(name, type=float, default=default, metavar="X", help=f"{text} ({default:g})")
    parser.add_argument(
        "--at-once",
        type=int,
        default=_USUAL.at_once,
        metavar="N",
        help=f"comparisons that are computed at once ({_USUAL.at_once}); further ones wait",
    )
    parser.epilog = _LIMITS


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse serve`` until it is stopped.

    Raises:
        ValueError: a limit is not allowed, the model cannot be read, the port cannot be used, or the extra ``serve`` is
            not installed.
    """
    try:
        from sv_sparse.runtime.server.app import make_app, make_server  # noqa: PLC0415  # needs the extra serve
    except ModuleNotFoundError as error:
        if error.name not in {"starlette", "uvicorn"}:
            raise
        raise ValueError(f"sv-sparse serve needs {error.name}: {install_command('serve')}") from error

    if not 0 <= chosen.port < 65536:
        raise ValueError(f"--port must be 0 to 65535, got {chosen.port}")
    limits = Limits(
        chosen.max_seconds,
        chosen.max_megabytes,
        at_once=chosen.at_once,
        upload_seconds=chosen.upload_seconds,
        queue_seconds=chosen.queue_seconds,
        idle_seconds=chosen.idle_seconds,
    )
    verifier = load_model(chosen)
    app = make_app(verifier, limits, chosen.host, chosen.allowed_host)
    with _listening(chosen.host, chosen.port) as listener:
        address, port = listener.getsockname()[:2]
        if not ip_address(address).is_loopback:
            print(f"warning: with --host {chosen.host} anybody on the network can use this page", file=sys.stderr)
        name = f"[{address}]" if ":" in address else address
        print(f"http://{name}:{port}  (Ctrl-C ends it)", flush=True)
        make_server(app, limits).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is bound and listens.

    Raises:
        ValueError: it cannot be; says why.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port} cannot be listened on ({error})") from error
