"""The table of utterances: columnar, memory-mapped, validated."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sv_sparse.data.mmap_table import map_table, write_copy
from sv_sparse.io import atomic_write

SPLITS = ("train", "validation", "test", "unused")
TRAINED = ("train", "validation")  # of which every utterance can be used
NO_SAMPLES = "could not be used when its manifest was written"  # an utterance with 0 samples

NAME = pa.dictionary(pa.int32(), pa.string())  # each distinct name stored once
PART = pa.struct(
    [
        pa.field("file", pa.string(), nullable=False),  # path below the root, with forward slashes
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # where it begins in a tar file, in bytes; 0 if in none
        pa.field("bytes", pa.int64(), nullable=False),  # its length
        pa.field("pcm", pa.int64(), nullable=False),  # where mono 16-bit samples begin, as offset; -1: none in plain
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("utterance", pa.string(), nullable=False),  # key that lists name it by
        pa.field("speaker", NAME, nullable=False),
        pa.field("session", NAME, nullable=False),
        pa.field("genre", NAME, nullable=False),  # empty where there is none
        pa.field("subset", NAME, nullable=False),  # part of the corpus as published; empty where there is none
        pa.field("samples", pa.int64(), nullable=False),  # at the file's own rate
        pa.field("sample_rate", pa.int32(), nullable=False),  # Hz
        pa.field("channels", pa.int16(), nullable=False),
        pa.field("parts", pa.list_(PART), nullable=False),  # the file, or the files that are joined
        pa.field("split", NAME, nullable=False),  # one of SPLITS
    ]
)
_ROOT = b"root"
_ROWS = 100_000  # of the Parquet file that are written at a time


class Part(NamedTuple):
    """A file, or one of the files that are joined to an utterance.

    Attributes:
        path: Absolute path, of a tar file where it lies in one.
        samples: Its length.
        offset: Where it begins in a tar file, in bytes; 0 where it is a file of its own.
        bytes: Its length.
        pcm: Where mono 16-bit samples begin, counted as ``offset``; -1 where it has none in plain.
    """

    path: str
    samples: int
    offset: int
    bytes: int
    pcm: int


class Manifest:
    """The utterances below one root folder, one row each.

    The table is a Parquet file. Parquet has to be decoded, so the first opening leaves a copy in Arrow's own format
    beside it (``.arrow``; in a temporary place where the folder cannot be written), which is mapped into memory, not
    read: there is no Python object per row, and all processes of a machine share one copy. A copy of another state of
    the file is never used. Pickling keeps the path alone; whoever unpickles maps the copy again.

    Args:
        path: A file written by :meth:`write`.

    Attributes:
        source: The manifest's own file, absolute.
        root: The folder that utterances are relative to, absolute.
        samples: int64 [rows], length of each utterance at its own rate; 0 where it could not be used
            when the manifest was written, which is allowed outside ``TRAINED``.
        sample_rate: int32 [rows], Hz.
        channels: int16 [rows], of which the first is read.

    Raises:
        ValueError: The file is no manifest, or has missing columns, duplicates or no rows.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._map(Path(path).absolute())

    def _map(self, source: Path) -> None:
        table = map_table(source, _read)
        self._utterance: pa.StringArray = table.column("utterance").chunk(0)
        self._speaker: pa.DictionaryArray = table.column("speaker").chunk(0)
        self._session: pa.DictionaryArray = table.column("session").chunk(0)
        self._genre: pa.DictionaryArray = table.column("genre").chunk(0)
        self._split: pa.DictionaryArray = table.column("split").chunk(0)
        parts: pa.ListArray = table.column("parts").chunk(0)
        self._first_part: NDArray[np.int32] = parts.offsets.to_numpy()
        self._file: pa.StringArray = parts.values.field("file")
        lengths = (parts.values.field(name).to_numpy() for name in Part._fields[1:])
        self._lengths: tuple[NDArray[np.int64], ...] = tuple(lengths)
        self.source = source
        self.root = os.fsdecode(table.schema.metadata[_ROOT])
        self.samples: NDArray[np.int64] = table.column("samples").to_numpy()
        self.sample_rate: NDArray[np.int32] = table.column("sample_rate").to_numpy()
        self.channels: NDArray[np.int16] = table.column("channels").to_numpy()

    @classmethod
    def write(cls, path: str | Path, table: pa.Table, root: str | Path) -> "Manifest":
        """Write ``table`` atomically, and open what was written.

        Args:
            path: The file to write; its folder is made.
            table: Columns as in ``SCHEMA``, in any order. ``genre`` and ``subset`` are empty where they are left out.
            root: The folder that files are relative to.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {_ROOT: os.fsencode(Path(root).absolute())}
        for name in {"genre", "subset"}.difference(table.schema.names):
            table = table.append_column(name, pa.array([""] * len(table), pa.string()))
        table = table.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata(metadata)
        _validate(path, table)
        with atomic_write(path) as file:
            pq.write_table(table, file, row_group_size=_ROWS)
        write_copy(path, table)
        return cls(path)

    def __getstate__(self) -> Path:
        return self.source

    def __setstate__(self, source: Path) -> None:
        self._map(source)

    def __len__(self) -> int:
        return len(self._utterance)

    def utterance(self, row: int) -> str:
        """Key of the utterance in ``row``: its path below the root, with forward slashes."""
        return self._utterance[int(row)].as_py()

    def speaker(self, row: int) -> str:
        """Who speaks in ``row``."""
        return self._speaker[int(row)].as_py()

    def session(self, row: int) -> str:
        """What was recorded in one go with ``row``; names repeat between speakers."""
        return self._session[int(row)].as_py()

    def genre(self, row: int) -> str:
        """What was recorded in ``row``, empty where that is not known."""
        return self._genre[int(row)].as_py()

    def parts(self, row: int) -> list[Part]:
        """The file of ``row``, or its files in order where it is joined from several."""
        return [
            Part(os.path.join(self.root, self._file[k].as_py()), *(int(column[k]) for column in self._lengths))
            for k in range(self._first_part[row], self._first_part[row + 1])
        ]

    def first_files(self, rows: NDArray[np.int64]) -> pa.DictionaryArray:
        """The file of each of ``rows``, the first of several, as a path below the root; each distinct path once."""
        return self._file.take(self._first_part[:-1][rows]).dictionary_encode()

    def split(self, name: str) -> NDArray[np.int64]:
        """Rows of one split, ascending.

        Raises:
            ValueError: ``name`` is not one of ``SPLITS``.
        """
        if name not in SPLITS:
            raise ValueError(f"split={name!r}: expected one of {', '.join(SPLITS)}")
        return np.flatnonzero(pc.equal(self._split, name).to_numpy(zero_copy_only=False))

    def summary(self, split: str) -> tuple[int, int, float]:
        """Return how many speakers, utterances and hours a split has.

        Args:
            split: ``train``, ``validation`` or ``test``.
        """
        rows = self.split(split)
        hours = float(np.sum(self.samples[rows] / self.sample_rate[rows])) / 3600
        return len(self.speakers(split)), len(rows), hours

    def speakers(self, split: str) -> list[str]:
        """Names of the speakers in a split, sorted; their positions are the labels of :meth:`labels`."""
        return sorted(self._speaker.take(self.split(split)).unique().to_pylist())

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Speaker of each of ``rows`` as an index into the sorted names of the speakers among them.

        Returns:
            int64 [len(rows)], every value from 0 to the number of speakers - 1 present.
        """
        present, label = np.unique(self._speaker.indices.to_numpy()[rows], return_inverse=True)
        names = self._speaker.dictionary.take(present)
        rank = np.empty(len(present), dtype=np.int64)
        rank[pc.array_sort_indices(names).to_numpy()] = np.arange(len(present))
        return rank[label]

    def rows(self, utterances: Sequence[str]) -> NDArray[np.int64]:
        """Row of each utterance, matched as in :func:`match`.

        Raises:
            ValueError: Some are not in the manifest; it names the first and says how many.
        """
        found = match(utterances, self._utterance)
        refuse_missing(utterances, found, str(self.source))
        return found


