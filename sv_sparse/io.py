"""Files, names and streams: atomic writes, text in any encoding, output whose reader goes away."""

import codecs
import errno
import hashlib
import io
import json
import logging
import os
import secrets
import sys
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

ESCAPE = "sv_sparse.escape"  # an error handler for ``open``, ``str.encode`` and the like
_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF  # what Python decodes bytes of names to that are in no encoding (PEP 383)
_READER_GONE = {errno.EPIPE, errno.EINVAL} if os.name == "nt" else {errno.EPIPE}


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Write a byte that is in no encoding as ``\xff``, any other character that the encoding lacks as Python does."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escaped = ""
    for character in error.object[error.start : error.end]:
        if _FIRST_BYTE <= ord(character) <= _LAST_BYTE:
            escaped += f"\\x{ord(character) & 0xFF:02x}"
        else:
            escaped += character.encode("ascii", "backslashreplace").decode()
    return escaped, error.end


codecs.register_error(ESCAPE, _escape)


def printable(path: str | os.PathLike[str]) -> str:
    r"""Return a path as text that every file and terminal for UTF-8 takes.

    Args:
        path: any; a name that is UTF-8 stays as it is, bytes of another encoding become ``\xff`` and the like.

    >>> printable("caf\udce9.wav")
    'caf\\xe9.wav'
    """
    return os.fspath(path).encode("utf-8", ESCAPE).decode("utf-8")


def composed(name: str) -> str:
    r"""Return a name in Unicode's composed form, in which names are compared, since macOS keeps them decomposed.

    >>> composed("Jose\u0301") == "Jos\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


def harden_output() -> None:
    """Let this program's stdout and stderr take any name, and outlive their reader (``| head -1``).

    Characters that the terminal's encoding lacks are escaped. What is written after the reader went away is dropped: a
    command still does its work, and a run trains on. For entry points; a library leaves its user's streams alone.
    """
    sys.stdout = _hardened(sys.stdout, sys.__stdout__)
    sys.stderr = _hardened(sys.stderr, sys.__stderr__)


def _hardened(stream: Any, of_process: Any) -> Any:
    if not isinstance(stream, io.TextIOWrapper):  # None without a terminal, or what a notebook shows
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if stream is not of_process or type(raw) is not io.FileIO:  # a console of Windows writes in another way
        stream.reconfigure(errors=ESCAPE)
        return stream
    stream.flush()
    output: Any = _Output(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        output if raw is stream.buffer else io.BufferedWriter(output),
        encoding=stream.encoding,
        errors=ESCAPE,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Output(io.FileIO):
    """What is written to a descriptor; to nowhere, once nobody reads it any more."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _READER_GONE:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(content)


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this project, which no registry holds.

    Args:
        extra: its name in pyproject.toml, such as ``serve``.

    >>> install_command("serve").startswith("pip install ")
    True
    """
    source = Path(__file__).parent.parent
    if (source / "pyproject.toml").is_file():  # not in a wheel, which lies among other packages
        return f'pip install -e "{source}[{extra}]"'
    return f'pip install ".[{extra}]" in a copy of this project\'s source'


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
