"""Scan of folders for recordings: a table with one row per utterance."""

import filecmp
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.manifest import DICTIONARY
from sv_sparse.data.walk import walk_files

COLUMNS = pa.schema(
    [
        ("utterance", pa.string()),
        *[(name, DICTIONARY) for name in ("speaker", "session", "genre", "subset")],
        # Path below the root.
        ("file", pa.string()),
        # Bytes, and modification time in ns.
        ("size", pa.int64()),
        ("mtime", pa.int64()),
    ]
)
# For an utterance with several files.
PREFERRED_SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".m4a", ".aac")

_FILE_COLUMNS = ("file", "size", "mtime")
# A corpus has a million files; so many are Python objects at a time.
_CHUNK_SIZE = 10_000
# Of other files, in an error message.
_MAX_EXAMPLES = 3


class UtteranceInfo(NamedTuple):
    """Information in the path of a recording; ``utterance`` is the key in lists."""

    utterance: str
    speaker: str
    session: str
    genre: str
    subset: str


@dataclass
class ScanResult:
    """Recordings below some folders."""

    # One row per utterance, sorted, with the columns ``COLUMNS``.
    table: pa.Table
    # ``file`` is relative to it.
    root: Path
    # Path of each list that was looked for and is there, by file name.
    lists: dict[str, Path]
    # Other files of utterances that have several: utterance, file, size and mtime, the preferred ones first.
    alternatives: pa.Table
    # Path and reason of files that cannot be found or whose names are not UTF-8.
    unreadable: list[tuple[str, str]]

    def set_files(self, rows: NDArray[np.int64], columns: Mapping[str, pa.Array]) -> None:
        """Replace the files of rows, int64 [N] and ascending, by columns ``file``, ``size`` and ``mtime``, each [N]."""
        mask = np.zeros(len(self.table), dtype=bool)
        mask[rows] = True
        for name in _FILE_COLUMNS:
            index = self.table.schema.get_field_index(name)
            column = pc.replace_with_mask(self.table.column(name), pa.array(mask), columns[name])
            self.table = self.table.set_column(index, self.table.schema.field(name), column)

    def use_alternatives(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Replace the files of ascending rows by the next ones of their utterances, and return the rows with one."""
        if not len(rows) or not len(self.alternatives):
            return rows[:0]
        utterances = self.table.column("utterance").take(pa.array(rows))
        index = pc.index_in(utterances, value_set=self.alternatives.column("utterance").combine_chunks())
        rows = rows[pc.is_valid(index).to_numpy()]
        used = index.drop_null().to_numpy()
        files = self.alternatives.take(pa.array(used)).combine_chunks()
        self.set_files(rows, {name: files.column(name).combine_chunks() for name in _FILE_COLUMNS})
        is_left = np.ones(len(self.alternatives), dtype=bool)
        is_left[used] = False
        self.alternatives = self.alternatives.filter(pa.array(is_left))
        return rows


def scan_corpus(
    roots: Sequence[Path], parse_path: Callable[[str], UtteranceInfo | None], list_names: Collection[str], *, out: Path
) -> ScanResult:
    """Find the recordings below some folders, and lists of some names; names that start with a dot are skipped.

    ``parse_path`` returns the information in a path below a root, with forward slashes; None for other files. The
    prepared folder ``out`` is not searched, and the result's root lies above it.

    Raises:
        ValueError: a root is no folder, has no recording (names what is there instead), or two lists of one
            name differ.
    """
    base, outer_roots = _check_roots(roots, out)
    rows: list[tuple[object, ...]] = []
    tables: list[pa.Table] = []
    unreadable: list[tuple[str, str]] = []
    lists: dict[str, Path] = {}
    examples: list[str] = []
    with tqdm(desc="scanning", unit="file", unit_scale=True, disable=None) as progress:
        for root in outer_roots:
            prefix = "" if root == base else f"{os.path.relpath(root, base)}/"
            for key, entry in walk_files(root, leave_out=out):
                progress.update()
                info = parse_path(key)
                if info is None:
                    if entry.name in list_names:
                        add_list(lists, Path(entry.path))
                    elif len(examples) < _MAX_EXAMPLES:
                        examples.append(key)
                    continue
                file = prefix + key
                try:
                    file.encode()
                    status = entry.stat()
                except (OSError, UnicodeEncodeError) as error:
                    # A dangling link; a name that is not UTF-8.
                    unreadable.append((ascii(file), str(getattr(error, "strerror", None) or error)))
                    continue
                rows.append((*info, file, status.st_size, status.st_mtime_ns))
                if len(rows) == _CHUNK_SIZE:
                    tables.append(_to_table(rows))
                    rows = []
    if rows:
        tables.append(_to_table(rows))
    if not tables:
        raise ValueError(
            f"--root {', '.join(map(str, roots))}: found no recording of this corpus; "
            f"found {', '.join(examples) or 'an empty folder'}"
        )
    table, alternatives = _deduplicate(pa.concat_tables(tables).unify_dictionaries())
    return ScanResult(table, base, lists, alternatives, unreadable)


def _check_roots(roots: Sequence[Path], out: Path) -> tuple[Path, list[Path]]:
    """Return the folder above all roots and ``out``, and the roots that are not below another one."""
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"--root {root}: expected a folder; found {'a file' if root.exists() else 'nothing'}")
    absolute = {Path(os.path.abspath(root)) for root in roots}
    base = Path(os.path.commonpath([*absolute, os.path.abspath(out)]))
    return base, sorted(root for root in absolute if absolute.isdisjoint(root.parents))


def _to_table(rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, COLUMNS, strict=True)], COLUMNS)


def add_list(lists: dict[str, Path], path: Path) -> None:
    """Add a list by its file name; a ValueError says that another list of the same name differs from it."""
    first = lists.setdefault(path.name, path)
    if not filecmp.cmp(first, path, shallow=False):
        raise ValueError(f"{first} and {path}: two lists of one name that differ; leave one of them")


def _deduplicate(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the table sorted by utterance with one file each, of the preferred suffix, and the other files."""
    suffix = pc.utf8_lower(pc.replace_substring_regex(table.column("file"), r"^.*(\.[^.]*)$", r"\1"))
    rank = pc.index_in(suffix, value_set=pa.array(PREFERRED_SUFFIXES))
    # A column of strings is 100 MB for a million files.
    del suffix
    order = pc.sort_indices(
        pa.table({"utterance": table.column("utterance"), "rank": rank, "file": table.column("file")}),
        sort_keys=[("utterance", "ascending"), ("rank", "ascending"), ("file", "ascending")],
    )
    names = table.column("utterance").take(order).combine_chunks()
    is_first = np.ones(len(names), dtype=bool)
    is_first[1:] = pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    del names
    alternatives = table.select(["utterance", *_FILE_COLUMNS]).take(order.filter(pa.array(~is_first)))
    return table.take(order.filter(pa.array(is_first))), alternatives
