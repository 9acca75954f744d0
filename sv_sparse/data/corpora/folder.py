"""A folder of recordings to a manifest: scan, read headers, keep evaluation speakers out of training."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.corpora.headers import one_part, read_headers, unusable
from sv_sparse.data.corpora.scan import walk
from sv_sparse.data.decoding import AUDIO_ENDINGS, SAMPLE_RATE, looks_like_audio
from sv_sparse.data.manifest import Manifest, match, refuse_missing
from sv_sparse.data.trials import Trials, read_trials, split_fields
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.io import nfc, printable

logger = logging.getLogger(__name__)

LAYOUT = "<speaker>/<session>/<utterance>.{wav,flac,ogg,opus,mp3,...}"

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
    ``validation``; the rest is ``unused``. Recordings that cannot be used (unreadable, broken off, silent, shorter than
    a fifth of a second, ...) are named in a warning with the reason, and left out. Those of the trial lists stay in
    the manifest, with 0 samples, so that evaluation leaves out their trials by name.

    Args:
        root: Folder of ``<speaker>/<session>/<utterance>``, with an ending of ``AUDIO_ENDINGS``, or another one where
            the content is a recording's; symbolic links are followed.
        trials: VoxCeleb-format trial lists.
        train_list: Lines of ``speaker path``, the path relative to ``root``; None to train on all speakers.
        validation_share: Share of the training speakers with two utterances or more, in [0, 1); 0 holds out
            none, any more holds out at least 2 speakers.
        seed: Chooses the validation speakers.
        max_unreadable: Largest share of training utterances, and of those of the trial lists, that may be left out, in
            [0, 1]; see ``UnreadableLimit``.
        out: The manifest file to write.

    Raises:
        ValueError: A setting is out of range, a folder or list is not as expected, a listed utterance is missing,
            too many cannot be used, or fewer than two training speakers remain. It begins with the setting as typed.
    """
    check_validation_share(validation_share)
    limit = UnreadableLimit(max_unreadable)
    lists = {path: _read_trials(path).utterances for path in trials}
    keys, unnamed = _find(Path(root), {utterance for listed in lists.values() for utterance in listed})
    utterances = pa.array(keys, pa.string())
    speaker, session = _parts(utterances)
    is_test = _listed_in_trials(lists, utterances, Path(root))
    is_evaluation = np.isin(speaker, np.unique(speaker[is_test]))
    is_listed = _listed_for_training(train_list, utterances, speaker)
    is_train = is_listed & ~is_evaluation
    _report_excluded(speaker, is_listed & is_evaluation, is_asked=train_list is not None)
    with tqdm(total=len(utterances), desc="reading headers", unit="file", disable=None) as progress:
        headers = read_headers(root, keys, progress)
    reasons = unusable(headers)
    for row, reason in reasons.items():
        logger.warning("left out: %s: %s", keys[row], reason)
    is_usable = ~np.isin(np.arange(len(keys)), list(reasons))
    for setting, rows, others in (("data.trial_lists", is_test, 0), ("training", is_train, unnamed)):
        _refuse_unusable(setting, utterances, rows, is_usable, others, limit)
    held_out = validation_speakers(speaker[is_train & is_usable], validation_share, seed)
    is_validation = is_train & np.isin(speaker, held_out)
    _refuse_few_speakers(speaker[is_train & ~is_validation & is_usable], root, train_list, len(held_out))
    split = np.select([is_test, is_validation, is_train], ["test", "validation", "train"], "unused")
    names = zip(_NAMES, (pa.array(column, pa.string()) for column in (speaker, session, split)), strict=True)
    stated = {name: headers.column(name) for name in ("samples", "sample_rate", "channels")}
    table = pa.table({"utterance": utterances, **dict(names), **stated, "parts": one_part(utterances, headers)})
    table = _with_unusable_tests(table, is_usable)
    return Manifest.write(out, table.filter(pa.array(is_usable | is_test)), root)


def _with_unusable_tests(table: pa.Table, is_usable: NDArray[np.bool_]) -> pa.Table:
    """Return a table in which utterances that cannot be used have no samples, at the usual rate."""
    columns = {"samples": np.where(is_usable, table.column("samples"), 0)}
    columns["sample_rate"] = np.where(is_usable, table.column("sample_rate"), SAMPLE_RATE)
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    return table


def check_validation_share(share: float) -> None:
    """Refuse a share of speakers to hold out that is none, with a ValueError."""
    if not 0 <= share < 1:
        raise ValueError(f"data.val_fraction={share}: expected a share from 0 to below 1")


