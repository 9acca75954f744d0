"""Files below folders, one after the other: nothing is kept of a million of them but what the caller keeps."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

MADE = "made_from.tsv"  # in a folder of conversions
_PREPARED = {"manifest.parquet", "headers.parquet"}


def walk(root: str | Path, *, leave_out: str | Path | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every visible file below ``root`` with its path relative to it.

    Links to folders are followed, each target once, and never back up. A folder that cannot be read is named in a
    warning, and so is a prepared folder, whose recordings are another's that were converted.

    Args:
        root: The folder.
        leave_out: A folder below it that is not looked into, by whatever path it is reached.

    Raises:
        OSError: ``root`` cannot be read.
    """
    without = None if leave_out is None else os.path.realpath(leave_out)
    followed: set[str] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(root, folder)))
        except OSError as error:
            if not folder:
                raise
            logger.warning("left out, cannot be read: %s (%s)", os.path.join(root, folder), error.strerror)
            continue
        names = {entry.name for entry in entries}
        if folder and (names >= _PREPARED or MADE in names):
            logger.warning("left out, made by sv-sparse prepare: %s", os.path.join(root, folder))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield folder + entry.name, entry
            elif _is_new(entry, without, followed):
                folders.append(f"{folder}{entry.name}/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_new(entry: os.DirEntry[str], without: str | None, followed: set[str]) -> bool:
    """Whether to look into a folder; real paths are asked for only where they may matter."""
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if target in followed or Path(entry.path).parent.resolve().is_relative_to(target):
            return False
        followed.add(target)
    elif without is None or entry.name != os.path.basename(without):
        return True
    return os.path.realpath(entry.path) != without
