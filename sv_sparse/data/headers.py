"""The headers of many files, read by many threads: they wait for the disk or the network, not for the processor.

Nothing here needs torch, so that preparing a million files does not carry it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import soundfile
from tqdm import tqdm

from sv_sparse.data.manifest import PART

SAMPLE_RATE = 16000  # Hz, of everything that is trained on and judged
HEADERS = pa.schema(
    [
        pa.field("samples", pa.int64()),  # 0 where a file is empty, broken or no recording
        pa.field("sample_rate", pa.int32()),
        pa.field("channels", pa.int16()),
        pa.field("bytes", pa.int64()),
        pa.field("pcm", pa.int64()),
    ]
)

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = 16
_CHUNK = 256  # files per task
_UNSAID = 2**63 - 1  # libsndfile's number of samples where a FLAC file was written without one
_STREAMINFO = 42  # bytes a FLAC file begins with
_SMALLEST_FRAME = 10  # bytes, of FLAC
_ENDLESS = 0xFFFFFFFF  # the length that a WAV has where it was written to a pipe


class Header(NamedTuple):
    """What a file says of itself; ``samples`` is 0 where it is empty, says more than it can hold, or is no recording.

    Attributes:
        samples: Length of one channel.
        sample_rate: In Hz.
        channels: How many there are.
        bytes: Length of the file.
        pcm: Where mono 16-bit samples begin, in bytes; -1 where there are none in plain.
    """

    samples: int
    sample_rate: int
    channels: int
    bytes: int
    pcm: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a recording; never raises for what is there, or is not."""
    said, most = _said_and_held(path)
    return said if said.samples <= most else said._replace(samples=0)


def why_no_samples(path: str | os.PathLike[str]) -> str:
    """In words, why ``read_header`` finds no samples in a file."""
    said, most = _said_and_held(path)
    if said.samples == _UNSAID:
        return "broken, the header does not say how many samples there are"
    if said.samples > most:
        return f"broken, the header says {said.samples:,} samples, the file holds at most {most:,}"
    return "empty" if said.sample_rate else "unreadable"


def _said_and_held(path: str | os.PathLike[str]) -> tuple[Header, int]:
    """The header as it stands, and how many samples its file can hold at most."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:  # a link that leads nowhere
        return Header(0, 0, 0, 0, -1), 0
    try:
        size = os.fstat(file).st_size
        with soundfile.SoundFile(file, closefd=False) as sound:
            samples, rate, channels, form = sound.frames, sound.samplerate, sound.channels, sound.format
            plain = sound.subtype == "PCM_16" and channels == 1
        if form == "FLAC":
            return Header(samples, rate, channels, size, -1), _most_in_flac(file, size)
        start, length = _data_chunk(file) if form in {"WAV", "WAVEX"} else (-1, 0)
        held = size - start
        cut = 0 <= start < size and held < length < _ENDLESS
        said = samples * length // held if cut else samples
        return Header(said, rate, channels, size, start if plain else -1), samples
    except (soundfile.LibsndfileError, OSError):
        return Header(0, 0, 0, size, -1), 0
    finally:
        os.close(file)


def _most_in_flac(file: int, size: int) -> int:
    """The samples that fit into a FLAC file, by the largest block and the smallest frame that it names."""
    start = os.pread(file, _STREAMINFO, 0)
    if not start.startswith(b"fLaC"):  # other tags come before it
        return _UNSAID - 1
    block, frame = (int.from_bytes(start[place], "big") for place in (slice(10, 12), slice(12, 15)))
    return (size - _STREAMINFO) // max(frame, _SMALLEST_FRAME) * block


def _data_chunk(file: int) -> tuple[int, int]:
    """Where the samples of a RIFF file begin, and their length as it is stated, in bytes; -1 and 0 for none."""
    place = 12
    if os.pread(file, 4, 0) != b"RIFF":
        return -1, 0
    while len(chunk := os.pread(file, 8, place)) == 8:
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            return place + 8, length
        place += 8 + length + length % 2
    return -1, 0


def read_headers(root: str | Path, files: Sequence[str], progress: "tqdm[None]") -> pa.Table:
    """The header of each file below ``root``, columns as in ``HEADERS``, in the order of ``files``."""
    headers = in_threads(partial(_header, str(root)), files, progress)
    columns = zip(*headers, strict=True) if headers else [[] for _ in HEADERS]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, HEADERS, strict=True)], HEADERS)


def in_threads(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    progress: "tqdm[None]",
    *,
    threads: int = _THREADS,
    chunk: int = _CHUNK,
) -> list[Result]:
    """The result for each item, in order; an error ends it once the tasks that were begun are done."""
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    results: list[Result] = []
    with ThreadPoolExecutor(threads) as pool:
        for done in pool.map(lambda several: [work(item) for item in several], chunks):
            results += done
            progress.update(len(done))
    return results


def _header(root: str, file: str) -> Header:
    return read_header(os.path.join(root, file))


def one_part(files: pa.StringArray, headers: pa.Table) -> pa.ListArray:
    """The manifest's ``parts`` of utterances that are a file each."""
    count = len(files)
    own = {"file": files, "offset": pa.array(np.zeros(count, np.int64))}
    columns = [own.get(field.name) or headers.column(field.name).combine_chunks() for field in PART]
    values = pa.StructArray.from_arrays(columns, fields=list(PART))
    return pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), values)