def _find(root: Path, listed: Collection[str]) -> tuple[list[str], int]:
    """Return sorted keys of the recordings in the expected layout, and how many have names that are no text.

    What is left out is counted and named in warnings.

    Args:
        root: The folder.
        listed: Keys that are recordings whatever they look like.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise ValueError(f"data.root={root}: expected a folder of {LAYOUT}; found {found} there")
    inside: list[str] = []
    outside: list[str] = []
    unnamed: list[str] = []
    others: list[str] = []
    for key, _ in walk(root):
        name = printable(key)
        if key.count("/") != 2:
            (outside if key.lower().endswith(AUDIO_ENDINGS) else others).append(name)
        elif not (key.lower().endswith(AUDIO_ENDINGS) or key in listed or looks_like_audio(root / key)):
            others.append(name)
        else:
            (inside if name == key else unnamed).append(name)
    if not inside:
        examples = ", ".join([*outside, *unnamed, *others][:3]) or "an empty folder"
        raise ValueError(f"data.root={root}: expected recordings as {LAYOUT}; found {examples}")
    if outside:
        logger.warning(
            "left out: %d recordings below data.root=%s that are not laid out as %s; first %s",
            *(len(outside), root, LAYOUT, ", ".join(sorted(outside)[:3])),
        )
    for name in sorted(unnamed):
        logger.warning("left out: %s: its name is not UTF-8; rename it", name)
    return _without_sources(inside), len(unnamed)


def _without_sources(keys: Sequence[str]) -> list[str]:
    """Return sorted keys without those of other endings that lie there beside what was converted from them."""
    stems = {os.path.splitext(key)[0] for key in keys if key.lower().endswith(AUDIO_ENDINGS)}
    return sorted(key for key in keys if key.lower().endswith(AUDIO_ENDINGS) or os.path.splitext(key)[0] not in stems)


def _parts(utterances: pa.StringArray) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Speaker and session of each utterance."""
    parts = [key.split("/") for key in utterances.to_pylist()]
    columns = np.array(parts, dtype=object)
    return columns[:, 0], columns[:, 1]


def _read_trials(path: str | Path) -> Trials:
    _refuse_no_file("data.trial_lists", path)
    return read_trials(path)


def _listed_in_trials(
    lists: Mapping[str | Path, Sequence[str]], utterances: pa.StringArray, root: Path
) -> NDArray[np.bool_]:
    listed = np.zeros(len(utterances), dtype=bool)
    for path, wanted in lists.items():
        found = match(wanted, utterances)
        outside = [wanted[k] for k in np.flatnonzero(found < 0).tolist() if os.path.lexists(root / wanted[k])]
        if outside:
            raise ValueError(
                f"data.trial_lists={path}: {outside[0]} is there, but not laid out as {LAYOUT}, which tells who speaks"
            )
        refuse_missing(wanted, found, f"data.trial_lists={path}")
        listed[found] = True
    return listed


def _listed_for_training(
    path: str | Path | None, utterances: pa.StringArray, speaker: NDArray[np.object_]
) -> NDArray[np.bool_]:
    if path is None:
        return np.ones(len(utterances), dtype=bool)
    setting = _refuse_no_file("data.train_utterances", path)
    names, wanted = _read_train_list(Path(path))
    if not wanted:
        raise ValueError(f"{setting}: the list is empty")
    found = match(wanted, utterances)
    refuse_missing(wanted, found, setting)
    differs = [
        (name, key) for name, key, own in zip(names, wanted, speaker[found], strict=True) if nfc(name) != nfc(own)
    ]
    if differs:
        name, key = differs[0]
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
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        fields = split_fields(line, 2)
        if len(fields) == 2:
            names.append(fields[0])
            wanted.append(fields[1])
        elif fields:
            raise ValueError(
                f"data.train_utterances={path}, line {number}: expected 'speaker path', got {line[:200]!r}; where paths have "
                "spaces, separate by a tab"
            )
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


def _refuse_unusable(
    setting: str,
    utterances: pa.StringArray,
    rows: NDArray[np.bool_],
    is_usable: NDArray[np.bool_],
    others: int,
    limit: UnreadableLimit,
) -> None:
    """Raise a ValueError if too many utterances in ``rows``, and ``others`` that are in no row, cannot be used."""
    names = utterances.filter(pa.array(rows & ~is_usable)).to_pylist()
    count, total = len(names) + others, int(rows.sum()) + others
    if count > limit.most(total):
        first = f"; first {', '.join(names[:10])}" if names else ""
        raise ValueError(
            f"{limit}: {count} of {total} {setting} utterances cannot be used (mend them, or allow a "
            f"larger share); the log gives the reasons{first}"
        )


def validation_speakers(speaker: NDArray[np.object_], share: float, seed: int) -> NDArray[np.object_]:
    """Names of the speakers to hold out, given the speaker of each training utterance."""
    names, counts = np.unique(speaker, return_counts=True)
    eligible = names[counts >= 2]
    if share == 0:
        return eligible[:0]
    count = max(2, round(share * len(names)))
    if count > len(eligible):
        raise ValueError(
            f"data.val_fraction={share}: expected {count} training speakers with two utterances or more "
            f"to hold out; found {len(eligible)}"
        )
    return np.random.default_rng(seed).choice(eligible, count, replace=False)


def _refuse_few_speakers(
    speaker: NDArray[np.object_], root: str | Path, train_list: str | Path | None, held_out: int
) -> None:
    count = len(np.unique(speaker))
    if count < 2:
        setting = f"data.root={root}" if train_list is None else f"data.train_utterances={train_list}"
        raise ValueError(
            f"{setting}: expected at least 2 training speakers; found {count} beside the speakers of the "
            f"trial lists and {held_out} held out by data.val_fraction"
        )
