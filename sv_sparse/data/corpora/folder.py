"""Manifest of a folder of recordings: scan, headers, splits without evaluation speakers in training."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.corpora.headers import read_headers, single_segments, unusable
from sv_sparse.data.corpora.published import preview
from sv_sparse.data.decoding import AUDIO_SUFFIXES, SAMPLE_RATE, is_recording
from sv_sparse.data.manifest import Manifest, check_none_missing, match_utterances
from sv_sparse.data.trials import read_trials, split_fields
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.data.walk import walk_files
from sv_sparse.io import nfc, printable

logger = logging.getLogger(__name__)

LAYOUT = "<speaker>/<session>/<utterance>.{wav,flac,ogg,opus,mp3,...}"

# Recordings in an error message; the log names all.
_MAX_NAMES = 10


def scan_folder(
    root: str | Path,
    *,
    trial_lists: Sequence[str | Path],
    train_utterances: str | Path | None,
    val_fraction: float,
    seed: int,
    max_unreadable_fraction: float,
    out: str | Path,
) -> Manifest:
    """Write the manifest of every recording below ``root``, split for training and evaluation.

    Utterances of the trial lists are ``test``. The others of the training list (all, without one) are ``train``,
    unless their speaker occurs in a trial list; those of some of these speakers are ``validation``. All others are
    ``unused``. Recordings that cannot be used are named in a warning and left out; those of the trial lists stay
    with 0 samples, so that evaluation leaves out their trials by name.

    Args:
        root: folder of ``<speaker>/<session>/<utterance>``, with a suffix of ``AUDIO_SUFFIXES``, or another one
            if the file begins like a recording. Symbolic links are followed.
        trial_lists: trial lists in VoxCeleb's format.
        train_utterances: lines of ``speaker path``, the path relative to ``root``; None to train on all speakers.
        val_fraction: fraction of the training speakers that is held out, as of ``validation_speakers``.
        seed: seed of the choice of validation speakers.
        max_unreadable_fraction: largest fraction of the training utterances, and of those of the trial lists,
            that may be left out, in [0, 1]; see ``UnreadableLimit``.
        out: manifest file to write.

    Raises:
        ValueError: a folder or list is not as expected, a listed utterance is missing, too many cannot be used,
            or fewer than two training speakers remain. It begins with the setting.
    """
    root = Path(root)
    limit = UnreadableLimit(max_unreadable_fraction)
    trial_utterances: dict[str | Path, list[str]] = {}
    for path in trial_lists:
        check_is_file("data.trial_lists", path)
        trial_utterances[path] = read_trials(path).utterances
    listed = {utterance for utterances in trial_utterances.values() for utterance in utterances}
    keys, num_unnamed = find_recordings(root, LAYOUT, num_folders=2, listed=listed)
    utterance = pa.array(keys, pa.string())
    speaker, session, _ = np.array([key.split("/") for key in keys], dtype=object).T

    is_test = _is_in_trial_lists(trial_utterances, utterance, root)
    is_listed = np.ones(len(keys), dtype=bool)
    if train_utterances is not None:
        is_listed = _is_in_training_list(Path(train_utterances), utterance, speaker)
    is_evaluation_speaker = np.isin(speaker, np.unique(speaker[is_test]))
    is_train = is_listed & ~is_evaluation_speaker
    is_excluded = is_listed & is_evaluation_speaker
    num_excluded = len(np.unique(speaker[is_excluded]))
    # Without a training list nobody asked for these speakers.
    level = logging.WARNING if train_utterances is not None else logging.INFO
    if num_excluded:
        message = "%d speakers of the trial lists are excluded from training, with %d utterances"
        logger.log(level, message, num_excluded, is_excluded.sum())

    headers, is_usable = read_usable_headers(root, keys)
    unusable_tests = utterance.filter(pa.array(is_test & ~is_usable)).to_pylist()
    unusable_train = utterance.filter(pa.array(is_train & ~is_usable)).to_pylist()
    check_limit(limit, "data.trial_lists", unusable_tests, int(is_test.sum()))
    # A recording whose name is not UTF-8 is in no list, but would have been trained on.
    check_limit(limit, "training", unusable_train, int(is_train.sum()), num_unnamed)

    held_out = validation_speakers(speaker[is_train & is_usable], val_fraction, seed)
    is_validation = is_train & np.isin(speaker, held_out)
    num_train = len(np.unique(speaker[is_train & ~is_validation & is_usable]))
    # A classifier needs two classes.
    if num_train < 2:
        setting = f"data.root={root}" if train_utterances is None else f"data.train_utterances={train_utterances}"
        raise ValueError(
            f"{setting}: expected at least 2 training speakers; found {num_train} beside the speakers of the "
            f"trial lists and {len(held_out)} held out by data.val_fraction"
        )
    split = np.select([is_test, is_validation, is_train], ["test", "validation", "train"], "unused")
    table = to_table(utterance, speaker, session, split, headers, is_usable)
    return Manifest.write(out, table.filter(pa.array(is_usable | is_test)), root)


def read_usable_headers(root: Path, keys: Sequence[str]) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Read the headers of recordings with a progress bar; name those that cannot be used in a warning.

    Args:
        root: folder of the recordings.
        keys: N paths below it.

    Returns:
        The headers, N rows with the columns ``HEADERS``; and which recordings can be used, bool [N].
    """
    with tqdm(total=len(keys), desc="reading headers", unit="file", disable=None) as progress:
        headers = read_headers(root, keys, progress)
    is_usable = np.ones(len(keys), dtype=bool)
    for row, reason in unusable(headers).items():
        is_usable[row] = False
        logger.warning("left out: %s: %s", keys[row], reason)
    return headers, is_usable


