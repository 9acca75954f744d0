"""Training crops, read by positioned reads; each is a function of (seed, epoch, utterance) (DECISIONS 15)."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sv_sparse.data.audio import Samples, read_into, read_segment, to_int16
from sv_sparse.data.augment import Augmentation, AugmentBatch
from sv_sparse.data.decoding import SAMPLE_RATE, resample
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.rng import randint


class Batch(NamedTuple):
    """Batch of training crops; B is 0 if none could be read.

    Attributes:
        waveforms: int16 [B, S], 16-bit samples. With speed perturbation, shorter rows end in zeros.
        labels: int64 [B], speaker index.
        unreadable: one message for each utterance that was drawn but could not be read.
        augmentation: inputs of the augmentation on the device; None without augmentation.
    """

    waveforms: Tensor
    labels: Tensor
    unreadable: Sequence[str]
    augmentation: AugmentBatch | None


class CropDataset(Dataset[Batch]):
    """One random crop of fixed length per (epoch, position), of 16-bit samples (DECISIONS 31).

    Neither the order of access, nor the number of workers, nor the other utterances change the crop of an
    utterance and its augmentation. An utterance shorter than the crop is repeated.

    Args:
        manifest: table of the utterances.
        rows: int64 [N], rows of the manifest to draw from.
        labels: int64 [N], speaker index of each row, from 0 on.
        crop_samples: length of a crop at ``sample_rate``; a ValueError says that it is less than 1.
        sample_rate: rate of the crops in Hz; files of other rates are resampled.
        seed: seed of all draws.
        augmentation: random augmentation; None for crops alone.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        *,
        crop_samples: int,
        sample_rate: int = SAMPLE_RATE,
        seed: int,
        augmentation: Augmentation | None = None,
    ) -> None:
        assert len(rows) == len(labels), (len(rows), len(labels))
        if crop_samples < 1:
            raise ValueError(f"crop_samples={crop_samples}: expected at least one sample")
        self.manifest = manifest
        self.rows = rows
        self.labels = labels
        self.crop_samples = crop_samples
        self.sample_rate = sample_rate
        self.seed = seed
        self.augmentation = augmentation
        self._recorded_speakers = int(labels.max()) + 1 if len(labels) else 0
        # Each speed other than 1 makes new speakers.
        self.num_speakers = self._recorded_speakers * (len(augmentation.speeds) if augmentation else 1)

    def __len__(self) -> int:
        return len(self.rows)

    def utterance(self, position: int) -> str:
        """Return the key of the utterance at a position."""
        return self.manifest.utterance(self.rows[position])

    def without_augmentation(self) -> "CropDataset":
        """Return the same crops without augmentation."""
        dataset = copy.copy(self)
        dataset.augmentation = None
        dataset.num_speakers = self._recorded_speakers
        return dataset

    def with_rows(self, rows: NDArray[np.int64]) -> "CropDataset":
        """Return the same crops of other rows of the manifest, int64 [N], which have no labels: all are 0."""
        dataset = copy.copy(self)
        dataset.rows = rows
        dataset.labels = np.zeros(len(rows), np.int64)
        return dataset

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> Batch:
        """Return the batch of some (epoch, position); utterances that cannot be read are left out and named."""
        return self.read_batch(indices, [None] * len(indices))

    def read_batch(self, indices: Sequence[tuple[int, int]], buffers: Sequence[bytes | None]) -> Batch:
        """Return a batch like :meth:`__getitems__`, with the content of each file that has been read already."""
        params = []
        lengths = [self.crop_samples] * len(indices)
        if self.augmentation is not None:
            for epoch, position in indices:
                params.append(self.augmentation.sample(self.seed, epoch, self.utterance(position)))
            lengths = [self.augmentation.num_input_samples(param, self.crop_samples) for param in params]
        waveforms = np.empty((len(indices), max(lengths, default=0)), np.int16)
        readable: list[int] = []
        unreadable: list[str] = []
        for index, (epoch, position) in enumerate(indices):
            # The next row: an utterance that cannot be read leaves no gap.
            out = waveforms[len(readable)]
            try:
                self._read_crop(epoch, int(self.rows[position]), out[: lengths[index]], buffers[index])
            except ValueError as error:
                unreadable.append(str(error))
                continue
            out[lengths[index] :] = 0
            readable.append(index)
        labels = self.labels[[indices[index][1] for index in readable]]
        augmentation = None
        if self.augmentation is not None:
            augmentation = self.augmentation.collate([params[index] for index in readable], self.crop_samples)
            labels += self._recorded_speakers * augmentation.speed.numpy()
        return Batch(torch.from_numpy(waveforms[: len(readable)]), torch.from_numpy(labels), unreadable, augmentation)

    def _read_crop(self, epoch: int, row: int, out: Samples, buffer: bytes | None) -> None:
        rate = int(self.manifest.sample_rate[row])
        length = int(self.manifest.samples[row])
        count = -(-len(out) * rate // self.sample_rate)
        if rate != self.sample_rate:
            # The resampler rounds the length, and must not end a sample before the crop.
            count += 1
        count = min(length, count)
        start = randint(length - count + 1, self.seed, "crop", epoch, self.manifest.utterance(row))
        segments = self.manifest.segments(row)
        if rate == self.sample_rate:
            read_into(out[:count], segments, rate, start, buffer)
        else:
            waveform = resample(read_segment(segments, rate, start, count), rate, self.sample_rate)
            crop = to_int16(waveform)[: len(out)]
            count = len(crop)
            out[:count] = crop
        if count < len(out):
            out[count:] = np.resize(out[:count], len(out) - count)


def concat_batches(batches: Sequence[Batch]) -> Batch:
    """Return one batch of the crops of several."""
    max_length = max(batch.waveforms.shape[1] for batch in batches)
    unreadable: list[str] = []
    for batch in batches:
        unreadable += batch.unreadable
    augmentations = [batch.augmentation for batch in batches if batch.augmentation is not None]
    return Batch(
        torch.cat([F.pad(batch.waveforms, (0, max_length - batch.waveforms.shape[1])) for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        unreadable,
        AugmentBatch.concat(augmentations) if augmentations else None,
    )
