"""The headers of many files, read by many threads: they wait for the disk or the network, not for the processor.

Nothing here needs torch, so that preparing a million files does not carry it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from sv_sparse.data.decoding import MIN_SECONDS, AudioInfo, inspect, too_short
from sv_sparse.data.manifest import PART

# In the order of ``AudioInfo``.
HEADERS = pa.schema(
    [
        pa.field("samples", pa.int64()),  # 0 where a file cannot be used
        pa.field("sample_rate", pa.int32()),
        pa.field("channels", pa.int16()),
        pa.field("bytes", pa.int64()),
        pa.field("pcm", pa.int64()),
    ]
)
READ = HEADERS.append(pa.field("problem", pa.string()))  # why a file cannot be used, which may change and is not stored

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = 16
_CHUNK = 256  # files per task


def read_header(path: str | os.PathLike[str]) -> AudioInfo:
    """Return the header of a recording; never raises for what is there, or is not. See ``decoding.inspect``."""
    return inspect(path)


def why_no_samples(path: str | os.PathLike[str]) -> str:
    """Return in words why ``read_header`` finds no samples in a file; empty where it finds some."""
    return read_header(path).problem


def unusable(headers: pa.Table) -> dict[int, str]:
    """Return why files cannot be used, in words, by row, ascending; ``headers`` are as of ``read_headers``."""
    samples, rates = (headers.column(name).to_numpy() for name in ("samples", "sample_rate"))
    problems = headers.column("problem")
    reasons = {}
    for row in np.flatnonzero((samples == 0) | (samples < MIN_SECONDS * rates)).tolist():
        if samples[row]:
            reasons[row] = too_short(samples[row], rates[row])
        else:
            reasons[row] = problems[row].as_py()
    return reasons


def read_headers(root: str | Path, files: Sequence[str], progress: "tqdm[None]") -> pa.Table:
    """The header of each file below ``root``, columns as in ``READ``, in the order of ``files``."""
    headers = in_threads(partial(_header, str(root)), files, progress)
    columns = zip(*headers, strict=True) if headers else [[] for _ in READ]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, READ, strict=True)], READ)


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


def _header(root: str, file: str) -> AudioInfo:
    return read_header(os.path.join(root, file))


def one_part(files: pa.StringArray, headers: pa.Table) -> pa.ListArray:
    """The manifest's ``parts`` of utterances that are a file each."""
    count = len(files)
    own = {"file": files, "offset": pa.array(np.zeros(count, np.int64))}
    columns = [own.get(field.name) or headers.column(field.name).combine_chunks() for field in PART]
    values = pa.StructArray.from_arrays(columns, fields=list(PART))
    return pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), values)
