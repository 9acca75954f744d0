"""Manifest: the table of a corpus's utterances, with their files, speakers and splits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sv_sparse.data.mmap_table import mmap_parquet, write_arrow_copy
from sv_sparse.io import atomic_write

SPLITS = ("train", "validation", "test", "unused")
# Every utterance in them can be used.
TRAINING_SPLITS = ("train", "validation")
# Message for an utterance with 0 samples.
UNUSABLE = "could not be used when its manifest was written"

# Each distinct name is stored once.
DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


SEGMENT = pa.struct(
    [
        # Path below the root, with forward slashes.
        _required("file", pa.string()),
        # The others are those of ``AudioSegment``.
        *[_required(name, pa.int64()) for name in ("samples", "offset", "size", "pcm_offset")],
    ]
)
SCHEMA = pa.schema(
    [
        # Key in lists.
        _required("utterance", pa.string()),
        # These three are empty if unknown.
        _required("speaker", DICTIONARY),
        _required("session", DICTIONARY),
        _required("genre", DICTIONARY),
        # Part of the published corpus; empty if there is none.
        _required("subset", DICTIONARY),
        # Counted at the file's own rate.
        _required("samples", pa.int64()),
        _required("sample_rate", pa.int32()),
        _required("channels", pa.int16()),
        # The file, or the files that are concatenated.
        _required("segments", pa.list_(SEGMENT)),
        # One of SPLITS.
        _required("split", DICTIONARY),
    ]
)
_ROOT = b"root"
# Parquet's own default of a million rows is most of a corpus in memory at once.
_ROW_GROUP_SIZE = 100_000


class AudioSegment(NamedTuple):
    """A file with the audio of an utterance, or with a part of it.

    Attributes:
        path: absolute path of the file, or of the tar file that it lies in.
        samples: length in samples.
        offset: first byte within a tar file; 0 for a file of its own.
        size: bytes of the audio file.
        pcm_offset: first byte of mono 16-bit samples, counted like ``offset``; -1 if they are encoded otherwise.
    """

    path: str
    samples: int
    offset: int
    size: int
    pcm_offset: int


class Manifest:
    """Utterances below one root folder, one row each; a pickled manifest is its path alone (DECISIONS 14).

    Attributes:
        source: absolute path of the manifest's file.
        root: absolute path of the folder that the files are relative to.
        samples: int64 [rows], length of each utterance at its own rate. It is 0 for an utterance that could
            not be used when the manifest was written, which is allowed outside of ``TRAINING_SPLITS``.
        sample_rate: int32 [rows], Hz.
        channels: int16 [rows]. The first channel is read.

    Raises:
        ValueError: the file is no manifest, or has missing columns, duplicates or no rows.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        source = Path(path).absolute()
        # No Python object per row, and one copy for all processes of a machine.
        table = mmap_parquet(source, _read)
        self._utterance: pa.StringArray = table.column("utterance").chunk(0)
        self._speaker: pa.DictionaryArray = table.column("speaker").chunk(0)
        self._session: pa.DictionaryArray = table.column("session").chunk(0)
        self._genre: pa.DictionaryArray = table.column("genre").chunk(0)
        self._split: pa.DictionaryArray = table.column("split").chunk(0)
        segments: pa.ListArray = table.column("segments").chunk(0)
        self._segment_offsets: NDArray[np.int32] = segments.offsets.to_numpy()
        self._file: pa.StringArray = segments.values.field("file")
        # Four of int64 [segments], in the order of AudioSegment. An array of all of them would be a copy.
        self._segment_columns = [segments.values.field(name).to_numpy() for name in AudioSegment._fields[1:]]
        self.source = source
        self.root = os.fsdecode(table.schema.metadata[_ROOT])
        self.samples: NDArray[np.int64] = table.column("samples").to_numpy()
        self.sample_rate: NDArray[np.int32] = table.column("sample_rate").to_numpy()
        self.channels: NDArray[np.int16] = table.column("channels").to_numpy()

    @classmethod
    def write(cls, path: str | Path, table: pa.Table, root: str | Path) -> "Manifest":
        """Write a table with the columns of ``SCHEMA``, and open it; ``genre`` and ``subset`` may be absent.

        Raises:
            ValueError: the table has no rows, duplicates, or an unknown split.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in ("genre", "subset"):
            if name not in table.schema.names:
                table = table.append_column(name, pa.array([""] * len(table), pa.string()))
        metadata = {_ROOT: os.fsencode(Path(root).absolute())}
        table = table.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata(metadata)
        _validate(path, table)
        with atomic_write(path) as file:
            pq.write_table(table, file, row_group_size=_ROW_GROUP_SIZE)
        write_arrow_copy(path, table)
        return cls(path)

    def __reduce__(self) -> tuple[type["Manifest"], tuple[Path]]:
        return Manifest, (self.source,)

    def __len__(self) -> int:
        return len(self._utterance)

    def utterance(self, row: int) -> str:
        """Return the key of an utterance: the name that lists have for it (DECISIONS 28)."""
        return self._utterance[int(row)].as_py()

    def speaker(self, row: int) -> str:
        """Return the speaker of an utterance, empty if it is unknown."""
        return self._speaker[int(row)].as_py()

    def session(self, row: int) -> str:
        """Return the session of an utterance; speakers may have sessions of the same name."""
        return self._session[int(row)].as_py()

    def genre(self, row: int) -> str:
        """Return the genre of an utterance, empty if it is unknown."""
        return self._genre[int(row)].as_py()

    def segments(self, row: int) -> list[AudioSegment]:
        """Return the file of an utterance, or its files in the order in which they are concatenated."""
        segments = []
        for index in range(self._segment_offsets[row], self._segment_offsets[row + 1]):
            path = os.path.join(self.root, self._file[index].as_py())
            numbers = [int(column[index]) for column in self._segment_columns]
            segments.append(AudioSegment(path, *numbers))
        return segments

    def first_files(self, rows: NDArray[np.int64]) -> pa.DictionaryArray:
        """Return the first file of each of ``rows`` as a path below the root, each distinct path once."""
        return self._file.take(self._segment_offsets[:-1][rows]).dictionary_encode()

    def split(self, name: str) -> NDArray[np.int64]:
        """Return the rows of a split, one of ``SPLITS`` or a ValueError, ascending."""
        if name not in SPLITS:
            raise ValueError(f"split={name!r}: expected one of {', '.join(SPLITS)}")
        return np.flatnonzero(pc.equal(self._split, name).to_numpy(zero_copy_only=False))

    def summary(self, split: str) -> tuple[int, int, float]:
        """Return how many speakers, utterances and hours a split has; 0 speakers if they are unknown."""
        rows = self.split(split)
        hours = float(np.sum(self.samples[rows] / self.sample_rate[rows])) / 3600
        return len(self.speakers(split)), len(rows), hours

    def speakers(self, split: str) -> list[str]:
        """Return the speakers of a split, sorted, none if they are unknown.

        Their positions are the labels of :meth:`labels`.
        """
        return sorted(filter(None, self._speaker.take(self.split(split)).unique().to_pylist()))

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the speaker of each of ``rows`` as an index into the sorted speakers among them, int64 [rows]."""
        present, label = np.unique(self._speaker.indices.to_numpy()[rows], return_inverse=True)
        names = self._speaker.dictionary.take(present)
        rank = np.empty(len(present), dtype=np.int64)
        rank[pc.array_sort_indices(names).to_numpy()] = np.arange(len(present))
        return rank[label]

    def rows(self, utterances: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each utterance, int64 [len(utterances)], matched by :func:`match_utterances`.

        A ValueError names the first that are not in the manifest.
        """
        rows = match_utterances(utterances, self._utterance)
        check_none_missing(utterances, rows, str(self.source))
        return rows


def set_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return a table with another column in the place of one."""
    return table.set_column(table.schema.get_field_index(name), name, column)


def segment_column(files: pa.StringArray, *numbers: NDArray[np.int64]) -> pa.ListArray:
    """Return the column ``segments`` for utterances of one file each; the arguments are the fields of ``SEGMENT``."""
    columns = [files, *(pa.array(column, pa.int64()) for column in numbers)]
    segments = pa.StructArray.from_arrays(columns, fields=list(SEGMENT))
    return pa.ListArray.from_arrays(np.arange(len(files) + 1, dtype=np.int32), segments)


def match_utterances(names: Sequence[str], utterances: pa.StringArray) -> NDArray[np.int64]:
    """Return the index of each name among ``utterances``, int64 [len(names)], or -1.

    A name that is not among them is looked up in Unicode's composed form, and then without its suffix. A name
    that fits several utterances counts as missing.

    >>> match_utterances(["a/b/1.wav", "a/b/2.wav", "a/b/3.wav"], pa.array(["a/b/2.flac", "a/b/1.wav"]))
    array([ 1,  0, -1])
    """
    query = pa.array(names, pa.string())
    index = pc.index_in(query, value_set=utterances)
    # macOS stores names decomposed; lists often say ``.wav`` for files in ``.flac``.
    for simplify in (_nfc, _without_suffix):
        if not index.null_count:
            break
        simple_utterances = simplify(utterances)
        simple_names = simplify(query)
        counts = pc.value_counts(simple_utterances)
        unique = counts.field("values").filter(pc.equal(counts.field("counts"), 1))
        position = pc.index_in(simple_names, value_set=simple_utterances)
        index = pc.coalesce(index, pc.if_else(pc.is_in(simple_names, value_set=unique), position, None))
    return index.cast(pa.int64()).fill_null(-1).to_numpy()


def check_none_missing(names: Sequence[str], index: NDArray[np.int64], source: str) -> None:
    """Raise a ValueError that begins with ``source`` if :func:`match_utterances` returned -1 for some names."""
    missing = np.flatnonzero(index < 0)
    if len(missing):
        first = ", ".join([names[position] for position in missing[:3]])
        raise ValueError(f"{source}: {len(missing)} of {len(index)} utterances are missing; first {first}")


def _nfc(utterances: pa.StringArray) -> pa.StringArray:
    return pc.utf8_normalize(utterances, form="NFC")


def _without_suffix(utterances: pa.StringArray) -> pa.StringArray:
    return pc.replace_substring_regex(_nfc(utterances), r"\.[^./]*$", "")


def _read(source: Path) -> pa.Table:
    try:
        table = pq.read_table(source, memory_map=True, partitioning=None)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source}: not a manifest ({error})") from error
    missing = [name for name in SCHEMA.names if name not in table.schema.names]
    metadata = table.schema.metadata or {}
    if missing or _ROOT not in metadata:
        raise ValueError(f"{source}: not a manifest, it lacks {', '.join(missing) or 'the root folder'}")
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except ValueError as error:
        # Empty cells, or another type.
        raise ValueError(f"{source}: not a manifest ({error})") from error
    _validate(source, table)
    return table.replace_schema_metadata({_ROOT: metadata[_ROOT]})


def _validate(source: Path, table: pa.Table) -> None:
    if not len(table):
        raise ValueError(f"{source}: the manifest is empty")
    split = table.column("split").cast(pa.string())
    unknown = set(split.unique().to_pylist()) - set(SPLITS)
    if unknown:
        raise ValueError(f"{source}: splits are {', '.join(SPLITS)}; found {', '.join(sorted(unknown))}")
    is_trained = pc.is_in(split, value_set=pa.array(TRAINING_SPLITS))
    min_samples = pc.min(table.filter(is_trained).column("samples")).as_py()
    if min_samples is not None and min_samples < 1:
        raise ValueError(f"{source}: the manifest has utterances without samples")
    counts = pc.value_counts(table.column("utterance"))
    duplicates = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(duplicates):
        first = ", ".join(duplicates[:3].to_pylist())
        raise ValueError(f"{source}: {len(duplicates)} utterances occur more than once; first {first}")
