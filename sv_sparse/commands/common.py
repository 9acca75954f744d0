"""Arguments and messages that several commands share: the model, the decision, the limits of use."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sv_sparse.runtime.decision import (
    CONSENT_SENTENCE,
    LIMITS_OF_USE,
    NOT_DETECTED,
    NOT_DIFFERENT,
    Outcome,
    RefusedInputError,
    Verification,
)
from sv_sparse.runtime.engine.runtime import Runtime, check_threads
from sv_sparse.runtime.verifier import Verifier

MODEL_ENV = "SV_SPARSE_MODEL"
_OUTCOMES = (
    f'The outcome is "{Outcome.ACCEPTED}", "{Outcome.NOT_ACCEPTED}" (the evidence does not reach the threshold; '
    f'{NOT_DIFFERENT}), "{Outcome.NO_DECISION}" (the model has no threshold) or "{Outcome.REFUSED_INPUT}" (a recording '
    "cannot be used; the reason is on stderr, and with --json on stdout too). Exit status: 0 with an outcome of the "
    "first three, 2 with refused input and after any other error, 128 + N after signal N. "
    f"Limits of use: {NOT_DETECTED}. {CONSENT_SENTENCE}"
)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the model and how it is computed."""
    model_help = f"model.safetensors, from sv-sparse export; default: the environment variable {MODEL_ENV}"
    parser.add_argument("--model", type=Path, metavar="FILE", help=model_help)
    text = "threads that compute the network; default: one for up to ten seconds, all cores for longer recordings"
    parser.add_argument("--threads", type=int, help=text)
    add_model_class_argument(parser)


def add_model_class_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a class of the user's own."""
    # Importing a class runs its code, so no file may name one by itself (DECISIONS 92).
    model_class_help = (
        "import path of the network's class where it is your own, such as mypkg.net.Net; it is imported only "
        "because you name it, here or in the environment variable SV_SPARSE_MODEL_CLASS"
    )
    parser.add_argument("--model-class", metavar="PATH", help=model_class_help)


def add_database_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the database of speakers."""
    database_help = "database of enrolled speakers; default: ~/.local/share/sv-sparse/speakers.sqlite"
    parser.add_argument("--database", type=Path, metavar="FILE", help=database_help)


def add_decision_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a decision."""
    target_far_help = (
        "false-alarm rate: fraction of strangers that may be accepted, such as 0.01; default: the smallest one "
        "that the model has a threshold for"
    )
    parser.add_argument("--target-far", type=float, metavar="RATE", help=target_far_help)
    text = "threshold to use instead, of the log-likelihood ratio, or of the score where the model is not calibrated"
    parser.add_argument("--threshold", type=float, help=text)
    prior_help = "probability of one speaker before the recordings are compared; default: 0.5"
    parser.add_argument("--prior", type=float, default=0.5, metavar="P", help=prior_help)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = _OUTCOMES


def load_verifier(args: argparse.Namespace) -> Verifier:
    """Return the verifier of the model that the command line or the environment names."""
    if args.threads is not None:
        torch.set_num_threads(check_threads(args.threads))
    verifier = Verifier.from_pretrained(model_path(args), threads=args.threads, model_class=args.model_class)
    if args.threads is None and isinstance(verifier.engine, Runtime) and not verifier.engine.needs_torch_threads:
        # One thread computes the features as fast, and waits for no core that another program has. DECISIONS 76
        torch.set_num_threads(1)
    return verifier


def model_path(args: argparse.Namespace) -> Path:
    """Return the path of the model that the command line or the environment names."""
    # Services name it in their environment, so that each command line need not.
    path = args.model or os.environ.get(MODEL_ENV)
    if not path:
        raise ValueError(f"name a model with --model FILE, or with the environment variable {MODEL_ENV}")
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such model file; sv-sparse export RUN --output FILE writes one")
    return Path(path)


@contextmanager
def report_refused_input(args: argparse.Namespace) -> Iterator[None]:
    """Report a recording that cannot be used: as a ValueError and, with --json, on stdout too."""
    try:
        yield
    except RefusedInputError as refusal:
        # A program reads the outcome on stdout; the error is for people.
        if args.json:
            print(json.dumps({"outcome": refusal.outcome, "recording": refusal.recording, "error": str(refusal)}))
        raise ValueError(f"{refusal.outcome}: {refusal}") from refusal


def check_output(path: Path, *suffixes: str) -> None:
    """Raise a ValueError if ``--output`` cannot be written, before anything is computed for it."""
    if path.suffix not in suffixes:
        raise ValueError(f"--output {path}: expected a name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: there is no folder {path.parent}")


def describe_decision(verification: Verification, num_speakers: int | None = None) -> str:
    """Return a decision with its threshold in words; ``num_speakers`` is the number of enrolled ones."""
    if verification.threshold is None:
        return f"{verification.outcome}: the model has no threshold; --threshold sets one"
    text = f"{verification.outcome}: threshold {verification.threshold:.2f}"
    if verification.target_far is not None:
        text += f", for a false-alarm rate of {100 * verification.target_far:g}%"
        if num_speakers is not None:
            # The union bound: a stranger is compared with each speaker.
            joint_far = min(1.0, num_speakers * verification.target_far)
            text += f" a speaker: up to {joint_far:.2%} for {num_speakers} together"
    if verification.outcome == Outcome.NOT_ACCEPTED:
        text += f"; {NOT_DIFFERENT}"
    return text


def print_limits(verifier: Verifier) -> None:
    """Print the warning about the model, if there is one, and the limits of use: they follow every decision."""
    if verifier.basis["warning"] is not None:
        print(f"warning: {verifier.basis['warning']}")
    print(f"limits: {LIMITS_OF_USE}")
