"""Training crops by seek-and-read; a draw depends on (seed, epoch, utterance) and nothing else."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sv_sparse.data.audio import Samples, fill_stretch, read_stretch, to_int16
from sv_sparse.data.augment import Augmentation, Extras, Plan, merged_extras
from sv_sparse.data.decoding import resample
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.rng import below


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

    def utterance(self, position: int) -> str:
        """Key of the utterance at a position."""
        return self.manifest.utterance(self.rows[position])

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
        return self.batch(indices, [None] * len(indices))

    def batch(self, indices: Sequence[tuple[int, int]], held: Sequence[bytes | None]) -> Batch:
        """As ``__getitems__``; ``held`` are the utterances' files where they have been read already."""
        plans, lengths = self._plans(indices)
        waveforms = np.empty((len(indices), max(lengths, default=0)), np.int16)
        kept: list[int] = []
        unreadable: list[str] = []
        for drawn, ((epoch, position), content) in enumerate(zip(indices, held, strict=True)):
            out, samples = waveforms[len(kept)], lengths[drawn]
            try:
                self._crop(epoch, int(self.rows[position]), out[:samples], content)
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

    def _crop(self, epoch: int, row: int, out: Samples, held: bytes | None) -> None:
        """Fill ``out`` with the crop of one utterance."""
        rate, length = int(self.manifest.sample_rate[row]), int(self.manifest.samples[row])
        count = -(-len(out) * rate // self.sample_rate)
        if rate != self.sample_rate:
            count += 1  # the resampler rounds the length, and must not end a sample before the crop
        count = min(length, count)
        start = below(length - count + 1, self.seed, "crop", epoch, self.manifest.utterance(row))
        parts = self.manifest.parts(row)
        if rate == self.sample_rate:
            fill_stretch(parts, rate, start, out[:count], held)
        else:
            crop = to_int16(resample(read_stretch(parts, rate, start, count), rate, self.sample_rate))[: len(out)]
            count = len(crop)
            out[:count] = crop
        if count < len(out):
            out[count:] = np.resize(out[:count], len(out) - count)


def merged(batches: Sequence[Batch]) -> Batch:
    """One batch of the crops of several."""
    widest = max(batch.waveforms.shape[1] for batch in batches)
    waveforms = torch.cat([F.pad(batch.waveforms, (0, widest - batch.waveforms.shape[1])) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    unreadable = [message for batch in batches for message in batch.unreadable]
    extras = [batch.extras for batch in batches if batch.extras is not None]
    return Batch(waveforms, labels, unreadable, merged_extras(extras) if extras else None)
