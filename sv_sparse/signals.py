"""Stop signals and user errors: ways in which a program ends early, without a traceback."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Errors of input, hardware or numbers. A traceback says nothing about them to a user.
USER_ERRORS = (ValueError, OSError, ArithmeticError)
# Environment variable; 1 shows the traceback of user errors. The name is Hydra's, who reads it too.
FULL_TRACEBACK_ENV = "HYDRA_FULL_ERROR"

# Ctrl-C, the stop of a scheduler, and its early warning. Windows lacks the last.
_STOP_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP_NAMES if hasattr(signal, name))


class StopRequested(KeyboardInterrupt):
    """Exception that a stop signal raises, with the number of the signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


@contextmanager
def capture_stop_signals() -> Iterator[list[int]]:
    """Yield a list to which stop signals append their numbers, instead of ending the program.

    Raises:
        StopRequested: Ctrl-C came while an earlier signal still waited.
    """
    requests: list[int] = []

    def record(signal_number: int, _frame: FrameType | None) -> None:
        # Only a second Ctrl-C is impatience. A scheduler's signals often come twice, from itself and
        # from torchrun.
        if requests and signal_number == signal.SIGINT:
            raise StopRequested(signal_number)
        requests.append(signal_number)

    with _signal_handlers(record):
        yield requests


@contextmanager
def defer_stop() -> Iterator[None]:
    """Run the block to its end before a stop signal acts.

    Raises:
        StopRequested: a stop signal came in the block.
    """
    with capture_stop_signals() as requests:
        yield
    if requests:
        raise StopRequested(requests[0])


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn a user error into one line on stderr and exit status 2, a stop signal into 128 + n.

    With the environment variable HYDRA_FULL_ERROR=1, user errors keep their traceback.

    Raises:
        SystemExit: there was a user error or a stop signal.
    """
    with _signal_handlers(_raise_stop):
        try:
            yield
        except USER_ERRORS as error:
            if os.environ.get(FULL_TRACEBACK_ENV) == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt as stop:
            print("interrupted", file=sys.stderr)
            # Without a number it was raised by a library.
            raise SystemExit(128 + getattr(stop, "signal_number", signal.SIGINT)) from None


@contextmanager
def _signal_handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = {}
    for signal_number in STOP_SIGNALS:
        previous[signal_number] = signal.signal(signal_number, handler)
    try:
        yield
    finally:
        # These blocks are nested: the block around this one handles signals again.
        for signal_number, previous_handler in previous.items():
            signal.signal(signal_number, previous_handler)


def _raise_stop(signal_number: int, _frame: FrameType | None) -> None:
    raise StopRequested(signal_number)
