"""Shards read from beginning to end by the webdataset library: for disks and object stores that dislike random access.

An epoch has the same crops as from files, in another order: the shards are shuffled, and their utterances again in a
buffer. Each worker process of each rank reads shards of its own, so the order depends on their numbers. Several ranks
yield as many batches each as the one with the fewest utterances.
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

from sv_sparse.data.dataset import Batch, Crops, merged
from sv_sparse.data.loader import EpochBatches, surviving, worker_settings
from sv_sparse.data.rng import generator

BUFFER = 500  # utterances in memory, out of which the next is drawn

Sample = tuple[int, bytes]  # a position of the crops, and the file


class ShardLoader:
    """Batches of an epoch, as those of ``make_loader`` but for their order.

    Args:
        crops: What an epoch consists of; all of it lies in shards.
        batches: Which epoch, which positions of it, how many in a batch, for which process, and where to begin.
        workers: Worker processes, kept between epochs; 0 reads in the calling process.
        device: Where batches go.

    Raises:
        ValueError: The utterances are files of their own, or there are fewer shards than ranks.
    """

    def __init__(self, crops: Crops, batches: EpochBatches, workers: int, device: torch.device | str) -> None:
        self.batches = batches
        self._stream = _ShardStream(crops, batches)
        self._make = lambda: DataLoader(self._stream, batch_size=None, **worker_settings(workers, device))
        self._loader: DataLoader[Any] = self._make()

    def __iter__(self) -> Iterator[Batch]:
        """Parts of steps, from ``batches.start`` on; those before it are read again, and dropped."""
        return surviving(self._from, self.batches.start)

    def _from(self, start: int, again: bool) -> Iterator[Batch]:
        if again:
            self._loader = self._make()
        self._stream.epoch.fill_(self.batches.epoch)
        return islice(self._whole(), start, self.steps(self.batches.epoch) * self.batches.accumulate)

    def steps(self, epoch: int) -> int:
        """How many steps an epoch has: as many as the process with the fewest utterances."""
        return self._stream.steps(epoch)

    def _whole(self) -> Iterator[Batch]:
        """Whole batches as they come, then those made of what workers had left over."""
        rest: list[Batch] = []
        for batch in self._loader:
            if len(batch.labels) + len(batch.unreadable) == self.batches.part_size:
                yield batch
            else:
                rest.append(batch)
            if len(rest) == self.batches.part_size:
                yield merged(rest)
                rest = []


class _ShardStream(IterableDataset[Batch]):
    """One worker's share of an epoch: batches of full size, and what is left over one by one."""

    def __init__(self, crops: Crops, batches: EpochBatches) -> None:
        self.crops, self.batches = crops, batches
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change
        paths = crops.manifest.first_files(crops.rows)
        if not all(path.endswith(".tar") for path in paths.dictionary.to_pylist()):
            raise ValueError(
                f"data.format=shards: the utterances of {crops.manifest.source} are files of their own; "
                f"make shards by: sv-sparse shard PREPARED --out SHARDS, and give data.prepared_dir=SHARDS"
            )
        self.shards = [os.path.join(crops.manifest.root, path) for path in paths.dictionary.to_pylist()]
        if len(self.shards) < batches.ranks:
            raise ValueError(
                f"data.format=shards: {batches.ranks} processes need as many shards, there are {len(self.shards)}"
            )
        shard = paths.indices.to_numpy()
        order = np.argsort(shard, kind="stable")
        self.held = np.split(order, np.searchsorted(shard[order], np.arange(1, len(self.shards))))

    def _epoch(self, epoch: int) -> tuple[np.random.Generator, NDArray[np.int64], NDArray[np.bool_]]:
        """Its draws from here on, the order of its shards, and which positions it has."""
        draw = generator(self.batches.seed, "shards", epoch, "")
        wanted = np.zeros(len(self.crops), dtype=bool)
        wanted[self.batches.positions(epoch).ravel()] = True
        return draw, draw.permutation(len(self.shards)), wanted

    def steps(self, epoch: int) -> int:
        """See ShardLoader."""
        batches = self.batches
        if batches.ranks == 1:
            return batches.steps
        _, order, wanted = self._epoch(epoch)
        held = [
            sum(int(wanted[self.held[shard]].sum()) for shard in order[rank :: batches.ranks])
            for rank in range(batches.ranks)
        ]
        return min(held) // (batches.part_size * batches.accumulate)

    def __iter__(self) -> Iterator[Batch]:
        epoch = int(self.epoch)
        draw, order, wanted = self._epoch(epoch)
        worker = get_worker_info()
        own = order[self.batches.rank :: self.batches.ranks]
        if worker is not None:
            own = own[worker.id :: worker.num_workers]
        samples = webdataset.shuffle(BUFFER, rng=random.Random(int(draw.integers(2**63))))(self._drawn(own, wanted))
        while several := list(islice(samples, self.batches.part_size)):
            full = len(several) == self.batches.part_size
            for chosen in [several] if full else [[one] for one in several]:
                yield self.crops.batch([(epoch, position) for position, _ in chosen], [held for _, held in chosen])

    def _drawn(self, shards: NDArray[np.int64], wanted: NDArray[np.bool_]) -> Iterator[Sample]:
        """The samples of some shards that the epoch has, by their position.

        Raises:
            ValueError: A shard cannot be read, or lacks some of them; names it.
        """
        for shard in shards:
            held = self.held[shard]
            positions = {self.crops.utterance(place): int(place) for place in held[wanted[held]]}
            for sample in _samples(self.shards[shard]):
                position = positions.pop(sample["utterance"], None)
                if position is not None:
                    yield position, sample["flac"]
            if positions:
                raise ValueError(
                    f"{self.shards[shard]}: {len(positions)} utterances are missing, such as {next(iter(positions))}; "
                    f"remove it and run sv-sparse shard again"
                )


def _samples(path: str) -> Iterator[dict[str, Any]]:
    """The utterances of a shard, key and file."""
    with open(path, "rb") as stream:  # webdataset's own opener leaves closing to the collector
        try:
            for sample in group_by_keys(tar_file_expander(iter([{"url": path, "stream": stream}]))):
                if {"json", "flac"} <= sample.keys():
                    yield {"utterance": json.loads(sample["json"])["utterance"], "flac": sample["flac"]}
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path}: cannot be read as a shard ({error.args[0]})") from error
