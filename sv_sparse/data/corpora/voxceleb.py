"""VoxCeleb1 and 2, in whatever layout they lie on a disk, to a prepared folder.

The last three parts of a path, ``id10270/x6uYqmx31kE/00001.wav``, say which utterance it is; folders above them say
nothing, since everybody unpacks and converts differently. The speaker's number says which subset it belongs to.
"""

import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa

from sv_sparse.data.corpora.check import Census, is_heard, lacking, refuse_lacking
from sv_sparse.data.corpora.collect import Name, collect, note_list
from sv_sparse.data.corpora.pipeline import opened_table, refuse_other_corpus, remove_stale_lists, sole
from sv_sparse.data.corpora.published import SPEAKER_TABLES, TRIALS, voxceleb_subset
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.prepared import SPEAKERS
from sv_sparse.data.speakers import read_sexes, sexes_table
from sv_sparse.data.trials import read_trials
from sv_sparse.io import write_text

logger = logging.getLogger(__name__)

_UTTERANCE = re.compile(r"(?:^|/)(id\d{5})/([\w-]{11})/(\d{5})\.(?:wav|flac|opus|ogg|m4a|aac)$", re.IGNORECASE)


def parse(path: str) -> Name | None:
    """What a path says of an utterance; the key ends in ``.wav``, as in the trial lists, whatever the file's ending.

    >>> parse("vox2/dev/aac/id00012/21Uxsk56VDQ/00001.m4a").utterance
    'id00012/21Uxsk56VDQ/00001.wav'
    """
    found = _UTTERANCE.search(path)
    if found is None:
        return None
    speaker, session, number = found.groups()
    return Name(f"{speaker}/{session}/{number}.wav", speaker, session, "", voxceleb_subset(speaker))


def prepare_voxceleb(
    roots: Sequence[Path], out: Path, *, lists: Sequence[Path] = (), flac: bool = False, partial: bool = False
) -> None:
    """Scan, check counts and lists, convert what needs it, open every header, write manifest and trial lists.

    Args:
        roots: Folders that hold any of VoxCeleb1 and 2, and the trial lists if those are not given.
        out: The prepared folder; a run that was interrupted goes on there.
        lists: Trial lists, or folders of them, under their published names; they come before those below the roots.
        flac: Convert everything to FLAC below ``out``; without it only what needs ffmpeg is converted.
        partial: Accept a corpus of another size, and lists with other counts unless they are those of another published
            list; leave lists out whose utterances are not all there.

    Raises:
        ValueError: Something is not as published, or missing; names it.
        OSError: Something cannot be read or written.
    """
    with sole(out):
        refuse_other_corpus(out, "vox")
        table, root, known = _opened(roots, out, lists, flac=flac, partial=partial)
        (out / "trials").mkdir(exist_ok=True)
        for name, path in known.items():
            write_text(out / "trials" / f"{TRIALS[name][0]}.txt", path.read_text(encoding="utf-8-sig"))
        remove_stale_lists(out, [f"{TRIALS[name][0]}.txt" for name in known])
        _keep_sexes([*roots, *lists], out)
        Manifest.write(out / "manifest.parquet", table, root)


def _keep_sexes(folders: Sequence[Path], out: Path) -> None:
    """Keep what the published tables of speakers say, where they lie in one of these folders."""
    tables = [folder / name for folder in folders for name in SPEAKER_TABLES if (folder / name).is_file()]
    if tables:
        sexes = {speaker: sex for table in tables for speaker, sex in read_sexes(table).items()}
        write_text(out / SPEAKERS, sexes_table(sexes))
        logger.info("sex of %d speakers, from %s", len(sexes), ", ".join(map(str, tables)))


def _opened(
    roots: Sequence[Path], out: Path, lists: Sequence[Path], *, flac: bool, partial: bool
) -> tuple[pa.Table, Path, dict[str, Path]]:
    """What can be read, the folder it is relative to, and the lists; what cannot be is written to problems.tsv.

    What names alone can tell is checked before any file is converted or opened, which takes hours.
    """
    found = collect(roots, parse, TRIALS, beside=out)
    subsets = _present(found.table)
    known = sorted((found.lists | _given(lists)).items())
    heard: dict[Path, pa.Array] = {}
    for _, path in known:
        names = _checked(path, partial=partial)
        if is_heard(path, names.to_pylist(), found.table, partial=partial):
            heard[path] = names
    refuse_lacking(lacking(found.table, subsets) + _absent(subsets, dict(known)), partial=partial)
    table, root = opened_table(found, out, flac=flac), found.root
    del found
    logger.info("%s", Census(table, subsets))
    refuse_lacking(lacking(table, subsets), partial=partial)
    kept = [path for path, names in heard.items() if is_heard(path, names.to_pylist(), table, partial=partial)]
    return table, root, {path.name: path for path in kept}


def _present(table: pa.Table) -> list[str]:
    present = set(table.column("subset").unique().to_pylist())
    return [name for name in ("vox1_dev", "vox1_test", "vox2_dev", "vox2_test") if name in present]


def _given(lists: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in lists:
        if path.is_dir():
            known = [file for file in sorted(path.iterdir()) if file.name in TRIALS]
            if not known:
                raise ValueError(f"--lists {path}: holds none of {', '.join(TRIALS)}")
            for file in known:
                note_list(found, file)
        elif path.is_file() and path.name in TRIALS:
            note_list(found, path)
        else:
            raise ValueError(f"--lists {path}: expected a folder, or a file called {', '.join(TRIALS)}")
    return found


def _checked(path: Path, *, partial: bool) -> pa.Array:
    """The utterances of a trial list with the published counts.

    Raises:
        ValueError: It is another list than its name says; with ``partial``, only if it is one that was published.
    """
    trials = read_trials(path)
    counts = (len(trials), int(trials.is_target.sum()))
    name, published = TRIALS[path.name]
    if counts != published:
        same = [f"those of {other} ({ours})" for other, (ours, theirs) in TRIALS.items() if theirs == counts]
        words = (
            f"{path}: {counts[0]:,} trials with {counts[1]:,} targets, {same[0] if same else 'as no published list'};"
            f" {path.name} ({name}) has {published.trials:,} with {published.targets:,}"
        )
        if same or not partial:
            raise ValueError(words)
        logger.warning("accepted with --partial, %s", words)
    logger.info("%s: %d trials, %d targets", name, *counts)
    return pa.array(trials.utterances, pa.string())


def _absent(subsets: Sequence[str], known: Collection[str]) -> list[str]:
    """Lists that VoxCeleb1 lets one expect and that were not found, in words."""
    if "vox1_test" not in subsets:
        return []
    wanted = ["veri_test2.txt", *(["list_test_all2.txt", "list_test_hard2.txt"] if "vox1_dev" in subsets else [])]
    return [
        f"{name} ({TRIALS[name][0]}) was not found below --root; give it with --lists"
        for name in wanted
        if name not in known
    ]
