"""Noise store: noise and room impulse responses of MUSAN and RIRS_NOISES in files that are mapped into memory."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from sv_sparse.data.audio import Samples, read_samples, single_file, to_int16
from sv_sparse.data.corpora.pipeline import exclusive
from sv_sparse.data.decoding import AUDIO_SUFFIXES, SAMPLE_RATE, Waveform
from sv_sparse.data.walk import walk_files
from sv_sparse.io import atomic_write, printable

logger = logging.getLogger(__name__)

NOISE_KINDS = ("noise", "music", "speech")
RIR = "rir"

# Those of MUSAN have the names of the kinds; the others are those of RIRS_NOISES.
_KIND_OF_FOLDER = {
    **dict(zip(NOISE_KINDS, NOISE_KINDS, strict=True)),
    "pointsource_noises": "noise",
    "simulated_rirs": RIR,
    "real_rirs_isotropic_noises": RIR,
}
_NOISES_FILE = "noises.i16"
_RIRS_FILE = "rirs.f32"
# Written last: its presence says that the store is complete.
_INDEX_FILE = "index.parquet"
# Fraction of a response's energy that is cut off its end, at -60 dB.
_TAIL_ENERGY = 1e-6
# One second.
_MAX_RIR_SAMPLES = SAMPLE_RATE


class NoiseStore:
    """Noise, music, speech and room impulse responses at 16 kHz, mapped into memory when first used.

    Args:
        path: folder made by :func:`build_noise_store`.

    Raises:
        ValueError: it is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / _INDEX_FILE).is_file() or not (self.path / _NOISES_FILE).is_file():
            raise ValueError(
                f"augment.noise_dir={path}: expected a folder made by: "
                f"sv-sparse prepare noise --root MUSAN --out {path}"
            )
        index = pq.read_table(self.path / _INDEX_FILE)
        kind = np.array(index.column("kind").to_pylist())
        self._start: NDArray[np.int64] = index.column("start").to_numpy()
        self._samples: NDArray[np.int64] = index.column("samples").to_numpy()
        self._rows = {name: np.flatnonzero(kind == name) for name in (*NOISE_KINDS, RIR)}
        self._arrays: dict[str, NDArray[Any]] = {}

    def __reduce__(self) -> tuple[type["NoiseStore"], tuple[Path]]:
        return NoiseStore, (self.path,)

    def num(self, kind: str) -> int:
        """Return the number of recordings of a kind: one of ``NOISE_KINDS``, or ``RIR``."""
        return len(self._rows[kind])

    def noise(self, kind: str, index: int, position: float, samples: int) -> Samples:
        """Return a segment of a recording, int16 [samples], read-only; a short recording is repeated.

        ``kind`` is one of ``NOISE_KINDS``, ``index`` below ``num(kind)``, and ``position`` in [0, 1) relative.
        """
        row = self._rows[kind][index]
        length = int(self._samples[row])
        first = int(self._start[row]) + int(position * max(1, length - samples + 1))
        segment = self._mmap(_NOISES_FILE, np.int16)[first : first + min(samples, length)]
        return segment if len(segment) == samples else np.resize(segment, samples)

    def rir(self, index: int) -> Waveform:
        """Return a room impulse response of unit energy, float32 [L], at most a second; read-only."""
        row = self._rows[RIR][index]
        first = int(self._start[row])
        return self._mmap(_RIRS_FILE, np.float32)[first : first + int(self._samples[row])]

    def _mmap(self, name: str, dtype: type[np.generic]) -> NDArray[Any]:
        if name not in self._arrays:
            # Slicing a plain array is several times as fast as slicing a memmap.
            self._arrays[name] = np.memmap(self.path / name, dtype=dtype, mode="r").view(np.ndarray)
        return self._arrays[name]


def build_noise_store(roots: Sequence[str | Path], out: str | Path) -> dict[str, int]:
    """Put all noise and room impulse responses below some folders into a store, and return how many of each kind.

    The first channel is taken, and resampled to 16 kHz. A recording that cannot be read is named in a warning
    and left out. An older store in ``out`` is replaced.

    Raises:
        ValueError: a folder is missing, has no noise or responses, or no recording can be read.
    """
    out = Path(out)
    # Kind and path, once for each real path.
    recordings: dict[str, tuple[str, str]] = {}
    for kind, _, path in sorted(_find_recordings(roots)):
        recordings[os.path.realpath(path)] = (kind, path)
    names = ", ".join(map(str, roots))
    if not recordings:
        raise ValueError(
            f"{names}: expected recordings in folders called noise, music, speech (MUSAN), "
            f"simulated_rirs, real_rirs_isotropic_noises or pointsource_noises (RIRS_NOISES); found none"
        )
    rows: list[dict[str, Any]] = []
    values: NDArray[Any]
    with exclusive(out), atomic_write(out / _NOISES_FILE) as noises, atomic_write(out / _RIRS_FILE) as rirs:
        written = {noises: 0, rirs: 0}
        for kind, path in tqdm(recordings.values(), desc="storing noise", unit="file", disable=None):
            try:
                waveform = read_samples(single_file(path), SAMPLE_RATE)
                values = _trim_rir(waveform, path) if kind == RIR else to_int16(waveform)
            except ValueError as error:
                logger.warning("left out: %s", error)
                continue
            file = rirs if kind == RIR else noises
            file.write(values.tobytes())
            rows.append({"kind": kind, "file": printable(path), "start": written[file], "samples": len(values)})
            written[file] += len(values)
        if not rows:
            raise ValueError(f"{names}: none of {len(recordings)} recordings can be read; first {path}")
        # The old index does not fit the new files, whose names change at the end of this block.
        (out / _INDEX_FILE).unlink(missing_ok=True)
    with atomic_write(out / _INDEX_FILE) as file:
        pq.write_table(pa.Table.from_pylist(rows), file)
    counts = Counter(row["kind"] for row in rows)
    return {kind: counts[kind] for kind in (*NOISE_KINDS, RIR)}


def _find_recordings(roots: Sequence[str | Path]) -> Iterator[tuple[str, str, str]]:
    """Yield kind, path below its root, and path of every recording."""
    for root in roots:
        if not Path(root).is_dir():
            raise ValueError(f"{root}: expected a folder; there is none")
        for key, _ in walk_files(root):
            kind = _kind_of(key)
            if kind and key.lower().endswith(AUDIO_SUFFIXES):
                yield kind, key, os.path.join(root, key)


def _kind_of(key: str) -> str:
    """Return the kind that the nearest folder with a meaning says; empty without one."""
    *folders, name = key.split("/")
    folder = next((folder for folder in reversed(folders) if folder in _KIND_OF_FOLDER), "")
    # It holds responses and the noise in the same rooms.
    if folder == "real_rirs_isotropic_noises" and "noise" in name.lower():
        return "noise"
    return _KIND_OF_FOLDER.get(folder, "")


def _trim_rir(response: Waveform, path: str) -> Waveform:
    """Return a response from its direct sound on, without its end below -60 dB, of unit energy."""
    direct = int(np.argmax(np.abs(response)))
    response = response[direct:][:_MAX_RIR_SAMPLES].astype(np.float64)
    # Energy from each sample to the end.
    energy = np.cumsum(response[::-1] ** 2)[::-1]
    if not energy[0] > 0:
        raise ValueError(f"{printable(path)}: a room response of zeros")
    response = response[: np.count_nonzero(energy > _TAIL_ENERGY * energy[0])]
    return (response / np.sqrt(np.sum(response**2))).astype(np.float32)
