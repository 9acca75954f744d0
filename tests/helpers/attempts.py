"""train.py begun again and again, each time in a fork of one process that has imported everything, and struck at will.

Run as a program this file is that process: it reads requests from stdin and answers on stdout, one line each.
"""

import faulthandler
import json
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
_FRAME = re.compile(r'File ".*/sv_sparse/(?:\w+/)*(\w+)\.py", line \d+ in (\w+)')
_IMPORTED = (
    "sv_sparse.report",
    "sv_sparse.training.trainer",
    "sv_sparse.models.ecapa_tdnn",
    "sv_sparse.data.synthetic.demo",
    "torch._dynamo",
)


class Ended(NamedTuple):
    """How an attempt ended.

    Attributes:
        status: -n where a signal ended it.
        out: what it printed.
        err: likewise.
        within: functions it was in when it was struck, as ``module.function``.
    """

    status: int
    out: str
    err: str
    within: frozenset[str]


class Attempts:
    """Runs train.py.

    Args:
        folder: where attempts run, and leave their output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )

    def __call__(self, *arguments: str, **how: Any) -> Ended:
        """Run train.py to its end; ``how`` are the keyword arguments of ``_attempt``."""
        self._server.stdin.write(json.dumps([arguments, how]) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        out, err, frames = ((self.folder / name).read_text() for name in ("out.txt", "err.txt", "frames.txt"))
        return Ended(status, out, err, frozenset(f"{module}.{name}" for module, name in _FRAME.findall(frames)))

    def close(self) -> None:
        """End the process that attempts are forked from."""
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


def _attempt(
    arguments: list[str],
    within: str | None = None,
    visit: int = 1,
    calls: int = 0,
    delay: float | None = None,
    number: int = signal.SIGKILL,
    largest_file: int | None = None,
) -> int:
    """Fork, and run train.py.

    Args:
        arguments: of train.py.
        within: strike in this ``module.function`` of the package,
        visit: when it is entered for this time,
        calls: and so many functions, Python's and C's, have been called or returned from since.
        delay: strike after so many seconds instead, whatever happens then.
        number: the signal to strike with; the process and its workers all get it.
        largest_file: bytes, as if the disk were full beyond.

    Returns:
        Status as subprocess has it.
    """
    for name in ("out.txt", "err.txt", "frames.txt"):
        open(name, "w").close()
    child = os.fork()
    if child == 0:
        os.setsid()
        for descriptor, name in ((1, "out.txt"), (2, "err.txt")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        if within is not None:
            sys.setprofile(_watcher(within, visit, calls, number))
        sys.argv = [str(ROOT / "train.py"), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
        raise SystemExit
    if delay is not None:
        time.sleep(delay)
        _strike_from_outside(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _strike_from_outside(child: int, number: int) -> None:
    os.kill(child, signal.SIGUSR2)  # tells where it is, then
    deadline = time.monotonic() + 5
    while os.stat("frames.txt").st_size == 0 and time.monotonic() < deadline:
        time.sleep(0.0005)
    os.killpg(child, number)


def _watcher(within: str, visit: int, calls: int, number: int) -> Callable[[FrameType, str, object], None]:
    module, _, name = within.partition(".")
    visits, left = 0, -1

    def watch(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal visits, left
        if left < 0:
            code = frame.f_code
            if event == "call" and code.co_name == name and code.co_filename.endswith(f"/{module}.py"):
                visits += 1
                left = calls if visits == visit else -1
        else:
            left -= 1
        if left == 0:
            left = -1
            sys.setprofile(None)
            with open("frames.txt", "a") as frames:
                faulthandler.dump_traceback(frames)
            os.killpg(0, number)

    return watch


def _serve() -> None:
    for module in _IMPORTED:
        import_module(module)
    with open("frames.txt", "a") as frames:
        faulthandler.register(signal.SIGUSR2, frames, all_threads=False)  # others run while they are read: it may crash
        for line in sys.stdin:
            arguments, how = json.loads(line)
            print(_attempt(arguments, **how), flush=True)


if __name__ == "__main__":
    _serve()
