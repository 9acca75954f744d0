"""Checks of a corpus's size and lists against the published ones."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sv_sparse.data.corpora.published import SIZES
from sv_sparse.data.manifest import match_utterances

logger = logging.getLogger(__name__)


def corpus_stats(table: pa.Table, subsets: Sequence[str]) -> str:
    """Return a Markdown table with speakers, utterances and hours of each subset.

    Args:
        table: columns of a manifest.
        subsets: subsets to count.
    """
    lines = ["| subset | speakers | published | utterances | published | hours |", "|---|---:|---:|---:|---:|---:|"]
    for subset in subsets:
        rows = _rows_of(table, subset, ["speaker", "samples", "sample_rate"])
        speakers = len(rows.column("speaker").unique())
        hours = float(np.sum(rows.column("samples").to_numpy() / rows.column("sample_rate").to_numpy())) / 3600
        size = SIZES[subset]
        published = "-" if size.utterances is None else f"{size.utterances:,}"
        lines.append(f"| {subset} | {speakers:,} | {size.speakers:,} | {len(rows):,} | {published} | {hours:,.1f} |")
    return "\n".join(lines)


def _rows_of(table: pa.Table, subset: str, columns: list[str]) -> pa.Table:
    return table.select(columns).filter(pc.equal(table.column("subset"), subset))


def missing_counts(table: pa.Table, subsets: Sequence[str]) -> list[str]:
    """Return a message for each subset whose number of speakers or utterances is not the published one.

    Args:
        table: columns ``speaker`` and ``subset``.
        subsets: subsets to count.
    """
    messages = []
    for subset in subsets:
        rows = _rows_of(table, subset, ["speaker"])
        size = SIZES[subset]
        speakers = len(rows.column("speaker").unique())
        if speakers != size.speakers:
            messages.append(f"{subset} has {speakers:,} of {size.speakers:,} published speakers")
        if size.utterances is not None and len(rows) != size.utterances:
            messages.append(f"{subset} has {len(rows):,} of {size.utterances:,} published utterances")
    return messages


def check_complete(missing: Sequence[str], *, allow_partial: bool) -> None:
    """Raise a ValueError with all messages about missing parts, unless a part of the corpus is allowed."""
    if missing and not allow_partial:
        raise ValueError(
            "this is not the corpus as published; --allow-partial prepares what is there:\n  " + "\n  ".join(missing)
        )


def check_trial_count(message: str, *, allow_partial: bool) -> None:
    """Log a message about a list with other counts than published, or raise it if no part is allowed."""
    if not allow_partial:
        raise ValueError(message)
    logger.warning("accepted with --allow-partial, %s", message)


def has_all_utterances(path: Path, utterances: Sequence[str], table: pa.Table, *, allow_partial: bool) -> bool:
    """Return True if a table has all utterances of the list in ``path``; otherwise log that the list is left out.

    Raises:
        ValueError: some are missing, and no part of the corpus is allowed.
    """
    index = match_utterances(utterances, table.column("utterance").combine_chunks())
    missing = [utterances[position] for position in np.flatnonzero(index < 0).tolist()]
    if not missing:
        return True
    message = f"{path}: {len(missing):,} of its utterances are missing or unusable: {preview(missing)}"
    if not allow_partial:
        raise ValueError(message)
    logger.warning("list left out, %s", message)
    return False


def preview(names: Sequence[str], max_names: int = 3) -> str:
    """Return the first few of some names, and the number of the others.

    >>> preview(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    more = f" and {len(names) - max_names:,} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more
