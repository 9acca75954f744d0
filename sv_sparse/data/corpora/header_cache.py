"""Cache of a corpus's headers in its prepared folder: no file is opened twice unless it changes."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.corpora.headers import HEADERS, read_headers
from sv_sparse.io import atomic_write

PARTIAL_DIR = "headers"  # folder of the headers that a run has read so far

_CACHE = "headers.parquet"
_PIECE_SIZE = 20_000  # files that are read again after a kill, at most
_VERSION = b"3"  # of the rules for what can be used; headers by other rules are read again
_STORED = [field for field in HEADERS if field.name != "problem"]  # problems may go away and are never trusted
_COLUMNS = pa.schema([("path", pa.string()), ("mtime", pa.int64()), *_STORED])


def cached_headers(table: pa.Table, root: Path, out: Path) -> pa.Table:
    """Return the headers of files; only those are opened that are new, have changed, or could not be used before.

    Args:
        table: columns ``file`` (below ``root``), ``size`` and ``mtime``.
        root: folder above the files.
        out: the prepared folder, which keeps the headers.

    Returns:
        Table with the columns ``HEADERS``; ``problem`` is empty for cached headers.
    """
    paths = pc.binary_join_element_wise(path_text(root).rstrip("/"), table.column("file"), "/")
    cache = _load(out)
    index = _match_paths(paths, cache.column("path"))
    is_cached = index >= 0
    for name in ("size", "mtime"):
        is_cached[is_cached] = (
            table.column(name).to_numpy()[is_cached] == cache.column(name).to_numpy()[index[is_cached]]
        )
    is_cached[is_cached] = cache.column("samples").to_numpy()[index[is_cached]] > 0  # a disk may have been away
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
            piece = _with_keys(headers, paths.take(rows), table.column("mtime").take(rows))
            _write(partial / f"{number:06d}.parquet", piece)
    headers = pa.table([columns[name] for name in HEADERS.names], HEADERS)
    if partial.is_dir() or is_other_corpus:
        _write(out / _CACHE, _with_keys(headers, paths, table.column("mtime")))
        shutil.rmtree(partial, ignore_errors=True)
    return headers


def _match_paths(paths: pa.ChunkedArray, cached: pa.ChunkedArray) -> NDArray[np.int64]:
    if paths.equals(cached):
        return np.arange(len(paths))  # the usual case, without a hash table of a million paths
    return pc.index_in(paths, value_set=cached.combine_chunks()).cast(pa.int64()).fill_null(-1).to_numpy().copy()


def _with_keys(headers: pa.Table, paths: pa.ChunkedArray, mtime: pa.ChunkedArray) -> pa.Table:
    columns = [headers.column(field.name) for field in _STORED]
    return pa.table([paths, mtime, *columns], _COLUMNS)


def _load(out: Path) -> pa.Table:
    """Return what earlier runs read, the newest headers of a file first."""
    tables = []
    for path in [*sorted((out / PARTIAL_DIR).glob("*.parquet"), reverse=True), out / _CACHE]:
        if path.is_file():
            table = pq.read_table(path)
            if (table.schema.metadata or {}).get(b"version") == _VERSION:
                tables.append(table.replace_schema_metadata())
    return pa.concat_tables([*tables, _COLUMNS.empty_table()])


def path_text(folder: Path) -> str:
    """Return a folder's absolute path as text that a table can hold, whatever its bytes are."""
    return os.path.abspath(folder).encode("utf-8", "backslashreplace").decode()


def _write(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as file:
        pq.write_table(table.replace_schema_metadata({b"version": _VERSION}), file)
