"""Headers of many files, read by many threads, which wait for the disk or the network, not for the processor.

Nothing here needs torch, so that preparing a million files does not load it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from sv_sparse.data.decoding import MIN_SECONDS, AudioInfo, inspect, too_short
from sv_sparse.data.manifest import segment_column

# The fields of ``AudioInfo``, in its order.
HEADERS = pa.schema(
    [
        pa.field("samples", pa.int64()),  # 0 if the file cannot be used
        pa.field("sample_rate", pa.int32()),
        pa.field("channels", pa.int16()),
        pa.field("size", pa.int64()),
        pa.field("pcm_offset", pa.int64()),
        pa.field("problem", pa.string()),  # reason why the file cannot be used
    ]
)

Item = TypeVar("Item")
Result = TypeVar("Result")

_NUM_THREADS = 16
_CHUNK_SIZE = 256  # files per task


def read_header(path: str | os.PathLike[str]) -> AudioInfo:
    """Return the metadata of a recording; see ``decoding.inspect``."""
    return inspect(path)


def read_headers(root: str | Path, files: Sequence[str], progress: "tqdm[None]") -> pa.Table:
    """Return the headers of files below ``root``, one row each, with the columns ``HEADERS``."""
    headers = thread_map(lambda file: read_header(os.path.join(root, file)), files, progress)
    columns = zip(*headers, strict=True) if headers else [[]] * len(HEADERS)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, HEADERS, strict=True)], HEADERS)


def unusable(headers: pa.Table) -> dict[int, str]:
    """Return the reason why a file cannot be used, by row, for those of ``read_headers`` that cannot, ascending."""
    samples = headers.column("samples").to_numpy()
    rate = headers.column("sample_rate").to_numpy()
    problems = headers.column("problem")
    reasons = {}
    for row in np.flatnonzero((samples == 0) | (samples < MIN_SECONDS * rate)).tolist():
        reasons[row] = too_short(samples[row], rate[row]) if samples[row] else problems[row].as_py()
    return reasons


def single_segments(files: pa.StringArray, headers: pa.Table) -> pa.ListArray:
    """Return the manifest's column ``segments`` for utterances of one file each, with headers of ``read_headers``."""
    samples, size, pcm_offset = (headers.column(name).to_numpy() for name in ("samples", "size", "pcm_offset"))
    return segment_column(files, samples, np.zeros(len(files), np.int64), size, pcm_offset)


def thread_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    progress: "tqdm[None]",
    *,
    num_threads: int = _NUM_THREADS,
    chunk_size: int = _CHUNK_SIZE,
) -> list[Result]:
    """Return the results of a function for items, in order; an error ends it after the tasks that are running.

    Args:
        function: function of an item.
        items: arguments.
        progress: bar that counts items.
        num_threads: number of threads.
        chunk_size: items per task, since a task of its own for each would cost more than reading a header.
    """
    chunks = [items[start : start + chunk_size] for start in range(0, len(items), chunk_size)]
    results: list[Result] = []
    with ThreadPoolExecutor(num_threads) as pool:
        for chunk_results in pool.map(lambda chunk: list(map(function, chunk)), chunks):
            results += chunk_results
            progress.update(len(chunk_results))
    return results
