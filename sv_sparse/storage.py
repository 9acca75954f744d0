"""Files that are either whole or absent: write beside, flush to disk, then rename."""

import errno
import hashlib
import json
import logging
import os
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

from sv_sparse.text import ESCAPE

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LEFTOVERS = ".*.tmp"  # temporaries, which a killed process leaves behind
_SUM_BYTES = 16
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}  # what some network file systems answer


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a file that takes the place of ``path`` once everything is on disk.

    The bytes go to a temporary name in the same folder. Leaving the block flushes them to disk, renames the
    temporary over ``path`` and makes the rename itself durable. Any error, a full disk or Ctrl-C included,
    removes the temporary and leaves the old ``path`` as it was.

    Args:
        path: The file to write; its folder must exist.
        mode: ``"wb"`` for bytes, ``"w"`` for UTF-8 text with newlines as ``LF``. Names of files that are not UTF-8
            are written as ``text.printable`` says.

    Raises:
        OSError: The folder is missing or read-only, or the disk is full.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_write(folder / "hello.txt", "w") as file:
    ...     _ = file.write("hello")
    >>> [entry.name for entry in folder.iterdir()]
    ['hello.txt']
    """
    assert mode in {"wb", "w"}, mode
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    text = {"encoding": "utf-8", "newline": "\n", "errors": ESCAPE} if mode == "w" else {}
    try:
        with naming(path), open(temporary, mode.replace("w", "x"), **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of writing say which file it was, which a full disk does not by itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def only_process(folder: Path, refusal: str) -> Iterator[None]:
    """Hold a folder's lock. Windows and some file systems have none, which is warned of: nothing is held there.

    Args:
        folder: Gets a file ``.lock``.
        refusal: What to say where another process holds it.

    Raises:
        ValueError: Another process does.
    """
    with open(folder / ".lock", "w") as file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks on this system")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(refusal) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _warn_of_no_locks(folder)
        yield


@cache
def _warn_of_no_locks(folder: Path) -> None:
    logger.warning("%s: there are no file locks here; let no other process write into it", folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing under a folder that only this process writes to now."""
    for path in folder.rglob(LEFTOVERS):
        path.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Replace ``path`` by ``text``, whole or not at all: in UTF-8, names that are not UTF-8 as ``text.printable``."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON, whole or not at all.

    A name of a file that is not UTF-8 is written in JSON's own escapes, from which Python reads the same name.

    Raises:
        ValueError: ``value`` holds a NaN or an infinity, which JSON has no word for.
        TypeError: ``value`` holds something that JSON has no word for.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def check_sum(*parts: bytes) -> str:
    """Compute the check sum of byte strings, and of where each of them ends: 32 hexadecimal digits of BLAKE2b.

    It tells that bytes have changed on a disk or on the way. Whoever changes them on purpose can change it too.

    >>> check_sum(b"ab", b"c") == check_sum(b"a", b"bc")
    False
    """
    digest = hashlib.blake2b(digest_size=_SUM_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def compare_zip_sums(file: BinaryIO) -> None:
    """Compare the contents of a zip file with the check sums in it, which torch and numpy write and do not all read.

    Raises:
        BadZipFile: They differ, or it is another kind of file. Damage can raise other errors of zipfile and zlib too.
    """
    if not zipfile.is_zipfile(file):
        raise zipfile.BadZipFile("damaged, or another kind of file")
    with zipfile.ZipFile(file) as archive:
        changed = archive.testzip()
    if changed is not None:
        raise zipfile.BadZipFile(f"{changed} in it has changed since it was written")


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut; only POSIX lets a folder be opened for it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
