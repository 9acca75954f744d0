"""Corpora as they are released, and as people lay them out, filled with short noise."""

import subprocess
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
VOX1_DEV = ("id10001", "id10002", "id11251")
VOX1_TEST = ("id10270", "id10309")
VOX2_DEV = ("id00012", "id00015", "id09272")
VOX2_TEST = ("id00017", "id00061")
SPEAKERS = {"vox1_dev": VOX1_DEV, "vox1_test": VOX1_TEST, "vox2_dev": VOX2_DEV, "vox2_test": VOX2_TEST}
SESSIONS = ("x6uYqmx31kE", "-_0aZ9bcdEf")


def utterances(subset: str) -> list[str]:
    """Keys ``speaker/session/00001`` of a subset, without an ending."""
    return [f"{s}/{session}/{n:05d}" for s, session, n in product(SPEAKERS[subset], SESSIONS, (1, 2))]


def noise(name: str, seconds: float) -> np.ndarray:
    """Always the same for one name."""
    return np.random.default_rng(list(name.encode())).uniform(-0.5, 0.5, int(seconds * RATE)).astype(np.float32)


def write(path: Path, key: str, seconds: float = 0.5) -> Path:
    """A recording in the format of the path's ending, its samples a function of ``key``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".m4a":
        wav = write(path.with_suffix(".wav"), key, seconds)
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", wav, "-c:a", "aac", path], check=True)
        wav.unlink()
    else:
        form = {".opus": ("OGG", "OPUS"), ".flac": ("FLAC", "PCM_16"), ".wav": ("WAV", "PCM_16")}[path.suffix]
        soundfile.write(path, noise(key, seconds), RATE, format=form[0], subtype=form[1])
    return path


def write_subset(folder: Path, subset: str, ending: str) -> None:
    for key in utterances(subset):
        write(folder / f"{key}{ending}", key)


def released(root: Path, vox2: str = ".wav") -> None:
    """The archives unpacked side by side."""
    write_subset(root / "vox1" / "wav", "vox1_dev", ".wav")
    write_subset(root / "vox1" / "wav", "vox1_test", ".wav")
    write_subset(root / "vox2" / "dev" / "aac", "vox2_dev", vox2)
    write_subset(root / "vox2" / "aac", "vox2_test", vox2)


def by_part(root: Path) -> None:
    for subset in SPEAKERS:
        corpus, part = subset.split("_")
        write_subset(root / corpus / part / "wav", subset, ".wav")


def merged(root: Path) -> None:
    for subset in SPEAKERS:
        write_subset(root / "wav", subset, ".wav")


def named(root: Path) -> None:
    for subset in SPEAKERS:
        write_subset(root / f"voxceleb{subset[3]}" / subset[5:], subset, ".flac")


def deep_and_mixed(root: Path) -> None:
    endings = {"vox1_dev": ".wav", "vox1_test": ".flac", "vox2_dev": ".flac", "vox2_test": ".wav"}
    for subset, ending in endings.items():
        write_subset(root / "corpora" / "speech" / "2020" / subset, subset, ending)


def converted_beside(root: Path) -> None:
    """wav, with FLAC beside what was converted."""
    merged(root)
    for subset in ("vox2_dev", "vox2_test"):
        write_subset(root / "wav", subset, ".flac")


def linked(root: Path) -> None:
    """Folders of links into a tree somewhere else."""
    by_part(root / "store")
    (root / "view").mkdir()
    for corpus in ("vox1", "vox2"):
        (root / "view" / corpus).symlink_to(root / "store" / corpus)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "released": released,
    "by part": by_part,
    "merged": merged,
    "named": named,
    "deep and mixed": deep_and_mixed,
    "converted beside": converted_beside,
    "linked": linked,
}


def write_vox_lists(folder: Path) -> None:
    """Small lists under the published names: O over the test speakers, E and H over all of VoxCeleb1."""
    folder.mkdir(parents=True, exist_ok=True)
    test, whole = utterances("vox1_test"), utterances("vox1_test") + utterances("vox1_dev")
    for name, keys in (("veri_test2.txt", test), ("list_test_all2.txt", whole), ("list_test_hard2.txt", whole)):
        (folder / name).write_text("".join(trial(a, b) for a, b in product(keys, keys[::3]) if a != b))


def trial(one: str, other: str) -> str:
    return f"{int(one.split('/', maxsplit=1)[0] == other.split('/', maxsplit=1)[0])} {one}.wav {other}.wav\n"


CN1_DEV, CN2_DEV, CN_EVAL = ("id00000", "id00001"), ("id10001", "id11999"), ("id00800", "id00801", "id00999")
GENRES = ("singing", "live_broadcast")


def write_cnceleb(root: Path, *, seconds: Sequence[float] = (1.0, 2.5, 3.0, 6.0), ending: str = ".flac") -> None:
    """CN-Celeb 1 and 2 as released: lists say .wav, files are .flac, and ``data`` holds the evaluation speakers too."""
    one, two = root / "CN-Celeb_flac", root / "CN-Celeb2_flac"
    for folder, speakers in ((one, CN1_DEV + CN_EVAL), (two, CN2_DEV)):
        for speaker, genre in product(speakers, GENRES):
            for number, length in enumerate(seconds, start=1):
                key = f"{speaker}/{genre}-01-{number:03d}"
                write(folder / "data" / f"{key}{ending}", key, length)
    _write_lines(one / "dev" / "dev.lst", CN1_DEV)
    _write_lines(two / "spk.lst", CN2_DEV)
    enrolled = CN_EVAL[:2]  # one evaluation speaker is only tested
    for speaker in enrolled:
        write(one / "eval" / "enroll" / f"{speaker}-enroll{ending}", f"{speaker}-enroll", 2.0)
    tests = [f"{speaker}-{genre}-02-{number:03d}" for speaker, genre, number in product(CN_EVAL, GENRES, (1, 2))]
    for name in tests:
        write(one / "eval" / "test" / f"{name}{ending}", name, 0.8)
    lists = one / "eval" / "lists"
    _write_lines(lists / "enroll.lst", [f"{speaker}-enroll enroll/{speaker}-enroll.wav" for speaker in enrolled])
    segments = {speaker: [f"{speaker}/{GENRES[0]}-01-{n:03d}.wav" for n in (1, 2)] for speaker in enrolled}
    _write_lines(lists / "enroll.map", [f"{speaker}-enroll {' '.join(parts)}" for speaker, parts in segments.items()])
    _write_lines(lists / "test.lst", [f"test/{name}.wav" for name in tests])
    pairs = [(speaker, name) for speaker in enrolled for name in tests]
    _write_lines(lists / "trials.lst", [f"{s}-enroll test/{name}.wav {int(name.startswith(s))}" for s, name in pairs])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
