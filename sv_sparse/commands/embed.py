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
from sv_sparse.io import atomic_write
from sv_sparse.runtime.decision import EmbeddedRecording
from sv_sparse.runtime.verifier import Verifier

# A recording's name and what came of it.
Row = tuple[str, EmbeddedRecording]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse embed``."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="recordings")
    output_help = ".npz with files [N], embeddings [N, E] and seconds [N], or .csv with a line for each recording"
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=output_help)
    add_model_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse embed``; a command that was stopped resumes at the first recording that is not embedded."""
    output: Path = args.output
    check_output(output, ".npz", ".csv")
    verifier = load_verifier(args)
    partial_path = output.with_name(f".{output.name}.partial.npz")
    embeddings = _read_partial(partial_path, verifier.fingerprint)
    try:
        rows = _embed_files(verifier, args.files, embeddings)
        if rows:
            write_rows = _write_csv if output.suffix == ".csv" else _write_npz
            write_rows(output, rows)
            print(f"{output}: {len(rows)} embeddings of {len(verifier.backend.mean)} numbers")
    except BaseException:
        # A stop signal, too: hours of embedding are not lost.
        if embeddings:
            # Keys name the model, since the next command may use another.
            partial_rows = [(f"{verifier.fingerprint} {key}", recording) for key, recording in embeddings.items()]
            _write_npz(partial_path, partial_rows)
        raise
    partial_path.unlink(missing_ok=True)
    num_failed = len(args.files) - len(rows)
    # An error only now: the embeddings of the others are written all the same.
    if num_failed:
        raise ValueError(f"{num_failed} of {len(args.files)} recordings could not be embedded")


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
