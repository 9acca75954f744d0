"""A Parquet file as a table that is mapped into memory: from a copy in Arrow's own format, made when it is needed."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from sv_sparse.io import atomic_write

_COPIED = b"copied"  # size and time of change of the file that a copy was made of
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


def map_table(source: Path, read: Callable[[Path], pa.Table]) -> pa.Table:
    """The table in ``source``, every column one buffer, mapped from a copy of its present state.

    Args:
        source: Lies beside its copy, ``.arrow``; where the folder cannot be written, the copy is in a folder of the
            user's own among the temporary files.
        read: Reads ``source`` where there is no such copy yet.

    Raises:
        OSError: ``source`` cannot be opened, or the copy cannot be written.
    """
    state = _state(source)
    beside = source.with_suffix(".arrow")
    table = _open(beside, state)
    if table is None:
        elsewhere = _elsewhere(source)
        table = _open(elsewhere, state)
    if table is not None:
        return table
    whole = read(source)
    try:
        _write(beside, whole, state)
        return _open(beside, state)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
    _write(elsewhere, whole, state)
    return _open(elsewhere, state)


def write_copy(source: Path, table: pa.Table) -> None:
    """Leave the copy beside a file that was just written from ``table``."""
    _write(source.with_suffix(".arrow"), table, _state(source))


def _state(source: Path) -> bytes:
    status = source.stat()
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _elsewhere(source: Path) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows has a folder of temporary files for each user
    folder = Path(tempfile.gettempdir()) / f"sv-sparse-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != user:
        raise PermissionError(errno.EACCES, "belongs to somebody else", str(folder))
    return folder / f"{hashlib.sha256(os.fsencode(source)).hexdigest()[:32]}.arrow"


def _open(copy: Path, state: bytes) -> pa.Table | None:
    """A copy of that state; None where there is none."""
    try:
        table = pa.ipc.open_file(pa.memory_map(os.fsencode(copy))).read_all()
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    return table if (table.schema.metadata or {}).get(_COPIED) == state else None


def _write(copy: Path, table: pa.Table, state: bytes) -> None:
    whole = table.unify_dictionaries().combine_chunks()  # one batch, so that every column is one buffer
    whole = whole.replace_schema_metadata({**whole.schema.metadata, _COPIED: state})
    with atomic_write(copy) as file, pa.ipc.new_file(file, whole.schema) as writer:
        writer.write_table(whole)
