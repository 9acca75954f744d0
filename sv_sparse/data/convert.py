"""Recordings to FLAC, mono, 16 kHz, 16 bits: many at a time, each whole or absent, and only those not yet done."""

import errno
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import soundfile
from tqdm import tqdm

from sv_sparse.data.audio import SAMPLE_RATE, read_utterance, recording, to_int16
from sv_sparse.data.headers import in_threads

COMPRESSED = (".m4a", ".aac")  # soundfile does not read them; ffmpeg does

_CHUNK = 16  # files per task


def convert(sources: Sequence[str], targets: Sequence[str]) -> list[str | None]:
    """Write a FLAC file for each recording, unless it is there and newer than its source.

    Args:
        sources: Recordings.
        targets: The FLAC file of each; folders are made.

    Returns:
        For each recording, None or why it could not be converted.

    Raises:
        ValueError: ffmpeg is needed and not installed.
        OSError: A file cannot be written.
    """
    needing = sum(source.lower().endswith(COMPRESSED) for source in sources)
    if needing and shutil.which("ffmpeg") is None:
        raise ValueError(
            f"{needing} recordings such as {sources[0]} need ffmpeg to be converted, which is not installed: "
            f"apt install ffmpeg, brew install ffmpeg, or conda install -c conda-forge ffmpeg"
        )
    pairs = list(zip(sources, targets, strict=True))
    with tqdm(total=len(pairs), desc="converting", unit="file", unit_scale=True, disable=None) as progress:
        return in_threads(_convert, pairs, progress, threads=os.cpu_count() or 1, chunk=_CHUNK)


def _convert(pair: tuple[str, str]) -> str | None:
    source, target = pair
    path = Path(target)
    if path.is_file() and path.stat().st_mtime_ns >= os.stat(source).st_mtime_ns:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # the next run writes over what a killed one left
    problem = _by_ffmpeg(source, part) if source.lower().endswith(COMPRESSED) else _by_soundfile(source, part)
    if problem is not None:
        part.unlink(missing_ok=True)
        return problem
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    return None


def _by_ffmpeg(source: str, part: Path) -> str | None:
    form = ["-map", "0:a:0", "-ac", "1", "-ar", str(SAMPLE_RATE), "-sample_fmt", "s16", "-bitexact", "-f", "flac"]
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", source, *form, str(part)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
    if done.returncode == 0 and not done.stderr:  # with words, its zero also means a file that broke off
        return None
    return (done.stderr.strip().splitlines() or [f"ffmpeg ended with {done.returncode}"])[-1]


def _by_soundfile(source: str, part: Path) -> str | None:
    try:
        waveform = read_utterance(recording(source), SAMPLE_RATE).numpy()
    except ValueError as error:
        return str(error)
    try:
        soundfile.write(part, to_int16(waveform), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    except soundfile.LibsndfileError as error:
        raise OSError(f"{part}: cannot be written ({error}); is the disk full?") from error
    return None
