"""Published facts about VoxCeleb and CN-Celeb, and checks of a corpus's size and lists against them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sv_sparse.data.manifest import match_utterances

logger = logging.getLogger(__name__)


class SubsetSize(NamedTuple):
    """Number of speakers and utterances of a subset; None if no number was published."""

    speakers: int
    utterances: int | None


class TrialCount(NamedTuple):
    """Number of trials of a list, and of targets among them."""

    trials: int
    targets: int


# Sources: the corpora's own pages and papers (Nagrani 2017, Chung 2018, Fan 2020, Li 2022).
SIZES = {
    "vox1_dev": SubsetSize(1211, 148_642),
    "vox1_test": SubsetSize(40, 4_874),
    "vox2_dev": SubsetSize(5994, 1_092_009),
    "vox2_test": SubsetSize(118, 36_237),
    "cn1_dev": SubsetSize(797, None),
    "cn2_dev": SubsetSize(1996, None),
    "cn_enroll": SubsetSize(196, 196),
    "cn_test": SubsetSize(200, 17_777),
    "cn_segments": SubsetSize(200, None),
}

VOX1_TEST = range(10270, 10310)
VOX1 = range(10001, 11252)
# Source: VoxCeleb2's metadata (vox2_meta.csv, column Set).
_VOX2_TEST = """
00017 00061 00081 00154 00419 00562 00812 00817 00866 00926 01000 01041 01066 01106 01224 01228 01298 01333 01437
01460 01509 01541 01567 01593 01618 01822 01892 01989 02019 02057 02086 02181 02286 02317 02445 02465 02542 02548
02576 02577 02685 02725 02745 03030 03041 03127 03178 03347 03382 03524 03677 03789 03839 03862 03969 03978 03980
03981 04006 04030 04094 04119 04232 04253 04276 04295 04366 04478 04536 04570 04627 04656 04657 04862 04950 05015
05055 05124 05176 05202 05459 05594 05654 05714 05816 05850 05999 06104 06209 06310 06484 06692 06811 06816 06913
07312 07354 07396 07414 07426 07494 07620 07621 07663 07802 07868 07874 07961 08149 08374 08392 08456 08548 08552
08696 08701 08911 09017
"""
VOX2_TEST = frozenset(map(int, _VOX2_TEST.split()))

# Name of the list here, by the name of the published file.
TRIALS = {
    "veri_test.txt": ("vox1_O", TrialCount(37_720, 18_860)),
    "veri_test2.txt": ("vox1_O_cleaned", TrialCount(37_611, 18_802)),
    "list_test_all.txt": ("vox1_E", TrialCount(581_480, 290_743)),
    "list_test_all2.txt": ("vox1_E_cleaned", TrialCount(579_818, 289_921)),
    "list_test_hard.txt": ("vox1_H", TrialCount(552_536, 276_270)),
    "list_test_hard2.txt": ("vox1_H_cleaned", TrialCount(550_894, 275_488)),
}
# They have the sex of each speaker.
SPEAKER_TABLES = ("vox1_meta.csv", "vox2_meta.csv")
CN_TRIALS = TrialCount(3_484_292, 17_755)
# Embeddings of all enrollment segments averaged, or one file of them.
CN_PROTOCOLS = ("average", "concatenated")
LIST_FILES = frozenset(
    [*(f"{name}.txt" for name, _ in TRIALS.values()), *(f"cnceleb_{protocol}.parquet" for protocol in CN_PROTOCOLS)]
)

# Of the archives that the corpora come in.
MD5 = {
    "vox1_test_wav.zip": "185fdc63c3c739954633d50379a3d102",
    "vox1_dev_wav.zip": "ae63e55b951748cc486645f532ba230b",
    "vox2_dev_aac.zip": "bbc063c46078a602ca71605645c2a402",
    "vox2_test_aac.zip": "0d2b3ea430a821c33263b5ea37ede312",
    "musan.tar.gz": "0c472d4fc0c5141eca47ad1ffeb2a7df",
    "rirs_noises.zip": "e6f48e257286e05de56413b4779d8ffb",
    "cn-celeb_v2.tar.gz": "7ab1b214028a7439e26608b2d5a0336c",
    "cn-celeb2_v2.tar.gz": "55c47cf0b6d0bf793e88bf79d5dfc660",
}


def voxceleb_subset(speaker: str) -> str:
    """Return the subset of VoxCeleb that a speaker such as ``id10270`` belongs to, by the number (DECISIONS 29).

    >>> [voxceleb_subset(speaker) for speaker in ("id10001", "id10270", "id00012", "id00017")]
    ['vox1_dev', 'vox1_test', 'vox2_dev', 'vox2_test']
    """
    number = int(speaker[2:])
    if number in VOX1:
        return "vox1_test" if number in VOX1_TEST else "vox1_dev"
    return "vox2_test" if number in VOX2_TEST else "vox2_dev"


def corpus_stats(table: pa.Table, subsets: Sequence[str]) -> str:
    """Return a Markdown table with speakers, utterances and hours of some subsets of a manifest's table."""
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
    """Return a message for each subset whose number of speakers or utterances is not the published one."""
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
    """Return True if a table has all utterances of the list in ``path``; otherwise log or raise what is missing."""
    index = match_utterances(utterances, table.column("utterance").combine_chunks())
    missing = [utterances[position] for position in np.flatnonzero(index < 0).tolist()]
    if not missing:
        return True
    message = f"{path}: {len(missing):,} of its utterances are missing or unusable: {preview(missing)}"
    if not allow_partial:
        raise ValueError(message)
    logger.warning("list left out, %s", message)
    return False


def preview(names: Sequence[str]) -> str:
    """Return the first three of some names, and the number of the others.

    >>> preview(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
