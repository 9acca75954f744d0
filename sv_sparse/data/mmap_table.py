"""Parquet files as tables that are mapped into memory, by way of a copy in Arrow's own format (DECISIONS 14)."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from sv_sparse.io import atomic_write

# Key of the metadata: size and modification time of the file that was copied.
_SOURCE_STATE = b"source_state"
_READ_ONLY_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS}


def mmap_parquet(source: Path, read: Callable[[Path], pa.Table]) -> pa.Table:
    """Return the table of a file, each column one buffer, mapped from a copy of the file's present state.

    The copy lies beside the file (``.arrow``), or, if the folder cannot be written, in a folder of the user's own
    among the temporary files. If there is none yet, ``read`` reads the file.

    Raises:
        OSError: ``source`` cannot be opened, or the copy cannot be written.
    """
    state = _file_state(source)
    beside = source.with_suffix(".arrow")
    table = _open(beside, state)
    if table is not None:
        return table
    elsewhere = _user_cache() / f"{hashlib.sha256(os.fsencode(source)).hexdigest()[:32]}.arrow"
    table = _open(elsewhere, state)
    if table is not None:
        return table
    table = read(source)
    try:
        _write(beside, table, state)
        return _open(beside, state)
    except OSError as error:
        if error.errno not in _READ_ONLY_ERRNOS:
            raise
    _write(elsewhere, table, state)
    return _open(elsewhere, state)


def write_arrow_copy(source: Path, table: pa.Table) -> None:
    """Write the copy beside a file that was just written from ``table``."""
    _write(source.with_suffix(".arrow"), table, _file_state(source))


def _file_state(source: Path) -> bytes:
    status = source.stat()
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _user_cache() -> Path:
    # Windows has a folder of temporary files for each user, and no user numbers.
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"sv-sparse-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Another user may have made a folder of this name first, to read or replace what is put there.
    if folder.stat().st_uid != user:
        raise PermissionError(errno.EACCES, "belongs to somebody else", str(folder))
    return folder


def _open(copy: Path, state: bytes) -> pa.Table | None:
    """Return the table of a copy; None if there is none of that state of the source."""
    try:
        table = pa.ipc.open_file(pa.memory_map(os.fsencode(copy))).read_all()
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    metadata = table.schema.metadata or {}
    return table if metadata.get(_SOURCE_STATE) == state else None


def _write(copy: Path, table: pa.Table, state: bytes) -> None:
    # One batch, so that every column is one buffer.
    table = table.unify_dictionaries().combine_chunks()
    table = table.replace_schema_metadata({**table.schema.metadata, _SOURCE_STATE: state})
    with atomic_write(copy) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
