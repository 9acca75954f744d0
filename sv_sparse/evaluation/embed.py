"""Embeddings of whole recordings, read ahead by threads, the longest first."""

import logging
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sv_sparse.data.audio import read_utterance
from sv_sparse.data.manifest import AudioSegment
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.distributed import all_gather_objects, broadcast_from_rank0, rank, world_size
from sv_sparse.evaluation.embedding_cache import EmbeddingCache
from sv_sparse.scoring.arrays import BoolArray, Float32Array

# Positions of utterances, and their waveforms [B, S] of equal length.
Group = tuple[list[int], Tensor]

# Utterances in a block, which is read while the one before is embedded.
_PREFETCH = 64
# Utterances of equal length.
_BATCH_SIZE = 16
# Recordings in an error message; the log names all.
_MAX_NAMED = 3
_NONE_ALLOWED = UnreadableLimit(0.0)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of utterances.

    Attributes:
        values: float32 [N, E], one row per utterance, NaN for those in ``unusable``; E is 0 if none can be used.
        unusable: reason why an utterance has no embedding, by its position, ascending; it names the file.

    >>> embeddings = Embeddings(np.zeros((2, 192), np.float32), {1: "b.wav: cannot be read as a recording"})
    >>> embeddings.usable.tolist()
    [True, False]
    """

    values: Float32Array
    unusable: dict[int, str]

    @property
    def usable(self) -> BoolArray:
        """Mask of the utterances that have an embedding, bool [N]."""
        usable = np.ones(len(self.values), np.bool_)
        usable[list(self.unusable)] = False
        return usable


def progress_bar(total: int, title: str, unit: str) -> "tqdm[None]":
    """Return a bar that the first process shows in a terminal, and that disappears at its end."""
    return tqdm(total=total, desc=title, unit=unit, leave=False, disable=rank() > 0 or not sys.stderr.isatty())


@torch.no_grad()
def embed(
    network: nn.Module,
    filterbank: nn.Module,
    utterances: Sequence[Sequence[AudioSegment]],
    *,
    title: str,
    limit: UnreadableLimit = _NONE_ALLOWED,
    cache: EmbeddingCache | None = None,
    unusable: Mapping[int, str] = MappingProxyType({}),
) -> Embeddings:
    """Compute embeddings of whole utterances, in float32 and without padding.

    A recording that cannot be read, is too short, or gets an embedding that is not finite is named in a warning and
    left out. Several processes share the work; all get all embeddings, to the last bit those of a single process.

    Args:
        network: filterbank [B, F, T] to embedding [B, E]; it is put into evaluation mode.
        filterbank: waveform [B, S] to filterbank [B, F, T].
        utterances: files of each utterance.
        title: purpose of the utterances, for the progress bar and messages.
        limit: number of utterances that may be left out; none by default.
        cache: cache that embeddings are taken from and put into.
        unusable: reasons to leave utterances out unread, by position.

    Raises:
        ValueError: more utterances cannot be used than ``limit`` allows; names the first files.
    """
    network.eval()
    device = next(network.parameters()).device
    # Only the first process reads the cache: others would see the files that it writes meanwhile.
    cached = broadcast_from_rank0(lambda: cache.get(utterances) if cache is not None else {})
    reasons = dict(unusable)
    for position in unusable:
        cached.pop(position, None)
    computed: dict[int, Float32Array] = {}
    blocks = _rank_blocks(utterances, {*cached, *unusable})
    progress = progress_bar(sum(map(len, blocks)), title, "utt")
    with progress, _per_thread_map(device) as thread_map:
        try:
            for groups, unreadable in _read_blocks(utterances, blocks):
                reasons.update(unreadable)
                block: dict[int, Float32Array] = {}
                for rows, failures in thread_map(partial(_embed_group, network, filterbank, utterances), groups):
                    block.update(rows)
                    reasons.update(failures)
                computed.update(block)
                if cache is not None:
                    cache.put({position: utterances[position] for position in block}, block)
                progress.update(len(block) + len(unreadable))
                # The error is certain, so the rest need not be embedded.
                if len(reasons) > limit.max_count(len(utterances)):
                    break
        finally:
            # An error or interruption loses nothing that was computed.
            if cache is not None:
                cache.flush()
    for other_computed, other_reasons in all_gather_objects((computed, reasons)):
        computed.update(other_computed)
        reasons.update(other_reasons)
    reasons = dict(sorted(reasons.items()))
    broadcast_from_rank0(lambda: _report_unusable(reasons, len(utterances), limit, title))
    embeddings = cached | computed
    size = len(next(iter(embeddings.values()))) if embeddings else 0
    values = np.full((len(utterances), size), np.nan, np.float32)
    for position, row in embeddings.items():
        values[position] = row
    return Embeddings(values, reasons)


def _report_unusable(reasons: Mapping[int, str], num_recordings: int, limit: UnreadableLimit, title: str) -> None:
    """Warn of each recording that is left out; more than the limit allows are a ValueError."""
    for reason in reasons.values():
        logger.warning("left out of the %s: %s", title, reason)
    max_unusable = limit.max_count(num_recordings)
    if len(reasons) > max_unusable:
        first = "; ".join(list(reasons.values())[:_MAX_NAMED])
        raise ValueError(
            f"{limit}: more than {max_unusable} of the {num_recordings} recordings of the {title} cannot be used; "
            f"first {first}"
        )


def _embed_group(
    network: nn.Module, filterbank: nn.Module, utterances: Sequence[Sequence[AudioSegment]], group: Group
) -> tuple[dict[int, Float32Array], dict[int, str]]:
    """Return embeddings of a group by position, and the reasons of those that have none."""
    positions, waveforms = group
    device = next(network.parameters()).device
    try:
        rows = network(filterbank(waveforms.to(device))).float().cpu().numpy()
    except ValueError as error:
        # Too short for the filterbank or the network.
        return {}, {position: f"{utterances[position][0].path}: {error}" for position in positions}
    embeddings = dict(zip(positions, rows, strict=True))
    reasons = {}
    for position in positions:
        if not np.isfinite(embeddings[position]).all():
            del embeddings[position]
            reasons[position] = f"{utterances[position][0].path}: its embedding is not finite"
    return embeddings, reasons


@contextmanager
def _per_thread_map(device: torch.device) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give a ``map`` that runs each call in a thread of its own."""
    # On a CPU, an utterance per thread is faster than all threads for each utterance.
    num_threads = torch.get_num_threads() if device.type == "cpu" else 1
    if num_threads == 1:
        yield map
        return
    autocast = torch.is_autocast_enabled("cpu")
    autocast_dtype = torch.get_autocast_dtype("cpu")

    def set_up_thread() -> None:
        # These settings belong to a thread. They are set without a context manager, whose exit would
        # drop the weights that autocast has cast, for all threads.
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        torch.set_autocast_dtype("cpu", autocast_dtype)
        torch.set_autocast_enabled("cpu", autocast)

    try:
        with ThreadPoolExecutor(num_threads, initializer=set_up_thread) as pool:
            yield pool.map
    finally:
        # Some libraries take the number that a thread sets for the whole process.
        torch.set_num_threads(num_threads)


