"""Batches of crops for an epoch: their order, the processes that read them, and restarts of those that die."""

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

from sv_sparse.data.dataset import Batch, CropDataset
from sv_sparse.data.rng import generator
from sv_sparse.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

# Of an epoch. Where memory is short, new workers die as well.
MAX_WORKER_RESTARTS = 3
# A worker lives on so long after SIGTERM, until the step has its batch.
WORKER_GRACE_SECONDS = 10


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Sampler of batches of (epoch, position); each epoch is a new permutation, a function of (seed, epoch).

    The last, incomplete batch of an epoch is dropped. With several processes or gradient accumulation, the
    batch of a step is cut into micro-batches of equal size. The number of steps stays the same.

    Args:
        size: number of positions.
        batch_size: positions per step, over all processes.
        seed: seed of the permutations.
        grad_accum_steps: micro-batches of ``micro_batch_size`` that one process takes for a step.
        rank: rank of the process.
        world_size: number of processes that train together.

    Raises:
        ValueError: there are not enough positions for one step, or a step cannot be cut into micro-batches of
            2 or more.

    >>> sampler = EpochBatchSampler(size=5, batch_size=2, seed=0)
    >>> batches = list(sampler)
    >>> sampler.start = 1
    >>> list(sampler) == batches[1:]
    True
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, *, grad_accum_steps: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        if not 1 <= batch_size <= size:
            raise ValueError(
                f"trainer.batch_size={batch_size}: expected from 1 to {size}, the number of training utterances"
            )
        parts = grad_accum_steps * world_size
        # Batch norm needs two examples. An undivided batch of one is refused by torch itself.
        if batch_size % parts or (parts > 1 and batch_size < 2 * parts):
            raise ValueError(
                f"trainer.batch_size={batch_size} is divided among {world_size} processes x "
                f"trainer.grad_accum_steps={grad_accum_steps}: expected a multiple of {parts}, {2 * parts} or more"
            )
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.grad_accum_steps = grad_accum_steps
        self.rank = rank
        self.world_size = world_size
        self.micro_batch_size = batch_size // parts
        # Of the next iteration; set before each one.
        self.epoch = 0
        # Micro-batches to skip at its beginning, for resuming inside an epoch.
        self.start = 0

    def __len__(self) -> int:
        return self.num_steps * self.grad_accum_steps - self.start

    @property
    def num_steps(self) -> int:
        """Number of steps in an epoch."""
        return self.size // self.batch_size

    def positions(self, epoch: int) -> NDArray[np.int64]:
        """Return the positions of an epoch, int64 [num_steps, batch_size]."""
        order = generator(self.seed, "order", epoch, "").permutation(self.size)
        return order[: self.num_steps * self.batch_size].reshape(-1, self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # The caller sets ``epoch`` and ``start`` for the next iteration while workers are still ahead in this one.
        epoch = self.epoch
        parts = self.positions(epoch).reshape(-1, self.world_size, self.micro_batch_size)
        parts = parts[self.start :, self.rank]
        return ([(epoch, position) for position in part.tolist()] for part in parts)


class CropLoader:
    """Loader of an epoch's batches, the same in the same order for any number of workers.

    Args:
        dataset: source of the crops.
        sampler: batches to draw; its ``epoch`` and ``start`` may be set between iterations.
        num_workers: worker processes, which live on between epochs; 0 reads in the calling process.
        device: device of the training. For CUDA, crops are read into pinned memory.
    """

    def __init__(
        self, dataset: CropDataset, sampler: EpochBatchSampler, num_workers: int, device: torch.device | str
    ) -> None:
        self.sampler = sampler
        self._new_loader = lambda: DataLoader(dataset, batch_sampler=sampler, **worker_settings(num_workers, device))
        self._loader: DataLoader[Batch] = self._new_loader()

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the micro-batches from ``sampler.start`` on."""
        return restart_dead_workers(self._batches_from, self.sampler.start)

    def _batches_from(self, start: int, is_restart: bool) -> Iterator[Batch]:
        self.sampler.start = start
        if is_restart:
            self._loader = self._new_loader()
        return iter(self._loader)

    def num_steps(self, _epoch: int) -> int:
        """Return the number of steps of an epoch."""
        return self.sampler.num_steps


def restart_dead_workers(batches_from: Callable[[int, bool], Iterator[Batch]], start: int) -> Iterator[Batch]:
    """Yield an epoch's batches from ``start`` on; if a worker process dies, new ones continue from the batch it owed.

    ``batches_from`` returns the batches from one on. Its second argument is True to start new workers.

    Raises:
        OSError: workers died more than ``MAX_WORKER_RESTARTS`` times.
    """
    for restarts in range(MAX_WORKER_RESTARTS + 1):
        try:
            for batch in batches_from(start, restarts > 0):
                yield batch
                start += 1
            return
        # EOFError and ConnectionError come from a worker that dies while it hands over a batch.
        except (RuntimeError, EOFError, ConnectionError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            message = f"a process that reads crops died (out of memory?): {reason}"
            if restarts == MAX_WORKER_RESTARTS:
                raise OSError(f"{message}; with fewer of them (trainer.num_workers) each has more memory") from error
            logger.warning("%s; starting them again", message)


def worker_settings(num_workers: int, device: torch.device | str) -> dict[str, Any]:
    """Return the arguments of torch's DataLoader that all loaders here share."""
    return {
        # The datasets return batches already.
        "collate_fn": _identity,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "multiprocessing_context": _worker_context() if num_workers else None,
        "worker_init_fn": _ignore_stop_signals,
        "pin_memory": torch.device(device).type == "cuda",
        # Without it each epoch would advance torch's global generator by one draw.
        "generator": torch.Generator(),
    }


def _worker_context() -> multiprocessing.context.BaseContext:
    """Return the context of worker processes: forkserver, or spawn on systems without it (DECISIONS 16)."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver  # noqa: PLC0415  # for POSIX

    context = multiprocessing.get_context("forkserver")
    # The server imports what the program has imported of this package, or every worker would do it anew.
    package = __name__.partition(".")[0]
    context.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] == package])
    # A scheduler sends SIGTERM to all processes. The server inherits that it is ignored, and outlives the step.
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return context


def _ignore_stop_signals(_worker: int) -> None:
    # The main process stops on them, and needs its workers until the end of the step.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Windows has no alarm.
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_SECONDS))


def _identity(batch: Any) -> Batch:
    return batch
