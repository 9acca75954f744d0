"""Loader that reads shards from beginning to end, for disks and object stores with slow random access.

An epoch has the same crops as from files, in another order: the shards are shuffled, and their utterances
again in a buffer. Each worker process of each rank reads its own shards, so the order depends on their numbers.
All ranks yield as many batches as the one with the fewest utterances. DECISIONS 35
"""

import json
import os
import random
import tarfile
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from sv_sparse.data.dataset import Batch, CropDataset, concat_batches
from sv_sparse.data.loader import EpochBatchSampler, restart_dead_workers, worker_settings
from sv_sparse.data.rng import generator

# Utterances in memory, from which the next is drawn.
BUFFER_SIZE = 500


class ShardLoader:
    """Loader of an epoch's batches from shards; arguments and interface are those of ``CropLoader``.

    Raises:
        ValueError: the utterances are files of their own, or there are fewer shards than ranks.
    """

    def __init__(
        self, dataset: CropDataset, sampler: EpochBatchSampler, num_workers: int, device: torch.device | str
    ) -> None:
        self.sampler = sampler
        self._stream = _ShardStream(dataset, sampler)
        self._new_loader = lambda: DataLoader(self._stream, batch_size=None, **worker_settings(num_workers, device))
        self._loader: DataLoader[Any] = self._new_loader()

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the micro-batches from ``sampler.start`` on; those before it are read and dropped."""
        return restart_dead_workers(self._batches_from, self.sampler.start)

    def _batches_from(self, start: int, is_restart: bool) -> Iterator[Batch]:
        if is_restart:
            self._loader = self._new_loader()
        self._stream.epoch.fill_(self.sampler.epoch)
        end = self.num_steps(self.sampler.epoch) * self.sampler.grad_accum_steps
        return islice(self._full_batches(), start, end)

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch: as many as the rank with the fewest utterances has."""
        return self._stream.num_steps(epoch)

    def _full_batches(self) -> Iterator[Batch]:
        """Yield full batches as they come, and batches of the single utterances that workers had left over."""
        singles: list[Batch] = []
        for batch in self._loader:
            if len(batch.labels) + len(batch.unreadable) == self.sampler.micro_batch_size:
                yield batch
            else:
                singles.append(batch)
            if len(singles) == self.sampler.micro_batch_size:
                yield concat_batches(singles)
                singles = []


class _ShardStream(IterableDataset[Batch]):
    """One worker's part of an epoch: full micro-batches, then the utterances that are left over, one by one."""

    def __init__(self, dataset: CropDataset, sampler: EpochBatchSampler) -> None:
        self.dataset = dataset
        self.sampler = sampler
        # Shared, so that workers that live on see it change.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        files = dataset.manifest.first_files(dataset.rows)
        names = files.dictionary.to_pylist()
        if not all(name.endswith(".tar") for name in names):
            raise ValueError(
                f"data.format=shards: the utterances of {dataset.manifest.source} are files of their own; "
                f"make shards by: sv-sparse shard PREPARED --out SHARDS, and give data.prepared_dir=SHARDS"
            )
        if len(names) < sampler.world_size:
            raise ValueError(
                f"data.format=shards: {sampler.world_size} processes need as many shards, there are {len(names)}"
            )
        self.shards = [os.path.join(dataset.manifest.root, name) for name in names]
        shard_index = files.indices.to_numpy()
        order = np.argsort(shard_index, kind="stable")
        bounds = np.searchsorted(shard_index[order], np.arange(1, len(names)))
        self.positions = np.split(order, bounds)

    def _epoch_plan(self, epoch: int) -> tuple[np.random.Generator, NDArray[np.int64], NDArray[np.bool_]]:
        """Return a generator for further draws, the order of the shards, and which positions the epoch has."""
        rng = generator(self.sampler.seed, "shards", epoch, "")
        # The positions that the permutation of files drops are dropped here too.
        in_epoch = np.zeros(len(self.dataset), dtype=bool)
        in_epoch[self.sampler.positions(epoch).ravel()] = True
        return rng, rng.permutation(len(self.shards)), in_epoch

    def num_steps(self, epoch: int) -> int:
        """Return the number of steps of an epoch."""
        sampler = self.sampler
        if sampler.world_size == 1:
            return sampler.num_steps
        _, order, in_epoch = self._epoch_plan(epoch)
        counts = []
        for rank in range(sampler.world_size):
            shards = order[rank :: sampler.world_size]
            counts.append(sum(int(in_epoch[self.positions[shard]].sum()) for shard in shards))
        return min(counts) // (sampler.micro_batch_size * sampler.grad_accum_steps)

    def __iter__(self) -> Iterator[Batch]:
        epoch = int(self.epoch)
        rng, order, in_epoch = self._epoch_plan(epoch)
        shards = order[self.sampler.rank :: self.sampler.world_size]
        worker = get_worker_info()
        if worker is not None:
            shards = shards[worker.id :: worker.num_workers]
        shuffle = webdataset.shuffle(BUFFER_SIZE, rng=random.Random(int(rng.integers(2**63))))
        samples = shuffle(self._read_shards(shards, in_epoch))
        size = self.sampler.micro_batch_size
        while group := list(islice(samples, size)):
            step = size if len(group) == size else 1
            for start in range(0, len(group), step):
                part = group[start : start + step]
                indices = [(epoch, position) for position, _ in part]
                yield self.dataset.read_batch(indices, [flac for _, flac in part])

    def _read_shards(self, shards: NDArray[np.int64], in_epoch: NDArray[np.bool_]) -> Iterator[tuple[int, bytes]]:
        """Yield position and FLAC file of the utterances of some shards that the epoch has."""
        for shard in shards:
            positions = self.positions[shard]
            missing = {self.dataset.utterance(position): int(position) for position in positions[in_epoch[positions]]}
            for utterance, flac in _read_shard(self.shards[shard]):
                if utterance in missing:
                    yield missing.pop(utterance), flac
            if missing:
                raise ValueError(
                    f"{self.shards[shard]}: {len(missing)} utterances are missing, such as {next(iter(missing))}; "
                    f"remove it and run sv-sparse shard again"
                )


def _read_shard(path: str) -> Iterator[tuple[str, bytes]]:
    """Yield key and FLAC file of a shard's utterances."""
    # webdataset's own opener leaves closing to the garbage collector.
    with open(path, "rb") as stream:
        try:
            for sample in group_by_keys(tar_file_expander(iter([{"url": path, "stream": stream}]))):
                # Where a shard breaks off, a part is missing.
                if {"json", "flac"} <= sample.keys():
                    yield json.loads(sample["json"])["utterance"], sample["flac"]
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path}: cannot be read as a shard ({error.args[0]})") from error
