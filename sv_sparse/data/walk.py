"""Search of folders for files."""

# Nothing here needs torch or pyarrow: the light installation uses it.
import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

# It marks a folder of converted files.
CONVERSION_RECORD = "made_from.tsv"
_PREPARED_FILES = {"manifest.parquet", "headers.parquet"}


def walk_files(root: str | Path, *, leave_out: str | Path | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every visible file below ``root``, with its path relative to it, but none of the folder ``leave_out``.

    Links to folders are followed, each target once, and never back up. Folders that cannot be read and prepared
    folders are named in a warning.

    Raises:
        OSError: ``root`` cannot be read.
    """
    excluded = None if leave_out is None else os.path.realpath(leave_out)
    followed: set[str] = set()
    folders = [""]
    while folders:
        folder = folders.pop()
        path = os.path.join(root, folder)
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            if not folder:
                raise
            logger.warning("left out, cannot be read: %s (%s)", path, error.strerror)
            continue
        names = {entry.name for entry in entries}
        # Recordings in a prepared folder are conversions of others.
        if folder and (names >= _PREPARED_FILES or CONVERSION_RECORD in names):
            logger.warning("left out, made by sv-sparse prepare: %s", path)
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield folder + entry.name, entry
            elif _should_enter(entry, excluded, followed):
                folders.append(f"{folder}{entry.name}/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself.
        return False


def _should_enter(entry: os.DirEntry[str], excluded: str | None, followed: set[str]) -> bool:
    # Real paths are slow, so they are resolved only for links and for folders of the excluded one's name.
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if target in followed or Path(entry.path).parent.resolve().is_relative_to(target):
            return False
        followed.add(target)
    elif excluded is None or entry.name != os.path.basename(excluded):
        return True
    return os.path.realpath(entry.path) != excluded
