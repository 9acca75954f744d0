"""Compilation of C++ sources on this machine, with a cache of shared libraries.

The compiler is ``$CXX``, or ``g++``. Libraries are kept in ``$XDG_CACHE_HOME/sv-sparse/native`` (``~/.cache/…``),
under a name that differs by source, compiler and kind of machine.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from sv_sparse.optim.validation import warn

logger = logging.getLogger(__name__)

_COMMON_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
_THREAD_FLAGS = [] if sys.platform == "darwin" else ["-fopenmp"]
# The same bits on every processor, DECISIONS 6.
PORTABLE_FLAGS = ("-ffp-contract=off",)


def load_library(
    source: Path, functions: Sequence[str], title: str, hint: str, flags: Sequence[str] = PORTABLE_FLAGS
) -> ctypes.CDLL:
    """Return a C++ source's functions, which return nothing; compile it first if it is not in the cache.

    Args:
        source: file of C++ code.
        functions: their names.
        title: of the library, for an error.
        hint: how the user does without it, for an error.
        flags: of the compiler, beside those that all libraries have. ``-march=native`` makes a library for processors
            like this one.

    Raises:
        OSError: there is no compiler, it fails, or the cache cannot be written; says how to do without.
    """
    advice = f"install g++ (or set CXX), or {hint}"
    setting = os.environ.get("CXX") or "g++"
    try:
        compiler = shlex.split(setting)
    except ValueError as error:
        raise OSError(f"CXX={setting!r} is no command ({error}); {advice}") from error
    try:
        version = _run([*compiler, "--version"])
        platform_key = repr([sys.platform, platform.machine(), _COMMON_FLAGS, *flags, _THREAD_FLAGS]).encode()
        # the predefined macros tell processors apart where a flag such as -march=native depends on them
        macros = _run([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])
        digest = hashlib.sha256(b"\0".join([version, macros, source.read_bytes(), platform_key])).hexdigest()
        path = _cache_dir() / f"kernel-{digest[:16]}.so"
        if not path.is_file():
            _compile([*compiler, *_COMMON_FLAGS, *flags, *_THREAD_FLAGS], source, path)
        library = ctypes.CDLL(str(path))
        for name in functions:
            getattr(library, name).restype = None
    except subprocess.CalledProcessError as error:
        output = error.stderr.decode(errors="replace").strip()[-500:]
        raise OSError(f"{' '.join(compiler)} failed: {output}; {advice}") from error
    # RuntimeError: there is no home for the cache; AttributeError: the file in the cache is not our library
    except (OSError, RuntimeError, AttributeError) as error:
        raise OSError(f"{title} cannot be compiled with {' '.join(compiler)}: {error}; {advice}") from error
    return library


def is_loadable(load: Callable[[], ctypes.CDLL], message: str) -> bool:
    """Return whether a library can be loaded here.

    Args:
        load: compiles and loads it, or raises OSError.
        message: UserWarning where it cannot be; ``{error}`` in it is the reason.
    """
    try:
        load()
    except OSError as error:
        warn(message.format(error=error))
        return False
    return True


def _run(command: Sequence[str]) -> bytes:
    """Return what a command prints; the terminal's Ctrl-C does not reach it, since this program answers that."""
    return subprocess.run(command, capture_output=True, check=True, start_new_session=True).stdout


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sv-sparse" / "native"


def _compile(command: Sequence[str], source: Path, path: Path) -> None:
    logger.info("compiling %s, once on this machine", source.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may compile at once.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        _run([*command, "-o", str(temporary), str(source)])
        temporary.replace(path)
