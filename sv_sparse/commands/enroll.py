"""sv-sparse enroll: recordings of a speaker to the store, which ``sv-sparse identify`` asks."""

import argparse
from pathlib import Path

from sv_sparse.commands.common import add_model, load_model
from sv_sparse.io import printable
from sv_sparse.runtime.decision import CONSENT_SENTENCE, Outcome
from sv_sparse.runtime.speaker_db import Store, default_path, speaker_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse enroll``."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the speaker, new or enrolled already")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="recordings of the speaker")
    parser.add_argument(
        "--store", type=Path, help="the file of all speakers; ~/.local/share/sv-sparse/speakers.sqlite if not given"
    )
    parser.add_argument("--list", action="store_true", help="say who is enrolled")
    parser.add_argument("--remove", action="store_true", help="remove NAME and all that was kept of the recordings")
    add_model(parser)
    parser.epilog = CONSENT_SENTENCE


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse enroll``.

    Raises:
        ValueError: the name is not allowed, the model, a recording or the store cannot be read, or the store is of
            another model; names it.
        OSError: the store cannot be written.
    """
    path = chosen.store or default_path()
    if chosen.list + chosen.remove + bool(chosen.files) != 1 or (chosen.name is None) != chosen.list:
        raise ValueError("expected NAME FILE..., or --list, or --remove NAME")
    store = Store(path)
    if chosen.list:
        speakers = store.speakers()
        for speaker in speakers:
            print(f"{speaker.name}: {_amount(speaker.recordings, speaker.seconds)}, since {speaker.created[:10]}")
        print(f"{len(speakers) or 'nobody is'} enrolled in {path}")
    elif chosen.remove:
        store.remove(printable(chosen.name))  # of which none is enrolled that is in no encoding
        print(f"{chosen.name} is removed from {path}")
    else:
        name = speaker_name(chosen.name)  # before recordings are read for nothing
        verifier = load_model(chosen)
        try:
            heard = [verifier.hear(file) for file in chosen.files]
        except ValueError as error:
            raise ValueError(f"{Outcome.REFUSED_INPUT}: {error}") from error
        store.enroll(name, heard, verifier.fingerprint)
        print(f"{name}: {_amount(len(heard), sum(each.seconds or 0 for each in heard))} added to {path}")


def _amount(recordings: int, seconds: float | None) -> str:
    several = f"{recordings} recording{'s' * (recordings != 1)}"
    return several if seconds is None else f"{several}, {seconds:.1f} seconds"
