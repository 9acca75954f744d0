"""sv-sparse embed: recordings to embeddings, in a file for other programs."""

import argparse
import csv
import hashlib
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sv_sparse.commands.common import add_model, load_model
from sv_sparse.io import atomic_write
from sv_sparse.runtime.decision import Heard

_ENDINGS = (".npz", ".csv")

Row = tuple[str, Heard]  # a recording's name, and its embedding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse embed``."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="recordings")
    parser.add_argument(
        "--to",
        type=Path,
        required=True,
        metavar="FILE",
        help=".npz with files [N], embeddings [N, E] and seconds [N], or .csv with a line for each recording",
    )
    add_model(parser)


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse embed``. Stopped, it keeps what is done beside the file, and goes on there the next time.

    Raises:
        ValueError: the model cannot be read, or some recordings; the others' embeddings are written all the same.
        OSError: the file cannot be written.
    """
    if chosen.to.suffix not in _ENDINGS:
        raise ValueError(f"--to {chosen.to}: expected a name that ends in {' or '.join(_ENDINGS)}")
    if not chosen.to.parent.is_dir():
        raise ValueError(f"--to {chosen.to}: there is no folder {chosen.to.parent}")
    verifier = load_model(chosen)
    begun = chosen.to.with_name(f".{chosen.to.name}.begun.npz")
    found = _begun(begun, verifier.fingerprint)
    keys = [_key(file) for file in chosen.files]
    tried = set(found)
    try:
        for number, (file, key) in enumerate(zip(chosen.files, keys, strict=True), start=1):
            if key not in tried:
                tried.add(key)
                try:
                    found[key] = verifier.hear(file)
                except ValueError as error:
                    print(f"left out: {error}", file=sys.stderr)
            _show(f"{number} of {len(keys)}")
        rows = [(str(file), found[key]) for file, key in zip(chosen.files, keys, strict=True) if key in found]
        if rows:
            (_write_csv if chosen.to.suffix == ".csv" else _write_npz)(chosen.to, rows)
            print(f"{chosen.to}: {len(rows)} embeddings of {len(verifier.backend.mean)} numbers")
    except BaseException:
        _keep(begun, found, verifier.fingerprint)
        raise
    begun.unlink(missing_ok=True)
    if len(rows) < len(keys):
        raise ValueError(f"{len(keys) - len(rows)} of {len(keys)} recordings could not be embedded")


def _show(progress: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{progress} ", end="", file=sys.stderr, flush=True)


def _key(file: Path) -> str:
    """What tells a recording from others: its path, size and time of change."""
    about = file.stat() if file.is_file() else None
    told = f"{file.absolute()}\0{about.st_size} {about.st_mtime_ns}" if about is not None else f"{file.absolute()}"
    return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()


def _write_npz(path: Path, rows: Sequence[Row]) -> None:
    with atomic_write(path) as file:
        np.savez(
            file,
            files=np.array([name for name, _ in rows]),
            embeddings=np.stack([heard.embedding for _, heard in rows]),
            seconds=np.array([heard.seconds for _, heard in rows]),
        )


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    size = len(rows[0][1].embedding)
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "seconds", *(f"e{index}" for index in range(size))])
        for name, heard in rows:
            writer.writerow([name, heard.seconds, *map(repr, heard.embedding.tolist())])


def _keep(path: Path, found: Mapping[str, Heard], fingerprint: str) -> None:
    if found:
        _write_npz(path, [(f"{fingerprint} {key}", heard) for key, heard in found.items()])


def _begun(path: Path, fingerprint: str) -> dict[str, Heard]:
    """What an earlier attempt with the same model left, by key; nothing where it cannot be read."""
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            rows = zip(file["files"].tolist(), file["embeddings"], file["seconds"].tolist(), strict=True)
            found = [(*name.split(), Heard(embedding, seconds)) for name, embedding, seconds in rows]
            return {key: heard for model, key, heard in found if model == fingerprint}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return {}
