"""Files below folders, one after the other: nothing is kept of a million of them but what the caller keeps."""

import os
from collections.abc import Iterator
from pathlib import Path


def walk(root: str | Path, *, leave_out: str | Path | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every visible file below ``root`` with its path relative to it; links that lead back up are not followed.

    Args:
        root: The folder.
        leave_out: A folder below it that is not looked into.

    Raises:
        OSError: A folder cannot be read.
    """
    without = None if leave_out is None else os.path.abspath(leave_out)
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    yield folder + entry.name, entry
                elif not (entry.is_symlink() and _leads_up(entry.path)) and os.path.abspath(entry.path) != without:
                    folders.append(f"{folder}{entry.name}/")


def _leads_up(link: str) -> bool:
    return Path(link).parent.resolve().is_relative_to(Path(link).resolve())
