"""Command ``sv-sparse serve``: a local web page on which two recordings are compared."""

import argparse
import socket
import sys
from ipaddress import ip_address

from sv_sparse.commands.common import add_model_arguments, load_verifier
from sv_sparse.io import install_command
from sv_sparse.runtime.server.limits import Limits

_DEFAULTS = Limits(max_seconds=60.0, max_megabytes=20.0)
_OTHER_LIMITS = (
    f"Fixed limits: {_DEFAULTS.max_uploads} comparisons are received and held in memory at a time; "
    f"{_DEFAULTS.max_connections} connections are open at a time, and one more closes the connection that has been "
    "idle longest. A request that waits too long in the queue gets status 503 with Retry-After."
)
_SECONDS_AND_SIZES = {
    "max_seconds": ("SECONDS", "longest recording"),
    "max_megabytes": ("MB", "largest recording"),
    "upload_seconds": ("SECONDS", "longest time to send both recordings"),
    "queue_seconds": ("SECONDS", "longest wait for a place to send, and again to be compared"),
    "idle_seconds": ("SECONDS", "time until a connection without a complete request is closed"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse serve``."""
    add_model_arguments(parser)
    network = parser.add_argument_group("network")
    host_help = "address to listen on (default: 127.0.0.1, this computer only)"
    network.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=host_help)
    network.add_argument("--port", type=int, default=8000, metavar="N", help="port, 0 for a free one (default: 8000)")
    allowed_host_help = (
        "name of a reverse proxy that serves the page, or NAME:PORT if the port is not 80 or 443; can be repeated "
        "(default: none)"
    )
    network.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help=allowed_host_help)
    limits = parser.add_argument_group("limits")
    for name, (unit, text) in _SECONDS_AND_SIZES.items():
        default = getattr(_DEFAULTS, name)
        flag = f"--{name.replace('_', '-')}"
        limits.add_argument(flag, type=float, default=default, metavar=unit, help=f"{text} (default: {default:g})")
    default = _DEFAULTS.max_concurrent
    concurrent_help = f"comparisons that are computed at a time; further ones wait (default: {default})"
    limits.add_argument("--max-concurrent", type=int, default=default, metavar="N", help=concurrent_help)
    parser.epilog = _OTHER_LIMITS


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse serve`` until it is stopped."""
    try:
        # Needs the extra serve, without which --help still works.
        from sv_sparse.runtime.server.app import make_app, make_server  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name not in {"starlette", "uvicorn"}:
            raise
        raise ValueError(f"sv-sparse serve needs {error.name}: {install_command('serve')}") from error

    if not 0 <= args.port < 65536:
        raise ValueError(f"--port must be 0 to 65535, got {args.port}")
    seconds_and_sizes = {name: getattr(args, name) for name in _SECONDS_AND_SIZES}
    limits = Limits(max_concurrent=args.max_concurrent, **seconds_and_sizes)
    verifier = load_verifier(args)
    app = make_app(verifier, limits, args.host, args.allowed_host)
    with _listen(args.host, args.port) as listener:
        address, port = listener.getsockname()[:2]
        if not ip_address(address).is_loopback:
            print(f"warning: with --host {args.host} anybody on the network can use this page", file=sys.stderr)
        # RFC 3986: IPv6 addresses stand in brackets.
        url_host = f"[{address}]" if ":" in address else address
        # Flushed, so that a program that waits for the address in a pipe gets it.
        print(f"http://{url_host}:{port}  (Ctrl-C ends it)", flush=True)
        make_server(app, limits).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; an address that cannot be used is a ValueError."""
    try:
        # A name may stand for an IPv6 address, which needs a socket of its own family.
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ValueError(f"--host {host} --port {port} cannot be used ({error})") from error
