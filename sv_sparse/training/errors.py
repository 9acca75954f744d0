"""Errors of runs: one sentence for the user, the traceback in the run's log file."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode

from sv_sparse import signals
from sv_sparse.signals import USER_ERRORS

__all__ = ["USER_ERRORS", "report_errors"]


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn errors of input, hardware or numbers into one line, as ``signals.report_errors`` does.

    A job of a sweep does not end the process, which may have other jobs: Hydra's launcher learns that it failed, and
    the command ends with status 1.

    Raises:
        SystemExit: outside a sweep, or on a stop signal.
        CompactHydraException: in a job of a sweep.
    """
    with signals.report_errors():
        try:
            yield
        except USER_ERRORS as error:
            if os.environ.get(signals.FULL_TRACEBACK_ENV) == "1":
                raise
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                job = HydraConfig.get()
                message = f"error in job {job.job.num} ({' '.join(job.overrides.task)}): {error}"
                print(message, file=sys.stderr)
                raise CompactHydraException(message) from None
            raise
