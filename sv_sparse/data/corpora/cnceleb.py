"""Preparation of CN-Celeb 1 and 2 as released: training speakers by list, both enrollment protocols, all trials."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from sv_sparse.data.corpora.pipeline import check_corpus, checked_table, exclusive, remove_stale_lists
from sv_sparse.data.corpora.published import (
    CN_PROTOCOLS,
    CN_TRIALS,
    check_complete,
    check_trial_count,
    corpus_stats,
    has_all_utterances,
    missing_counts,
    preview,
)
from sv_sparse.data.corpora.scan import ScanResult, UtteranceInfo, scan_corpus
from sv_sparse.data.manifest import Manifest, set_column
from sv_sparse.data.trials import Trials, from_columns, write_parquet

logger = logging.getLogger(__name__)

Row = dict[str, Any]

LISTS = ("dev.lst", "spk.lst", "enroll.lst", "enroll.map", "trials.lst")
# Shorter training utterances are concatenated, as the corpus's authors do.
MIN_TRAINING_SECONDS = 5.0

_SUBSETS = ("cn1_dev", "cn2_dev", "cn_enroll", "cn_test", "cn_segments")
_SUFFIX = r"\.(?:flac|wav)$"
_DATA = re.compile(rf"(?:^|/)(id\d{{5}})/([a-z_]+)-(\d+)-(\d+){_SUFFIX}")
_ENROLL = re.compile(rf"(?:^|/)enroll/(id\d{{5}})-enroll{_SUFFIX}")
_TEST = re.compile(rf"(?:^|/)test/(id\d{{5}})-([a-z_]+)-(\d+)-(\d+){_SUFFIX}")


def parse_path(path: str) -> UtteranceInfo | None:
    """Return the information in a path; for files below ``data`` the lists decide about the subset later.

    >>> parse_path("CN-Celeb_flac/data/id00010/live_broadcast-01-002.flac").genre
    'live_broadcast'
    >>> parse_path("CN-Celeb_flac/eval/test/id00800-vlog-01-002.flac").utterance
    'test/id00800-vlog-01-002.wav'
    """
    # The lists say ``.wav`` for files in ``.flac``, and so do the keys. DECISIONS 28
    if match := _ENROLL.search(path):
        return UtteranceInfo(f"enroll/{match[1]}-enroll.wav", match[1], "enroll", "", "cn_enroll")
    if match := _TEST.search(path):
        speaker, genre, session, number = match.groups()
        utterance = f"test/{speaker}-{genre}-{session}-{number}.wav"
        return UtteranceInfo(utterance, speaker, f"{genre}-{session}", genre, "cn_test")
    if match := _DATA.search(path):
        speaker, genre, session, number = match.groups()
        utterance = f"{speaker}/{genre}-{session}-{number}.wav"
        return UtteranceInfo(utterance, speaker, f"{genre}-{session}", genre, "data")
    return None


def prepare_cnceleb(roots: Sequence[Path], out: Path, *, to_flac: bool = False, allow_partial: bool = False) -> None:
    """Scan, check counts and lists, read every header, write manifest and trials.

    Args:
        roots: folders that hold ``CN-Celeb_flac``, and ``CN-Celeb2_flac`` if it is there, or are these.
        out: the prepared folder; an interrupted run continues there.
        to_flac: True to convert everything to FLAC below ``out``.
        allow_partial: True to accept a corpus of another size, and trials of other counts. A protocol with
            missing utterances is left out.

    Raises:
        ValueError: something is not as published, or is missing; names it.
    """
    with exclusive(out):
        check_corpus(out, "cn")
        scan = scan_corpus(roots, parse_path, LISTS, out=out)
        missing_lists = [name for name in LISTS if name not in scan.lists and name != "spk.lst"]
        if missing_lists:
            names = ", ".join(missing_lists)
            raise ValueError(f"--root {', '.join(map(str, roots))}: lists of CN-Celeb are missing: {names}")
        _set_subsets(scan)
        # Everything that names tell is checked before files are converted and opened, which takes hours.
        subsets = [subset for subset in _SUBSETS if subset != "cn2_dev" or "spk.lst" in scan.lists]
        check_complete(missing_counts(scan.table, subsets), allow_partial=allow_partial)
        path = scan.lists["trials.lst"]
        lists = []
        for protocol in CN_PROTOCOLS:
            trials = _load_trials(scan.lists, protocol, allow_partial=allow_partial)
            if has_all_utterances(path, trials.utterances, scan.table, allow_partial=allow_partial):
                lists.append(trials)

        table = checked_table(scan, out, to_flac=to_flac)
        root = scan.root
        # It holds a table of many names.
        del scan
        logger.info("%s", corpus_stats(table, _SUBSETS))
        check_complete(missing_counts(table, subsets), allow_partial=allow_partial)
        (out / "trials").mkdir(exist_ok=True)
        written = []
        for trials in lists:
            if has_all_utterances(path, trials.utterances, table, allow_partial=allow_partial):
                written.append(f"{trials.name}.parquet")
                write_parquet(out / "trials" / written[-1], trials)
        remove_stale_lists(out, written)
        table = _concat_short(table, ("cn1_dev", "cn2_dev"), MIN_TRAINING_SECONDS)
        Manifest.write(out / "manifest.parquet", table, root)


def _set_subsets(scan: ScanResult) -> None:
    """Divide the files below ``data`` into subsets by the lists of speakers."""
    # The folder ``data`` of CN-Celeb1 holds the evaluation speakers as well, so only those of lists are trained on.
    subset = scan.table.column("subset")
    speaker = scan.table.column("speaker")
    is_evaluation = pc.is_in(subset, value_set=pa.array(["cn_enroll", "cn_test"]))
    evaluation_speakers = set(speaker.filter(is_evaluation).to_pylist())
    dev = _read_first_fields(scan.lists["dev.lst"])
    dev2 = _read_first_fields(scan.lists["spk.lst"]) if "spk.lst" in scan.lists else set()
    for name, speakers in (("dev.lst", dev), ("spk.lst", dev2)):
        leaked = sorted(speakers & evaluation_speakers)
        if leaked:
            raise ValueError(f"{scan.lists[name]}: {len(leaked)} evaluation speakers are listed: {preview(leaked)}")
    both = sorted(dev & dev2)
    if both:
        raise ValueError(f"{scan.lists['spk.lst']}: {len(both)} speakers are in dev.lst too: {preview(both)}")
    # Speakers of no list are in no subset.
    data_subset: pa.ChunkedArray | str = ""
    for name, speakers in (("cn1_dev", dev), ("cn2_dev", dev2), ("cn_segments", evaluation_speakers)):
        is_listed = pc.is_in(speaker, value_set=pa.array(sorted(speakers), pa.string()))
        data_subset = pc.if_else(is_listed, name, data_subset)
    subset = pc.if_else(pc.equal(subset, "data"), data_subset, subset)
    scan.table = set_column(scan.table, "subset", subset)


def _read_first_fields(path: Path) -> set[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return {line.split()[0] for line in lines if line.strip()}


def _load_trials(lists: Mapping[str, Path], protocol: str, *, allow_partial: bool) -> Trials:
    """Return the trials; an enrollment is its concatenated file or all segments of ``enroll.map``."""
    path = lists["trials.lst"]
    models = _read_models(lists, protocol)
    table = _read_trial_table(path)
    trials = from_columns(f"cnceleb_{protocol}", table["label"], table["enrollment"], table["test"], models)
    counts = (len(trials), int(trials.is_target.sum()))
    if counts != CN_TRIALS:
        check_trial_count(
            f"{path}: {counts[0]:,} trials with {counts[1]:,} targets; "
            f"CN-Celeb has {CN_TRIALS.trials:,} with {CN_TRIALS.targets:,}",
            allow_partial=allow_partial,
        )
    logger.info("%s: %d trials, %d targets", trials.name, *counts)
    return trials


def _read_trial_table(path: Path) -> pa.Table:
    """Return columns ``enrollment``, ``test`` and ``label`` (bool) of ``trials.lst``."""
    columns = ("enrollment", "test", "label")
    try:
        # Arrow's reader, since there are 3.5 million lines.
        table = pa.csv.read_csv(
            path,
            pa.csv.ReadOptions(column_names=columns),
            pa.csv.ParseOptions(delimiter=" "),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: expected lines 'enrollment test label' ({error})") from error
    label = table.column("label")
    invalid = np.flatnonzero(pc.invert(pc.is_in(label, value_set=pa.array(["0", "1"]))).to_numpy())
    if len(invalid):
        line = " ".join(table.slice(int(invalid[0]), 1).to_pylist()[0].values())
        raise ValueError(
            f"{path}, line {invalid[0] + 1}: expected 'enrollment test label' with a label of 0 or 1; got {line!r}"
        )
    return set_column(table, "label", pc.equal(label, "1"))


def _read_models(lists: Mapping[str, Path], protocol: str) -> dict[str, list[str]]:
    """Return the utterances of each enrollment: its one file, or the segments that the file was made of."""
    path = lists["enroll.lst" if protocol == "concatenated" else "enroll.map"]
    models: dict[str, list[str]] = {}
    for line_number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = line.split()
        if len(fields) == 1 or (fields and protocol == "concatenated" and len(fields) != 2):
            raise ValueError(f"{path}, line {line_number}: expected an enrollment and its files; got {line[:200]!r}")
        if fields:
            models[fields[0]] = fields[1:]
    return models


def _concat_short(table: pa.Table, subsets: Sequence[str], min_seconds: float) -> pa.Table:
    """Concatenate short utterances of a speaker and genre, in order, until each has a minimum duration in seconds."""
    seconds = table.column("samples").to_numpy() / table.column("sample_rate").to_numpy()
    is_short = pc.and_(pa.array(seconds < min_seconds), pc.is_in(table.column("subset"), value_set=pa.array(subsets)))
    rows = table.filter(is_short).to_pylist()
    # Files of different rates or numbers of channels cannot be joined.
    key = itemgetter("subset", "speaker", "genre", "sample_rate", "channels")
    rows.sort(key=lambda row: (key(row), row["utterance"]))
    merged = []
    for _, similar in groupby(rows, key=key):
        merged += [_concat(group) for group in _group_until(similar, min_seconds)]
    others = table.filter(pc.invert(is_short))
    return pa.concat_tables([others, pa.Table.from_pylist(merged, others.schema)])


def _group_until(rows: Iterable[Row], min_seconds: float) -> list[list[Row]]:
    """Return consecutive rows in groups of a minimum duration; a single group may be shorter."""
    groups: list[list[Row]] = []
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if sum(member["samples"] for member in group) >= min_seconds * row["sample_rate"]:
            groups.append(group)
            group = []
    if not groups:
        return [group]
    # A remainder that is too short is added to the last group.
    groups[-1] += group
    return groups


def _concat(rows: Sequence[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    # No audio is written: the manifest says which files follow each other.
    return rows[0] | {
        "utterance": f"{rows[0]['utterance']}+{len(rows) - 1}",
        "samples": sum(row["samples"] for row in rows),
        "segments": list(chain.from_iterable(row["segments"] for row in rows)),
    }
