"""A collected corpus to a prepared folder: headers, problems, counts, manifest. Interrupted, it goes on where it was.

A prepared folder holds ``manifest.parquet``, ``trials/``, ``problems.tsv``, ``headers.parquet`` (so that nothing is
opened twice) and, where recordings were converted, ``flac/``.
"""

import fcntl
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.audio import SAMPLE_RATE
from sv_sparse.data.collect import Found
from sv_sparse.data.convert import COMPRESSED, convert
from sv_sparse.data.headers import HEADERS, one_part, read_headers
from sv_sparse.data.manifest import NAME
from sv_sparse.storage import atomic_write, write_text

logger = logging.getLogger(__name__)

MIN_SECONDS = 0.2  # a shorter recording is a mistake of cutting, and no crop

_KNOWN = "headers.parquet"
_PIECES = "headers"  # folder of what was read since
_PIECE = 20_000  # files that are read again after a kill, at most


@contextmanager
def sole(out: Path) -> Iterator[None]:
    """Make a folder, and let no other process prepare into it at the same time.

    Raises:
        ValueError: Another process does.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"--out {out}: another process is preparing into this folder") from None
        for folder in (out, out / "trials", out / _PIECES):  # what a killed run was writing
            for left in folder.glob(".*.tmp"):
                left.unlink()
        yield


@dataclass
class Opened:
    """A corpus whose files were converted where needed, and opened.

    Attributes:
        found: The corpus; ``file`` names what was opened.
        headers: Its headers, row by row, columns as in ``HEADERS``.
        problems: File and problem of everything that is not as it should be.
        usable: bool [rows], what can be read.
    """

    found: Found
    headers: pa.Table
    problems: list[tuple[str, str]]
    usable: NDArray[np.bool_]


def open_all(found: Found, out: Path, *, flac: bool) -> Opened:
    """Convert what no reader reads (everything, with ``flac``), then open every header, and say what is wrong.

    Raises:
        ValueError: ffmpeg is needed and not installed.
        OSError: A file cannot be written.
    """
    failed = _converted(found, out, flac=flac)
    headers = known_headers(found, out)
    samples, rate, channels = (headers.column(name).to_numpy() for name in ("samples", "sample_rate", "channels"))
    short = (samples > 0) & (samples < MIN_SECONDS * np.maximum(rate, 1))
    files = found.table.column("file")
    problems = [(file, f"left out: cannot be converted ({why})") for file, why in failed.items()]
    problems += [(file, f"left out: cannot be found ({why})") for file, why in found.lost]

    def report(rows: NDArray[np.bool_], problem: Callable[[int], str]) -> None:
        problems.extend((files[int(row)].as_py(), problem(int(row))) for row in np.flatnonzero(rows))

    unreadable = (samples == 0) & ~_is_in(files, failed)
    report(unreadable & (rate == 0), lambda row: "left out: unreadable")
    report(unreadable & (rate > 0), lambda row: "left out: empty")
    report(short, lambda row: f"left out: too short, {samples[row] / rate[row]:.3f} s of {MIN_SECONDS} s")
    report((samples > 0) & (rate != SAMPLE_RATE), lambda row: f"{rate[row]} Hz; resampled when read")
    report(channels > 1, lambda row: f"{channels[row]} channels; the first is used")
    problems += [(file, "left out: the same utterance lies there in a file that is preferred") for file in found.twice]
    return Opened(found, headers, sorted(problems), (samples > 0) & ~short)


def _is_in(files: pa.ChunkedArray, names: dict[str, str]) -> NDArray[np.bool_]:
    chosen: NDArray[np.bool_] = pc.is_in(files, value_set=pa.array(list(names), pa.string())).to_numpy()
    return chosen


def _converted(found: Found, out: Path, *, flac: bool) -> dict[str, str]:
    """Convert, and let the table name the new files.

    Returns:
        The recordings that could not be converted, and why.
    """
    files, utterances = (found.table.column(name) for name in ("file", "utterance"))
    ending = pc.utf8_lower(files)
    wanted = pc.or_(pc.ends_with(ending, COMPRESSED[0]), pc.ends_with(ending, COMPRESSED[1]))
    if flac:
        wanted = pc.or_(wanted, pc.invert(pc.ends_with(ending, ".flac")))
    rows = np.flatnonzero(wanted.to_numpy())
    if not len(rows):
        return {}
    names = files.take(rows).to_pylist()
    targets = [str(out / "flac" / Path(key).with_suffix(".flac")) for key in utterances.take(rows).to_pylist()]
    results = convert([str(found.root / name) for name in names], targets)
    changed = [files.to_pylist(), found.table.column("size").to_pylist(), found.table.column("changed").to_pylist()]
    for row, target, problem in zip(rows, targets, results, strict=True):
        if problem is None:
            status = os.stat(target)
            new = (os.path.relpath(target, found.root), status.st_size, status.st_mtime_ns)
            for column, value in zip(changed, new, strict=True):
                column[row] = value
    for name, column in zip(("file", "size", "changed"), changed, strict=True):
        index = found.table.schema.get_field_index(name)
        found.table = found.table.set_column(index, name, pa.array(column, found.table.schema.field(name).type))
    return {name: problem for name, problem in zip(names, results, strict=True) if problem is not None}


def known_headers(found: Found, out: Path) -> pa.Table:
    """The headers of all files, opening only those that are new or have changed since the last time."""
    wanted = found.table.select(["file", "size", "changed"])
    known = _load(out)
    place = _places(wanted.column("file"), known.column("file"))
    same = place >= 0
    for name in ("size", "changed"):
        same[same] = wanted.column(name).to_numpy()[same] == known.column(name).to_numpy()[place[same]]
    same[same] = known.column("samples").to_numpy()[place[same]] > 0  # what could not be read is tried again
    columns = {name: np.zeros(len(wanted), HEADERS.field(name).type.to_pandas_dtype()) for name in HEADERS.names}
    for name, column in columns.items():
        column[same] = known.column(name).to_numpy()[place[same]]
    missing = np.flatnonzero(~same)
    pieces = out / _PIECES
    with tqdm(total=len(missing), desc="reading headers", unit="file", unit_scale=True, disable=None) as progress:
        for start in range(0, len(missing), _PIECE):
            rows = missing[start : start + _PIECE]
            files = wanted.take(rows)
            headers = read_headers(found.root, files.column("file").to_pylist(), progress)
            for name, column in columns.items():
                column[rows] = headers.column(name).to_numpy()
            pieces.mkdir(exist_ok=True)
            whole = pa.table({**_by_name(files), **_by_name(headers)})
            _write(pieces / f"{len(list(pieces.glob('*.parquet'))):06d}.parquet", whole)
    headers = pa.table(columns, HEADERS)
    if pieces.is_dir() or len(known) != len(wanted):
        _write(out / _KNOWN, pa.table({**_by_name(wanted), **_by_name(headers)}))
    for piece in pieces.glob("*.parquet"):
        piece.unlink()
    if pieces.is_dir():
        pieces.rmdir()
    return headers


def _places(files: pa.ChunkedArray, known: pa.ChunkedArray) -> NDArray[np.int64]:
    """Where each file is among those that are known, or -1; the same files as ever need no table of all names."""
    if files.equals(known):
        return np.arange(len(files))
    return pc.index_in(files, value_set=known.combine_chunks()).cast(pa.int64()).fill_null(-1).to_numpy()


def _by_name(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.schema.names, table.columns, strict=True))


def _load(out: Path) -> pa.Table:
    """What earlier runs read: the newest entry of each file."""
    places = [*sorted((out / _PIECES).glob("*.parquet"), reverse=True), out / _KNOWN]
    tables = [pq.read_table(place) for place in places if place.is_file()]
    fields = [
        ("file", pa.string()),
        ("size", pa.int64()),
        ("changed", pa.int64()),
        *((f.name, f.type) for f in HEADERS),
    ]
    return pa.concat_tables([*tables, pa.schema(fields).empty_table()])


def _write(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as file:
        pq.write_table(table, file)


def manifest_table(opened: Opened) -> pa.Table:
    """What can be read, in the manifest's columns, each utterance a file, all splits ``unused``."""
    usable = pa.array(opened.usable)
    table, headers = (whole.filter(usable).combine_chunks() for whole in (opened.found.table, opened.headers))
    named = {name: table.column(name) for name in ("utterance", "speaker", "session", "genre", "subset")}
    stated = {name: headers.column(name) for name in ("samples", "sample_rate", "channels")}
    parts = one_part(table.column("file").combine_chunks(), headers)
    return pa.table({**named, **stated, "parts": parts, "split": pa.array(["unused"] * len(table), NAME)})


def write_problems(out: Path, problems: Sequence[tuple[str, str]]) -> None:
    """Write ``problems.tsv``, a line for each file that is not as it should be, and say how many of each kind."""
    write_text(out / "problems.tsv", "file\tproblem\n" + "".join(f"{file}\t{what}\n" for file, what in problems))
    kinds = Counter(re.split(r"[,;(]", what)[0].strip() for _, what in problems)
    for kind, count in kinds.items():
        logger.info("%s: %d files, named in %s", kind, count, out / "problems.tsv")
