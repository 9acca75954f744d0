"""Command ``sv-sparse embed``: writes the embeddings of recordings to a file for other programs."""

import argparse
import csv
import hashlib
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sv_sparse.commands.common import add_model_arguments, check_output, load_verifier
from sv_sparse.data.decoding import is_recording
from sv_sparse.data.walk import walk_files
from sv_sparse.io import atomic_write
from sv_sparse.runtime.decision import EmbeddedRecording
from sv_sparse.runtime.verifier import Verifier

# A recording's name and what came of it.
Row = tuple[str, EmbeddedRecording]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse embed``."""
    paths_help = "recordings, or folders that are searched for recordings, subfolders included"
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help=paths_help)
    output_help = (
        "file to write: .npz with files [N], embeddings [N, E] and seconds [N], or .csv with a line per recording"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=output_help)
    add_model_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse embed``; a command that was stopped resumes at the first recording that is not embedded."""
    output: Path = args.output
    check_output(output, ".npz", ".csv")
    files = find_recordings(args.paths)
    verifier = load_verifier(args)
    partial_path = output.with_name(f".{output.name}.partial.npz")
    embeddings = _read_partial(partial_path, verifier.fingerprint)
    try:
        rows = _embed_files(verifier, files, embeddings)
        if rows:
            write_rows = _write_csv if output.suffix == ".csv" else _write_npz
            write_rows(output, rows)
            noun = "recording" if len(rows) == 1 else "recordings"
            print(f"{output}: {len(rows)} {noun}, {len(verifier.backend.mean)} numbers each")
    except BaseException:
        # A stop signal, too: hours of embedding are not lost.
        if embeddings:
            # Keys name the model, since the next command may use another.
            partial_rows = [(f"{verifier.fingerprint} {key}", recording) for key, recording in embeddings.items()]
            _write_npz(partial_path, partial_rows)
        raise
    partial_path.unlink(missing_ok=True)
    num_failed = len(files) - len(rows)
    # An error only now: the embeddings of the others are written all the same.
    if num_failed:
        raise ValueError(f"{num_failed} of {len(files)} recordings could not be embedded")


def find_recordings(paths: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and in place of each folder the recordings in it, sorted by name.

    Files of formats that have to be converted first are among them, so that they are reported.

    Raises:
        ValueError: A folder has no recordings.
    """
    recordings = []
    for path in paths:
        if not path.is_dir():
            recordings.append(path)
            continue
        in_folder = sorted(path / key for key, _ in walk_files(path) if is_recording(path / key))
        if not in_folder:
            raise ValueError(f"{path}: there are no recordings in this folder")
        recordings += in_folder
    return recordings


def _embed_files(verifier: Verifier, files: Sequence[Path], embeddings: dict[str, EmbeddedRecording]) -> list[Row]:
    """Return a row for each file that can be embedded; add the embeddings, by key, that were missing."""
    # Keys are taken first: a recording that changes meanwhile is embedded again by the next command.
    keys = [_recording_key(file) for file in files]
    failed = set()
    rows = []
    for index, (file, key) in enumerate(zip(files, keys, strict=True)):
        if key not in embeddings and key not in failed:
            try:
                embeddings[key] = verifier.embed_recording(file)
            except ValueError as error:
                print(f"left out: {error}", file=sys.stderr)
                failed.add(key)
        if key in embeddings:
            rows.append((str(file), embeddings[key]))
        # In a log each count would be a line.
        if sys.stderr.isatty():
            print(f"\r{index + 1} of {len(keys)} ", end="", file=sys.stderr, flush=True)
    return rows


def _recording_key(file: Path) -> str:
    """Return what identifies a recording: a digest of its path, size and modification time."""
    text = f"{file.absolute()}"
    # Not the content: reading it would take much of the time that is saved.
    if file.is_file():
        stat = file.stat()
        text += f"\0{stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _write_npz(path: Path, rows: Sequence[Row]) -> None:
    with atomic_write(path) as file:
        np.savez(
            file,
            files=np.array([name for name, _ in rows]),
            embeddings=np.stack([recording.embedding for _, recording in rows]),
            seconds=np.array([recording.seconds for _, recording in rows]),
        )


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    _, first = rows[0]
    columns = [f"e{index}" for index in range(len(first.embedding))]
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "seconds", *columns])
        for name, recording in rows:
            writer.writerow([name, recording.seconds, *recording.embedding.tolist()])


def _read_partial(path: Path, fingerprint: str) -> dict[str, EmbeddedRecording]:
    """Return the embeddings by key that a stopped command with the same model has written; none if unreadable."""
    embeddings = {}
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            rows = zip(file["files"].tolist(), file["embeddings"], file["seconds"].tolist(), strict=True)
            for name, embedding, seconds in rows:
                model, key = name.split()
                if model == fingerprint:
                    embeddings[key] = EmbeddedRecording(embedding, seconds)
    # It only saves time, so that a damaged one is no error.
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return {}
    return embeddings
