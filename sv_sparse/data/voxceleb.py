"""VoxCeleb1 and 2, in whatever layout they lie on a disk, to a prepared folder.

The last three parts of a path, ``id10270/x6uYqmx31kE/00001.wav``, say which utterance it is; folders above them say
nothing, since everybody unpacks and converts differently. The speaker's number says which subset it belongs to.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from sv_sparse.data.collect import Name, collect
from sv_sparse.data.counts import Census, refuse_lacking, refuse_unheard
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.prepare import manifest_table, open_all, sole, write_problems
from sv_sparse.data.published import TRIALS, voxceleb_subset
from sv_sparse.data.trials import Trials, read_trials
from sv_sparse.storage import write_text

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
    """Scan, convert what needs it, open every header, check counts and lists, write manifest and trial lists.

    Args:
        roots: Folders that hold any of VoxCeleb1 and 2, and the trial lists if those are not given.
        out: The prepared folder; a run that was interrupted goes on there.
        lists: Trial lists, or folders of them, under their published names.
        flac: Convert everything to FLAC below ``out``; without it only what needs ffmpeg is converted.
        partial: Accept a corpus of another size, and lists with other counts.

    Raises:
        ValueError: Something is not as published, or missing; names it.
        OSError: Something cannot be read or written.
    """
    with sole(out):
        table, root, known = _opened(roots, out, flac=flac)
        known |= _given(lists)
        present = set(table.column("subset").unique().to_pylist())
        subsets = [name for name in ("vox1_dev", "vox1_test", "vox2_dev", "vox2_test") if name in present]
        census = Census(table, subsets)
        logger.info("%s", census)
        trials = {name: _checked(path, table, partial=partial) for name, path in sorted(known.items())}
        refuse_lacking(census.lacking(subsets) + _absent(subsets, trials), partial=partial)
        (out / "trials").mkdir(exist_ok=True)
        for name, one in trials.items():
            write_text(out / "trials" / f"{TRIALS[name][0]}.txt", known[name].read_text(encoding="utf-8-sig"))
            logger.info("%s: %d trials, %d targets", TRIALS[name][0], len(one), one.is_target.sum())
        Manifest.write(out / "manifest.parquet", table, root)


def _opened(roots: Sequence[Path], out: Path, *, flac: bool) -> tuple[pa.Table, Path, dict[str, Path]]:
    """What can be read, the folder it is relative to, and the lists; what cannot be is written to problems.tsv."""
    found = collect(roots, parse, TRIALS, beside=out)
    opened = open_all(found, out, flac=flac)
    write_problems(out, opened.problems)
    return manifest_table(opened), found.root, found.lists


def _given(lists: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in lists:
        if path.is_dir():
            found |= {file.name: file for file in sorted(path.iterdir()) if file.name in TRIALS}
        elif path.is_file() and path.name in TRIALS:
            found[path.name] = path
        else:
            raise ValueError(f"--lists {path}: expected a folder, or a file called {', '.join(TRIALS)}")
    return found


def _checked(path: Path, table: pa.Table, *, partial: bool) -> Trials:
    """A trial list with the published counts, all of whose utterances are there.

    Raises:
        ValueError: It is another list than its name says, or utterances are missing.
    """
    trials = read_trials(path)
    counts = (len(trials), int(trials.is_target.sum()))
    if counts != TRIALS[path.name][1] and not partial:
        same = [f"those of {name} ({ours})" for name, (ours, published) in TRIALS.items() if published == counts]
        published = TRIALS[path.name][1]
        raise ValueError(
            f"{path}: {counts[0]:,} trials with {counts[1]:,} targets, {same[0] if same else 'as no published list'};"
            f" {path.name} ({TRIALS[path.name][0]}) has {published.trials:,} with {published.targets:,}"
        )
    refuse_unheard(path, trials, table)
    return trials


def _absent(subsets: Sequence[str], trials: dict[str, Trials]) -> list[str]:
    """Lists that VoxCeleb1 lets one expect and that were not found, in words."""
    if "vox1_test" not in subsets:
        return []
    wanted = ["veri_test2.txt", *(["list_test_all2.txt", "list_test_hard2.txt"] if "vox1_dev" in subsets else [])]
    return [
        f"{name} ({TRIALS[name][0]}) was not found below --root; give it with --lists"
        for name in wanted
        if name not in trials
    ]
