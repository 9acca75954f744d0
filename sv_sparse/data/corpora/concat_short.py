"""Short training utterances joined to longer ones, in the manifest alone: no audio is written."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Row = dict[str, Any]


def join_short(table: pa.Table, subsets: Sequence[str], seconds: float) -> pa.Table:
    """Join utterances of one speaker and genre, in order, until each has some seconds.

    What is left over at the end is joined to the last one; where a speaker and genre have less in all, it stays as
    short as it is. Only utterances of the same rate and number of channels are joined; those that are long enough are
    left alone.

    Args:
        table: Columns of the manifest.
        subsets: Where to join.
        seconds: Shortest length wanted.

    Returns:
        The table, the joined utterances named by their first one with ``+`` and the number of the others.
    """
    length = pc.divide(
        pc.cast(table.column("samples"), pa.float64()), pc.cast(table.column("sample_rate"), pa.float64())
    )
    short = pc.and_(pc.less(length, seconds), pc.is_in(table.column("subset"), value_set=pa.array(subsets)))
    rows = sorted(table.filter(short).to_pylist(), key=lambda row: (_kind(row), row["utterance"]))
    joined = [_join(several) for _, alike in groupby(rows, key=_kind) for several in _groups(list(alike), seconds)]
    rest = table.filter(pc.invert(short))
    return pa.concat_tables([rest, pa.Table.from_pylist(joined, rest.schema)]) if joined else rest


def _kind(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("subset", "speaker", "genre", "sample_rate", "channels"))


def _groups(rows: Sequence[Row], seconds: float) -> Iterator[list[Row]]:
    """Consecutive rows, each group but a lone one at least so long."""
    groups: list[list[Row]] = []
    waiting: list[Row] = []
    for row in rows:
        waiting.append(row)
        if sum(one["samples"] for one in waiting) >= seconds * row["sample_rate"]:
            groups.append(waiting)
            waiting = []
    if waiting and groups:
        groups[-1] += waiting
    elif waiting:
        groups.append(waiting)
    yield from groups


def _join(rows: Sequence[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    samples = sum(row["samples"] for row in rows)
    parts = [part for row in rows for part in row["parts"]]
    name = f"{rows[0]['utterance']}+{len(rows) - 1}"
    return rows[0] | {"utterance": name, "samples": samples, "parts": parts}
