"""Check sums of the archives that corpora come in, whole or in the parts that they are downloaded as."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from sv_sparse.data.published import MD5

_BLOCK = 1 << 22
# vox1_dev_wav_partaa, vox2_dev_aac_partab, cn-celeb2_v2.tar.gzaa: parts of vox1_dev_wav.zip, ... in this order
_PART = re.compile(r"^(.*?)(?:_part|\.zip\.?|\.tar\.gz\.?)[a-z]{2}$")


def verify(paths: Sequence[Path]) -> list[tuple[str, bool]]:
    """Check the MD5 sums of known archives.

    Args:
        paths: Archives, their parts, or folders of them.

    Returns:
        Each archive that was found, and whether its sum is the published one.

    Raises:
        ValueError: None of it is a known archive.
        OSError: A file cannot be read.
    """
    found: dict[str, list[Path]] = {}
    for path in _files(paths):
        name = _archive(path.name)
        if name is not None:
            found.setdefault(name, []).append(path)
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: expected archives of {', '.join(MD5)}, or their parts")
    return [(name, _md5(_in_order(name, parts)) == MD5[name]) for name, parts in sorted(found.items())]


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.iterdir()) if path.is_dir() else [path]


def _archive(file: str) -> str | None:
    """The archive that a file is, or is a part of."""
    if file in MD5:
        return file
    part = _PART.match(file)
    if part is None:
        return None
    return next((name for name in MD5 if name.split(".")[0] == part[1]), None)


def _in_order(name: str, parts: Sequence[Path]) -> list[Path]:
    """The whole archive where it is there, its parts otherwise."""
    whole = [path for path in parts if path.name == name]
    return whole[:1] or sorted(parts, key=lambda path: path.name)


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
