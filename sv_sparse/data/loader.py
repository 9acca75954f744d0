"""Batches of crops for an epoch: which, in what order, by which processes, and what to do about those that fail."""

import logging
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from sv_sparse.data.dataset import Batch, Crops
from sv_sparse.data.rng import generator
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

_DEATHS = 3  # of workers in an epoch, before giving up
_GRACE = 10  # seconds that a worker lives on after SIGTERM


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position): each epoch a new permutation, a function of (seed, epoch) alone.

    The last, incomplete batch of an epoch is dropped. Where several processes train, or gradients are accumulated, a
    step's batch is cut into parts of equal size, and each process gets its own; there are as many steps as without.

    Args:
        size: Number of positions.
        batch_size: Positions per step.
        seed: Base of all permutations.
        accumulate: Parts of a step that one process takes one after the other.
        rank: Of the calling process.
        ranks: How many processes train together.

    Attributes:
        epoch: The epoch that the next iteration yields; set it before each one.
        start: Parts to leave out at its beginning; for resuming inside an epoch.
        part_size: Positions per part.

    Raises:
        ValueError: There are not enough positions for one step, or a step cannot be cut into parts of 2 or more.

    >>> batches = EpochBatches(size=5, batch_size=2, seed=0)
    >>> whole = list(batches)
    >>> batches.start = 1
    >>> list(batches) == whole[1:]
    True
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, *, accumulate: int = 1, rank: int = 0, ranks: int = 1
    ) -> None:
        if not 1 <= batch_size <= size:
            raise ValueError(
                f"trainer.batch_size={batch_size}: expected from 1 to {size}, the number of training utterances"
            )
        parts = accumulate * ranks
        if batch_size % parts or (parts > 1 and batch_size < 2 * parts):
            raise ValueError(
                f"trainer.batch_size={batch_size} is divided among {ranks} processes x trainer.grad_accum_steps="
                f"{accumulate}: expected a multiple of {parts}, {2 * parts} or more"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.accumulate, self.rank, self.ranks = accumulate, rank, ranks
        self.part_size = batch_size // parts
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return self.steps * self.accumulate - self.start

    @property
    def steps(self) -> int:
        """In an epoch."""
        return self.size // self.batch_size

    def positions(self, epoch: int) -> NDArray[np.int64]:
        """What an epoch consists of, int64 [steps, batch_size]."""
        order = generator(self.seed, "order", epoch, "").permutation(self.size)
        return order[: self.steps * self.batch_size].reshape(-1, self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        parts = self.positions(epoch).reshape(-1, self.ranks, self.part_size)[self.start :, self.rank]
        return ([(epoch, position) for position in part.tolist()] for part in parts)


class UnreadableMeter:
    """Logs and counts unreadable utterances while training, and stops a run that loses too many.

    It is for the main process: workers have no log of their own.

    Args:
        max_unreadable: Largest share of drawn utterances that may be unreadable, in [0, 1]; see ``UnreadableLimit``.

    Attributes:
        seen: Utterances drawn so far.
        unreadable: How many of them could not be read.
    """

    def __init__(self, max_unreadable: float) -> None:
        self.limit = UnreadableLimit(max_unreadable)
        self.seen = 0
        self.unreadable = 0

    def report(self, batch: Batch) -> None:
        """Log a warning for each utterance that a batch lost."""
        for message in batch.unreadable:
            logger.warning("left out of a batch: %s", message)

    def count(self, seen: int, unreadable: int) -> None:
        """Count what was drawn.

        Raises:
            ValueError: More utterances were unreadable than the limit allows.
        """
        self.seen += seen
        self.unreadable += unreadable
        if self.unreadable > self.limit.most(self.seen):
            raise ValueError(
                f"{self.limit}: {self.unreadable} of {self.seen} utterances drawn "
                f"({self.unreadable / self.seen:.1%}) could not be read; the log names them"
            )


class CropLoader:
    """Batches of an epoch, the same in the same order whatever the number of workers.

    Args:
        dataset: Where crops come from.
        batches: Which to draw; its ``epoch`` and ``start`` may be set between iterations.
        workers: Worker processes, kept between epochs; 0 reads in the calling process.
        device: Where batches go; crops are read into pinned memory for CUDA.
    """

    def __init__(self, dataset: Crops, batches: EpochBatches, workers: int, device: torch.device | str) -> None:
        self.batches = batches
        self._make = lambda: DataLoader(dataset, batch_sampler=batches, **worker_settings(workers, device))
        self._loader: DataLoader[Batch] = self._make()

    def __iter__(self) -> Iterator[Batch]:
        """Parts of steps, from ``batches.start`` on."""
        return surviving(self._from, self.batches.start)

    def _from(self, start: int, again: bool) -> Iterator[Batch]:
        self.batches.start = start
        if again:
            self._loader = self._make()
        return iter(self._loader)

    def steps(self, _epoch: int) -> int:
        """How many steps an epoch has."""
        return self.batches.steps


def surviving(begin: Callable[[int, bool], Iterator[Batch]], start: int) -> Iterator[Batch]:
    """Batches of an epoch; where a worker process dies, new ones go on from the batch that it owed.

    Args:
        begin: Gives the batches from one on; it is told whether with new workers.
        start: The first batch.

    Raises:
        OSError: Workers died several times.
    """
    for died in range(_DEATHS + 1):
        try:
            for batch in begin(start, died > 0):
                yield batch
                start += 1
            return
        except (RuntimeError, EOFError, ConnectionError) as error:  # the latter two: while it handed over a batch
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
                raise
            first = str(error).partition("\n")[0]
            message = f"a process that reads crops died (out of memory?): {first or type(error).__name__}"
            if died == _DEATHS:
                raise OSError(f"{message}; with fewer of them (trainer.num_workers) each has more memory") from error
            logger.warning("%s; starting them again", message)


def worker_settings(workers: int, device: torch.device | str) -> dict[str, Any]:
    """What every loader of ours tells torch's: how processes are made, and to leave batches as they are."""
    return {
        "collate_fn": _whole,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "multiprocessing_context": _worker_context() if workers else None,
        "worker_init_fn": _leave_stopping_to_main,
        "pin_memory": torch.device(device).type == "cuda",
        "generator": torch.Generator(),  # or each epoch would advance torch's global generator by one draw
    }


def _worker_context() -> multiprocessing.context.BaseContext:
    """Forkserver where there is one: it imports torch once for all workers, and forks no thread of ours.

    What the calling program imported of this package is imported there too, or every worker would do it anew
    when it loads that program's main module.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # noqa: PLC0415  # for POSIX

    context = multiprocessing.get_context("forkserver")
    package = __name__.partition(".")[0]
    context.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] == package])
    before = signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # which the server inherits: a scheduler signals all processes
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGTERM, before)
    return context


def _leave_stopping_to_main(_worker: int) -> None:
    """Let Ctrl-C and a scheduler's signals stop the main process, which still needs this one to end its step."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _whole(batch: Any) -> Batch:
    """What the dataset returns is a batch already."""
    return batch
