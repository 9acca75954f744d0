"""A collected corpus to a prepared folder: headers, problems, counts, manifest. Interrupted, it goes on where it was.

A prepared folder holds ``manifest.parquet``, ``trials/``, ``problems.tsv``, ``headers.parquet`` (so that nothing is
opened twice) and, where recordings were converted, ``flac/``.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sv_sparse.data.corpora.collect import Found
from sv_sparse.data.corpora.convert import convert, is_compressed
from sv_sparse.data.corpora.header_cache import PIECES, known_headers
from sv_sparse.data.corpora.headers import one_part, unusable
from sv_sparse.data.corpora.published import LIST_FILES
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.manifest import NAME
from sv_sparse.io import file_lock, printable, write_text

logger = logging.getLogger(__name__)


@contextmanager
def sole(out: Path) -> Iterator[None]:
    """Make a folder, and let no other process prepare into it at the same time, as far as its file system can tell.

    Raises:
        ValueError: Another process does, or the folder's name is not UTF-8.
    """
    if printable(out) != str(out):
        raise ValueError(f"--out {printable(out)}: expected a name in UTF-8")  # which Parquet's readers need
    out.mkdir(parents=True, exist_ok=True)
    with file_lock(out, f"--out {out}: another process is preparing into this folder"):
        for folder in (out, out / "trials", out / PIECES):  # what a killed run was writing
            for left in folder.glob(".*.tmp"):
                left.unlink()
        yield


@dataclass
class Opened:
    """A corpus whose files were converted where needed, and opened.

    Attributes:
        found: The corpus; ``file`` names what was opened.
        headers: Its headers, row by row, columns as in ``READ``.
        problems: File and problem of everything that is not as it should be.
        usable: bool [rows], what can be read.
    """

    found: Found
    headers: pa.Table
    problems: list[tuple[str, str]]
    usable: NDArray[np.bool_]


def open_all(found: Found, out: Path, *, flac: bool) -> Opened:
    """Convert what no reader reads (everything, with ``flac``), open every header, and say what is wrong.

    Where a file is of no use, the next one of the same utterance takes its place.

    Raises:
        ValueError: ffmpeg is needed and not installed.
        OSError: A file cannot be written.
    """
    problems = [(file, f"left out: cannot be found ({why})") for file, why in found.lost]
    failed: dict[int, str] = {}
    rows = np.arange(len(found.table))
    while True:
        rows = rows[_to_convert(found, rows, flac=flac)]
        if len(rows):
            converted = convert(found, rows, out / "flac")
            failed |= converted.failed
            problems += converted.notes
        headers = known_headers(found.table, found.root, out)
        useless = _useless(found, headers, failed)
        files = {row: found.table.column("file")[row].as_py() for row in useless}
        rows = found.stand_in(np.array(list(useless), dtype=np.int64))
        for row in map(int, rows):
            other = found.table.column("file")[row].as_py()
            problems.append((files.pop(row), f"left out: {useless.pop(row)}; {other} takes its place"))
            failed.pop(row, None)
        if not len(rows):
            break
    usable = np.ones(len(headers), dtype=bool)
    usable[list(useless)] = False
    problems += [(files[row], f"left out: {why}") for row, why in useless.items()]
    problems += _oddities(found, headers, usable)
    problems += [
        (file, "left out: the same utterance lies there in a file that is preferred")
        for file in found.others.column("file").to_pylist()
    ]
    return Opened(found, headers, sorted(problems), usable)


def _to_convert(found: Found, rows: NDArray[np.int64], *, flac: bool) -> NDArray[np.bool_]:
    files = found.table.column("file").take(pa.array(rows))
    wanted = is_compressed(files)
    if flac:
        wanted = pc.or_(wanted, pc.invert(pc.ends_with(pc.utf8_lower(files), ".flac")))
    chosen: NDArray[np.bool_] = wanted.to_numpy()
    return chosen


def _useless(found: Found, headers: pa.Table, failed: dict[int, str]) -> dict[int, str]:
    """Why a file cannot be used, by row, ascending."""
    why = unusable(headers)
    why |= {row: f"cannot be converted ({reason})" for row, reason in failed.items()}
    return dict(sorted(why.items()))


def _oddities(found: Found, headers: pa.Table, usable: NDArray[np.bool_]) -> list[tuple[str, str]]:
    """What is not as it should be and can be used."""
    rate, channels = (headers.column(name).to_numpy() for name in ("sample_rate", "channels"))
    files = found.table.column("file")
    slow, several = (np.flatnonzero(rows) for rows in (usable & (rate != SAMPLE_RATE), usable & (channels > 1)))
    return [
        *((files[int(row)].as_py(), f"{rate[row]} Hz; resampled when read") for row in slow),
        *((files[int(row)].as_py(), f"{channels[row]} channels; the first is used") for row in several),
    ]


def manifest_table(opened: Opened) -> pa.Table:
    """What can be read, in the manifest's columns, each utterance a file, all splits ``unused``."""
    usable = pa.array(opened.usable)
    table, headers = (whole.filter(usable).combine_chunks() for whole in (opened.found.table, opened.headers))
    named = {name: table.column(name) for name in ("utterance", "speaker", "session", "genre", "subset")}
    stated = {name: headers.column(name) for name in ("samples", "sample_rate", "channels")}
    parts = one_part(table.column("file").combine_chunks(), headers)
    return pa.table({**named, **stated, "parts": parts, "split": pa.array(["unused"] * len(table), NAME)})


def opened_table(found: Found, out: Path, *, flac: bool) -> pa.Table:
    """As ``open_all``: what can be read, in the manifest's columns; what cannot be is written to ``problems.tsv``."""
    opened = open_all(found, out, flac=flac)
    write_problems(out, opened.problems)
    return manifest_table(opened)


def refuse_other_corpus(out: Path, beginning: str) -> None:
    """Raise a ValueError if a folder to prepare into holds a corpus whose subsets begin otherwise."""
    manifest = out / "manifest.parquet"
    if manifest.is_file():
        subsets = pq.read_table(manifest, columns=["subset"]).column("subset").unique().to_pylist()
        others = sorted(name for name in subsets if not name.startswith(beginning))
        if others:
            raise ValueError(f"--out {out}: holds another corpus, {', '.join(others)}; choose another folder")


def write_problems(out: Path, problems: Sequence[tuple[str, str]]) -> None:
    """Write ``problems.tsv``, a line for each file that is not as it should be, and say how many of each kind."""
    write_text(out / "problems.tsv", "file\tproblem\n" + "".join(f"{file}\t{what}\n" for file, what in problems))
    kinds = Counter(re.split(r"[,;(]", what)[0].strip() for _, what in problems)
    for kind, count in kinds.items():
        logger.info("%s: %d files, named in %s", kind, count, out / "problems.tsv")


def remove_stale_lists(out: Path, written: Collection[str]) -> None:
    """Remove the trial lists that an earlier run wrote and this one did not; other files stay.

    Args:
        out: The prepared folder.
        written: File names of those that this run wrote.
    """
    for name in sorted(LIST_FILES.difference(written)):
        path = out / "trials" / name
        if path.is_file():
            path.unlink()
            logger.info("removed, an earlier run wrote it: %s", path)
    if not written:
        logger.warning("%s: no trial list was prepared", out)
