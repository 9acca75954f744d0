"""Conversion of recordings to FLAC: the first channel at 16 kHz in 16 bits, in parallel, each complete or absent.

Each line of ``made_from.tsv`` says what a file was made from. If its source has changed since, it is converted
anew. Lines are appended, and the last one of a file counts.
"""

import errno
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.corpora.headers import absolute_paths, thread_map
from sv_sparse.data.corpora.scan import ScanResult
from sv_sparse.data.decoding import SAMPLE_RATE, inspect
from sv_sparse.data.walk import CONVERSION_RECORD

# Not read by libsndfile, but by ffmpeg.
COMPRESSED_SUFFIXES = (".m4a", ".aac")

# Folder of the files that are being written.
_PARTS = ".parts"
_COLUMNS = pa.schema(
    [
        ("target", pa.string()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        # Of the source; 0 if ffmpeg read it.
        ("sample_rate", pa.int32()),
        ("channels", pa.int32()),
        # Absolute path; percent signs and control characters as %25, %09, ...
        ("source", pa.string()),
    ]
)
_FFMPEG_OPTIONS = ["-af", "pan=mono|c0=c0", "-ar", str(SAMPLE_RATE), "-sample_fmt", "s16", "-bitexact", "-f", "flac"]
# Files per task.
_CHUNK_SIZE = 16
# Files that are Python objects at a time.
_PIECE_SIZE = 20_000


def convert_files(
    scan: ScanResult, rows: NDArray[np.int64], folder: Path
) -> tuple[dict[int, str], list[tuple[str, str]]]:
    """Convert the files of ascending rows unless that is done already, and put the new files into the scan's table.

    The FLAC files lie in ``folder``, each named by the key of its utterance.

    Returns:
        The reason why a recording could not be converted, by row; and notes on changed rates or channels.

    Raises:
        ValueError: ffmpeg is needed and not installed, or the record of conversions is damaged.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A killed run may have left it.
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
    (folder / _PARTS).mkdir()
    files = scan.table.column("file").take(pa.array(rows))
    records = _expected_records(scan, rows)
    todo = np.flatnonzero(~_is_up_to_date(records, folder))
    _check_ffmpeg(files.take(pa.array(todo)))
    failed: dict[int, str] = {}
    record_file = os.open(folder / CONVERSION_RECORD, os.O_WRONLY | os.O_APPEND)
    try:
        with tqdm(total=len(todo), desc="converting", unit="file", unit_scale=True, disable=None) as progress:
            for start in range(0, len(todo), _PIECE_SIZE):
                indices = todo[start : start + _PIECE_SIZE]
                sources = [f"{scan.root}/{file}" for file in files.take(pa.array(indices)).to_pylist()]
                tasks = list(zip(sources, records.take(pa.array(indices)).to_pylist(), strict=True))
                problems = thread_map(
                    lambda task: _convert(*task, folder=folder, record_file=record_file),
                    tasks,
                    progress,
                    num_threads=os.cpu_count() or 1,
                    chunk_size=_CHUNK_SIZE,
                )
                for index, problem in zip(indices, problems, strict=True):
                    if problem is not None:
                        failed[int(rows[index])] = problem
    finally:
        os.close(record_file)
        shutil.rmtree(folder / _PARTS)
    is_done = ~np.isin(rows, list(failed))
    targets = records.column("target").filter(pa.array(is_done))
    records = _read_records(folder, ["target", "sample_rate", "channels"])
    records = records.take(pc.index_in(targets, value_set=records.column("target").combine_chunks()))
    notes = describe_audio(files.filter(pa.array(is_done)), records, "converted", "converted")
    _use_converted(scan, rows[is_done], targets, folder)
    return failed, notes


def _expected_records(scan: ScanResult, rows: NDArray[np.int64]) -> pa.Table:
    """Return the lines that some rows need: target, size, mtime and source."""
    table = scan.table.select(["utterance", "file", "size", "mtime"]).take(pa.array(rows))
    source = absolute_paths(scan.root, table.column("file"))
    # They would end a field or a line; the escape itself comes first.
    for character in "%\t\n\r":
        source = pc.replace_substring(source, character, f"%{ord(character):02X}")
    target = pc.replace_substring_regex(table.column("utterance"), r"\.[^./]*$", ".flac")
    return pa.table({"target": target, "size": table["size"], "mtime": table["mtime"], "source": source})


def _read_records(folder: Path, columns: list[str]) -> pa.Table:
    """Return columns of the lines, the last ones first, or raise a ValueError if they are no such lines."""
    path = folder / CONVERSION_RECORD
    path.touch()
    with open(path, "r+b") as file:
        # A kill or a full disk may have broken off the last line.
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - (1 << 16)))
        end = file.read()
        file.truncate(size - len(end) + end.rfind(b"\n") + 1)
    if not path.stat().st_size:
        return _COLUMNS.empty_table().select(columns)
    try:
        table = pa.csv.read_csv(
            path,
            pa.csv.ReadOptions(column_names=_COLUMNS.names),
            # Lines of other lengths are skipped: a full disk may have broken off one before others followed.
            pa.csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=lambda _: "skip"),
            pa.csv.ConvertOptions(column_types=_COLUMNS, include_columns=columns),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path}: expected lines of {', '.join(_COLUMNS.names)} ({error}); remove it to convert everything anew"
        ) from error
    return table.take(np.arange(len(table))[::-1])


def _is_up_to_date(expected: pa.Table, folder: Path) -> NDArray[np.bool_]:
    """Return whether each target is there and was made from just that source, bool [rows]."""
    records = _read_records(folder, expected.schema.names)
    index = pc.index_in(expected.column("target"), value_set=records.column("target").combine_chunks())
    records = records.take(index)
    is_done = np.ones(len(expected), dtype=bool)
    for name in ("size", "mtime", "source"):
        is_same = pc.equal(records.column(name), expected.column(name))
        is_done &= pc.fill_null(is_same, False).to_numpy()
    for row in np.flatnonzero(is_done):
        is_done[row] = os.path.isfile(f"{folder}/{expected.column('target')[int(row)]}")
    return is_done


def _check_ffmpeg(sources: pa.ChunkedArray) -> None:
    compressed = sources.filter(is_compressed(sources))
    if len(compressed) and shutil.which("ffmpeg") is None:
        raise ValueError(
            f"{len(compressed)} recordings such as {compressed[0]} need ffmpeg to be converted, which is not installed:"
            f" apt install ffmpeg, brew install ffmpeg, or conda install -c conda-forge ffmpeg"
        )


def is_compressed(files: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which files have to be converted before they can be read, bool [files]."""
    lower = pc.utf8_lower(files)
    return pc.or_(*(pc.ends_with(lower, suffix) for suffix in COMPRESSED_SUFFIXES))


def _use_converted(scan: ScanResult, rows: NDArray[np.int64], targets: pa.ChunkedArray, folder: Path) -> None:
    size, mtime = np.zeros((2, len(rows)), dtype=np.int64)
    for index, target in enumerate(targets):
        status = os.stat(f"{folder}/{target}")
        size[index] = status.st_size
        mtime[index] = status.st_mtime_ns
    files = pc.binary_join_element_wise(os.path.relpath(folder, scan.root), targets, "/").combine_chunks()
    scan.set_files(rows, {"file": files, "size": pa.array(size), "mtime": pa.array(mtime)})


def describe_audio(files: pa.ChunkedArray, headers: pa.Table, when: str, verb: str) -> list[tuple[str, str]]:
    """Return notes on files whose rates or numbers of channels are not the usual ones; a rate of 0 is unknown."""
    rate = headers.column("sample_rate").to_numpy()
    channels = headers.column("channels").to_numpy()
    notes = []
    for row in np.flatnonzero((rate != SAMPLE_RATE) & (rate > 0)).tolist():
        notes.append((files[row].as_py(), f"{rate[row]} Hz; resampled when {when}"))
    for row in np.flatnonzero(channels > 1).tolist():
        notes.append((files[row].as_py(), f"{channels[row]} channels; the first is {verb}"))
    return notes


def _convert(source: str, record: dict[str, Any], *, folder: Path, record_file: int) -> str | None:
    """Convert a recording and write its record; return the reason if it cannot be converted."""
    part = folder / _PARTS / f"{threading.get_ident()}.flac"
    rate, channels = 0, 0
    if source.lower().endswith(COMPRESSED_SUFFIXES):
        problem = _convert_by_ffmpeg(source, part)
    else:
        info = inspect(source)
        rate, channels = info.sample_rate, info.channels
        problem = info.problem or _convert_by_soundfile(source, part)
    if problem is not None:
        return problem
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    path = folder / record["target"]
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, path)
    fields = [record["target"], record["size"], record["mtime"], rate, channels, record["source"]]
    # One write for a line: threads append to the same file.
    line = ("\t".join(map(str, fields)) + "\n").encode()
    if os.write(record_file, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / CONVERSION_RECORD))
    return None


def _convert_by_ffmpeg(source: str, part: Path) -> str | None:
    # ffmpeg would wait for a writer to a pipe.
    if not os.path.isfile(source):
        return "is not a regular file"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", source, "-map", "0:a:0", *_FFMPEG_OPTIONS, str(part)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if "No space left on device" in result.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
    # Of a file that breaks off ffmpeg complains, and returns 0.
    if result.returncode == 0 and not result.stderr:
        return None
    return (result.stderr.strip().splitlines() or [f"ffmpeg ended with {result.returncode}"])[-1]


def _convert_by_soundfile(source: str, part: Path) -> str | None:
    from sv_sparse.data.audio import read_samples, single_file, to_int16  # noqa: PLC0415  # loads torch

    try:
        waveform = read_samples(single_file(source), SAMPLE_RATE)
    except ValueError as error:
        return str(error)
    try:
        soundfile.write(part, to_int16(waveform), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        raise OSError(f"{part}: cannot be written ({error}); is the disk full?") from error
    return None
