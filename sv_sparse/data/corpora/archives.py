"""Checksums of the archives that corpora come in, in one file or in the parts that they are downloaded as."""

import hashlib
import logging
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from sv_sparse.data.corpora.published import MD5, preview

logger = logging.getLogger(__name__)

# Parts of vox1_dev_wav.zip and the like, in this order:
# vox1_dev_wav_partaa, vox2_dev_aac_partab, cn-celeb2_v2.tar.gzaa
_PART = re.compile(r"^(.*?)(?:_part|\.zip\.?|\.tar\.gz\.?)[a-z]{2}$")


def verify_md5(paths: Sequence[Path]) -> tuple[dict[str, bool], list[Path]]:
    """Check the MD5 sums of published archives: of files, of their parts, or of folders of them.

    Returns:
        True for each archive whose sum is the published one, by its name; and the files that are no archive.

    Raises:
        ValueError: a file is not there, there is no published archive, or an archive or part is there twice.
        OSError: a file cannot be read.
    """
    archives: dict[str, list[Path]] = {}
    unknown: list[Path] = []
    for path in _list_files(paths):
        name = _archive_name(path.name)
        if name is None:
            unknown.append(path)
        else:
            archives.setdefault(name, []).append(path)
    if not archives:
        raise ValueError(
            f"{', '.join(map(str, paths))}: expected archives of {', '.join(MD5)}, or their parts; "
            f"found {preview([str(path) for path in unknown]) or 'an empty folder'}"
        )
    # All are sorted before the first is read, which takes minutes.
    files = {name: _in_order(name, parts) for name, parts in sorted(archives.items())}
    return {name: _md5(parts) == MD5[name] for name, parts in files.items()}, unknown


def _list_files(paths: Sequence[Path]) -> list[Path]:
    files = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: expected an archive, a part of one, or a folder of them; there is nothing")
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.is_file())
        else:
            files.append(path)
    return files


def _archive_name(file: str) -> str | None:
    """Return the name of the archive that a file is, or is a part of."""
    part = _PART.match(file)
    for name in MD5:
        if file == name or (part is not None and part[1] == name.split(".")[0]):
            return name
    return None


def _in_order(name: str, parts: Sequence[Path]) -> list[Path]:
    """Return the complete archive if it is there, otherwise its parts in order."""
    files = [path for path in parts if path.name == name] or sorted(parts, key=lambda path: path.name)
    for first, second in pairwise(files):
        if first.name == second.name:
            raise ValueError(f"{first} and {second}: the same archive or part twice; leave one of them out")
    folders = sorted({str(path.parent) for path in files})
    if len(folders) > 1:
        logger.warning("%s: its parts lie in %s; they are checked together", name, " and ".join(folders))
    return files


def _md5(paths: Sequence[Path]) -> str:
    total = sum(path.stat().st_size for path in paths)
    digest = hashlib.md5(usedforsecurity=False)
    with tqdm(total=total, desc=paths[0].name, unit="B", unit_scale=True, disable=None) as progress:
        for path in paths:
            with open(path, "rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    progress.update(len(block))
    return digest.hexdigest()
