"""How a program ends before its time: on signals, and on problems that it can name."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode

PROBLEMS = (ValueError, OSError, ArithmeticError, InstantiationException)  # of input, hardware or numbers


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that receives the number of a stop signal; a second signal interrupts at once.

    Raises:
        KeyboardInterrupt: a second signal came before the first was acted on.
    """
    requests: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn a problem of input, hardware or numbers into one line on stderr and exit status 2.

    The whole story goes to the run's log file, and to stderr with the environment variable HYDRA_FULL_ERROR=1.
    A job of a sweep does not end the process, which may have other jobs: the launcher learns that it failed, and ends
    with status 1.

    Raises:
        SystemExit: outside a sweep, or on SIGTERM or Ctrl-C.
        CompactHydraException: in a job of a sweep.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except PROBLEMS as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            job = HydraConfig.get()
            message = f"error in job {job.job.num} ({' '.join(job.overrides.task)}): {cause}"
            print(message, file=sys.stderr)
            raise CompactHydraException(message) from None
        print(f"error: {cause}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM outside the training loop ends a run as Ctrl-C does."""
    raise KeyboardInterrupt