def match(utterances: Sequence[str], known: pa.StringArray) -> NDArray[np.int64]:
    """Index of each utterance among the ``known`` ones, or -1.

    An utterance that is not there under its exact name is looked for in Unicode's composed form, since macOS keeps
    names decomposed, and then without its ending, since lists often say ``.wav`` where the files are ``.flac``. A name
    that leaves a choice between two files counts as missing.

    >>> match(["a/b/1.wav", "a/b/2.wav", "a/b/3.wav"], pa.array(["a/b/2.flac", "a/b/1.wav"]))
    array([ 1,  0, -1])
    """
    wanted = pa.array(utterances, pa.string())
    index = pc.index_in(wanted, value_set=known)
    for simplify in (_composed, _stem):
        if not index.null_count:
            break
        simple, wanted_simple = simplify(known), simplify(wanted)
        counts = pc.value_counts(simple)
        unique = counts.field("values").filter(pc.equal(counts.field("counts"), 1))
        place = pc.index_in(wanted_simple, value_set=simple)
        index = pc.coalesce(index, pc.if_else(pc.is_in(wanted_simple, value_set=unique), place, None))
    return index.cast(pa.int64()).fill_null(-1).to_numpy()


def refuse_missing(utterances: Sequence[str], found: NDArray[np.int64], source: str) -> None:
    """Raise a ValueError that begins with ``source`` if any entry of ``found`` is -1."""
    missing = np.flatnonzero(found < 0)
    if len(missing):
        first = ", ".join(utterances[position] for position in missing[:3])
        raise ValueError(f"{source}: {len(missing)} of {len(found)} utterances are missing; first {first}")


