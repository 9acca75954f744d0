"""Concatenation of short training utterances, in the manifest alone: no audio is written."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Row = dict[str, Any]


def concat_short(table: pa.Table, subsets: Sequence[str], min_seconds: float) -> pa.Table:
    """Concatenate utterances of one speaker and genre, in order, until each has a minimum duration.

    What is left over is added to the last one. If a speaker and genre have less in all, it stays short. Only
    utterances of the same rate and number of channels are concatenated, and long ones are left alone.

    Args:
        table: columns of a manifest.
        subsets: subsets with short utterances.
        min_seconds: minimum duration in seconds.

    Returns:
        The table. A concatenation is named by its first utterance with ``+`` and the number of the others.
    """
    rate = pc.cast(table.column("sample_rate"), pa.float64())
    is_short = pc.less(pc.divide(pc.cast(table.column("samples"), pa.float64()), rate), min_seconds)
    is_short = pc.and_(is_short, pc.is_in(table.column("subset"), value_set=pa.array(subsets)))
    rows = table.filter(is_short).to_pylist()
    rows.sort(key=lambda row: (_merge_key(row), row["utterance"]))
    merged = []
    for _, similar in groupby(rows, key=_merge_key):
        for group in _group_until(list(similar), min_seconds):
            merged.append(_concat(group))
    others = table.filter(pc.invert(is_short))
    return pa.concat_tables([others, pa.Table.from_pylist(merged, others.schema)])


def _merge_key(row: Row) -> tuple[Any, ...]:
    return row["subset"], row["speaker"], row["genre"], row["sample_rate"], row["channels"]


def _group_until(rows: Sequence[Row], min_seconds: float) -> list[list[Row]]:
    """Return consecutive rows in groups of a minimum duration; a single group may be shorter."""
    groups: list[list[Row]] = []
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if sum(member["samples"] for member in group) >= min_seconds * row["sample_rate"]:
            groups.append(group)
            group = []
    if group and groups:
        groups[-1] += group
    elif group:
        groups.append(group)
    return groups


def _concat(rows: Sequence[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    segments: list[dict[str, Any]] = []
    for row in rows:
        segments += row["segments"]
    name = f"{rows[0]['utterance']}+{len(rows) - 1}"
    return rows[0] | {"utterance": name, "samples": sum(row["samples"] for row in rows), "segments": segments}
