"""Noise and rooms (MUSAN and RIRS_NOISES, or folders shaped like them) in a form that is mapped into memory."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.audio import read_samples, recording, to_int16
from sv_sparse.data.corpora.pipeline import sole
from sv_sparse.data.corpora.scan import walk
from sv_sparse.data.decoding import AUDIO_ENDINGS, SAMPLE_RATE
from sv_sparse.io import atomic_write, printable

logger = logging.getLogger(__name__)

KINDS = ("noise", "music", "speech")
ROOM = "room"

_SOUNDS = "sounds.i16"
_ROOMS = "rooms.f32"
_INDEX = "index.parquet"  # written last: its presence says that the store is whole
_QUIET = 1e-6  # share of a room response's energy that is cut off its end, 60 dB down
_LONGEST_ROOM = SAMPLE_RATE


class NoiseStore:
    """Noise, music, speech and room responses at 16 kHz, mapped into memory when first used.

    Args:
        path: A folder made by :func:`build_store`.

    Raises:
        ValueError: It is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / _INDEX).is_file():
            raise ValueError(
                f"augment.noise_dir={path}: expected a folder made by: sv-sparse prepare noise --root MUSAN --out {path}"
            )
        index = pq.read_table(self.path / _INDEX)
        kind = np.array(index.column("kind").to_pylist())
        self._start: NDArray[np.int64] = index.column("start").to_numpy()
        self._samples: NDArray[np.int64] = index.column("samples").to_numpy()
        self._of = {name: np.flatnonzero(kind == name) for name in (*KINDS, ROOM)}
        self._maps: dict[str, NDArray[Any]] = {}

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)  # type: ignore[misc]

    def count(self, kind: str) -> int:
        """How many recordings there are of one of ``KINDS``, or of rooms."""
        return len(self._of[kind])

    def sound(self, kind: str, number: int, place: float, samples: int) -> NDArray[np.int16]:
        """A stretch of a recording, int16 [samples], not to be written to; one that is too short begins again.

        Args:
            kind: One of ``KINDS``.
            number: Which, below ``count(kind)``.
            place: Where in the recording, in [0, 1).
            samples: How long.
        """
        row = self._of[kind][number]
        length = int(self._samples[row])
        first = int(self._start[row]) + int(place * max(1, length - samples + 1))
        found = self._map(_SOUNDS, np.int16)[first : first + min(samples, length)]
        return found if len(found) == samples else np.resize(found, samples)

    def room(self, number: int) -> NDArray[np.float32]:
        """A room's impulse response of unit energy, float32 [L], L at most a second; not to be written to."""
        row = self._of[ROOM][number]
        first = int(self._start[row])
        return self._map(_ROOMS, np.float32)[first : first + int(self._samples[row])]

    def _map(self, name: str, kind: type[np.generic]) -> NDArray[Any]:
        if name not in self._maps:
            self._maps[name] = np.memmap(self.path / name, dtype=kind, mode="r").view(np.ndarray)  # sliced faster
        return self._maps[name]


def build_store(roots: Sequence[str | Path], out: str | Path) -> dict[str, int]:
    """Put every noise and room response below some folders into a store.

    Folders called ``noise``, ``music`` and ``speech`` hold what they say (MUSAN), ``pointsource_noises`` holds noise,
    ``simulated_rirs`` and ``real_rirs_isotropic_noises`` hold rooms; in the last, files with ``noise`` in their name
    are noise. Of several channels the first counts. Other rates than 16 kHz are resampled. A recording that cannot be
    read is named in a warning and left out.

    Args:
        roots: Folders to look through.
        out: The store's folder, made if absent; an older store there is replaced.

    Returns:
        How many recordings there are of each kind.

    Raises:
        ValueError: A folder is missing, none of it is noise or a room, or no recording can be read.
    """
    out = Path(out)
    found = list({os.path.realpath(path): (kind, key, path) for kind, key, path in sorted(_find(roots))}.values())
    if not found:
        raise ValueError(
            f"{', '.join(map(str, roots))}: expected recordings in folders called noise, music, speech (MUSAN), "
            f"simulated_rirs, real_rirs_isotropic_noises or pointsource_noises (RIRS_NOISES); found none"
        )
    rows: list[tuple[str, str, int, int]] = []
    values: NDArray[np.float32] | NDArray[np.int16]
    with sole(out), atomic_write(out / _SOUNDS) as sounds, atomic_write(out / _ROOMS) as rooms:
        written = {"sounds": 0, "rooms": 0}
        for kind, _, path in tqdm(found, desc="storing noise", unit="file", disable=None):
            try:
                waveform = read_samples(recording(path), SAMPLE_RATE)
                values = _trim(waveform, path) if kind == ROOM else to_int16(waveform)
            except ValueError as error:
                logger.warning("left out: %s", error)
                continue
            file, name = (rooms, "rooms") if kind == ROOM else (sounds, "sounds")
            file.write(values.tobytes())
            rows.append((kind, printable(path), written[name], len(values)))
            written[name] += len(values)
        if not rows:
            raise ValueError(f"{', '.join(map(str, roots))}: none of {len(found)} recordings can be read; first {path}")
        (out / _INDEX).unlink(missing_ok=True)  # the old one, now that everything new is there but its names
    columns = zip(("kind", "file", "start", "samples"), zip(*rows, strict=True), strict=True)
    with atomic_write(out / _INDEX) as file:
        pq.write_table(pa.table({name: list(column) for name, column in columns}), file)
    return {kind: sum(row[0] == kind for row in rows) for kind in (*KINDS, ROOM)}


def _find(roots: Sequence[str | Path]) -> Iterator[tuple[str, str, str]]:
    """Kind, path below its root, and path of every recording of noise or rooms."""
    for root in roots:
        if not Path(root).is_dir():
            raise ValueError(f"{root}: expected a folder; there is none")
        for key, _ in walk(root):
            kind = _kind(key)
            if kind is not None and key.lower().endswith(AUDIO_ENDINGS):
                yield kind, key, os.path.join(root, key)


def _kind(key: str) -> str | None:
    """What a recording is, by the nearest folder above it that says so."""
    *folders, name = key.split("/")
    for folder in reversed(folders):
        if folder in KINDS:
            return folder
        if folder == "pointsource_noises":
            return "noise"
        if folder == "simulated_rirs":
            return ROOM
        if folder == "real_rirs_isotropic_noises":
            return "noise" if "noise" in name.lower() else ROOM
    return None


def _trim(response: NDArray[np.float32], path: str) -> NDArray[np.float32]:
    """A room's response without what lies before its direct sound and below -60 dB at its end, of unit energy."""
    begun = response[int(np.argmax(np.abs(response))) :][:_LONGEST_ROOM].astype(np.float64)
    energy = np.cumsum(begun[::-1] ** 2)[::-1]
    if not energy[0] > 0:
        raise ValueError(f"{printable(path)}: a room response of zeros")
    kept = begun[: np.count_nonzero(energy > _QUIET * energy[0])]
    return (kept / np.sqrt(np.sum(kept**2))).astype(np.float32)
