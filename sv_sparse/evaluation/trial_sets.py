"""What a network is to be judged by, in the words of the command line, to trial lists with their recordings."""

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sv_sparse.config.schema import read_config, read_settings
from sv_sparse.data.audio import recording
from sv_sparse.data.corpora.published import CN_PROTOCOLS
from sv_sparse.data.decoding import AUDIO_ENDINGS
from sv_sparse.data.prepared import Judged, read_listed
from sv_sparse.data.trials import read_trials, split_fields
from sv_sparse.evaluation.corpus import prepare_corpus
from sv_sparse.io import nfc

EXPECTED = (
    "expected PREPARED:LIST[,LIST...] with lists of a prepared folder, LIST alone where RUN was trained on one, "
    "or folder:PATH"
)
_VOXCELEB1 = {letter: f"vox1_{letter.upper()}_cleaned" for letter in "oeh"}
_PREFIX = "voxceleb1-"


def lists_of_run(run: Path) -> list[Judged]:
    """The lists that a run was made to be judged by.

    Raises:
        ValueError: it is no run, or its corpus is not where it was.
    """
    if not (run / "manifest.parquet").is_file():
        raise ValueError(f"{run} has no lists of its own; name some by --on, or by --root and --trials")
    return prepare_corpus(read_config(run), run).lists


def lists_named(words: Sequence[str], run: Path, sexes: Mapping[str, str]) -> list[Judged]:
    """The lists that ``--on`` names.

    Args:
        words: ``PREPARED:NAME,NAME``, or ``NAME,NAME`` of the prepared folder that the run was trained on, or
            ``folder:PATH``: the lists in PATH, of recordings in ``PATH/wav``. A name is a list's own,
            ``voxceleb1-o``, ``-e`` or ``-h`` for the cleaned lists (``voxceleb1-o,e,h`` for all), or ``cnceleb`` for
            both ways to enrol.
        run: a run's folder.
        sexes: of speakers in ``folder:PATH``, as far as they are known.

    Raises:
        ValueError: there is no such list.
    """
    found = []
    for word in words:
        place, colon, names = word.rpartition(":")
        if colon and place == "folder":
            found += _beside(Path(names), sexes)
        else:
            prepared = place if colon else _prepared_of(run, word)
            found += read_listed(prepared, list(_expanded(names)))
    return found


def _expanded(names: str) -> Iterator[str]:
    """Names of lists in the prepared folder."""
    after_voxceleb1 = False
    for name in names.split(","):
        letter = name.removeprefix(_PREFIX) if name.startswith(_PREFIX) or after_voxceleb1 else ""
        after_voxceleb1 = letter in _VOXCELEB1
        if after_voxceleb1:
            yield _VOXCELEB1[letter]
        elif name == "cnceleb":
            yield from (f"cnceleb_{protocol}" for protocol in CN_PROTOCOLS)
        elif name:
            yield name
        else:
            raise ValueError(f"--on {names!r}: {EXPECTED}")


def _prepared_of(run: Path, word: str) -> str:
    prepared = read_settings(run)["data"].get("prepared_dir") if (run / "config.yaml").is_file() else None
    if prepared is None:
        raise ValueError(f"--on {word}: {EXPECTED}; {run} was not trained on a prepared folder")
    return str(prepared)


def _beside(folder: Path, sexes: Mapping[str, str]) -> list[Judged]:
    """Lists of a folder that was laid out like the demo corpus: ``wav/`` and lists beside it, or in ``lists/``."""
    places = [place for place in (folder, folder / "lists") if place.is_dir()]
    paths = [path for place in places for path in sorted(place.glob("*.txt")) if _is_list(path)]
    if not paths:
        raise ValueError(f"--on folder:{folder}: no trial list (lines 'label enrolment test') in it or in its lists/")
    return lists_of_files(folder / "wav", paths, sexes)


def _is_list(path: Path) -> bool:
    """Whether a text begins as a trial list does."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        fields = next((split_fields(line, 3) for line in file if line.strip()), [])
    return len(fields) == 3 and fields[0] in {"0", "1"}


def lists_of_files(root: Path, paths: Sequence[Path], sexes: Mapping[str, str]) -> list[Judged]:
    """Trial lists of recordings that are in no manifest.

    Args:
        root: the folder that their paths are relative to.
        paths: the lists.
        sexes: of speakers, who are the first part of a path; as far as they are known.

    Raises:
        ValueError: there is no such folder, a list cannot be read, or recordings are not there.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder of recordings")
    found = []
    for path in paths:
        trials = read_trials(path)
        files = [_there(root / name) for name in trials.utterances]
        absent = [file for file in files if not os.path.lexists(file)]
        if absent:
            raise ValueError(f"{path}: {len(absent)} of {len(files)} recordings are not in {root}; first {absent[0]}")
        recordings = [recording(file) for file in files]
        known = [sexes.get(nfc(name.partition("/")[0]), "") for name in trials.utterances]
        found.append(Judged(trials, recordings, [], [], [], None, known))
    return found


def _there(path: Path) -> Path:
    """Return the recording's path, where lists name another Unicode form or another ending than its file has."""
    if os.path.lexists(path):
        return path
    for form in ("NFC", "NFD"):
        same = Path(unicodedata.normalize(form, str(path)))
        for other in (same, *(same.with_suffix(ending) for ending in AUDIO_ENDINGS)):
            if os.path.lexists(other):
                return other
    return path
