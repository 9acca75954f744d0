"""Recordings below some folders to a table, one row each: streamed, since a corpus has a million of them."""

import filecmp
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.corpora.scan import walk
from sv_sparse.data.manifest import NAME

COLUMNS = pa.schema(
    [
        pa.field("utterance", pa.string()),
        pa.field("speaker", NAME),
        pa.field("session", NAME),
        pa.field("genre", NAME),
        pa.field("subset", NAME),
        pa.field("file", pa.string()),  # below the table's root
        pa.field("size", pa.int64()),  # bytes
        pa.field("changed", pa.int64()),  # time of last change, ns
    ]
)
PREFERRED = (".flac", ".wav", ".opus", ".ogg", ".m4a", ".aac")  # where an utterance lies there more than once

_PLACE = ("file", "size", "changed")  # columns that say where an utterance lies
_CHUNK = 10_000  # files that are Python objects at a time


class Name(NamedTuple):
    """What a path says of an utterance; ``utterance`` is the key that lists name it by."""

    utterance: str
    speaker: str
    session: str
    genre: str
    subset: str


@dataclass
class Found:
    """What was found below some folders.

    Attributes:
        table: One row per utterance, sorted, columns as in ``COLUMNS``.
        root: What ``file`` is relative to.
        lists: Path of each list that was looked for and is there.
        others: Files left out since their utterance lies there in one that is preferred; utterance, file, size and
            time of change, the most preferred first.
        lost: Files that are named but not there, or whose names are no text, and why.
    """

    table: pa.Table
    root: Path
    lists: dict[str, Path]
    others: pa.Table
    lost: list[tuple[str, str]]

    def put(self, rows: NDArray[np.int64], places: Mapping[str, pa.Array]) -> None:
        """Let ascending rows lie in other files, given the columns file, size and changed."""
        mask = np.zeros(len(self.table), dtype=bool)
        mask[rows] = True
        for name in _PLACE:
            index = self.table.schema.get_field_index(name)
            column = pc.replace_with_mask(self.table.column(name), pa.array(mask), places[name])
            self.table = self.table.set_column(index, self.table.schema.field(name), column)

    def stand_in(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Let the next file of their utterances take the place of ascending rows; the rows that had one."""
        if not len(rows) or not len(self.others):
            return rows[:0]
        known = self.others.column("utterance").combine_chunks()
        place = pc.index_in(self.table.column("utterance").take(pa.array(rows)), value_set=known)
        found = pc.is_valid(place).to_numpy()
        taken = place.drop_null().to_numpy()
        files = self.others.take(pa.array(taken)).combine_chunks()
        self.put(rows[found], {name: files.column(name).combine_chunks() for name in _PLACE})
        left = np.ones(len(self.others), dtype=bool)
        left[taken] = False
        self.others = self.others.filter(pa.array(left))
        return rows[found]


def collect(
    roots: Sequence[Path], parse: Callable[[str], Name | None], list_names: Collection[str], *, beside: Path
) -> Found:
    """Every recording whose path means something, below all roots.

    Args:
        roots: Folders to look through; what starts with a dot is left out.
        parse: From a path below a root, with forward slashes, to what it says; None for any other file.
        list_names: Lists to find on the way, by file name.
        beside: A folder that shares the table's root; it is not looked through.

    Raises:
        ValueError: A root is no folder, there is no recording below them (it says what is there instead), or two lists
            of one name differ.
    """
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"--root {root}: expected a folder; found {'a file' if root.exists() else 'nothing'}")
    base = Path(os.path.commonpath([os.path.abspath(path) for path in (*roots, beside)]))
    rows, lists, others = _Rows(), dict[str, Path](), list[str]()
    with tqdm(desc="scanning", unit="file", unit_scale=True, disable=None) as progress:
        for root in _outermost(roots):
            below = os.path.relpath(os.path.abspath(root), base)
            prefix = "" if below == "." else below + "/"
            for key, entry in walk(root, leave_out=beside):
                name = parse(key)
                if name is not None:
                    rows.add(name, prefix + key, entry)
                elif entry.name in list_names:
                    note_list(lists, Path(entry.path))
                elif len(others) < 3:
                    others.append(key)
                progress.update()
    if not rows.count():
        raise ValueError(
            f"--root {', '.join(map(str, roots))}: found no recording of this corpus; "
            f"found {', '.join(others) or 'an empty folder'}"
        )
    table, others = _one_each(rows.table())
    return Found(table, base, lists, others, rows.lost)


def _outermost(roots: Sequence[Path]) -> list[Path]:
    """The roots without those below others, whose files would be found twice."""
    whole = {Path(os.path.abspath(root)) for root in roots}
    return sorted(root for root in whole if whole.isdisjoint(root.parents))


def note_list(lists: dict[str, Path], path: Path) -> None:
    """Add a list by its file name.

    Raises:
        ValueError: There is one of the same name that says something else.
    """
    known = lists.setdefault(path.name, path)
    if not filecmp.cmp(known, path, shallow=False):
        raise ValueError(f"{known} and {path}: two lists of one name that differ; leave one of them")


@dataclass
class _Rows:
    """Rows that become a table piece by piece."""

    waiting: list[tuple[object, ...]] = field(default_factory=list)
    pieces: list[pa.Table] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: Name, file: str, entry: os.DirEntry[str]) -> None:
        try:
            file.encode()
            status = entry.stat()
        except (OSError, UnicodeEncodeError) as error:  # a link that leads nowhere; a name in no encoding
            self.lost.append((ascii(file), str(getattr(error, "strerror", None) or error)))
            return
        self.waiting.append((*name, file, status.st_size, status.st_mtime_ns))
        if len(self.waiting) == _CHUNK:
            self._flush()

    def count(self) -> int:
        return len(self.waiting) + sum(map(len, self.pieces))

    def _flush(self) -> None:
        columns = zip(*self.waiting, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, COLUMNS, strict=True)]
        self.pieces.append(pa.table(arrays, COLUMNS))
        self.waiting = []

    def table(self) -> pa.Table:
        if self.waiting:
            self._flush()
        whole, self.pieces = pa.concat_tables(self.pieces).unify_dictionaries(), []
        return whole


def _one_each(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The table sorted by utterance with one file each, the most preferred ending first; and the other files."""
    ending = pc.utf8_lower(pc.replace_substring_regex(table.column("file"), r"^.*(\.[^.]*)$", r"\1"))
    rank = pc.index_in(ending, value_set=pa.array(PREFERRED))
    del ending
    order = pc.sort_indices(
        pa.table({"utterance": table.column("utterance"), "rank": rank, "file": table.column("file")}),
        sort_keys=[("utterance", "ascending"), ("rank", "ascending"), ("file", "ascending")],
    )
    names = table.column("utterance").take(order).combine_chunks()
    first = np.ones(len(names), dtype=bool)
    first[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    del names
    others = table.select(["utterance", *_PLACE]).take(order.filter(pa.array(~first)))
    return table.take(order.filter(pa.array(first))), others
