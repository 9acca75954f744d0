"""Batches of crops for an epoch: which, in what order, by which processes, and what to do about those that fail."""

import logging
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from sv_sparse.data.dataset import Batch, Crops
from sv_sparse.data.draws import generator

logger = logging.getLogger(__name__)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position): each epoch a new permutation, a function of (seed, epoch) alone.

    The last, incomplete batch of an epoch is dropped.

    Args:
        size: Number of positions.
        batch_size: Positions per batch.
        seed: Base of all permutations.

    Attributes:
        epoch: The epoch that the next iteration yields; set it before each one.
        start_batch: Batches to leave out at its beginning; for resuming inside an epoch.

    Raises:
        ValueError: There are not enough positions for one batch.

    >>> batches = EpochBatches(size=5, batch_size=2, seed=0)
    >>> whole = list(batches)
    >>> batches.start_batch = 1
    >>> list(batches) == whole[1:]
    True
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= size:
            raise ValueError(
                f"trainer.batch_size={batch_size}: expected from 1 to {size}, the number of training utterances"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch = 0
        self.start_batch = 0

    def __len__(self) -> int:
        return self.size // self.batch_size - self.start_batch

    def positions(self, epoch: int) -> NDArray[np.int64]:
        """What an epoch consists of, int64 [whole batches, batch_size]."""
        order = generator(self.seed, "order", epoch, "").permutation(self.size)
        return order[: self.size // self.batch_size * self.batch_size].reshape(-1, self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, whole = self.epoch, self.positions(self.epoch)
        return ([(epoch, position) for position in batch.tolist()] for batch in whole[self.start_batch :])


class UnreadableMeter:
    """Logs and counts unreadable utterances while training, and stops a run that loses too many.

    It is for the main process: workers have no log of their own.

    Args:
        max_unreadable: Largest share of drawn utterances that may be unreadable, in [0, 1].

    Attributes:
        seen: Utterances drawn so far.
        unreadable: How many of them could not be read.
    """

    PATIENCE = 10  # unreadable draws; a smaller number says little about a share

    def __init__(self, max_unreadable: float) -> None:
        self.max_unreadable = max_unreadable
        self.seen = 0
        self.unreadable = 0

    def update(self, batch: Batch) -> None:
        """Count one batch, and log a warning for each utterance that it lost.

        Raises:
            ValueError: More than ``PATIENCE`` utterances, and more than the allowed share, were unreadable.
        """
        for message in batch.unreadable:
            logger.warning("left out of a batch: %s", message)
        self.seen += len(batch.labels) + len(batch.unreadable)
        self.unreadable += len(batch.unreadable)
        if self.unreadable > max(self.PATIENCE, self.max_unreadable * self.seen):
            raise ValueError(
                f"data.max_unreadable={self.max_unreadable}: {self.unreadable} of {self.seen} utterances drawn "
                f"({self.unreadable / self.seen:.1%}) could not be read; the log names them"
            )


def make_loader(dataset: Crops, batches: EpochBatches, workers: int, device: torch.device | str) -> DataLoader[Batch]:
    """A loader of :class:`Batch`, the same batches in the same order whatever the number of workers.

    Args:
        dataset: Where crops come from.
        batches: Which to draw; its ``epoch`` and ``start_batch`` may be set between iterations.
        workers: Worker processes, kept between epochs; 0 reads in the calling process.
        device: Where batches go; crops are read into pinned memory for CUDA.
    """
    return DataLoader(dataset, batch_sampler=batches, **worker_settings(workers, device))


def worker_settings(workers: int, device: torch.device | str) -> dict[str, Any]:
    """What every loader of ours tells torch's: how processes are made, and to leave batches as they are."""
    return {
        "collate_fn": _whole,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "multiprocessing_context": _worker_context() if workers else None,
        "worker_init_fn": _leave_interrupts_to_main,
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
    context = multiprocessing.get_context("forkserver")
    package = __name__.partition(".")[0]
    context.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] == package])
    return context


def _leave_interrupts_to_main(_worker: int) -> None:
    """Let Ctrl-C reach the main process alone, which then stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _whole(batch: Any) -> Batch:
    """What the dataset returns is a batch already."""
    return batch
