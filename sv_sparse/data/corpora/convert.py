"""Recordings to FLAC, mono, 16 kHz, 16 bits: many at a time, each whole or absent, and only those not yet done.

Of several channels the first is taken. A line of ``made_from.tsv`` says what each file was made from; where it says
something else than what lies there now, the recording is converted anew. Lines are appended, and the last one counts.
"""

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.corpora.collect import Found
from sv_sparse.data.corpora.header_cache import text_of
from sv_sparse.data.corpora.headers import in_threads
from sv_sparse.data.corpora.scan import MADE
from sv_sparse.data.decoding import SAMPLE_RATE, inspect

COMPRESSED = (".m4a", ".aac")  # soundfile does not read them; ffmpeg does

_PARTS = ".parts"  # what is being written
_COLUMNS = pa.schema(
    [
        ("target", pa.string()),
        ("size", pa.int64()),
        ("changed", pa.int64()),
        ("sample_rate", pa.int32()),  # of the source; 0 where ffmpeg read it
        ("channels", pa.int32()),
        ("source", pa.string()),  # absolute path; percent signs and control characters as %25, %09, ...
    ]
)
_FORM = ["-af", "pan=mono|c0=c0", "-ar", str(SAMPLE_RATE), "-sample_fmt", "s16", "-bitexact", "-f", "flac"]
_CHUNK = 16  # files per task
_PIECE = 20_000  # files that are Python objects at a time


class Converted(NamedTuple):
    """What became of recordings.

    Attributes:
        failed: Why it could not be converted, by row.
        notes: File and what it was before it was converted, where that was another rate or several channels.
    """

    failed: dict[int, str]
    notes: list[tuple[str, str]]


class _Task(NamedTuple):
    source: str
    target: str
    state: tuple[object, ...]  # of the source: what its line says


def convert(found: Found, rows: NDArray[np.int64], folder: Path) -> Converted:
    """Convert the files of some rows, where that is not done yet, and let the table name the new files.

    Args:
        found: The corpus.
        rows: Ascending.
        folder: Where FLAC files go, each at the key of its utterance.

    Raises:
        ValueError: ffmpeg is needed and not installed, or the table of what was made is damaged.
        OSError: A file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / _PARTS, ignore_errors=True)  # what a killed run was writing
    wanted = _wanted(found, rows)
    todo = np.flatnonzero(~_is_made(wanted, folder))
    targets, wanted = wanted.column("target"), wanted.take(pa.array(todo))
    sources = found.table.column("file").take(pa.array(rows))
    _refuse_without_ffmpeg(sources.take(pa.array(todo)))
    failed: dict[int, str] = {}
    with tqdm(total=len(todo), desc="converting", unit="file", unit_scale=True, disable=None) as progress:
        for start in range(0, len(todo), _PIECE):
            places = todo[start : start + _PIECE]
            names = sources.take(pa.array(places)).to_pylist()
            states = wanted.slice(start, _PIECE).to_pylist()
            tasks = [
                _Task(str(found.root / name), state.pop("target"), tuple(state.values()))
                for name, state in zip(names, states, strict=True)
            ]
            problems = _in_threads(tasks, folder, progress)
            failed |= {int(rows[k]): why for k, why in zip(places, problems, strict=True) if why is not None}
    del wanted
    done = ~np.isin(rows, list(failed))
    targets = targets.filter(pa.array(done))
    notes = _notes(sources.filter(pa.array(done)), targets, folder)
    _put(found, rows[done], targets, folder)
    return Converted(failed, notes)


def _wanted(found: Found, rows: NDArray[np.int64]) -> pa.Table:
    """What the lines of some rows have to say: target, size, changed and source."""
    table = found.table.select(["utterance", "file", "size", "changed"]).take(pa.array(rows))
    target = pc.replace_substring_regex(table.column("utterance"), r"\.[^./]*$", ".flac")
    source = pc.binary_join_element_wise(text_of(found.root).rstrip("/"), table.column("file"), "/")
    for character in "%\t\n\r":
        source = pc.replace_substring(source, character, f"%{ord(character):02X}")
    columns = {"target": target, "size": table.column("size"), "changed": table.column("changed"), "source": source}
    return pa.table(columns)


def _made(folder: Path, columns: list[str]) -> pa.Table:
    """Columns of the lines, the last ones first; a line that a kill or a full disk broke off is left out.

    Raises:
        ValueError: They are something else.
    """
    path = folder / MADE
    path.touch()
    with open(path, "r+b") as file:
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
            pa.csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=lambda _: "skip"),
            pa.csv.ConvertOptions(column_types=_COLUMNS, include_columns=columns),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path}: expected lines of {', '.join(_COLUMNS.names)} ({error}); remove it to convert everything anew"
        ) from error
    return table.take(np.arange(len(table))[::-1])


def _is_made(wanted: pa.Table, folder: Path) -> NDArray[np.bool_]:
    """Whether there is a file made from just that."""
    made = _made(folder, wanted.schema.names)
    place = pc.index_in(wanted.column("target"), value_set=made.column("target").combine_chunks())
    found = made.select(["size", "changed", "source"]).take(place)
    same = pa.array(np.ones(len(wanted), dtype=bool))
    for name in found.schema.names:
        same = pc.and_(same, pc.fill_null(pc.equal(found.column(name), wanted.column(name)), False))
    done: NDArray[np.bool_] = same.to_numpy(zero_copy_only=False).copy()
    for row in np.flatnonzero(done):
        done[row] = os.path.isfile(f"{folder}/{wanted.column('target')[int(row)]}")
    return done


def _refuse_without_ffmpeg(sources: pa.ChunkedArray) -> None:
    compressed = sources.filter(is_compressed(sources))
    if len(compressed) and shutil.which("ffmpeg") is None:
        raise ValueError(
            f"{len(compressed)} recordings such as {compressed[0]} need ffmpeg to be converted, which is not installed:"
            f" apt install ffmpeg, brew install ffmpeg, or conda install -c conda-forge ffmpeg"
        )


def is_compressed(files: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether a file has to be converted before it can be read."""
    ending = pc.utf8_lower(files)
    return pc.or_(*(pc.ends_with(ending, one) for one in COMPRESSED))


