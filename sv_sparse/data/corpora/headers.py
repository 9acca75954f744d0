"""Headers of many files, and their cache in the prepared folder: no file is opened twice unless it changes."""

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

# Nothing here needs torch, so that preparing a million files does not load it.
from sv_sparse.data.decoding import MIN_SECONDS, inspect, too_short
from sv_sparse.data.manifest import segment_column
from sv_sparse.io import atomic_write

# The fields of ``AudioInfo``, in its order.
HEADERS = pa.schema(
    [
        # 0 if the file cannot be used.
        ("samples", pa.int64()),
        ("sample_rate", pa.int32()),
        ("channels", pa.int16()),
        ("size", pa.int64()),
        ("pcm_offset", pa.int64()),
        # Reason why the file cannot be used.
        ("problem", pa.string()),
    ]
)
# Folder of the headers that a run has read so far.
PARTIAL_DIR = "headers"

Item = TypeVar("Item")
Result = TypeVar("Result")

# They wait for the disk or the network, not for the processor.
_NUM_THREADS = 16
# Files per task.
_CHUNK_SIZE = 256
_CACHE = "headers.parquet"
# At most so many files are read again after a kill.
_PIECE_SIZE = 20_000
# Of the rules for what can be used; headers by other rules are read again.
_VERSION = b"3"
# Problems may go away and are never trusted.
_STORED = [field for field in HEADERS if field.name != "problem"]
_COLUMNS = pa.schema([("path", pa.string()), ("mtime", pa.int64()), *_STORED])


def read_headers(root: str | Path, files: Sequence[str], progress: "tqdm[None]") -> pa.Table:
    """Return the headers of files below ``root``, one row each, with the columns ``HEADERS``."""
    headers = thread_map(lambda file: inspect(os.path.join(root, file)), files, progress)
    columns = zip(*headers, strict=True) if headers else [[]] * len(HEADERS)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, HEADERS, strict=True)], HEADERS)


def unusable(headers: pa.Table) -> dict[int, str]:
    """Return the reason why a file cannot be used, by row, for those of ``read_headers`` that cannot, ascending."""
    samples = headers.column("samples").to_numpy()
    rate = headers.column("sample_rate").to_numpy()
    problems = headers.column("problem")
    reasons = {}
    for row in np.flatnonzero((samples == 0) | (samples < MIN_SECONDS * rate)).tolist():
        reasons[row] = too_short(samples[row], rate[row]) if samples[row] else problems[row].as_py()
    return reasons


def single_segments(files: pa.StringArray, headers: pa.Table) -> pa.ListArray:
    """Return the manifest's column ``segments`` for utterances of one file each, with headers of ``read_headers``."""
    samples, size, pcm_offset = (headers.column(name).to_numpy() for name in ("samples", "size", "pcm_offset"))
    return segment_column(files, samples, np.zeros(len(files), np.int64), size, pcm_offset)


def thread_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    progress: "tqdm[None]",
    *,
    num_threads: int = _NUM_THREADS,
    chunk_size: int = _CHUNK_SIZE,
) -> list[Result]:
    """Return a function's results for items, in order; an error ends it after the tasks that are running."""
    # A task for each item would cost more than reading a header.
    chunks = [items[start : start + chunk_size] for start in range(0, len(items), chunk_size)]
    results: list[Result] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for chunk_results in pool.map(lambda chunk: list(map(function, chunk)), chunks):
            results += chunk_results
            progress.update(len(chunk_results))
    return results


def cached_headers(table: pa.Table, root: Path, out: Path) -> pa.Table:
    """Return the headers of files with the columns ``HEADERS``; ``problem`` is empty for cached ones.

    Only those are opened that are new, have changed, or could not be used before. ``table`` has the columns ``file``
    (below ``root``), ``size`` and ``mtime``. The prepared folder ``out`` keeps the headers.
    """
    paths = absolute_paths(root, table.column("file"))
    mtime = table.column("mtime")
    cache = _load(out)
    index = _match_paths(paths, cache.column("path"))
    is_cached = index >= 0
    for name in ("size", "mtime"):
        is_cached[is_cached] = (
            table.column(name).to_numpy()[is_cached] == cache.column(name).to_numpy()[index[is_cached]]
        )
    # A disk may have been away.
    is_cached[is_cached] = cache.column("samples").to_numpy()[index[is_cached]] > 0
    columns: dict[str, NDArray[np.generic]] = {"problem": np.full(len(table), "", dtype=object)}
    for field in _STORED:
        columns[field.name] = np.zeros(len(table), field.type.to_pandas_dtype())
        columns[field.name][is_cached] = cache.column(field.name).to_numpy()[index[is_cached]]
    is_other_corpus = len(cache) != len(table)
    del cache, index
    missing = np.flatnonzero(~is_cached)
    partial = out / PARTIAL_DIR
    with tqdm(total=len(missing), desc="reading headers", unit="file", unit_scale=True, disable=None) as progress:
        for start in range(0, len(missing), _PIECE_SIZE):
            rows = missing[start : start + _PIECE_SIZE]
            headers = read_headers(root, table.column("file").take(rows).to_pylist(), progress)
            for name in HEADERS.names:
                columns[name][rows] = headers.column(name).to_numpy()
            partial.mkdir(exist_ok=True)
            number = len(list(partial.glob("*.parquet")))
            _write(partial / f"{number:06d}.parquet", _with_keys(headers, paths.take(rows), mtime.take(rows)))
    headers = pa.table([columns[name] for name in HEADERS.names], HEADERS)
    if partial.is_dir() or is_other_corpus:
        _write(out / _CACHE, _with_keys(headers, paths, mtime))
        shutil.rmtree(partial, ignore_errors=True)
    return headers


def _match_paths(paths: pa.ChunkedArray, cached: pa.ChunkedArray) -> NDArray[np.int64]:
    # The usual case, without a hash table of a million paths.
    if paths.equals(cached):
        return np.arange(len(paths))
    return pc.index_in(paths, value_set=cached.combine_chunks()).cast(pa.int64()).fill_null(-1).to_numpy().copy()


def _with_keys(headers: pa.Table, paths: pa.ChunkedArray, mtime: pa.ChunkedArray) -> pa.Table:
    return pa.table([paths, mtime, *[headers.column(field.name) for field in _STORED]], _COLUMNS)


def _load(out: Path) -> pa.Table:
    """Return what earlier runs read, the newest headers of a file first."""
    tables = []
    for path in [*sorted((out / PARTIAL_DIR).glob("*.parquet"), reverse=True), out / _CACHE]:
        if path.is_file():
            table = pq.read_table(path)
            if (table.schema.metadata or {}).get(b"version") == _VERSION:
                tables.append(table.replace_schema_metadata())
    return pa.concat_tables([*tables, _COLUMNS.empty_table()])


def absolute_paths(root: Path, files: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the absolute paths of files below ``root`` as text."""
    # A table can hold no other bytes than UTF-8.
    folder = os.path.abspath(root).encode("utf-8", "backslashreplace").decode()
    return pc.binary_join_element_wise(folder.rstrip("/"), files, "/")


def _write(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as file:
        pq.write_table(table.replace_schema_metadata({b"version": _VERSION}), file)
