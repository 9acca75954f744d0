"""A prepared corpus as tar files of FLAC, in WebDataset's form: few large files for object stores and network disks.

A folder of shards is a prepared folder. Its manifest knows where in which tar file each utterance lies, so that crops
are read at random as from files of their own; and any WebDataset reader reads the tar files one after the other.
"""

import io
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import webdataset
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.audio import read_samples, to_int16
from sv_sparse.data.decoding import SAMPLE_RATE, inspect
from sv_sparse.data.manifest import PART, Manifest
from sv_sparse.data.prepare import sole

logger = logging.getLogger(__name__)

UTTERANCES = 1000  # per shard

_ORDER = 0  # seed of the shuffle, so that a shard holds many speakers


def write_shards(prepared: Path, out: Path, *, utterances: int = UTTERANCES) -> None:
    """Write every utterance of a prepared folder into tar files, subset by subset, each shuffled.

    Shards that are there are left alone, so that a run that was interrupted goes on. A recording that cannot be read is
    named in a warning and left out.

    Args:
        prepared: The prepared folder.
        out: The folder of shards; a prepared folder itself once this is done.
        utterances: How many go into a shard.

    Raises:
        ValueError: ``prepared`` is no prepared folder.
        OSError: A file cannot be written.
    """
    if out.resolve() == prepared.resolve():
        raise ValueError(f"--out {out}: expected another folder than the prepared one")
    source = Manifest(prepared / "manifest.parquet")
    table = pq.read_table(source.source)
    chunks = _chunks(table.column("subset").to_pylist(), utterances)
    with sole(out):
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(total=len(table), desc="writing shards", unit="utt", unit_scale=True, disable=None) as progress,
        ):
            for rows, _ in zip(
                chunks.values(), pool.map(lambda name: _write(source, chunks[name], out / name), chunks), strict=True
            ):
                progress.update(len(rows))
        if (prepared / "trials").is_dir():
            shutil.copytree(prepared / "trials", out / "trials", dirs_exist_ok=True)
        _index(prepared, table, chunks, out)


def _chunks(subset: Sequence[str], utterances: int) -> dict[str, NDArray[np.int64]]:
    """Rows of each shard, by its name."""
    found = {}
    names = np.array(subset)
    for name in sorted(set(subset)):
        rows = np.random.default_rng(_ORDER).permutation(np.flatnonzero(names == name))
        for number, start in enumerate(range(0, len(rows), utterances)):
            found[f"{name or 'speech'}-{number:06d}.tar"] = rows[start : start + utterances]
    return found


def _write(source: Manifest, rows: NDArray[np.int64], path: Path) -> None:
    if path.is_file():
        return
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        with webdataset.TarWriter(file, mtime=0) as shard:
            for row in rows:
                try:
                    shard.write(_sample(source, int(row)))
                except ValueError as error:
                    logger.warning("left out: %s", error)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _sample(source: Manifest, row: int) -> dict[str, object]:
    """An utterance as WebDataset names it: the FLAC as it lies on the disk where that is mono at 16 kHz, else made."""
    parts = source.parts(row)
    plain = len(parts) == 1 and parts[0].path.endswith(".flac") and source.sample_rate[row] == SAMPLE_RATE
    if plain and source.channels[row] == 1:
        audio = Path(parts[0].path).read_bytes()
        samples = parts[0].samples
        if inspect(audio).samples != samples:
            raise ValueError(f"{parts[0].path}: is not what it was when its manifest was written")
    else:
        waveform = to_int16(read_samples(parts, SAMPLE_RATE))
        buffer = io.BytesIO()
        soundfile.write(buffer, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        audio, samples = buffer.getvalue(), len(waveform)
    about = {"utterance": source.utterance(row), "speaker": source.speaker(row), "samples": samples}
    return {"__key__": f"{row:08d}", "flac": audio, "json": json.dumps(about)}


def _index(source: Path, table: pa.Table, chunks: dict[str, NDArray[np.int64]], out: Path) -> None:
    """The manifest of the shards, from what the tar files say of themselves."""
    utterances = table.column("utterance").to_pylist()
    shard_of, offset, size, samples = (np.zeros(len(table), dtype=np.int64) for _ in range(4))
    for number, name in enumerate(tqdm(chunks, desc="reading shards", unit="shard", disable=None)):
        with tarfile.open(out / name) as shard:
            for member in shard:
                row = int(member.name.split(".")[0])
                if member.name.endswith(".json"):
                    content = shard.extractfile(member)
                    assert content is not None
                    about = json.load(content)
                    if row >= len(table) or about["utterance"] != utterances[row]:
                        raise ValueError(f"{out / name}: holds another corpus than {source}; remove it and run again")
                    samples[row] = about["samples"]
                else:
                    shard_of[row], offset[row], size[row] = number, member.offset_data, member.size
    columns = {
        "file": pa.array(list(chunks), pa.string()).take(pa.array(shard_of)),
        "samples": pa.array(samples),
        "offset": pa.array(offset),
        "bytes": pa.array(size),
        "pcm": pa.array(np.full(len(table), -1, np.int64)),
    }
    parts = pa.StructArray.from_arrays([columns[field.name] for field in PART], fields=list(PART))
    changed = {
        "samples": columns["samples"],
        "sample_rate": pa.array(np.full(len(table), SAMPLE_RATE, np.int32)),
        "channels": pa.array(np.ones(len(table), np.int16)),
        "parts": pa.ListArray.from_arrays(np.arange(len(table) + 1, dtype=np.int32), parts),
    }
    for name, column in changed.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    Manifest.write(out / "manifest.parquet", table.filter(pa.array(size > 0)), out)
