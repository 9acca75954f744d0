"""What is saved of a run, and how: atomically, as tensors and plain data, read back strictly.

``last.pt`` holds everything that resuming needs, ``epoch_0003.pt`` the same after the third epoch. A network file
(``model.pt``, ``best.pt``) holds what using the network needs: its weights, the resolved configuration, and the figures
it was saved with.
"""

import io
import lzma
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from sv_sparse.io import atomic_write, compare_zip_sums

FORMAT = 4
TRAINING_KEYS = {
    "format", "config", "model", "head", "optimizer", "controller", "scaler",
    "diagnostics", "progress", "generators", "best", "at_start", "started_sparse",
}  # fmt: skip
NETWORK_KEYS = {"format", "config", "model", "backend", "figures"}

# What torch.load and zipfile raise for files that were cut off or changed at random: found by trying.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),  # the last two where the name of a compression is damaged
    *(RuntimeError, EOFError, OSError, UnpicklingError, struct.error, AssertionError),
    *(LookupError, ValueError, TypeError, AttributeError),
)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` under a temporary name, sync, rename: a reader finds the old file or the new one, whole.

    Raises:
        OSError: it cannot be written (a full disk, say); the old file stands.
    """
    buffer = io.BytesIO()  # torch would turn a failing write into an error of its own that names no cause
    torch.save(state | {"format": FORMAT}, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load(path: Path, keys: set[str]) -> dict[str, Any]:
    """Read a file that ``save`` wrote, onto the CPU.

    Args:
        path: the file.
        keys: what it must hold, no more and no less: TRAINING_KEYS or NETWORK_KEYS.

    Raises:
        ValueError: it is missing, damaged, of another format, or holds other keys; names the file.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    try:
        with path.open("rb") as file:  # one file, whatever takes its name meanwhile
            compare_zip_sums(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        first = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {first}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, expected a checkpoint")
    if state.get("format") != FORMAT:
        raise ValueError(f"{path} has checkpoint format {state.get('format')}, this version reads {FORMAT}")
    if keys == NETWORK_KEYS and set(state) == TRAINING_KEYS:
        raise ValueError(
            f"{path} is what a run continues from, not a network that was delivered; those are model.pt and best.pt"
        )
    if keys == TRAINING_KEYS and set(state) == NETWORK_KEYS:
        raise ValueError(f"{path} is a network file, with which no training continues; init_from=RUN starts from it")
    if set(state) != keys:
        raise ValueError(f"{path} lacks {sorted(keys - set(state))} and has unknown {sorted(set(state) - keys)}")
    return state


class Checkpoints:
    """The training checkpoints of a run: ``last.pt``, and those after the last few epochs.

    Args:
        folder: where they are.
        keep: how many epochs' to keep.

    Attributes:
        last: path of the newest.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.last = folder / "last.pt"

    def __bool__(self) -> bool:
        return self.last.is_file()

    def epoch(self, number: int) -> Path:
        """Path of the checkpoint after an epoch."""
        return self.folder / f"epoch_{number:04d}.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Replace ``last.pt``.

        Raises:
            OSError: it cannot be written; the old one stands.
        """
        save(self.last, state)

    def keep_epoch(self, number: int, *, best: int | None) -> None:
        """Keep ``last.pt`` as the checkpoint after an epoch too, and remove old ones.

        Args:
            number: the epoch; those beyond it are of a future that was given up.
            best: an epoch whose checkpoint is not removed.
        """
        wanted = {*range(number - self.keep + 1, number + 1), best}
        for path in self._epochs():
            if int(path.stem.removeprefix("epoch_")) not in wanted:
                path.unlink()
        if self.keep:
            _double(self.last, self.epoch(number))

    def read_last(self) -> dict[str, Any]:
        """What ``last.pt`` holds.

        Raises:
            ValueError: it is not readable; names the one before it, if there is one.
        """
        try:
            return load(self.last, TRAINING_KEYS)
        except ValueError as error:
            before = max(self._epochs(), default=None)
            hint = f"; the one before it is {before}, continue from there with resume={before}" if before else ""
            raise ValueError(f"{error}{hint}") from error

    def _epochs(self) -> list[Path]:
        return list(self.folder.glob("epoch_*.pt"))


def return_to(path: Path) -> None:
    """Make an earlier training checkpoint the last one of its run; that one is kept as ``replaced.pt``.

    Raises:
        ValueError: it is not readable.
    """
    load(path, TRAINING_KEYS)
    last = path.with_name("last.pt")
    if path == last:
        return
    wanted = last.with_name(".wanted.tmp")
    _double(path, wanted)  # first, since it may be replaced.pt itself
    if last.is_file():
        _double(last, last.with_name("replaced.pt"))
    _double(wanted, last)
    wanted.unlink()


def _double(path: Path, other: Path) -> None:
    """Give a file another name too, in the place of what has that name; a copy where the file system has no links."""
    temporary = other.with_name(f".{other.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, other)
    temporary.unlink(missing_ok=True)  # a rename to a name that the same file has already does nothing
