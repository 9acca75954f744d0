"""sv-sparse serve: a local web page on which two recordings are compared."""

import argparse
import socket
import sys
from ipaddress import ip_address

from sv_sparse.commands.model import add_model, load_model
from sv_sparse.extras import install_command


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse serve``."""
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; this computer alone if not given")
    parser.add_argument("--port", type=int, default=8000, help="8000 if not given; 0 takes a free one")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="longest recording (60)")
    parser.add_argument("--max-megabytes", type=float, default=20.0, help="largest recording (20)")


def run(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse serve`` until it is stopped.

    Raises:
        ValueError: a limit is not allowed, the model cannot be read, the port cannot be used, or the extra ``serve`` is
            not installed.
    """
    try:
        from sv_sparse.deploy.serve import Limits, make_app, make_server  # noqa: PLC0415  # needs the extra serve
    except ModuleNotFoundError as error:
        if error.name not in {"starlette", "uvicorn"}:
            raise
        raise ValueError(f"sv-sparse serve needs {error.name}: {install_command('serve')}") from error

    if not 0 <= chosen.port < 65536:
        raise ValueError(f"--port must be 0 to 65535, got {chosen.port}")
    limits = Limits(chosen.max_seconds, chosen.max_megabytes)
    verifier = load_model(chosen)
    with _listening(chosen.host, chosen.port) as listener:
        address, port = listener.getsockname()[:2]
        if not ip_address(address).is_loopback:
            print(f"warning: with --host {chosen.host} anybody on the network can use this page", file=sys.stderr)
        name = f"[{address}]" if ":" in address else address
        print(f"http://{name}:{port}  (Ctrl-C ends it)", flush=True)
        make_server(make_app(verifier, limits, chosen.host)).run(sockets=[listener])


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