def to_table(
    utterance: pa.Array,
    speaker: NDArray[np.object_],
    session: NDArray[np.object_],
    split: NDArray[np.str_],
    headers: pa.Table,
    is_usable: NDArray[np.bool_],
) -> pa.Table:
    """Return the manifest's columns of all recordings."""
    # What cannot be used has no samples, and the usual rate, so that its duration is 0 and not 0 / 0.
    samples = np.where(is_usable, headers.column("samples").to_numpy(), 0)
    sample_rate = np.where(is_usable, headers.column("sample_rate").to_numpy(), SAMPLE_RATE)
    return pa.table(
        {
            "utterance": utterance,
            "speaker": pa.array(speaker, pa.string()),
            "session": pa.array(session, pa.string()),
            "split": pa.array(split, pa.string()),
            "samples": samples,
            "sample_rate": sample_rate.astype(np.int32),
            "channels": headers.column("channels"),
            "segments": single_segments(utterance, headers),
        }
    )


def check_limit(limit: UnreadableLimit, subject: str, names: Sequence[str], total: int, num_unnamed: int = 0) -> None:
    """Raise a ValueError if more recordings cannot be used than a limit allows.

    Args:
        limit: the limit.
        subject: what the recordings are for, in messages.
        names: of those that cannot be used.
        total: number of recordings whose names are UTF-8.
        num_unnamed: number of recordings whose names are not; none of them can be used.
    """
    count = len(names) + num_unnamed
    if count > limit.max_count(total + num_unnamed):
        first = f"; first {', '.join(names[:_MAX_NAMES])}" if names else ""
        raise ValueError(
            f"{limit}: {count} of {total + num_unnamed} {subject} utterances cannot be used (mend them, or allow a "
            f"larger fraction); the log gives the reasons{first}"
        )


def check_is_file(setting: str, path: str | Path) -> None:
    """Raise a ValueError that begins with a setting unless ``path`` is a file."""
    if not Path(path).is_file():
        raise ValueError(f"{setting}={path}: expected a text file; there is none")


