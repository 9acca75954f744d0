"""Command ``sv-sparse enroll``: adds recordings of a speaker to the database that ``sv-sparse identify`` searches."""

import argparse
from pathlib import Path

from sv_sparse.commands.common import add_database_argument, add_model_arguments, load_verifier
from sv_sparse.io import printable
from sv_sparse.runtime.decision import CONSENT_SENTENCE, Outcome
from sv_sparse.runtime.speaker_db import SpeakerDatabase, default_path, normalize_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse enroll``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="speaker, new or enrolled already")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="recordings of the speaker")
    parser.add_argument("--list", action="store_true", help="list the enrolled speakers and exit")
    parser.add_argument("--remove", action="store_true", help="remove NAME and all stored embeddings of it")
    add_database_argument(parser)
    add_model_arguments(parser)
    parser.epilog = CONSENT_SENTENCE


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse enroll``."""
    path = args.database or default_path()
    num_actions = args.list + args.remove + bool(args.files)
    # --list takes no name, the others need one.
    if num_actions != 1 or args.list != (args.name is None):
        raise ValueError("expected NAME FILE..., or --list, or --remove NAME")
    database = SpeakerDatabase(path)
    if args.list:
        speakers = database.speakers()
        for speaker in speakers:
            amount = _describe_amount(speaker.num_recordings, speaker.seconds)
            print(f"{speaker.name}: {amount}, since {speaker.created[:10]}")
        print(f"{len(speakers) or 'nobody is'} enrolled in {path}")
    elif args.remove:
        # A name in no encoding cannot be enrolled, but can be typed.
        database.remove(printable(args.name))
        print(f"{args.name}: removed from {path}")
    else:
        # Fails before recordings are embedded for nothing.
        name = normalize_name(args.name)
        verifier = load_verifier(args)
        try:
            recordings = [verifier.embed_recording(file) for file in args.files]
        except ValueError as error:
            raise ValueError(f"{Outcome.REFUSED_INPUT}: {error}") from error
        database.enroll(name, recordings, verifier.fingerprint)
        seconds = sum(recording.seconds or 0.0 for recording in recordings)
        print(f"{name}: {_describe_amount(len(recordings), seconds)} added to {path}")


def _describe_amount(num_recordings: int, seconds: float | None) -> str:
    recordings = "1 recording" if num_recordings == 1 else f"{num_recordings} recordings"
    return recordings if seconds is None else f"{recordings}, {seconds:.1f} seconds"