def _rank_blocks(utterances: Sequence[Sequence[AudioSegment]], settled: Container[int]) -> list[list[int]]:
    """Return this process's blocks of positions to embed, the longest utterances first."""
    num_samples = [sum(part.samples for part in parts) for parts in utterances]
    order = sorted(range(len(utterances)), key=num_samples.__getitem__, reverse=True)
    blocks = []
    # Blocks are cut before settled utterances are left out: an interruption, or a recording that fails
    # each time, then does not change which utterances are embedded together. In another batch the
    # last bit of an embedding may differ. DECISIONS 71
    for start in range(0, len(order), _PREFETCH):
        block = [position for position in order[start : start + _PREFETCH] if position not in settled]
        if block:
            blocks.append(block)
    return blocks[rank() :: world_size()]


def _read_blocks(
    utterances: Sequence[Sequence[AudioSegment]], blocks: Sequence[Sequence[int]]
) -> Iterator[tuple[list[Group], dict[int, str]]]:
    """Yield the groups of each block, and the reasons of the utterances that cannot be read."""
    # Decoding releases Python's lock, so threads are enough.
    with ThreadPoolExecutor(2) as pool:
        futures: list[Future[Tensor | str]] = []
        for block, next_block in pairwise([[], *blocks, []]):
            results = dict(zip(block, [future.result() for future in futures], strict=True))
            # The next block is read while the caller works on this one.
            futures = [pool.submit(_read_waveform, utterances[position]) for position in next_block]
            unreadable = {position: result for position, result in results.items() if isinstance(result, str)}
            waveforms = [(position, result) for position, result in results.items() if isinstance(result, Tensor)]
            if results:
                yield _groups_of_equal_length(waveforms), unreadable


def _groups_of_equal_length(waveforms: list[tuple[int, Tensor]]) -> list[Group]:
    """Batch waveforms of equal length, so that none is padded."""
    by_length: dict[int, list[tuple[int, Tensor]]] = {}
    for position, waveform in waveforms:
        by_length.setdefault(len(waveform), []).append((position, waveform))
    groups = []
    for _, members in sorted(by_length.items()):
        for start in range(0, len(members), _BATCH_SIZE):
            positions, batch = zip(*members[start : start + _BATCH_SIZE], strict=True)
            groups.append((list(positions), torch.stack(batch)))
    return groups


def _read_waveform(utterance: Sequence[AudioSegment]) -> Tensor | str:
    """Return the utterance's waveform [S], or the reason why it cannot be read."""
    try:
        return read_utterance(utterance)
    except ValueError as error:
        return str(error)


@torch.no_grad()
def mean_embedding(network: nn.Module, features: Iterable[Tensor]) -> Float32Array:
    """Compute the mean embedding, float32 [E], of training crops, which scoring subtracts.

    Args:
        network: filterbank [B, F, T] to embedding [B, E]; it is put into evaluation mode.
        features: filterbanks [B, F, T] on the network's device; none is a ValueError.
    """
    network.eval()
    outputs = [network(batch).float().cpu().numpy() for batch in features]
    if not outputs:
        raise ValueError("the mean embedding has no training crops that can be read; the log names the recordings")
    return np.concatenate(outputs).mean(axis=0)
