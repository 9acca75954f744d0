"""Manifest of a folder of audio without labels: any recordings at any depth, of which nobody says who speaks."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sv_sparse.data.corpora.folder import check_limit, find_recordings, read_usable_headers, to_table
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.unreadable import UnreadableLimit

logger = logging.getLogger(__name__)

LAYOUT = "{wav,flac,ogg,opus,mp3,...}, at any depth"


def scan_unlabeled(
    root: str | Path,
    *,
    trial_files: Sequence[str],
    val_fraction: float,
    seed: int,
    max_unreadable_fraction: float,
    out: str | Path,
) -> Manifest:
    """Write the manifest of every recording below ``root``; its speakers are unknown, empty text.

    A fraction of the recordings is ``validation``, the others are ``train``. Files of trial lists are left out,
    wherever they lie and by whatever link. Recordings that cannot be used are named in a warning and left out.

    Args:
        root: folder of recordings, with a suffix of ``AUDIO_SUFFIXES``, or another one if the file begins like a
            recording. Symbolic links are followed.
        trial_files: paths of the recordings of the trial lists.
        val_fraction: fraction of the recordings that is held out, in [0, 1); above 0 at least two.
        seed: seed of the choice of these recordings.
        max_unreadable_fraction: largest fraction of the training recordings, and of those of the trial lists, that may
            be left out, in [0, 1]; see ``UnreadableLimit``.
        out: manifest file to write.

    Raises:
        ValueError: the folder has no recordings, too many cannot be used, or none remains to train on. It begins with
            the setting.
    """
    root = Path(root)
    limit = UnreadableLimit(max_unreadable_fraction)
    keys, num_unnamed = find_recordings(root, LAYOUT)
    is_trial_file = _are_same_files(root, keys, trial_files)
    if is_trial_file.any():
        logger.info("%d recordings of the trial lists are left out of training", is_trial_file.sum())
    keys = [key for key, is_left_out in zip(keys, is_trial_file.tolist(), strict=True) if not is_left_out]

    headers, is_usable = read_usable_headers(root, keys)
    utterance = pa.array(keys, pa.string())
    check_limit(limit, "training", utterance.filter(pa.array(~is_usable)).to_pylist(), len(keys), num_unnamed)
    # The evaluation would find them too, but after hours of training.
    _, is_usable_trial = read_usable_headers(root, trial_files)
    unusable_trials = [trial_files[index] for index in np.flatnonzero(~is_usable_trial).tolist()]
    check_limit(limit, "data.trial_lists", unusable_trials, len(trial_files))

    held_out = _validation_rows(np.flatnonzero(is_usable), val_fraction, seed)
    num_train = int(is_usable.sum()) - len(held_out)
    if num_train < 1:
        raise ValueError(
            f"data.root={root}: expected at least 1 training recording; found {num_train} beside "
            f"{len(held_out)} held out by data.val_fraction and {is_trial_file.sum()} of the trial lists"
        )
    is_validation = np.isin(np.arange(len(keys)), held_out)
    split = np.where(is_validation, "validation", "train")
    unknown = np.full(len(keys), "", dtype=object)
    table = to_table(utterance, unknown, unknown, split, headers, is_usable)
    return Manifest.write(out, table.filter(pa.array(is_usable)), root)


def _are_same_files(root: Path, keys: Sequence[str], files: Sequence[str]) -> NDArray[np.bool_]:
    """Return which of the files ``keys`` below ``root`` are among ``files``, bool [len(keys)]."""
    # By inodes: a path may lead through links, or be spelled in another Unicode form.
    inodes = {_inode(file) for file in files} - {None}
    if not inodes:
        return np.zeros(len(keys), dtype=bool)
    return np.array([_inode(os.path.join(root, key)) in inodes for key in keys], dtype=bool)


def _inode(path: str) -> tuple[int, int] | None:
    """Return device and inode of a file; None if it cannot be reached."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _validation_rows(usable: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.int64]:
    """Choose a fraction of the rows of usable recordings to hold out; above 0 at least two, or all there are."""
    if fraction == 0:
        return usable[:0]
    # A batch of one is left out wherever crops are averaged.
    count = min(len(usable), max(2, round(fraction * len(usable))))
    return np.random.default_rng(seed).choice(usable, count, replace=False)
