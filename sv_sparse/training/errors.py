"""How what Hydra composes and builds ends before its time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode

from sv_sparse import signals as interrupts

PROBLEMS = (*interrupts.PROBLEMS, InstantiationException)


@contextmanager
def clear_errors() -> Iterator[None]:
    """As ``interrupts.clear_errors``; of what could not be built, the cause is told.

    The whole story goes to the run's log file too. A job of a sweep does not end the process, which may have other
    jobs: the launcher learns that it failed, and ends with status 1.

    Raises:
        SystemExit: outside a sweep, or on a stop signal.
        CompactHydraException: in a job of a sweep.
    """
    with interrupts.clear_errors():
        try:
            yield
        except PROBLEMS as error:
            if os.environ.get(interrupts.WHOLE_STORY) == "1":
                raise
            cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                job = HydraConfig.get()
                message = f"error in job {job.job.num} ({' '.join(job.overrides.task)}): {cause}"
                print(message, file=sys.stderr)
                raise CompactHydraException(message) from None
            raise ValueError(cause) from error
