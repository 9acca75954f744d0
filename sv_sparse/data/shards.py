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
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import webdataset
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.audio import read_utterance, to_int16
from sv_sparse.data.corpora.pipeline import sole
from sv_sparse.data.decoding import SAMPLE_RATE, inspect
from sv_sparse.data.manifest import NO_SAMPLES, PART, TRAINED, Manifest
from sv_sparse.data.unreadable import UnreadableLimit

logger = logging.getLogger(__name__)

UTTERANCES = 1000  # per shard
LIMIT = UnreadableLimit(0.01, "--max-unreadable ")

_ORDER = 0  # seed of the shuffle, so that a shard holds many speakers
_NAMED = 3  # recordings in an error message; the log names all


class _Place(NamedTuple):
    """Where an utterance lies in a shard.

    Attributes:
        samples: Its length.
        offset: Where its FLAC file begins, in bytes.
        bytes: The length of that file.
        end: Where the next utterance begins.
    """

    samples: int
    offset: int
    bytes: int
    end: int


def write_shards(prepared: Path, out: Path, *, utterances: int = UTTERANCES, limit: UnreadableLimit = LIMIT) -> None:
    """Write every utterance of a prepared folder into tar files, subset by subset, each shuffled.

    A recording that cannot be used is named in a warning and left out. It stays in the manifest, with 0 samples:
    nothing trains on it, and evaluation leaves out its trials by name.

    Called again, it goes on where it was: shards that are whole are left alone, and what is missing in others, since it
    could not be used, is tried again and put behind what they hold. So manifests of earlier calls stay true.

    Args:
        prepared: The prepared folder.
        out: The folder of shards; a prepared folder itself once this is done.
        utterances: How many go into a shard.
        limit: How many of all recordings may be left out. The default is one in a hundred.

    Raises:
        ValueError: ``prepared`` is no prepared folder, a shard is damaged or holds something else, too many recordings
            cannot be used, or one cannot be read for another reason than what it holds, such as a disk that is away.
        OSError: A file cannot be read or written.
    """
    if out.resolve() == prepared.resolve():
        raise ValueError(f"--out {out}: expected another folder than the prepared one")
    source = Manifest(prepared / "manifest.parquet")
    table = pq.read_table(source.source)
    chunks = _chunks(table.column("subset").to_pylist(), utterances)
    left_out: list[str] = []
    with sole(out):
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(total=len(table), desc="writing shards", unit="utt", unit_scale=True, disable=None) as progress,
        ):
            for rows, problems in zip(
                chunks.values(), pool.map(lambda name: _write(source, chunks[name], out / name), chunks), strict=True
            ):
                left_out += problems
                progress.update(len(rows))
        if len(left_out) > limit.most(len(table)):
            raise ValueError(
                f"{limit}: {len(left_out)} of {len(table)} recordings cannot be used; first "
                f"{'; '.join(left_out[:_NAMED])}; what was written stays, and the same command goes on"
            )
        if (prepared / "trials").is_dir():
            shutil.copytree(prepared / "trials", out / "trials", dirs_exist_ok=True)
        _index(source, table, chunks, out)


def _chunks(subset: Sequence[str], utterances: int) -> dict[str, NDArray[np.int64]]:
    """Rows of each shard, by its name."""
    found = {}
    names = np.array(subset)
    for name in sorted(set(subset)):
        rows = np.random.default_rng(_ORDER).permutation(np.flatnonzero(names == name))
        for number, start in enumerate(range(0, len(rows), utterances)):
            found[f"{name or 'speech'}-{number:06d}.tar"] = rows[start : start + utterances]
    return found


