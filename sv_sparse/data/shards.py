"""Shards: a prepared corpus as WebDataset tar files of FLAC, few large files for object stores and network disks.

A folder of shards is a prepared folder itself. Its manifest says where in which tar file each utterance lies.
"""

import io
import json
import logging
import os
import shutil
import tarfile
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
from sv_sparse.data.corpora.pipeline import exclusive
from sv_sparse.data.decoding import SAMPLE_RATE, inspect
from sv_sparse.data.manifest import TRAINING_SPLITS, UNUSABLE, Manifest, segment_column, set_column
from sv_sparse.data.unreadable import UnreadableLimit

logger = logging.getLogger(__name__)

UTTS_PER_SHARD = 1000
DEFAULT_LIMIT = UnreadableLimit(0.01, "--max-unreadable ")

# Shuffled, so that a shard holds many speakers; fixed, so that the next call makes the same shards.
_SHUFFLE_SEED = 0
# Recordings in an error message; the log names all.
_MAX_NAMES = 3


class _Entry(NamedTuple):
    """Utterance in a shard."""

    samples: int
    # First byte of its FLAC file, and bytes of it.
    offset: int
    size: int
    # First byte of the next utterance.
    end: int


def write_shards(
    prepared: Path, out: Path, *, utts_per_shard: int = UTTS_PER_SHARD, limit: UnreadableLimit = DEFAULT_LIMIT
) -> None:
    """Write every utterance of a prepared folder into tar files, subset by subset, each shuffled.

    A recording that cannot be used is named in a warning and left out. It stays in the manifest with 0
    samples: no run trains on it, and evaluation leaves out its trials by name. A second call continues.

    Args:
        prepared: the prepared folder.
        out: folder of the shards.
        utts_per_shard: utterances per shard, 1 or more.
        limit: limit for the recordings that are left out; by default one in a hundred.

    Raises:
        ValueError: ``prepared`` is no prepared folder, a shard is damaged or holds something else, or too many
            recordings cannot be used.
        OSError: a file cannot be read or written.
    """
    if out.resolve() == prepared.resolve():
        raise ValueError(f"--out {out}: expected another folder than the prepared one")
    source = Manifest(prepared / "manifest.parquet")
    table = pq.read_table(source.source)
    subset = np.array(table.column("subset").to_pylist())
    shards: dict[str, NDArray[np.int64]] = {}
    for name in np.unique(subset).tolist():
        rows = np.random.default_rng(_SHUFFLE_SEED).permutation(np.flatnonzero(subset == name))
        for number, start in enumerate(range(0, len(rows), utts_per_shard)):
            shards[f"{name or 'speech'}-{number:06d}.tar"] = rows[start : start + utts_per_shard]
    left_out: list[str] = []
    with exclusive(out):
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(total=len(table), desc="writing shards", unit="utt", unit_scale=True, disable=None) as progress,
        ):
            results = pool.map(lambda name: _write_shard(source, shards[name], out / name), shards)
            for rows, problems in zip(shards.values(), results, strict=True):
                left_out += problems
                progress.update(len(rows))
        if len(left_out) > limit.max_count(len(table)):
            raise ValueError(
                f"{limit}: {len(left_out)} of {len(table)} recordings cannot be used; first "
                f"{'; '.join(left_out[:_MAX_NAMES])}; what was written stays, and the same command goes on"
            )
        if (prepared / "trials").is_dir():
            shutil.copytree(prepared / "trials", out / "trials", dirs_exist_ok=True)
        _write_manifest(source, table, shards, out)


def _write_shard(source: Manifest, rows: NDArray[np.int64], path: Path) -> list[str]:
    """Write what a shard lacks, and return the reasons why recordings are left out."""
    entries = _read_entries(source, rows, path) if path.is_file() else {}
    missing = [row for row in rows.tolist() if row not in entries]
    if not missing and path.is_file():
        return []
    problems = []
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        # What is there stays where it is, so that manifests of earlier runs stay true.
        if entries:
            shutil.copyfile(path, part)
            # This drops the end-of-archive mark.
            file.truncate(file.seek(max(entry.end for entry in entries.values())))
        with webdataset.TarWriter(file, mtime=0) as shard:
            for row in missing:
                try:
                    shard.write(_make_sample(source, row))
                except ValueError as error:
                    # A disk may be away: a shard without its recordings would count as complete.
                    if isinstance(error.__cause__, OSError):
                        raise
                    problems.append(str(error))
                    logger.warning("left out: %s", error)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return problems


