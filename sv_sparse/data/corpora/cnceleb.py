"""CN-Celeb 1 and 2 as released, to a prepared folder: training speakers by list, both enrolment protocols, all trials.

The training speakers are those of ``dev/dev.lst`` and ``spk.lst``, and nobody else: the folder ``data`` of CN-Celeb1
holds the evaluation speakers as well. Lists say ``.wav`` where files are ``.flac``; so do the keys here.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from sv_sparse.data.corpora.check import Census, first_of, is_heard, lacking, refuse_lacking
from sv_sparse.data.corpora.collect import Found, Name, collect
from sv_sparse.data.corpora.concat_short import join_short
from sv_sparse.data.corpora.pipeline import opened_table, refuse_other_corpus, remove_stale_lists, sole
from sv_sparse.data.corpora.published import CN_PROTOCOLS, CN_TRIALS
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.trials import Trials, from_columns, write_table

logger = logging.getLogger(__name__)

LISTS = ("dev.lst", "spk.lst", "enroll.lst", "enroll.map", "trials.lst")
JOINED_SECONDS = 5.0

_SUBSETS = ("cn1_dev", "cn2_dev", "cn_enrol", "cn_test", "cn_segments")
_ENDING = r"\.(?:flac|wav)$"
_DATA = re.compile(rf"(?:^|/)(id\d{{5}})/([a-z_]+)-(\d+)-(\d+){_ENDING}")
_ENROL = re.compile(rf"(?:^|/)enroll/(id\d{{5}})-enroll{_ENDING}")
_TEST = re.compile(rf"(?:^|/)test/(id\d{{5}})-([a-z_]+)-(\d+)-(\d+){_ENDING}")


def parse(path: str) -> Name | None:
    """What a path says of an utterance; for files below ``data`` the lists decide about the subset, later.

    >>> parse("CN-Celeb_flac/data/id00010/live_broadcast-01-002.flac").genre
    'live_broadcast'
    >>> parse("CN-Celeb_flac/eval/test/id00800-vlog-01-002.flac").utterance
    'test/id00800-vlog-01-002.wav'
    """
    if found := _TEST.search(path):
        speaker, genre, session, number = found.groups()
        return Name(f"test/{speaker}-{genre}-{session}-{number}.wav", speaker, f"{genre}-{session}", genre, "cn_test")
    if found := _ENROL.search(path):
        speaker = found[1]
        return Name(f"enroll/{speaker}-enroll.wav", speaker, "enroll", "", "cn_enrol")
    if found := _DATA.search(path):
        speaker, genre, session, number = found.groups()
        return Name(f"{speaker}/{genre}-{session}-{number}.wav", speaker, f"{genre}-{session}", genre, "data")
    return None


def prepare_cnceleb(roots: Sequence[Path], out: Path, *, flac: bool = False, partial: bool = False) -> None:
    """Scan, check counts and lists, open every header, write manifest and trials.

    Args:
        roots: Folders that hold ``CN-Celeb_flac`` and ``CN-Celeb2_flac``, or are these; the second may be absent.
        out: The prepared folder; a run that was interrupted goes on there.
        flac: Convert everything to FLAC below ``out``.
        partial: Accept a corpus of another size, and trials of other counts; leave a protocol out whose utterances are
            not all there.

    Raises:
        ValueError: Something is not as published, or missing; names it.
        OSError: Something cannot be read or written.
    """
    with sole(out):
        refuse_other_corpus(out, "cn")
        table, root, lists = _opened(roots, out, flac=flac, partial=partial)
        (out / "trials").mkdir(exist_ok=True)
        for trials in lists:
            write_table(out / "trials" / f"{trials.name}.parquet", trials)
        remove_stale_lists(out, [f"{trials.name}.parquet" for trials in lists])
        Manifest.write(out / "manifest.parquet", join_short(table, ("cn1_dev", "cn2_dev"), JOINED_SECONDS), root)


def _opened(roots: Sequence[Path], out: Path, *, flac: bool, partial: bool) -> tuple[pa.Table, Path, list[Trials]]:
    """What can be read, the folder it is relative to, and the lists; what cannot be is written to problems.tsv.

    What names alone can tell is checked before any file is converted or opened.
    """
    found = collect(roots, parse, LISTS, beside=out)
    absent = [name for name in LISTS if name not in found.lists and name != "spk.lst"]
    if absent:
        raise ValueError(f"--root {', '.join(map(str, roots))}: lists of CN-Celeb are missing: {', '.join(absent)}")
    _name_subsets(found)
    subsets = [subset for subset in _SUBSETS if subset != "cn2_dev" or "spk.lst" in found.lists]
    refuse_lacking(lacking(found.table, subsets), partial=partial)
    path = found.lists["trials.lst"]
    lists = [_trials(found.lists, protocol, partial=partial) for protocol in CN_PROTOCOLS]
    lists = [one for one in lists if is_heard(path, one.utterances, found.table, partial=partial)]
    table, root = opened_table(found, out, flac=flac), found.root
    del found
    logger.info("%s", Census(table, _SUBSETS))
    refuse_lacking(lacking(table, subsets), partial=partial)
    return table, root, [one for one in lists if is_heard(path, one.utterances, table, partial=partial)]


def _name_subsets(found: Found) -> None:
    """Divide the files below ``data`` by the lists of speakers.

    Raises:
        ValueError: A list of training speakers names an evaluation speaker, or both lists the same one.
    """
    dev, more = (set(_words(found.lists.get(name))) for name in ("dev.lst", "spk.lst"))
    subset = found.table.column("subset")
    is_judged = pc.is_in(subset, value_set=pa.array(["cn_enrol", "cn_test"]))
    judged = set(found.table.filter(is_judged).column("speaker").to_pylist())
    for name, speakers in (("dev.lst", dev), ("spk.lst", more)):
        if leaked := sorted(speakers & judged):
            raise ValueError(f"{found.lists[name]}: {len(leaked)} evaluation speakers are listed: {first_of(leaked)}")
    if both := sorted(dev & more):
        raise ValueError(f"{found.lists['spk.lst']}: {len(both)} speakers are in dev.lst too: {first_of(both)}")
    speaker = found.table.column("speaker")
    of_list = [
        pc.if_else(pc.is_in(speaker, value_set=pa.array(sorted(names), pa.string())), label, None)
        for names, label in ((dev, "cn1_dev"), (more, "cn2_dev"), (judged, "cn_segments"))
    ]
    named = pc.if_else(pc.equal(subset, "data"), pc.coalesce(*of_list, ""), subset)
    index = found.table.schema.get_field_index("subset")
    found.table = found.table.set_column(index, "subset", named)


def _words(path: Path | None) -> list[str]:
    """The first word of each line; none where there is no list."""
    if path is None:
        return []
    return [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _trials(lists: dict[str, Path], protocol: str, *, partial: bool) -> Trials:
    """The trials, with each enrolment either its concatenated file or all segments of ``enroll.map``.

    Raises:
        ValueError: A line is not as expected, or counts are not as published.
    """
    path = lists["trials.lst"]
    models = _models(lists, protocol)
    rows = _read_trials(path)
    trials = from_columns(f"cnceleb_{protocol}", rows["label"], rows["enrolment"], rows["test"], models)
    counts = (len(trials), int(trials.is_target.sum()))
    if counts != CN_TRIALS:
        words = (
            f"{path}: {counts[0]:,} trials with {counts[1]:,} targets; "
            f"CN-Celeb has {CN_TRIALS.trials:,} with {CN_TRIALS.targets:,}"
        )
        if not partial:
            raise ValueError(words)
        logger.warning("accepted with --partial, %s", words)
    logger.info("%s: %d trials, %d targets", trials.name, *counts)
    return trials


def _read_trials(path: Path) -> pa.Table:
    """Columns ``enrolment``, ``test`` and ``label`` (bool) of ``trials.lst``.

    Raises:
        ValueError: A line is not ``enrolment test label``; names it.
    """
    try:
        table = pa.csv.read_csv(
            path,
            pa.csv.ReadOptions(column_names=["enrolment", "test", "label"]),
            pa.csv.ParseOptions(delimiter=" "),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(("enrolment", "test", "label"), pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: expected lines 'enrolment test label' ({error})") from error
    label = table.column("label")
    wrong = np.flatnonzero(pc.invert(pc.is_in(label, value_set=pa.array(["0", "1"]))).to_numpy())
    if len(wrong):
        line = " ".join(table.slice(int(wrong[0]), 1).to_pylist()[0].values())
        raise ValueError(
            f"{path}, line {wrong[0] + 1}: expected 'enrolment test label' with a label of 0 or 1; got {line!r}"
        )
    return table.set_column(2, "label", pc.equal(label, "1"))


def _models(lists: dict[str, Path], protocol: str) -> dict[str, list[str]]:
    """The utterances of each enrolment: its one file, or the segments that file was made of.

    Raises:
        ValueError: A line of ``enroll.lst`` or ``enroll.map`` is not as expected.
    """
    path = lists["enroll.lst" if protocol == "concatenated" else "enroll.map"]
    models: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = line.split()
        if len(fields) == 1 or (fields and protocol == "concatenated" and len(fields) != 2):
            raise ValueError(f"{path}, line {number}: expected an enrolment and its files; got {line[:200]!r}")
        if fields:
            models[fields[0]] = fields[1:]
    return models