def _write(source: Manifest, rows: NDArray[np.int64], path: Path) -> list[str]:
    """Write what a shard lacks, and return why recordings are left out."""
    held = _held(source, rows, path) if path.is_file() else {}
    missing = [row for row in rows.tolist() if row not in held]
    if not missing and path.is_file():
        return []
    problems = []
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        if held:
            shutil.copyfile(path, part)
            file.truncate(file.seek(max(place.end for place in held.values())))  # without the mark of the shard's end
        with webdataset.TarWriter(file, mtime=0) as shard:
            for row in missing:
                try:
                    shard.write(_sample(source, row))
                except ValueError as error:
                    if isinstance(error.__cause__, OSError):
                        raise  # of a disk that is away, say: a shard without its recordings would be taken for whole
                    problems.append(str(error))
                    logger.warning("left out: %s", error)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return problems


def _sample(source: Manifest, row: int) -> dict[str, object]:
    """An utterance as WebDataset names it: the FLAC as it lies on the disk where that is mono at 16 kHz, else made.

    Raises:
        ValueError: It cannot be used; the message names the file.
        OSError: Its file cannot be read.
    """
    parts = source.parts(row)
    if not source.samples[row]:
        raise ValueError(f"{source.utterance(row)}: {NO_SAMPLES}")
    plain = len(parts) == 1 and parts[0].path.endswith(".flac") and source.sample_rate[row] == SAMPLE_RATE
    if plain and source.channels[row] == 1:
        audio = Path(parts[0].path).read_bytes()
        samples = parts[0].samples
        info = inspect(audio)
        if info.problem or info.samples != samples:
            raise ValueError(f"{parts[0].path}: {info.problem or 'is not as long as when its manifest was written'}")
    else:
        waveform = to_int16(read_utterance(parts, SAMPLE_RATE).numpy())
        buffer = io.BytesIO()
        soundfile.write(buffer, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        audio, samples = buffer.getvalue(), len(waveform)
    about = {"utterance": source.utterance(row), "speaker": source.speaker(row), "samples": samples}
    return {"__key__": f"{row:08d}", "flac": audio, "json": json.dumps(about)}


def _held(source: Manifest, rows: NDArray[np.int64], path: Path) -> dict[int, _Place]:
    """Return what a shard holds, by row, as far as it is whole.

    Raises:
        ValueError: It is no shard, is damaged, or holds something else than it should.
    """
    held: dict[int, _Place] = {}
    names: dict[int, str] = {}
    flac = tarfile.TarInfo()
    try:
        with tarfile.open(path) as shard:
            for member in shard:
                if not member.name.endswith(".json"):
                    flac = member
                    continue
                content = shard.extractfile(member)
                assert content is not None
                about, row = json.load(content), int(member.name.split(".")[0])
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                names[row] = about["utterance"]
                held[row] = _Place(about["samples"], flac.offset_data, flac.size, end)
    except (tarfile.TarError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as a shard ({error}); remove it and run again") from error
    if any(row >= len(source) or source.utterance(row) != name for row, name in names.items()):
        raise ValueError(f"{path}: holds another corpus than {source.source.parent}; remove it and run again")
    if not held.keys() <= set(rows.tolist()):
        raise ValueError(f"{path}: was made with another --utterances; remove it and run again")
    return held


def _index(source: Manifest, table: pa.Table, chunks: dict[str, NDArray[np.int64]], out: Path) -> None:
    """Write the manifest of the shards, from what the tar files say of themselves."""
    offset, size, samples = (np.zeros(len(table), dtype=np.int64) for _ in range(3))
    files = np.empty(len(table), dtype=object)
    for name, rows in tqdm(chunks.items(), desc="reading shards", unit="shard", disable=None):
        # A manifest names a file for each utterance, one of its own even if it was left out.
        files[rows] = [f"{name}/{row:08d}.flac" for row in rows]
        for row, place in _held(source, rows, out / name).items():
            files[row], samples[row], offset[row], size[row] = name, place.samples, place.offset, place.bytes
    columns = {
        "file": pa.array(files, pa.string()),
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
    is_trained = pc.is_in(table.column("split").cast(pa.string()), value_set=pa.array(TRAINED))
    is_kept = (samples > 0) | ~is_trained.to_numpy()
    Manifest.write(out / "manifest.parquet", table.filter(pa.array(is_kept)), out)
