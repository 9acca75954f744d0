"""Recordings to embeddings: whole utterances, read ahead by threads, longest first."""

import logging
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from sv_sparse.data.audio import read_utterance
from sv_sparse.data.manifest import Part
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.distributed import all_gather_objects, broadcast_from_rank0, rank, world_size
from sv_sparse.evaluation.embedding_cache import EmbeddingCache
from sv_sparse.scoring.cosine import Array

Group = tuple[list[int], Tensor]  # positions, and their waveforms of one length

_READ_AHEAD = 64  # utterances
_BATCH = 16  # utterances of equal length
_NAMED = 3  # recordings in an error message; the log names all
_STRICT = UnreadableLimit(0.0)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of utterances, as far as their recordings can be used.

    Attributes:
        values: float32 [N, E], a row for each utterance; NaN for those in ``unusable``. Where none can be used, E is 0.
        unusable: The reason why an utterance has no embedding, by its position, ascending. It names the file.
    """

    values: Array
    unusable: dict[int, str]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """[N], True for the utterances that have an embedding."""
        usable = np.ones(len(self.values), np.bool_)
        usable[list(self.unusable)] = False
        return usable


@torch.no_grad()
def embed(
    network: nn.Module,
    filterbank: nn.Module,
    utterances: Sequence[Sequence[Part]],
    *,
    title: str,
    limit: UnreadableLimit = _STRICT,
    cache: EmbeddingCache | None = None,
    known_unusable: Mapping[int, str] = MappingProxyType({}),
) -> Embeddings:
    """Embeddings of whole utterances, in float32; equal lengths go together, nothing is padded.

    A recording that cannot be read, is too short for the network, or gets an embedding that is not finite is named in
    a warning and left out.

    Where several processes run this, each embeds some and all get all of them, equal to the last bit to those of one
    process on the same hardware.

    Args:
        network: filterbank [B, F, T] to embedding [B, E]; put into evaluation mode.
        filterbank: waveform [B, S] to filterbank [B, F, T].
        utterances: the files of each utterance.
        title: what the utterances are for, in the progress bar and in messages.
        limit: how many of the utterances may be left out. The default is none.
        cache: where embeddings are taken from that are there, and kept.
        known_unusable: why utterances are left out unread, by position.

    Raises:
        ValueError: more utterances cannot be used than ``limit`` allows; names the first files.
    """
    network.eval()
    device = next(network.parameters()).device
    cached = broadcast_from_rank0(lambda: cache.find(utterances) if cache is not None else {})
    cached = {position: row for position, row in cached.items() if position not in known_unusable}
    computed: dict[int, Array] = {}
    unusable = dict(known_unusable)
    most = limit.most(len(utterances))
    own = _own_blocks(utterances, {*cached, *known_unusable})
    hidden = rank() > 0 or not sys.stderr.isatty()
    title_bar = tqdm(total=sum(map(len, own)), desc=title, unit="utt", leave=False, disable=hidden)
    with title_bar as bar, _side_by_side(device) as pool, _kept(cache):
        for groups, unreadable in _equal_lengths(utterances, own):
            unusable.update(unreadable)
            block: dict[int, Array] = {}
            for rows, reasons in pool(partial(_embedded, network, filterbank, utterances), groups):
                block.update(rows)
                unusable.update(reasons)
            computed.update(block)
            if cache is not None:
                cache.keep({position: utterances[position] for position in block}, block)
            bar.update(len(block) + len(unreadable))
            if len(unusable) > most:
                break
    for others_computed, others_unusable in all_gather_objects((computed, unusable)):
        computed.update(others_computed)
        unusable.update(others_unusable)
    unusable = dict(sorted(unusable.items()))
    broadcast_from_rank0(lambda: _report(unusable, len(utterances), limit, title))
    return Embeddings(_in_order(cached | computed, len(utterances)), unusable)


def _report(unusable: Mapping[int, str], recordings: int, limit: UnreadableLimit, title: str) -> None:
    """Warn of each recording that is left out.

    Raises:
        ValueError: They are more than the limit allows.
    """
    for reason in unusable.values():
        logger.warning("left out of the %s: %s", title, reason)
    most = limit.most(recordings)
    if len(unusable) > most:
        first = "; ".join(list(unusable.values())[:_NAMED])
        raise ValueError(
            f"{limit}: more than {most} of the {recordings} recordings of the {title} cannot be used; first {first}"
        )


def _in_order(rows: Mapping[int, Array], count: int) -> Array:
    """[count, E]: the rows at their positions, NaN at the others."""
    width = len(next(iter(rows.values()))) if rows else 0
    values = np.full((count, width), np.nan, np.float32)
    for position, row in rows.items():
        values[position] = row
    return values


def _samples(utterance: Sequence[Part]) -> int:
    """Its length as far as it is known before it is read."""
    return sum(part.samples for part in utterance)


@contextmanager
def _kept(cache: EmbeddingCache | None) -> Iterator[None]:
    """Everything computed inside is on disk afterwards, after an error or an interruption as well."""
    try:
        yield
    finally:
        if cache is not None:
            cache.flush()


def _embedded(
    network: nn.Module, filterbank: nn.Module, utterances: Sequence[Sequence[Part]], group: Group
) -> tuple[dict[int, Array], dict[int, str]]:
    """Embeddings of a group by position, and the reasons of those that have none."""
    positions, waveforms = group
    device = next(network.parameters()).device
    try:
        rows = network(filterbank(waveforms.to(device))).float().cpu().numpy()
    except ValueError as error:  # too short for the filterbank or the network
        return {}, {position: f"{utterances[position][0].path}: {error}" for position in positions}
    embeddings: dict[int, Array] = {}
    reasons: dict[int, str] = {}
    for position, row in zip(positions, rows, strict=True):
        if np.isfinite(row).all():
            embeddings[position] = row
        else:
            reasons[position] = f"{utterances[position][0].path}: its embedding is not finite"
    return embeddings, reasons


@contextmanager
def _side_by_side(device: torch.device) -> Iterator[Callable[..., Iterable[Any]]]:
    """A ``map``: on a CPU with several threads each takes utterances of its own, which is faster than sharing one."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if threads == 1:
        yield map
        return
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def begin() -> None:
        """Each thread's own settings; without a context, whose end would drop what all have cast."""
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        torch.set_autocast_dtype("cpu", dtype)
        torch.set_autocast_enabled("cpu", enabled)

    try:
        with ThreadPoolExecutor(threads, initializer=begin) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # what a thread sets, some libraries take for all


