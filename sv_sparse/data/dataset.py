"""Training crops by seek-and-read; a draw depends on (seed, epoch, utterance) and nothing else."""

import logging
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sv_sparse.data.audio import Samples, fill_stretch, read_stretch, resample, to_int16
from sv_sparse.data.augment import Augmentation, Extras, Plan
from sv_sparse.data.draws import below, generator
from sv_sparse.data.manifest import Manifest

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Training crops of a batch; B is 0 where none could be read.

    Attributes:
        waveforms: int16 [B, S], 16-bit samples; with speeds, rows end in zeros where others are longer.
        labels: int64 [B], speaker index.
        unreadable: One message for each utterance that was drawn too but could not be read.
        extras: What augmentation adds; None without it.
    """

    waveforms: Tensor
    labels: Tensor
    unreadable: Sequence[str]
    extras: Extras | None


class Crops(Dataset[Batch]):
    """One random crop of fixed length per (epoch, position).

    The crop of an utterance, and its augmentation, are functions of (seed, epoch, utterance): neither the order of
    access, nor the number of workers, nor the other utterances change them. An utterance shorter than the crop is
    repeated. Samples are rounded to 16 bits, which most recordings have.

    Args:
        manifest: Where the utterances are.
        rows: [N] rows of the manifest to draw from.
        labels: [N] speaker index of each row, from 0 on.
        crop_samples: Length of a crop at ``sample_rate``.
        sample_rate: Rate of the crops in Hz; files of other rates are resampled.
        seed: Base of all draws.
        augmentation: What else is drawn; None for crops alone.

    Attributes:
        speakers: How many labels there are: speeds other than 1 make new ones.

    Raises:
        ValueError: The crop is shorter than one sample.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        *,
        crop_samples: int,
        sample_rate: int = 16000,
        seed: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        assert len(rows) == len(labels), (len(rows), len(labels))
        if crop_samples < 1:
            raise ValueError(f"crop_samples={crop_samples}: expected at least one sample")
        self.manifest, self.rows, self.labels = manifest, rows, labels
        self.crop_samples, self.sample_rate, self.seed = crop_samples, sample_rate, seed
        self.augmentation = augmentation
        self._own_speakers = int(labels.max()) + 1 if len(labels) else 0
        self.speakers = self._own_speakers * (len(augmentation.speeds) if augmentation else 1)

    def __len__(self) -> int:
        return len(self.rows)

    def plain(self) -> "Crops":
        """The same crops without augmentation."""
        return Crops(
            self.manifest,
            self.rows,
            self.labels,
            crop_samples=self.crop_samples,
            sample_rate=self.sample_rate,
            seed=self.seed,
        )

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> Batch:
        """The batch of some ``(epoch, position)``; what cannot be read is left out and named."""
        plans, lengths = self._plans(indices)
        waveforms = np.empty((len(indices), max(lengths, default=0)), np.int16)
        kept: list[int] = []
        unreadable: list[str] = []
        for drawn, (epoch, position) in enumerate(indices):
            out, samples = waveforms[len(kept)], lengths[drawn]
            try:
                self._crop(epoch, int(self.rows[position]), out[:samples])
            except ValueError as error:
                unreadable.append(str(error))
                continue
            out[samples:] = 0
            kept.append(drawn)
        labels = self.labels[[indices[drawn][1] for drawn in kept]]
        extras = None
        if self.augmentation is not None:
            extras = self.augmentation.gather([plans[drawn] for drawn in kept], self.crop_samples)
            labels += self._own_speakers * extras.speed.numpy()
        return Batch(torch.from_numpy(waveforms[: len(kept)]), torch.from_numpy(labels), unreadable, extras)

    def _plans(self, indices: Sequence[tuple[int, int]]) -> tuple[list[Plan], list[int]]:
        """What is drawn for each, none without augmentation, and how many samples its crop takes."""
        if self.augmentation is None:
            return [], [self.crop_samples] * len(indices)
        names = [(epoch, self.manifest.utterance(self.rows[position])) for epoch, position in indices]
        plans = [self.augmentation.plan(self.seed, epoch, name) for epoch, name in names]
        return plans, [self.augmentation.samples(plan, self.crop_samples) for plan in plans]

    def _crop(self, epoch: int, row: int, out: Samples) -> None:
        """Fill ``out`` with the crop of one utterance."""
        rate, length = int(self.manifest.sample_rate[row]), int(self.manifest.samples[row])
        count = min(length, -(-len(out) * rate // self.sample_rate))
        start = below(length - count + 1, self.seed, "crop", epoch, self.manifest.utterance(row))
        parts = self.manifest.parts(row)
        if rate == self.sample_rate:
            fill_stretch(parts, rate, start, out[:count])
        else:
            waveform = torch.from_numpy(read_stretch(parts, rate, start, count))
            crop = to_int16(resample(waveform, rate, self.sample_rate).numpy())[: len(out)]
            count = len(crop)
            out[:count] = crop
        if count < len(out):
            out[count:] = np.resize(out[:count], len(out) - count)


def _whole(batch: Any) -> Batch:
    """What the dataset returns is a batch already."""
    return batch


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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = generator(self.seed, "order", self.epoch, "").permutation(self.size)
        whole = order[: self.size // self.batch_size * self.batch_size].reshape(-1, self.batch_size)
        epoch = self.epoch
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
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_whole,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context=_worker_context() if workers else None,
        worker_init_fn=_leave_interrupts_to_main,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # or each epoch would advance torch's global generator by one draw
    )


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
