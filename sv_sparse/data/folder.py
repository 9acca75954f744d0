"""A folder of recordings to a manifest: scan, read headers, keep evaluation speakers out of training."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.headers import one_part, read_headers
from sv_sparse.data.manifest import Manifest, match, refuse_missing
from sv_sparse.data.scan import walk
from sv_sparse.data.trials import read_trials

logger = logging.getLogger(__name__)

ENDINGS = (".wav", ".flac", ".ogg", ".opus")
LAYOUT = "<speaker>/<session>/<utterance>.{wav,flac,ogg,opus}"

_NAMES = ("speaker", "session", "split")


def scan_folder(
    root: str | Path,
    *,
    trials: Sequence[str | Path],
    train_list: str | Path | None,
    validation_share: float,
    seed: int,
    max_unreadable: float,
    out: str | Path,
) -> Manifest:
    """Describe every recording below ``root`` in a manifest, split for training and evaluation.

    Utterances of the trial lists are ``test``; of the others, those of the training list (all, without one) are
    ``train`` unless their speaker occurs in a trial list; a share of the training speakers is held out as
    ``validation``; the rest is ``unused``. Unreadable recordings are named in a warning and left out.

    Args:
        root: Folder of ``<speaker>/<session>/<utterance>.{wav,flac,ogg,opus}``; symbolic links are followed.
        trials: VoxCeleb-format trial lists.
        train_list: Lines of ``speaker path``, the path relative to ``root``; None to train on all speakers.
        validation_share: Share of the training speakers with two utterances or more, in [0, 1); 0 holds out
            none, any more holds out at least 2 speakers.
        seed: Chooses the validation speakers.
        max_unreadable: Largest share of training utterances that may be unreadable, in [0, 1].
        out: The manifest file to write.

    Raises:
        ValueError: A setting is out of range, a folder or list is not as expected, a listed utterance is missing,
            too many are unreadable, or fewer than two training speakers remain. It begins with the setting as typed.
    """
    _check_shares(validation_share, max_unreadable)
    utterances = pa.array(_find(Path(root)), pa.string())
    speaker, session = _parts(utterances)
    is_test = _listed_in_trials(trials, utterances)
    is_evaluation = np.isin(speaker, np.unique(speaker[is_test]))
    is_listed = _listed_for_training(train_list, utterances, speaker)
    is_train = is_listed & ~is_evaluation
    _report_excluded(speaker, is_listed & is_evaluation, is_asked=train_list is not None)
    with tqdm(total=len(utterances), desc="reading headers", unit="file", disable=None) as progress:
        headers = read_headers(root, utterances.to_pylist(), progress)
    is_readable = headers.column("samples").to_numpy() > 0
    _refuse_unreadable(utterances, is_readable, is_test, is_train, max_unreadable)
    held_out = validation_speakers(speaker[is_train & is_readable], validation_share, seed)
    is_validation = is_train & np.isin(speaker, held_out)
    _refuse_few_speakers(speaker[is_train & ~is_validation & is_readable], root, train_list, len(held_out))
    split = np.select([is_test, is_validation, is_train], ["test", "validation", "train"], "unused")
    names = zip(_NAMES, (pa.array(column, pa.string()) for column in (speaker, session, split)), strict=True)
    stated = {name: headers.column(name) for name in ("samples", "sample_rate", "channels")}
    table = pa.table({"utterance": utterances, **dict(names), **stated, "parts": one_part(utterances, headers)})
    return Manifest.write(out, table.filter(pa.array(is_readable)), root)


def check_validation_share(share: float) -> None:
    """Refuse a share of speakers to hold out that is none, with a ValueError."""
    if not 0 <= share < 1:
        raise ValueError(f"data.validation_share={share}: expected a share from 0 to below 1")


def _check_shares(validation_share: float, max_unreadable: float) -> None:
    check_validation_share(validation_share)
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"data.max_unreadable={max_unreadable}: expected a share from 0 to 1")


def _find(root: Path) -> list[str]:
    """Sorted keys of the recordings in the expected layout; a warning counts and names the others."""
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise ValueError(f"data.root={root}: expected a folder of {LAYOUT}; found {found} there")
    inside, outside, others = [], [], []
    for key, _ in walk(root):
        if not key.lower().endswith(ENDINGS):
            others.append(key)
        elif key.count("/") == 2:
            inside.append(key)
        else:
            outside.append(key)
    if not inside:
        found = ", ".join((outside + others)[:3]) or "an empty folder"
        raise ValueError(f"data.root={root}: expected recordings as {LAYOUT}; found {found}")
    if outside:
        logger.warning(
            "data.root=%s: %d recordings are not laid out as %s and are left out; first %s",
            *(root, len(outside), LAYOUT, ", ".join(sorted(outside)[:3])),
        )
    return sorted(inside)


def _parts(utterances: pa.StringArray) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Speaker and session of each utterance."""
    parts = [key.split("/") for key in utterances.to_pylist()]
    columns = np.array(parts, dtype=object)
    return columns[:, 0], columns[:, 1]


