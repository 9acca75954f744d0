"""Shards read from beginning to end by the webdataset library: for disks and object stores that dislike random access.

An epoch has the same crops as from files, in another order: the shards are shuffled, and their utterances again in a
buffer. Each worker process of each rank reads shards of its own, so the order depends on their numbers.
"""

import json
import os
import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from sv_sparse.data.dataset import Batch, Crops, merged
from sv_sparse.data.draws import generator
from sv_sparse.data.loader import EpochBatches, worker_settings

BUFFER = 500  # utterances in memory, out of which the next is drawn

Sample = tuple[int, bytes]  # a position of the crops, and the file


class ShardLoader:
    """Batches of an epoch, as those of ``make_loader`` but for their order.

    Args:
        crops: What an epoch consists of; all of it lies in shards.
        batches: Which epoch, which positions of it, how many in a batch, and where to begin.
        workers: Worker processes, kept between epochs; 0 reads in the calling process.
        device: Where batches go.

    Raises:
        ValueError: The utterances are files of their own.
    """

    def __init__(self, crops: Crops, batches: EpochBatches, workers: int, device: torch.device | str) -> None:
        self.batches = batches
        self._stream = _ShardStream(crops, batches)
        self._loader: DataLoader[Any] = DataLoader(self._stream, batch_size=None, **worker_settings(workers, device))

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``batches.start_batch`` on; those before it are read again, and dropped."""
        self._stream.epoch.fill_(self.batches.epoch)
        return islice(self._whole(), self.batches.start_batch, None)

    def _whole(self) -> Iterator[Batch]:
        """Whole batches as they come, then those made of what workers had left over."""
        rest: list[Batch] = []
        for batch in self._loader:
            if len(batch.labels) + len(batch.unreadable) == self.batches.batch_size:
                yield batch
            else:
                rest.append(batch)
            if len(rest) == self.batches.batch_size:
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
                f"data.storage=shards: the utterances of {crops.manifest.source} are files of their own; "
                f"make shards by: sv-sparse shard PREPARED --out SHARDS, and give data.prepared=SHARDS"
            )
        self.shards = [os.path.join(crops.manifest.root, path) for path in paths.dictionary.to_pylist()]
        shard = paths.indices.to_numpy()
        order = np.argsort(shard, kind="stable")
        self.held = np.split(order, np.searchsorted(shard[order], np.arange(1, len(self.shards))))

    def __iter__(self) -> Iterator[Batch]:
        epoch, seed = int(self.epoch), self.batches.seed
        wanted = np.zeros(len(self.crops), dtype=bool)
        wanted[self.batches.positions(epoch).ravel()] = True
        draw = generator(seed, "shards", epoch, "")
        order = draw.permutation(len(self.shards))
        pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList([self.shards[number] for number in order]),
            webdataset.split_by_node,
            webdataset.split_by_worker,
            _opened,
            partial(tar_file_expander, handler=_refuse),
            group_by_keys,
            partial(self._drawn, wanted),
            webdataset.shuffle(BUFFER, rng=random.Random(int(draw.integers(2**63)))),  # no secret
        )
        samples = iter(pipeline)
        while several := list(islice(samples, self.batches.batch_size)):
            full = len(several) == self.batches.batch_size
            for chosen in [several] if full else [[one] for one in several]:
                yield self.crops.batch([(epoch, position) for position, _ in chosen], [held for _, held in chosen])

    def _drawn(self, wanted: NDArray[np.bool_], samples: Iterator[dict[str, Any]]) -> Iterator[Sample]:
        """The samples that the epoch has, by their position."""
        shard, positions = "", {}
        number = {path: index for index, path in enumerate(self.shards)}
        for sample in samples:
            if sample["__url__"] != shard:
                shard = sample["__url__"]
                held = self.held[number[shard]]
                positions = {self.crops.utterance(place): int(place) for place in held[wanted[held]]}
            position = positions.get(json.loads(sample["json"])["utterance"])
            if position is not None:
                yield position, sample["flac"]


def _opened(shards: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """As webdataset's own opener, which leaves closing to the collector."""
    for shard in shards:
        with open(shard["url"], "rb") as stream:
            yield shard | {"stream": stream}


def _refuse(error: Exception) -> bool:
    """Where webdataset asks what to do about a shard: raise, with the name that it has put last."""
    raise ValueError(f"{error.args[-1]}: cannot be read as a shard ({error.args[0]})") from error