def _make_sample(source: Manifest, row: int) -> dict[str, object]:
    """Return an utterance as WebDataset writes it, or raise a ValueError that names the file."""
    segments = source.segments(row)
    if not source.samples[row]:
        raise ValueError(f"{source.utterance(row)}: {UNUSABLE}")
    path = segments[0].path
    is_flac = len(segments) == 1 and path.endswith(".flac")
    # Such a file is copied, others are encoded.
    if is_flac and source.sample_rate[row] == SAMPLE_RATE and source.channels[row] == 1:
        audio = Path(path).read_bytes()
        samples = segments[0].samples
        info = inspect(audio)
        if info.problem or info.samples != samples:
            raise ValueError(f"{path}: {info.problem or 'is not as long as when its manifest was written'}")
    else:
        waveform = to_int16(read_utterance(segments, SAMPLE_RATE).numpy())
        samples = len(waveform)
        file = io.BytesIO()
        soundfile.write(file, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        audio = file.getvalue()
    metadata = {"utterance": source.utterance(row), "speaker": source.speaker(row), "samples": samples}
    return {"__key__": f"{row:08d}", "flac": audio, "json": json.dumps(metadata)}


def _read_entries(source: Manifest, rows: NDArray[np.int64], path: Path) -> dict[int, _Entry]:
    """Return the complete utterances of a shard by row, or raise a ValueError if it holds something else."""
    entries: dict[int, _Entry] = {}
    names: dict[int, str] = {}
    flac = tarfile.TarInfo()
    try:
        with tarfile.open(path) as shard:
            for member in shard:
                # The FLAC file comes first, so that an utterance is complete once its JSON is there.
                if not member.name.endswith(".json"):
                    flac = member
                    continue
                content = shard.extractfile(member)
                assert content is not None
                metadata = json.load(content)
                row = int(member.name.split(".")[0])
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                names[row] = metadata["utterance"]
                entries[row] = _Entry(metadata["samples"], flac.offset_data, flac.size, end)
    except (tarfile.TarError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as a shard ({error}); remove it and run again") from error
    if any(row >= len(source) or source.utterance(row) != name for row, name in names.items()):
        raise ValueError(f"{path}: holds another corpus than {source.source.parent}; remove it and run again")
    if not entries.keys() <= set(rows.tolist()):
        raise ValueError(f"{path}: was made with another --utts-per-shard; remove it and run again")
    return entries


def _write_manifest(source: Manifest, table: pa.Table, shards: dict[str, NDArray[np.int64]], out: Path) -> None:
    """Write the manifest of the shards from what the tar files contain."""
    files = np.empty(len(table), dtype=object)
    samples, offset, size = np.zeros((3, len(table)), np.int64)
    for name, rows in tqdm(shards.items(), desc="reading shards", unit="shard", disable=None):
        # Those that were left out keep names that are not there.
        files[rows] = [f"{name}/{row:08d}.flac" for row in rows]
        for row, entry in _read_entries(source, rows, out / name).items():
            files[row] = name
            samples[row] = entry.samples
            offset[row] = entry.offset
            size[row] = entry.size
    # FLAC has to be decoded.
    no_pcm = np.full(len(table), -1, np.int64)
    columns = {
        "samples": pa.array(samples),
        "sample_rate": pa.array(np.full(len(table), SAMPLE_RATE, np.int32)),
        "channels": pa.array(np.ones(len(table), np.int16)),
        "segments": segment_column(pa.array(files, pa.string()), samples, offset, size, no_pcm),
    }
    for name, column in columns.items():
        table = set_column(table, name, column)
    is_trained = pc.is_in(table.column("split").cast(pa.string()), value_set=pa.array(TRAINING_SPLITS)).to_numpy()
    Manifest.write(out / "manifest.parquet", table.filter(pa.array((samples > 0) | ~is_trained)), out)
