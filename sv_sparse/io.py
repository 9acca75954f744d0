"""Atomic writes, file locks, checksums, printable names and robust output streams."""

import codecs
import errno
import hashlib
import io
import json
import logging
import os
import re
import secrets
import sys
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO

try:
    import fcntl
except ModuleNotFoundError:
    # Windows has none.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

# Glob of temporary files, which a killed process leaves behind.
TEMP_PATTERN = ".*.tmp"
# Name of an error handler for ``open``, ``str.encode`` and the like.
ESCAPE = "sv_sparse.escape"

# As some network file systems answer.
_LOCK_UNSUPPORTED_ERRNOS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_CLOSED_PIPE_ERRNOS = {errno.EPIPE, errno.EINVAL} if os.name == "nt" else {errno.EPIPE}


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a file that replaces ``path`` once all of it is on disk.

    Any error, a full disk and Ctrl-C included, leaves the old ``path`` as it was, and nothing beside it.

    Args:
        path: file to write; its folder must exist.
        mode: ``"wb"`` for bytes, ``"w"`` for UTF-8 text with newlines as ``LF``, where bytes of file
            names that are not UTF-8 are escaped as in ``printable``.

    Raises:
        OSError: the folder is missing or read-only, or the disk is full.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_write(folder / "hello.txt", "w") as file:
    ...     _ = file.write("hello")
    >>> [entry.name for entry in folder.iterdir()]
    ['hello.txt']
    """
    assert mode in {"wb", "w"}, mode
    path = Path(path)
    # A random name, as another process may write the same file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    text_options = {"encoding": "utf-8", "newline": "\n", "errors": ESCAPE} if mode == "w" else {}
    try:
        # Not the module tempfile, whose files are private: others may read what this one writes.
        with (
            name_file_in_errors(path),
            open(temporary, mode.replace("w", "x"), **text_options) as file,  # type: ignore[call-overload]
        ):
            yield file
            file.flush()
            # Without it, a power cut can leave the new name with none of the new bytes.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename survives a power cut once its folder is on disk. Only POSIX opens folders.
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Add the path to an ``OSError`` that has none, such as "No space left on device"."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Replace ``path`` atomically by text in UTF-8; see ``atomic_write``."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Replace ``path`` atomically by ``value`` as indented JSON; raise ValueError for a NaN or an infinity."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 becomes an escape of JSON, from which Python reads the same name.  DECISIONS 75
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def remove_temp_files(folder: Path) -> None:
    """Remove the temporary files of killed processes below a folder that nobody else writes to."""
    for path in folder.rglob(TEMP_PATTERN):
        path.unlink()


@contextmanager
def file_lock(folder: Path, message: str) -> Iterator[None]:
    """Hold the lock of a folder, which gets a file ``.lock``.

    Where the system or the file system has no locks, a warning says so once and nothing is locked.

    Args:
        folder: existing folder.
        message: text of the ValueError if another process holds the lock.
    """
    with open(folder / ".lock", "w") as file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks on this system")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(message) from None
        except OSError as error:
            if error.errno not in _LOCK_UNSUPPORTED_ERRNOS:
                raise
            _warn_without_locks(folder)
        yield


# One warning for each folder.
@cache
def _warn_without_locks(folder: Path) -> None:
    logger.warning("%s: there are no file locks here; let no other process write into it", folder)


def checksum(*parts: bytes) -> str:
    """Compute the checksum of byte strings and of their lengths: 32 hexadecimal digits of BLAKE2b.

    >>> checksum(b"ab", b"c") == checksum(b"a", b"bc")
    False
    """
    # Without a key: it detects accidents, not changes on purpose.
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        # With the lengths, a byte that moves from one part to the next is noticed.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def verify_crc(file: BinaryIO) -> None:
    """Check the CRCs in a zip file, which torch and numpy write but do not always read.

    Raises:
        BadZipFile: a CRC differs, or it is no zip file. Damage can raise other errors of zipfile and zlib.
    """
    if not zipfile.is_zipfile(file):
        raise zipfile.BadZipFile("damaged, or another kind of file")
    with zipfile.ZipFile(file) as archive:
        member = archive.testzip()
    if member is not None:
        raise zipfile.BadZipFile(f"{member} in it has changed since it was written")


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Write a byte that is not UTF-8 as ``\xff``, others as "backslashreplace"."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # PEP 383: Python decodes a byte of a file name that is not UTF-8 to a surrogate in this range.
    text = error.object[error.start : error.end]
    escaped = re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", text)
    return escaped.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(ESCAPE, _escape)


def printable(path: str | os.PathLike[str]) -> str:
    r"""Return a path as text in UTF-8; a byte of another encoding becomes ``\xff`` or the like.

    >>> printable("caf\udce9.wav")
    'caf\\xe9.wav'
    """
    return os.fspath(path).encode("utf-8", ESCAPE).decode("utf-8")


def nfc(name: str) -> str:
    r"""Return a name in Unicode's composed form (NFC), for comparisons: macOS stores names decomposed.

    >>> nfc("Jose\u0301") == "Jos\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


def install_command(extra: str) -> str:
    """Return the command that installs an extra of pyproject.toml; this project is in no registry.

    >>> install_command("serve").startswith("pip install ")
    True
    """
    source = Path(__file__).parent.parent
    # A checkout has it, a wheel among other packages does not.
    if (source / "pyproject.toml").is_file():
        return f'pip install -e "{source}[{extra}]"'
    return f'pip install ".[{extra}]" in a copy of this project\'s source'


def harden_output() -> None:
    """Make stdout and stderr accept any name, and survive a reader that leaves (``| head -1``).

    For entry points only; a library leaves the streams of its user alone.
    """
    # Characters that the terminal's encoding lacks are escaped. Output after the reader has left is dropped: the
    # program finishes its work.  DECISIONS 75
    sys.stdout = _hardened_stream(sys.stdout, sys.__stdout__)
    sys.stderr = _hardened_stream(sys.stderr, sys.__stderr__)


def _hardened_stream(stream: Any, process_stream: Any) -> Any:
    # It is None without a terminal, and an object of its own in a notebook.
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)
    # The console of Windows is no file; and streams that somebody replaced are not ours to replace.
    if stream is not process_stream or type(raw) is not io.FileIO:
        stream.reconfigure(errors=ESCAPE)
        return stream
    stream.flush()
    output: Any = _PipeSafeOutput(raw.fileno(), "w", closefd=False)
    # python -u has no buffer.
    if raw is not stream.buffer:
        output = io.BufferedWriter(output)
    return io.TextIOWrapper(
        output,
        encoding=stream.encoding,
        errors=ESCAPE,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _PipeSafeOutput(io.FileIO):
    """File that writes to nowhere once its reader has gone."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _CLOSED_PIPE_ERRNOS:
                raise
        # The descriptor itself is replaced, as libraries in C write to it too.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        return super().write(content)