def find_recordings(
    root: Path, layout: str, *, num_folders: int | None = None, listed: Collection[str] = ()
) -> tuple[list[str], int]:
    """Return the sorted keys of the recordings in the expected layout, and the number whose names are not UTF-8.

    Args:
        root: folder of the recordings.
        layout: the layout in words, for messages.
        num_folders: number of folders in a key; None for any number.
        listed: keys of recordings, whatever the files look like.

    Raises:
        ValueError: there is no such folder, or no recording in it.
    """
    if not root.is_dir():
        kind = "a file" if root.exists() else "nothing"
        raise ValueError(f"data.root={root}: expected a folder of {layout}; found {kind} there")
    keys: list[str] = []
    # Recordings in another layout.
    outside: list[str] = []
    unnamed: list[str] = []
    others: list[str] = []
    for key, _ in walk_files(root):
        name = printable(key)
        if num_folders not in {None, key.count("/")}:
            (outside if key.lower().endswith(AUDIO_SUFFIXES) else others).append(name)
        elif not (key in listed or is_recording(root / key)):
            others.append(name)
        else:
            (keys if name == key else unnamed).append(name)
    if not keys:
        examples = ", ".join([*outside, *unnamed, *others][:3]) or "an empty folder"
        raise ValueError(f"data.root={root}: expected recordings as {layout}; found {examples}")
    if outside:
        message = "left out: %d recordings below data.root=%s that are not laid out as %s; first %s"
        logger.warning(message, len(outside), root, layout, preview(sorted(outside)))
    for name in sorted(unnamed):
        logger.warning("left out: %s: its name is not UTF-8; rename it", name)
    # A file of another suffix is the source of a conversion if its name is there with a suffix of AUDIO_SUFFIXES.
    stems = {os.path.splitext(key)[0] for key in keys if key.lower().endswith(AUDIO_SUFFIXES)}
    keys = [key for key in keys if key.lower().endswith(AUDIO_SUFFIXES) or os.path.splitext(key)[0] not in stems]
    return sorted(keys), len(unnamed)


def _is_in_trial_lists(
    lists: Mapping[str | Path, Sequence[str]], utterance: pa.StringArray, root: Path
) -> NDArray[np.bool_]:
    """Return which utterances are in a trial list, bool [len(utterance)]."""
    is_test = np.zeros(len(utterance), dtype=bool)
    for path, names in lists.items():
        index = match_utterances(names, utterance)
        for position in np.flatnonzero(index < 0).tolist():
            if os.path.lexists(root / names[position]):
                raise ValueError(
                    f"data.trial_lists={path}: {names[position]} is there, but not laid out as {LAYOUT}, "
                    f"which tells who speaks"
                )
        check_none_missing(names, index, f"data.trial_lists={path}")
        is_test[index] = True
    return is_test


def _is_in_training_list(path: Path, utterance: pa.StringArray, speaker: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Return which utterances are in the training list, bool [len(utterance)]."""
    setting = f"data.train_utterances={path}"
    check_is_file("data.train_utterances", path)
    speakers: list[str] = []
    names: list[str] = []
    # Only "\n" ends a line: str.splitlines would split at other characters, which names may contain.
    for line_number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        fields = split_fields(line, 2)
        if len(fields) == 2:
            speakers.append(fields[0])
            names.append(fields[1])
        elif fields:
            raise ValueError(
                f"{setting}, line {line_number}: expected 'speaker path', got {line[:200]!r}; where paths have "
                "spaces, separate by a tab"
            )
    if not names:
        raise ValueError(f"{setting}: the list is empty")
    index = match_utterances(names, utterance)
    check_none_missing(names, index, setting)
    different = []
    for listed_speaker, name, folder in zip(speakers, names, speaker[index], strict=True):
        if nfc(listed_speaker) != nfc(folder):
            different.append(f"{listed_speaker} {name}")
    if different:
        raise ValueError(
            f"{setting}: expected 'speaker path' with the speaker's folder first in the path; "
            f"{len(different)} lines differ, first {different[0]!r}"
        )
    is_listed = np.zeros(len(utterance), dtype=bool)
    is_listed[index] = True
    return is_listed


def validation_speakers(speaker: NDArray[np.object_], fraction: float, seed: int) -> NDArray[np.object_]:
    """Choose a fraction of the speakers of utterances [N] to hold out, in [0, 1); above 0 at least two.

    Raises:
        ValueError: there are too few speakers with two utterances or more.
    """
    names, counts = np.unique(speaker, return_counts=True)
    # Speakers with one utterance have no target trial.
    eligible = names[counts >= 2]
    if fraction == 0:
        return eligible[:0]
    count = max(2, round(fraction * len(names)))
    if count > len(eligible):
        raise ValueError(
            f"data.val_fraction={fraction}: expected {count} training speakers with two utterances or more "
            f"to hold out; found {len(eligible)}"
        )
    return np.random.default_rng(seed).choice(eligible, count, replace=False)