def _listed_in_trials(lists: Sequence[str | Path], utterances: pa.StringArray) -> NDArray[np.bool_]:
    listed = np.zeros(len(utterances), dtype=bool)
    for path in lists:
        setting = _refuse_no_file("data.trials", path)
        wanted = read_trials(path).utterances
        found = match(wanted, utterances)
        refuse_missing(wanted, found, setting)
        listed[found] = True
    return listed


def _listed_for_training(
    path: str | Path | None, utterances: pa.StringArray, speaker: NDArray[np.object_]
) -> NDArray[np.bool_]:
    if path is None:
        return np.ones(len(utterances), dtype=bool)
    setting = _refuse_no_file("data.train_list", path)
    names, wanted = _read_train_list(Path(path))
    if not wanted:
        raise ValueError(f"{setting}: the list is empty")
    found = match(wanted, utterances)
    refuse_missing(wanted, found, setting)
    differs = np.flatnonzero(speaker[found] != np.array(names, dtype=object))
    if len(differs):
        name, key = names[differs[0]], wanted[differs[0]]
        raise ValueError(
            f"{setting}: expected 'speaker path' with the speaker's folder first in the path; "
            f"{len(differs)} lines differ, first '{name} {key}'"
        )
    listed = np.zeros(len(utterances), dtype=bool)
    listed[found] = True
    return listed


def _read_train_list(path: Path) -> tuple[list[str], list[str]]:
    """Speakers and paths, one pair per line."""
    names, wanted = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = line.split()
        if len(fields) == 2:
            names.append(fields[0])
            wanted.append(fields[1])
        elif fields:
            raise ValueError(f"data.train_list={path}, line {number}: expected 'speaker path', got {line[:200]!r}")
    return names, wanted


def _refuse_no_file(setting: str, path: str | Path) -> str:
    """``setting=path``, once it is known that there is such a file."""
    if not Path(path).is_file():
        raise ValueError(f"{setting}={path}: expected a text file; there is none")
    return f"{setting}={path}"


def _report_excluded(speaker: NDArray[np.object_], excluded: NDArray[np.bool_], *, is_asked: bool) -> None:
    """Say how much evaluation speech was kept out of training: a warning where a list asked for it."""
    count = len(np.unique(speaker[excluded]))
    logger.log(
        logging.WARNING if is_asked and count else logging.INFO,
        "%d speakers of the trial lists are excluded from training, with %d utterances",
        *(count, excluded.sum()),
    )


def _refuse_unreadable(
    utterances: pa.StringArray,
    is_readable: NDArray[np.bool_],
    is_test: NDArray[np.bool_],
    is_train: NDArray[np.bool_],
    max_unreadable: float,
) -> None:
    """Raise if a trial or too much of the training speech is unreadable; otherwise name what is left out."""

    def names(rows: NDArray[np.bool_]) -> list[str]:
        return utterances.filter(pa.array(rows)).to_pylist()

    test, train = names(is_test & ~is_readable), names(is_train & ~is_readable)
    if test:
        raise ValueError(
            f"data.trials: {len(test)} utterances of the lists are empty or unreadable; first {', '.join(test[:3])}"
        )
    if len(train) > max_unreadable * is_train.sum():
        raise ValueError(
            f"data.max_unreadable={max_unreadable}: {len(train)} of {is_train.sum()} training utterances are "
            f"empty or unreadable; first {', '.join(train[:10])}"
        )
    for name in names(~is_readable):
        logger.warning("empty or unreadable, left out: %s", name)


def validation_speakers(speaker: NDArray[np.object_], share: float, seed: int) -> NDArray[np.object_]:
    """Names of the speakers to hold out, given the speaker of each training utterance."""
    names, counts = np.unique(speaker, return_counts=True)
    eligible = names[counts >= 2]
    if share == 0:
        return eligible[:0]
    count = max(2, round(share * len(names)))
    if count > len(eligible):
        raise ValueError(
            f"data.validation_share={share}: expected {count} training speakers with two utterances or more "
            f"to hold out; found {len(eligible)}"
        )
    return np.random.default_rng(seed).choice(eligible, count, replace=False)


def _refuse_few_speakers(
    speaker: NDArray[np.object_], root: str | Path, train_list: str | Path | None, held_out: int
) -> None:
    count = len(np.unique(speaker))
    if count < 2:
        setting = f"data.root={root}" if train_list is None else f"data.train_list={train_list}"
        raise ValueError(
            f"{setting}: expected at least 2 training speakers; found {count} beside the speakers of the "
            f"trial lists and {held_out} held out by data.validation_share"
        )
