"""The headers of a corpus, kept between runs, so that no file is opened twice as long as it stays what it was."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.corpora.headers import HEADERS, READ, read_headers
from sv_sparse.io import atomic_write

PIECES = "headers"  # folder of what was read since

_KNOWN = "headers.parquet"
_PIECE = 20_000  # files that are read again after a kill, at most
_ROOT = b"root"  # what the files of a table are relative to
_RULES, _NOW = b"rules", b"2"  # of what can be used; by others, files are opened again
_FIELDS = [("file", pa.string()), ("size", pa.int64()), ("changed", pa.int64()), *((f.name, f.type) for f in HEADERS)]


def known_headers(table: pa.Table, root: Path, out: Path) -> pa.Table:
    """The headers of all files, opening only those that are new, have changed, or could not be used the last time.

    Args:
        table: Columns file (below ``root``), size and changed.
        root: Any folder above all of them; another one than the last time makes no difference.
        out: The prepared folder, where headers are kept.

    Returns:
        Columns as in ``READ``.
    """
    wanted = table.select(["file", "size", "changed"])
    known = _load(out, root)
    place = _places(wanted.column("file"), known.column("file"))
    same = place >= 0
    for name in ("size", "changed"):
        same[same] = wanted.column(name).to_numpy()[same] == known.column(name).to_numpy()[place[same]]
    same[same] = known.column("samples").to_numpy()[place[same]] > 0  # what could not be read is tried again
    columns = {name: np.zeros(len(wanted), READ.field(name).type.to_pandas_dtype()) for name in READ.names}
    columns["problem"][:] = ""
    for name in HEADERS.names:
        columns[name][same] = known.column(name).to_numpy()[place[same]]
    is_other = len(known) != len(wanted)
    del known, place
    _read_missing(wanted, root, np.flatnonzero(~same), columns, out / PIECES)
    headers = pa.table(columns, READ)
    pieces = out / PIECES
    if pieces.is_dir() or is_other:
        _write(out / _KNOWN, pa.table({**_by_name(wanted), **_by_name(headers.select(HEADERS.names))}), root)
    for piece in pieces.glob("*.parquet"):
        piece.unlink()
    if pieces.is_dir():
        pieces.rmdir()
    return headers


def _read_missing(
    wanted: pa.Table, root: Path, missing: NDArray[np.int64], columns: dict[str, NDArray[np.int64]], pieces: Path
) -> None:
    """Read the headers of some rows into ``columns``, and keep each piece of them as soon as it is read."""
    with tqdm(total=len(missing), desc="reading headers", unit="file", unit_scale=True, disable=None) as progress:
        for start in range(0, len(missing), _PIECE):
            rows = missing[start : start + _PIECE]
            files = wanted.take(rows)
            headers = read_headers(root, files.column("file").to_pylist(), progress)
            for name, column in columns.items():
                column[rows] = headers.column(name).to_numpy()
            pieces.mkdir(exist_ok=True)
            whole = pa.table({**_by_name(files), **_by_name(headers.select(HEADERS.names))})
            _write(pieces / f"{len(list(pieces.glob('*.parquet'))):06d}.parquet", whole, root)


def _places(files: pa.ChunkedArray, known: pa.ChunkedArray) -> NDArray[np.int64]:
    """Where each file is among those that are known, or -1; the same files as ever need no table of all names."""
    if files.equals(known):
        return np.arange(len(files))
    return pc.index_in(files, value_set=known.combine_chunks()).cast(pa.int64()).fill_null(-1).to_numpy()


def _by_name(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.schema.names, table.columns, strict=True))


def _load(out: Path, root: Path) -> pa.Table:
    """What earlier runs read: the newest entry of each file, all relative to ``root``."""
    places = [*sorted((out / PIECES).glob("*.parquet"), reverse=True), out / _KNOWN]
    tables = [_below(pq.read_table(place), text_of(root)) for place in places if place.is_file()]
    return pa.concat_tables([*tables, pa.schema(_FIELDS).empty_table()])


def _below(table: pa.Table, root: str) -> pa.Table:
    metadata = table.schema.metadata or {}
    before = metadata.get(_ROOT, b"").decode()
    table = table.replace_schema_metadata()
    if metadata.get(_RULES) != _NOW:
        return table.slice(0, 0)
    if before == root:
        return table
    file = pc.binary_join_element_wise(before.rstrip("/"), table.column("file"), "/")
    prefix = root.rstrip("/") + "/"
    file = pc.if_else(pc.starts_with(file, prefix), pc.utf8_slice_codeunits(file, start=len(prefix)), file)
    return table.set_column(0, "file", file)


def text_of(folder: Path) -> str:
    """A folder's absolute path as text that a table can hold, whatever its bytes are."""
    return os.path.abspath(folder).encode("utf-8", "backslashreplace").decode()


def _write(path: Path, table: pa.Table, root: Path) -> None:
    with atomic_write(path) as file:
        pq.write_table(table.replace_schema_metadata({_ROOT: text_of(root), _RULES: _NOW}), file)
