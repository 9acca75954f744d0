"""Preparation of VoxCeleb1 and 2, in any layout."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from sv_sparse.data.corpora.pipeline import check_corpus, checked_table, exclusive, remove_stale_lists
from sv_sparse.data.corpora.published import (
    SPEAKER_TABLES,
    TRIALS,
    check_complete,
    check_trial_count,
    corpus_stats,
    has_all_utterances,
    missing_counts,
    voxceleb_subset,
)
from sv_sparse.data.corpora.scan import UtteranceInfo, add_list, scan_corpus
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.prepared import SPEAKER_METADATA
from sv_sparse.data.speakers import format_sexes, read_sexes
from sv_sparse.data.trials import read_trials
from sv_sparse.io import write_text

logger = logging.getLogger(__name__)

_SUBSETS = ("vox1_dev", "vox1_test", "vox2_dev", "vox2_test")
# Folders above these three say nothing, since everybody unpacks and converts differently.
_UTTERANCE = re.compile(r"(?:^|/)(id\d{5})/([\w-]{11})/(\d{5})\.(?:wav|flac|opus|ogg|m4a|aac)$", re.IGNORECASE)


def parse_path(path: str) -> UtteranceInfo | None:
    """Return the information in a path; the key ends in ``.wav``, as in the trial lists.

    >>> parse_path("vox2/dev/aac/id00012/21Uxsk56VDQ/00001.m4a").utterance
    'id00012/21Uxsk56VDQ/00001.wav'
    """
    match = _UTTERANCE.search(path)
    if match is None:
        return None
    speaker, session, number = match.groups()
    return UtteranceInfo(f"{speaker}/{session}/{number}.wav", speaker, session, "", voxceleb_subset(speaker))


def prepare_voxceleb(
    roots: Sequence[Path], out: Path, *, lists: Sequence[Path] = (), to_flac: bool = False, allow_partial: bool = False
) -> None:
    """Scan, check counts and lists, convert what needs it, read every header, write manifest and trial lists.

    Args:
        roots: folders that hold any of VoxCeleb1 and 2, and the trial lists if ``lists`` has none.
        out: the prepared folder; an interrupted run continues there.
        lists: trial lists, or folders of them, under their published names. They come before those below the
            roots.
        to_flac: True to convert everything to FLAC below ``out``, not only what needs ffmpeg.
        allow_partial: True to accept a corpus of another size, and lists with other counts unless these are
            another published list's. Lists with missing utterances are left out.

    Raises:
        ValueError: something is not as published, or is missing; names it.
    """
    with exclusive(out):
        check_corpus(out, "vox")
        scan = scan_corpus(roots, parse_path, TRIALS, out=out)
        present = set(scan.table.column("subset").unique().to_pylist())
        subsets = [name for name in _SUBSETS if name in present]
        paths = scan.lists | _find_lists(lists)
        # Everything that names tell is checked before files are converted and opened, which takes hours.
        utterances: dict[str, pa.Array] = {}
        for name, path in sorted(paths.items()):
            list_utterances = _check_list(path, allow_partial=allow_partial)
            if has_all_utterances(path, list_utterances.to_pylist(), scan.table, allow_partial=allow_partial):
                utterances[name] = list_utterances
        missing = missing_counts(scan.table, subsets)
        for name in _expected_lists(subsets):
            if name not in paths:
                missing.append(f"{name} ({TRIALS[name][0]}) was not found below --root; give it with --lists")
        check_complete(missing, allow_partial=allow_partial)

        table = checked_table(scan, out, to_flac=to_flac)
        root = scan.root
        # It holds a table of a million names.
        del scan
        logger.info("%s", corpus_stats(table, subsets))
        check_complete(missing_counts(table, subsets), allow_partial=allow_partial)
        (out / "trials").mkdir(exist_ok=True)
        written = []
        for name, list_utterances in utterances.items():
            path = paths[name]
            if has_all_utterances(path, list_utterances.to_pylist(), table, allow_partial=allow_partial):
                written.append(f"{TRIALS[name][0]}.txt")
                write_text(out / "trials" / written[-1], path.read_text(encoding="utf-8-sig"))
        remove_stale_lists(out, written)
        _write_sexes([*roots, *lists], out)
        Manifest.write(out / "manifest.parquet", table, root)


def _write_sexes(folders: Sequence[Path], out: Path) -> None:
    """Copy the published tables of speakers, if they lie in one of these folders."""
    sexes: dict[str, str] = {}
    tables = []
    for folder in folders:
        for name in SPEAKER_TABLES:
            if (folder / name).is_file():
                sexes |= read_sexes(folder / name)
                tables.append(str(folder / name))
    if tables:
        write_text(out / SPEAKER_METADATA, format_sexes(sexes))
        logger.info("sex of %d speakers, from %s", len(sexes), ", ".join(tables))


def _find_lists(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the trial lists that ``--lists`` names, by file name."""
    lists: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            files = [file for file in sorted(path.iterdir()) if file.name in TRIALS]
            if not files:
                raise ValueError(f"--lists {path}: holds none of {', '.join(TRIALS)}")
        elif path.is_file() and path.name in TRIALS:
            files = [path]
        else:
            raise ValueError(f"--lists {path}: expected a folder, or a file called {', '.join(TRIALS)}")
        for file in files:
            add_list(lists, file)
    return lists


def _check_list(path: Path, *, allow_partial: bool) -> pa.Array:
    """Return the utterances of a trial list, and check that its counts are the published ones."""
    trials = read_trials(path)
    counts = (len(trials), int(trials.is_target.sum()))
    name, published = TRIALS[path.name]
    if counts != published:
        origin = "as no published list"
        for other, (other_name, other_counts) in TRIALS.items():
            if other_counts == counts:
                origin = f"those of {other} ({other_name})"
                # The wrong list under this name is a mistake, not a part.
                allow_partial = False
        check_trial_count(
            f"{path}: {counts[0]:,} trials with {counts[1]:,} targets, {origin};"
            f" {path.name} ({name}) has {published.trials:,} with {published.targets:,}",
            allow_partial=allow_partial,
        )
    logger.info("%s: %d trials, %d targets", name, *counts)
    return pa.array(trials.utterances, pa.string())


def _expected_lists(subsets: Sequence[str]) -> list[str]:
    """Return the file names of the cleaned lists over the subsets that are there."""
    # E and H are over the speakers of all of VoxCeleb1.
    names = ["veri_test2.txt", "list_test_all2.txt", "list_test_hard2.txt"]
    if "vox1_test" not in subsets:
        return []
    return names if "vox1_dev" in subsets else names[:1]