def _put(found: Found, rows: NDArray[np.int64], targets: pa.ChunkedArray, folder: Path) -> None:
    """Let rows lie in what was made of them."""
    below = os.path.relpath(folder, found.root)
    sizes, changed = np.zeros((2, len(rows)), dtype=np.int64)
    for k, target in enumerate(targets):
        status = os.stat(f"{folder}/{target}")
        sizes[k], changed[k] = status.st_size, status.st_mtime_ns
    files = pc.binary_join_element_wise(below, targets, "/").combine_chunks()
    found.put(rows, {"file": files, "size": pa.array(sizes), "changed": pa.array(changed)})


def _notes(sources: pa.ChunkedArray, targets: pa.ChunkedArray, folder: Path) -> list[tuple[str, str]]:
    made = _made(folder, ["target", "sample_rate", "channels"])
    place = pc.index_in(targets, value_set=made.column("target").combine_chunks())
    rate, channels = (made.column(name).take(place).to_numpy() for name in ("sample_rate", "channels"))
    odd = np.flatnonzero((rate != SAMPLE_RATE) & (rate > 0))
    several = np.flatnonzero(channels > 1)
    return [
        *((sources[int(row)].as_py(), f"{rate[row]} Hz; resampled when converted") for row in odd),
        *((sources[int(row)].as_py(), f"{channels[row]} channels; the first is converted") for row in several),
    ]


def _in_threads(tasks: Sequence[_Task], folder: Path, progress: "tqdm[None]") -> list[str | None]:
    (folder / _PARTS).mkdir(exist_ok=True)
    lines = os.open(folder / MADE, os.O_WRONLY | os.O_APPEND)
    try:
        work = partial(_convert, folder=folder, lines=lines)
        return in_threads(work, tasks, progress, threads=os.cpu_count() or 1, chunk=_CHUNK)
    finally:
        os.close(lines)
        shutil.rmtree(folder / _PARTS)


def _convert(task: _Task, folder: Path, lines: int) -> str | None:
    """Why a recording cannot be converted; None, once it is, and its line is written."""
    part, path = folder / _PARTS / f"{threading.get_ident()}.flac", folder / task.target
    if task.source.lower().endswith(COMPRESSED):
        problem, rate, channels = _by_ffmpeg(task.source, part), 0, 0
    else:
        info = inspect(task.source)
        rate, channels = info.sample_rate, info.channels
        problem = info.problem or _by_soundfile(task.source, part)
    if problem is not None:
        return problem
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, path)
    size, changed, source = task.state
    line = f"{task.target}\t{size}\t{changed}\t{rate}\t{channels}\t{source}\n".encode()
    if os.write(lines, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / MADE))
    return None


def _by_ffmpeg(source: str, part: Path) -> str | None:
    if not os.path.isfile(source):  # ffmpeg would wait for what writes to a pipe
        return "is not a regular file"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", source, "-map", "0:a:0", *_FORM, str(part)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
    if done.returncode == 0 and not done.stderr:  # with words, its zero also means a file that broke off
        return None
    return (done.stderr.strip().splitlines() or [f"ffmpeg ended with {done.returncode}"])[-1]


def _by_soundfile(source: str, part: Path) -> str | None:
    from sv_sparse.data.audio import read_samples, recording, to_int16  # noqa: PLC0415  # loads torch

    try:
        waveform = read_samples(recording(source), SAMPLE_RATE)
    except ValueError as error:
        return str(error)
    try:
        soundfile.write(part, to_int16(waveform), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        raise OSError(f"{part}: cannot be written ({error}); is the disk full?") from error
    return None
