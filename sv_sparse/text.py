"""Text that people and files get: it may hold names in no encoding, and its reader may go away."""

import codecs
import errno
import io
import os
import sys
import unicodedata
from typing import Any

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
