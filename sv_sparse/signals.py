"""How a program ends before its time: on signals, and on problems that it can name."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PROBLEMS = (ValueError, OSError, ArithmeticError)  # of input, hardware or numbers
WHOLE_STORY = "HYDRA_FULL_ERROR"  # environment variable, 1: problems end a program as they are, with their frames
_STOP_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, schedulers, and their early warning, which Windows lacks
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP_NAMES if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A stop signal came.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that receives the numbers of stop signals; Ctrl-C interrupts at once if it is not the first.

    A scheduler's signals often come twice, from itself and from torchrun.

    Raises:
        Stopped: Ctrl-C came before an earlier signal was acted on.
    """
    requests: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if requests and number == signal.SIGINT:
            raise Stopped(number)
        requests.append(number)

    with _handled_by(note):
        yield requests


@contextmanager
def stopped_afterwards() -> Iterator[None]:
    """Let what is inside be finished before a stop signal that comes meanwhile acts.

    Raises:
        Stopped: one came.
    """
    with stop_requests() as requests:
        yield
    if requests:
        raise Stopped(requests[0])


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn a problem of input, hardware or numbers into one line on stderr and exit status 2, a signal into 128 + n.

    The whole story goes to stderr with the environment variable HYDRA_FULL_ERROR=1.

    Raises:
        SystemExit: there was a problem, or a stop signal.
    """
    with _handled_by(_stop):
        try:
            yield
        except PROBLEMS as error:
            if os.environ.get(WHOLE_STORY) == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt as stop:
            print("interrupted", file=sys.stderr)
            raise SystemExit(128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)) from None


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handling in before.items():
            signal.signal(number, handling)


def _stop(number: int, _frame: FrameType | None) -> None:
    """Outside the training steps, what is saved is all there is to save."""
    raise Stopped(number)
