"""Check sums of the archives that corpora come in, whole or in the parts that they are downloaded as."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from sv_sparse.data.corpora.check import first_of
from sv_sparse.data.corpora.published import MD5

logger = logging.getLogger(__name__)

_BLOCK = 1 << 22
# vox1_dev_wav_partaa, vox2_dev_aac_partab, cn-celeb2_v2.tar.gzaa: parts of vox1_dev_wav.zip, ... in this order
_PART = re.compile(r"^(.*?)(?:_part|\.zip\.?|\.tar\.gz\.?)[a-z]{2}$")


def verify(paths: Sequence[Path]) -> tuple[list[tuple[str, bool]], list[Path]]:
    """Check the MD5 sums of known archives.

    Args:
        paths: Archives, their parts, or folders of them.

    Returns:
        Each archive that was found, and whether its sum is the published one; and the files that are no such archive.

    Raises:
        ValueError: There is no such file, none of it is a known archive, or one archive or part is there twice.
        OSError: A file cannot be read.
    """
    found: dict[str, list[Path]] = {}
    unknown: list[Path] = []
    for path in _files(paths):
        name = _archive(path.name)
        if name is None:
            unknown.append(path)
        else:
            found.setdefault(name, []).append(path)
    if not found:
        raise ValueError(
            f"{', '.join(map(str, paths))}: expected archives of {', '.join(MD5)}, or their parts; "
            f"found {first_of([str(path) for path in unknown]) or 'an empty folder'}"
        )
    chosen = {name: _in_order(name, parts) for name, parts in sorted(found.items())}
    return [(name, _md5(files) == MD5[name]) for name, files in chosen.items()], unknown


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: expected an archive, a part of one, or a folder of them; there is nothing")
        yield from sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _archive(file: str) -> str | None:
    """The archive that a file is, or is a part of."""
    if file in MD5:
        return file
    part = _PART.match(file)
    if part is None:
        return None
    return next((name for name in MD5 if name.split(".")[0] == part[1]), None)


def _in_order(name: str, parts: Sequence[Path]) -> list[Path]:
    """The whole archive where it is there, its parts otherwise, wherever they lie.

    Raises:
        ValueError: It, or a part of it, is there twice.
    """
    chosen = [path for path in parts if path.name == name] or sorted(parts, key=lambda path: path.name)
    for one, other in pairwise(chosen):
        if one.name == other.name:
            raise ValueError(f"{one} and {other}: the same archive or part twice; leave one of them out")
    folders = sorted({str(path.parent) for path in chosen})
    if len(folders) > 1:
        logger.warning("%s: its parts lie in %s; they are checked together", name, " and ".join(folders))
    return chosen


def _md5(paths: Sequence[Path]) -> str:
    total = sum(path.stat().st_size for path in paths)
    digest = hashlib.md5(usedforsecurity=False)
    with tqdm(total=total, desc=paths[0].name, unit="B", unit_scale=True, disable=None) as progress:
        for path in paths:
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
                    progress.update(len(block))
    return digest.hexdigest()