def _composed(utterances: pa.StringArray) -> pa.StringArray:
    return pc.utf8_normalize(utterances, form="NFC")


def _stem(utterances: pa.StringArray) -> pa.StringArray:
    return pc.replace_substring_regex(_composed(utterances), r"\.[^./]*$", "")


def _read(source: Path) -> pa.Table:
    """The validated table of a Parquet file."""
    try:
        table = pq.read_table(source, memory_map=True, partitioning=None)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source}: not a manifest ({error})") from error
    missing = [name for name in SCHEMA.names if name not in table.schema.names]
    metadata = table.schema.metadata or {}
    if missing or _ROOT not in metadata:
        raise ValueError(f"{source}: not a manifest, it lacks {', '.join(missing) or 'the root folder'}")
    _validate(source, table)
    return table.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata({_ROOT: metadata[_ROOT]})


def _validate(source: Path, table: pa.Table) -> None:
    if not len(table):
        raise ValueError(f"{source}: the manifest is empty")
    nulls = [name for name in SCHEMA.names if table.column(name).null_count]
    if nulls:
        raise ValueError(f"{source}: the manifest has empty cells in {', '.join(nulls)}")
    unknown = set(table.column("split").unique().to_pylist()) - set(SPLITS)
    if unknown:
        raise ValueError(f"{source}: splits are {', '.join(SPLITS)}; found {', '.join(sorted(unknown))}")
    trained = pc.is_in(table.column("split").cast(pa.string()), value_set=pa.array(TRAINED))
    fewest = pc.min(table.filter(trained).column("samples")).as_py()
    if fewest is not None and fewest < 1:
        raise ValueError(f"{source}: the manifest has utterances without samples")
    if pc.min(pc.list_value_length(table.column("parts"))).as_py() < 1:
        raise ValueError(f"{source}: the manifest has utterances without a file")
    utterances = table.column("utterance")
    if len(utterances.unique()) < len(table):
        counts = pc.value_counts(utterances)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        first = ", ".join(twice[:3].to_pylist())
        raise ValueError(f"{source}: {len(twice)} utterances occur more than once; first {first}")
