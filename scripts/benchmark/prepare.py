"""Measure the preparation of VoxCeleb at its full number of files: files per second, and memory.

The tree has the depth and names of VoxCeleb2; its files are hard links to a few tiny recordings, since 1.2 million of
real length would fill the disk.
"""

import argparse
import json
import os
import resource
import shutil
import string
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from sv_sparse.data.corpora.scan import scan_corpus
from sv_sparse.data.corpora.voxceleb import parse_path, prepare_voxceleb

_LINKS = 30_000  # hard links to one file; file systems allow 65,000
_SESSIONS, _UTTERANCES = 20, 10


def keys(count: int) -> Iterator[str]:
    """Yield the names of ``count`` utterances as in VoxCeleb2."""
    letters = string.ascii_letters + string.digits
    for number in range(count):
        session, utterance = divmod(number, _UTTERANCES)
        speaker, session = divmod(session, _SESSIONS)
        name = letters[session] * 10 + letters[speaker % len(letters)]
        yield f"id{speaker + 12:05d}/{name}/{utterance + 1:05d}.wav"


def make_tree(root: Path, count: int) -> None:
    """Write hard links, to a new recording for every ``_LINKS``, which file systems limit."""
    source = root / "source"
    source.mkdir(parents=True)
    folders: set[str] = set()
    for number, key in enumerate(keys(count)):
        if number % _LINKS == 0:
            recording = source / f"{number}.wav"
            # Silence would be left out of the corpus.
            soundfile.write(recording, 0.1 * np.random.default_rng(number).normal(size=3200), 16000)
        folder = f"{root}/dev/wav/{key.rsplit('/', 1)[0]}"
        if folder not in folders:
            os.makedirs(folder)
            folders.add(folder)
        os.link(recording, f"{root}/dev/wav/{key}")


def main() -> None:
    """Print the figures, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_200_000)
    parser.add_argument("--folder", type=Path, required=True, help="an empty or absent folder for the tree")
    parser.add_argument("--keep", action="store_true", help="leave the tree there")
    args = parser.parse_args()
    root, out = args.folder / "root", args.folder / "out"
    if not root.exists():
        make_tree(root, args.files)
    figures: dict[str, float] = {}
    for name in ("first", "again"):
        start = time.perf_counter()
        prepare_voxceleb([root], out, allow_partial=True)
        figures[f"{name}_seconds"] = time.perf_counter() - start
    figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start = time.perf_counter()
    scan_corpus([root], parse_path, (), out=out)
    figures["scan_files_per_second"] = args.files / (time.perf_counter() - start)
    if not args.keep:
        shutil.rmtree(args.folder)
    for name, value in figures.items():
        print(f"{name}: {value:,.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
