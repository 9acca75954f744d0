"""Training crops by seek-and-read; a draw depends on (seed, epoch, utterance) and nothing else."""

import functools
import hashlib
import logging
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sv_sparse.data.manifest import Manifest
from sv_sparse.torchaudio_guard import torchaudio

logger = logging.getLogger(__name__)

Item = tuple[Tensor, int] | str  # a crop and its speaker, or why there is none


class Batch(NamedTuple):
    """Training crops of a batch.

    Attributes:
        waveforms: float32 [B, S].
        labels: int64 [B], speaker index.
        unreadable: One message for each utterance that was drawn too but could not be read.
    """

    waveforms: Tensor
    labels: Tensor
    unreadable: Sequence[str]


def generator(seed: int, stream: str, epoch: int, name: str) -> np.random.Generator:
    """A generator of its own for every (seed, stream, epoch, name): equal arguments, equal draws, anywhere.

    >>> first, second = (generator(1, "crop", 0, "id10001/a/00001.wav") for _ in range(2))
    >>> bool(first.random() == second.random())
    True
    """
    key = hashlib.blake2b(f"{seed}/{stream}/{epoch}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype="<u8")))


def read_utterance(path: str, sample_rate: int = 16000) -> Tensor:
    """The first channel of a whole recording, float32 [S] in [-1, 1], at ``sample_rate`` Hz.

    Raises:
        ValueError: The file is missing, empty, broken or no recording; the message names it.
    """
    waveform, rate = _read(path)
    return _resample(torch.from_numpy(waveform), rate, sample_rate)


class Crops(Dataset[Item]):
    """One random crop of fixed length per (epoch, position).

    The crop of an utterance is a function of (seed, epoch, utterance): neither the order of access, nor the
    number of workers, nor the other utterances change it. An utterance shorter than the crop is repeated.

    Args:
        manifest: Where the utterances are.
        rows: [N] rows of the manifest to draw from.
        labels: [N] speaker index of each row.
        crop_samples: Length of a crop at ``sample_rate``.
        sample_rate: Rate of the crops in Hz; files of other rates are resampled.
        seed: Base of all draws.

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
    ) -> None:
        assert len(rows) == len(labels), (len(rows), len(labels))
        if crop_samples < 1:
            raise ValueError(f"crop_samples={crop_samples}: expected at least one sample")
        self.manifest, self.rows, self.labels = manifest, rows, labels
        self.crop_samples, self.sample_rate, self.seed = crop_samples, sample_rate, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[int, int]) -> Item:
        """Crop and label at ``(epoch, position)``, or a message that names the file if it cannot be read."""
        epoch, position = index
        row = self.rows[position]
        try:
            waveform = self._crop(epoch, row)
        except ValueError as error:
            return str(error)
        return waveform, int(self.labels[position])

    def _crop(self, epoch: int, row: int) -> Tensor:
        """The crop of one utterance, float32 [crop_samples]."""
        rate, length = int(self.manifest.sample_rate[row]), int(self.manifest.samples[row])
        count = min(length, -(-self.crop_samples * rate // self.sample_rate))
        draw = generator(self.seed, "crop", epoch, self.manifest.utterance(row))
        start = int(draw.integers(length - count + 1))
        path = self.manifest.path(row)
        waveform, found = _read(path, start, count)
        if found != rate:
            raise ValueError(f"{path}: has {found} Hz but {rate} Hz when {self.manifest.source} was written")
        crop = _resample(torch.from_numpy(waveform), rate, self.sample_rate)
        repeats = -(-self.crop_samples // len(crop))
        return crop.repeat(repeats)[: self.crop_samples] if repeats > 1 else crop[: self.crop_samples]


def collate(items: Sequence[Item]) -> Batch:
    """Stack the readable items; B is 0 where none is."""
    good = [item for item in items if not isinstance(item, str)]
    waveforms = torch.stack([waveform for waveform, _ in good]) if good else torch.empty(0, 0)
    labels = torch.tensor([label for _, label in good], dtype=torch.int64)
    return Batch(waveforms, labels, [item for item in items if isinstance(item, str)])


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


def make_loader(dataset: Crops, batches: EpochBatches, workers: int, device: torch.device | str) -> DataLoader[Item]:
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
        collate_fn=collate,
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


def _read(path: str, start: int = 0, count: int = -1) -> tuple[NDArray[np.float32], int]:
    """First channel of ``count`` samples from ``start`` (-1: all), float32 [count], and the file's rate in Hz."""
    try:
        samples, rate = soundfile.read(path, count, start, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a recording ({error})") from error
    if len(samples) != count if count >= 0 else not len(samples):
        raise ValueError(f"{path}: broken off, {len(samples)} samples where {max(count, 1)} were expected")
    first = np.ascontiguousarray(samples[:, 0])
    if not np.isfinite(first).all():
        raise ValueError(f"{path}: holds samples that are not finite")
    return first, rate


def _resample(waveform: Tensor, rate: int, sample_rate: int) -> Tensor:
    return waveform if rate == sample_rate else _resampler(rate, sample_rate)(waveform)


@functools.cache
def _resampler(rate: int, sample_rate: int) -> torch.nn.Module:
    """Kept, since computing its kernel takes longer than using it."""
    return torchaudio.transforms.Resample(rate, sample_rate)
