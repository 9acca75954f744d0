"""From a scanned corpus to a prepared folder: conversion, headers, problems. An interrupted run continues.

A prepared folder holds ``manifest.parquet``, ``trials/``, ``problems.tsv``, ``headers.parquet`` (so that no file
is opened twice) and, if recordings were converted, ``flac/``.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sv_sparse.data.corpora.convert import convert_files, describe_audio, is_compressed
from sv_sparse.data.corpora.headers import PARTIAL_DIR, cached_headers, single_segments, unusable
from sv_sparse.data.corpora.published import LIST_FILES
from sv_sparse.data.corpora.scan import ScanResult
from sv_sparse.data.manifest import DICTIONARY
from sv_sparse.io import TEMP_PATTERN, file_lock, printable, write_text

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Make a folder and keep other processes from preparing into it; a ValueError says that one does."""
    # Parquet's readers need one.
    if printable(out) != str(out):
        raise ValueError(f"--out {printable(out)}: expected a name in UTF-8")
    out.mkdir(parents=True, exist_ok=True)
    with file_lock(out, f"--out {out}: another process is preparing into this folder"):
        for folder in (out, out / "trials", out / PARTIAL_DIR):
            # A killed run may have left them.
            for path in folder.glob(TEMP_PATTERN):
                path.unlink()
        yield


def check_corpus(out: Path, prefix: str) -> None:
    """Raise a ValueError if a folder holds another corpus, whose subsets do not begin with ``prefix``."""
    manifest = out / "manifest.parquet"
    if manifest.is_file():
        subsets = pq.read_table(manifest, columns=["subset"]).column("subset").unique().to_pylist()
        others = sorted(name for name in subsets if not name.startswith(prefix))
        if others:
            raise ValueError(f"--out {out}: holds another corpus, {', '.join(others)}; choose another folder")


def checked_table(scan: ScanResult, out: Path, *, to_flac: bool) -> pa.Table:
    """Convert what libsndfile does not read, read every header, and return a manifest's table of what can be used.

    If a file cannot be used, the next one of the same utterance takes its place. ``problems.tsv`` names every
    file that is left out or resampled. With ``to_flac`` everything is converted to FLAC.

    Raises:
        ValueError: ffmpeg is needed and not installed.
    """
    problems = [(file, f"left out: cannot be found ({reason})") for file, reason in scan.unreadable]
    failed: dict[int, str] = {}
    rows = np.arange(len(scan.table))
    while len(rows):
        rows = rows[_needs_conversion(scan, rows, to_flac=to_flac)]
        if len(rows):
            failures, notes = convert_files(scan, rows, out / "flac")
            failed |= failures
            problems += notes
        headers = cached_headers(scan.table, scan.root, out)
        reasons = unusable(headers)
        for row, reason in failed.items():
            reasons[row] = f"cannot be converted ({reason})"
        files = {row: scan.table.column("file")[row].as_py() for row in reasons}
        # Rows with another file go through all of this again.
        rows = scan.use_alternatives(np.array(sorted(reasons), dtype=np.int64))
        for row in rows.tolist():
            file = scan.table.column("file")[row].as_py()
            problems.append((files[row], f"left out: {reasons.pop(row)}; {file} takes its place"))
            failed.pop(row, None)
    is_usable = np.ones(len(headers), dtype=bool)
    is_usable[list(reasons)] = False
    usable = pa.array(is_usable)
    headers = headers.filter(usable).combine_chunks()
    problems += describe_audio(scan.table.column("file").filter(usable), headers, "read", "used")
    problems += [(files[row], f"left out: {reason}") for row, reason in reasons.items()]
    for file in scan.alternatives.column("file").to_pylist():
        problems.append((file, "left out: the same utterance lies there in a file that is preferred"))
    _write_problems(out, sorted(problems))

    table = scan.table.filter(usable).combine_chunks()
    columns = {name: table.column(name) for name in ("utterance", "speaker", "session", "genre", "subset")}
    columns |= {name: headers.column(name) for name in ("samples", "sample_rate", "channels")}
    columns["segments"] = single_segments(table.column("file").combine_chunks(), headers)
    columns["split"] = pa.array(["unused"] * len(table), DICTIONARY)
    return pa.table(columns)


def _needs_conversion(scan: ScanResult, rows: NDArray[np.int64], *, to_flac: bool) -> NDArray[np.bool_]:
    files = scan.table.column("file").take(pa.array(rows))
    needed: pa.ChunkedArray = is_compressed(files)
    if to_flac:
        needed = pc.or_(needed, pc.invert(pc.ends_with(pc.utf8_lower(files), ".flac")))
    return needed.to_numpy()


def _write_problems(out: Path, problems: list[tuple[str, str]]) -> None:
    lines = [f"{file}\t{problem}\n" for file, problem in problems]
    write_text(out / "problems.tsv", "file\tproblem\n" + "".join(lines))
    kinds = Counter(re.split(r"[,;(]", problem)[0].strip() for _, problem in problems)
    for kind, count in kinds.items():
        logger.info("%s: %d files, named in %s", kind, count, out / "problems.tsv")


def remove_stale_lists(out: Path, written: Collection[str]) -> None:
    """Remove the trial lists that an earlier run wrote below ``out`` and this one did not; other files stay."""
    for name in sorted(LIST_FILES.difference(written)):
        path = out / "trials" / name
        if path.is_file():
            path.unlink()
            logger.info("removed, an earlier run wrote it: %s", path)
    if not written:
        logger.warning("%s: no trial list was prepared", out)
