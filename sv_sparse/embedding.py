"""Recordings to embeddings: whole utterances, read ahead by threads, longest first."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sv_sparse.data.audio import read_utterance
from sv_sparse.data.manifest import Part
from sv_sparse.distributed import from_first, gathered_objects, rank, ranks
from sv_sparse.embedding_cache import EmbeddingCache
from sv_sparse.scoring.cosine import Array

Group = tuple[list[int], Tensor]  # positions, and their waveforms of one length

_READ_AHEAD = 64  # utterances
_BATCH = 16  # utterances of equal length


@torch.no_grad()
def embed(
    network: nn.Module,
    filterbank: nn.Module,
    utterances: Sequence[Sequence[Part]],
    *,
    title: str,
    cache: EmbeddingCache | None = None,
) -> Array:
    """Embeddings of whole utterances, in float32; equal lengths go together, nothing is padded.

    Where several processes run this, each embeds some and all get all of them, equal to the last bit to those of one
    process on the same hardware.

    Args:
        network: filterbank [B, F, T] to embedding [B, E]; put into evaluation mode.
        filterbank: waveform [B, S] to filterbank [B, F, T].
        utterances: the files of each utterance.
        title: of the progress bar.
        cache: where embeddings are taken from that are there, and kept.

    Returns:
        [len(utterances), E].

    Raises:
        ValueError: an utterance cannot be read; names the file.
    """
    network.eval()
    device = next(network.parameters()).device
    known = from_first(lambda: cache.find(utterances) if cache is not None else {})
    missing = [position for position in range(len(utterances)) if position not in known]
    missing.sort(key=lambda position: _samples(utterances[position]), reverse=True)
    found: dict[int, Array] = {}
    own = _own_blocks(missing)
    hidden = rank() > 0 or not sys.stderr.isatty()
    title_bar = tqdm(total=sum(map(len, own)), desc=title, unit="utt", leave=False, disable=hidden)
    with title_bar as bar, _side_by_side(device) as pool, _kept(cache):
        for groups in _equal_lengths(utterances, own):
            outputs = pool(partial(_embedded, network, filterbank, utterances), groups)
            block = {
                position: row
                for (positions, _), rows in zip(groups, outputs, strict=True)
                for position, row in zip(positions, rows, strict=True)
            }
            found.update(block)
            if cache is not None:
                cache.keep({position: utterances[position] for position in block}, block)
            bar.update(len(block))
    together = known | {position: row for part in gathered_objects(found) for position, row in part.items()}
    return np.stack([together[position] for position in range(len(utterances))])


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


def _embedded(network: nn.Module, filterbank: nn.Module, utterances: Sequence[Sequence[Part]], group: Group) -> Array:
    positions, waveforms = group
    device = next(network.parameters()).device
    try:
        return network(filterbank(waveforms.to(device))).float().cpu().numpy()
    except ValueError as error:  # too short for the filterbank or the network
        raise ValueError(f"{utterances[positions[0]][0].path}: {error}") from error


@contextmanager
def _side_by_side(device: torch.device) -> Iterator[Callable[..., Iterable[Array]]]:
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


def _own_blocks(positions: Sequence[int]) -> list[Sequence[int]]:
    """This process's blocks of positions; with all of a block in the cache, or none, the others stay as they were."""
    starts = range(rank() * _READ_AHEAD, len(positions), ranks() * _READ_AHEAD)
    return [positions[start : start + _READ_AHEAD] for start in starts]


def _equal_lengths(utterances: Sequence[Sequence[Part]], blocks: Sequence[Sequence[int]]) -> Iterator[list[Group]]:
    """Each block, as positions with their waveforms [B, S]; the next one is read while it is used."""
    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(read_utterance, utterances[position]) for position in blocks[0]] if blocks else []
        for block, following in zip(blocks, [*blocks[1:], ()], strict=False):
            waveforms = [reading.result() for reading in ahead]
            ahead = [pool.submit(read_utterance, utterances[position]) for position in following]
            pairs = sorted(zip(block, waveforms, strict=True), key=lambda pair: len(pair[1]))
            alike = [list(several) for _, several in groupby(pairs, key=lambda pair: len(pair[1]))]
            parts = [several[first : first + _BATCH] for several in alike for first in range(0, len(several), _BATCH)]
            yield [
                ([position for position, _ in part], torch.stack([waveform for _, waveform in part])) for part in parts
            ]


@torch.no_grad()
def mean_embedding(network: nn.Module, features: Iterable[Tensor]) -> Array:
    """Mean embedding of training crops.

    Args:
        network: put into evaluation mode.
        features: filterbanks [B, F, T] on the network's device.

    Returns:
        [E].
    """
    network.eval()
    outputs = [network(batch).float().cpu().numpy() for batch in features]
    return np.concatenate(outputs).mean(axis=0)
