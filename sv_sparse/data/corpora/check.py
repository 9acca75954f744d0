"""How much of a corpus is there, against what was published."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sv_sparse.data.corpora.published import SIZES
from sv_sparse.data.manifest import match

logger = logging.getLogger(__name__)


class Census:
    """Speakers, utterances and hours of each subset.

    Args:
        table: Columns as in the manifest.
        subsets: The subsets to count.
    """

    def __init__(self, table: pa.Table, subsets: Sequence[str]) -> None:
        self.found: dict[str, tuple[int, int, float]] = {}
        for subset in subsets:
            own = _of(table, subset, ["speaker", "samples", "sample_rate"])
            seconds = own.column("samples").to_numpy() / own.column("sample_rate").to_numpy()
            self.found[subset] = (len(own.column("speaker").unique()), len(own), float(np.sum(seconds)) / 3600)

    def __str__(self) -> str:
        """A Markdown table."""
        lines = ["| subset | speakers | published | utterances | published | hours |", "|---|---:|---:|---:|---:|---:|"]
        for subset, (speakers, utterances, hours) in self.found.items():
            size = SIZES[subset]
            published = f"{size.utterances:,}" if size.utterances is not None else "-"
            lines.append(
                f"| {subset} | {speakers:,} | {size.speakers:,} | {utterances:,} | {published} | {hours:,.1f} |"
            )
        return "\n".join(lines)


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names, and how many there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def refuse_lacking(words: Sequence[str], *, partial: bool) -> None:
    """Raise a ValueError that says everything that is missing, unless a part of the corpus was asked for."""
    if words and not partial:
        raise ValueError(
            "this is not the corpus as published; --partial prepares what is there:\n  " + "\n  ".join(words)
        )


def lacking(table: pa.Table, subsets: Sequence[str]) -> list[str]:
    """What is missing of subsets, or too much, in words; nothing where they are as published.

    Args:
        table: Columns speaker and subset.
        subsets: The subsets to count.
    """
    words = []
    for subset in subsets:
        own = _of(table, subset, ["speaker"])
        for name, count, published in (
            ("speakers", len(own.column("speaker").unique()), SIZES[subset].speakers),
            ("utterances", len(own), SIZES[subset].utterances),
        ):
            if published is not None and count != published:
                words.append(f"{subset} has {count:,} of {published:,} published {name}")
    return words


def _of(table: pa.Table, subset: str, names: list[str]) -> pa.Table:
    return table.select(names).filter(pc.equal(table.column("subset"), subset))


def is_heard(path: Path, utterances: Sequence[str], table: pa.Table, *, partial: bool) -> bool:
    """Whether all utterances of the list in ``path`` are in a table; a warning says that it is left out.

    Raises:
        ValueError: They are not, and no part of the corpus was asked for.
    """
    index = match(utterances, table.column("utterance").combine_chunks())
    missing = [utterances[int(position)] for position in np.flatnonzero(index < 0)]
    if not missing:
        return True
    words = f"{path}: {len(missing):,} of its utterances are missing or unusable: {first_of(missing)}"
    if not partial:
        raise ValueError(words)
    logger.warning("list left out, %s", words)
    return False