def _own_blocks(utterances: Sequence[Sequence[Part]], settled: Container[int]) -> list[list[int]]:
    """This process's blocks of positions, the longest utterances first, without those that need no embedding.

    Blocks are cut before the cache is asked: an interruption, or a recording that is tried again each time, does not
    change which utterances are computed together, on which the last bit of an embedding may depend.
    """
    order = sorted(range(len(utterances)), key=lambda position: _samples(utterances[position]), reverse=True)
    blocks = [order[start : start + _READ_AHEAD] for start in range(0, len(order), _READ_AHEAD)]
    missing = [[position for position in block if position not in settled] for block in blocks]
    return [block for block in missing if block][rank() :: world_size()]


def _equal_lengths(
    utterances: Sequence[Sequence[Part]], blocks: Sequence[Sequence[int]]
) -> Iterator[tuple[list[Group], dict[int, str]]]:
    """Each block, as positions with their waveforms [B, S], and the reasons of those that cannot be read.

    The next block is read while one is used.
    """
    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(_read, utterances[position]) for position in blocks[0]] if blocks else []
        for block, following in zip(blocks, [*blocks[1:], ()], strict=False):
            readings = {position: reading.result() for position, reading in zip(block, ahead, strict=True)}
            ahead = [pool.submit(_read, utterances[position]) for position in following]
            unreadable = {position: reading for position, reading in readings.items() if isinstance(reading, str)}
            pairs = [(position, reading) for position, reading in readings.items() if isinstance(reading, Tensor)]
            pairs.sort(key=lambda pair: len(pair[1]))
            groups: list[Group] = []
            for _, equal in groupby(pairs, key=lambda pair: len(pair[1])):
                alike = list(equal)
                for first in range(0, len(alike), _BATCH):
                    batch = alike[first : first + _BATCH]
                    positions = [position for position, _ in batch]
                    groups.append((positions, torch.stack([waveform for _, waveform in batch])))
            yield groups, unreadable


def _read(utterance: Sequence[Part]) -> Tensor | str:
    """The utterance's waveform [S], or why it cannot be read."""
    try:
        return read_utterance(utterance)
    except ValueError as error:
        return str(error)


@torch.no_grad()
def mean_embedding(network: nn.Module, features: Iterable[Tensor]) -> Array:
    """Mean embedding of training crops.

    Args:
        network: put into evaluation mode.
        features: filterbanks [B, F, T] on the network's device.

    Returns:
        [E].

    Raises:
        ValueError: there are no crops.
    """
    network.eval()
    outputs = [network(batch).float().cpu().numpy() for batch in features]
    if not outputs:
        raise ValueError("the mean embedding has no training crops that can be read; the log names the recordings")
    return np.concatenate(outputs).mean(axis=0)
