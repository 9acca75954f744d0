"""Which model the commands that use one take."""

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
)
from sv_sparse.runtime.engine.runtime import Runtime, check_threads
from sv_sparse.runtime.verifier import Verifier

VARIABLE = "SV_SPARSE_MODEL"  # of the environment
_OUTCOMES = (
    f'The outcome is "{Outcome.ACCEPTED}", "{Outcome.NOT_ACCEPTED}" (the evidence does not reach the threshold; '
    f'{NOT_DIFFERENT}), "{Outcome.NO_DECISION}" (no threshold is known) or "{Outcome.REFUSED_INPUT}" (a recording '
    "cannot be judged; the reason is on stderr, and with --json on stdout too). Exit status: 0 with an outcome of the "
    "first three, 2 with refused input and after any other error, 128 + N after signal N. "
    f"Limits of use: {NOT_DETECTED}. {CONSENT_SENTENCE}"
)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that name the model and what it is computed by."""
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help=f"model.safetensors, from sv-sparse export; the environment variable {VARIABLE} if not given",
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="that compute the network; if not given, one for up to ten seconds, all cores for longer recordings",
    )


def add_decision(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how is decided."""
    parser.add_argument(
        "--false-alarms",
        type=float,
        metavar="SHARE",
        help="of strangers that may be accepted, such as 0.01; the smallest with a known threshold if not given",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="to take instead: of the log-likelihood ratio, or of the score where the model is not calibrated",
    )
    parser.add_argument(
        "--prior",
        type=float,
        default=0.5,
        metavar="P",
        help="probability of one speaker before anything is heard (0.5)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = _OUTCOMES


def load_model(chosen: argparse.Namespace) -> Verifier:
    """The model that the command line or the environment names.

    Raises:
        ValueError: neither does, or it cannot be read.
    """
    if chosen.threads is not None:
        torch.set_num_threads(check_threads(chosen.threads))
    verifier = Verifier.from_pretrained(model_path(chosen), threads=chosen.threads)
    if chosen.threads is None and isinstance(verifier.engine, Runtime) and not verifier.engine.needs_torch_threads:
        torch.set_num_threads(1)  # features of one thread are as fast, and wait for no core that another program has
    return verifier


def model_path(chosen: argparse.Namespace) -> Path:
    """The model's file, as the command line or the environment names it.

    Raises:
        ValueError: neither does.
    """
    path = chosen.model or os.environ.get(VARIABLE)
    if not path:
        raise ValueError(f"name a model with --model FILE, or with the environment variable {VARIABLE}")
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such model file; sv-sparse export RUN --to FILE writes one")
    return Path(path)


@contextmanager
def refused_input(chosen: argparse.Namespace) -> Iterator[None]:
    """Report a recording that cannot be judged: as JSON if the command line asks for it, and as an error.

    Raises:
        ValueError: there is such a recording; names it.
    """
    try:
        yield
    except RefusedInputError as refusal:
        if chosen.json:
            print(json.dumps({"outcome": refusal.outcome, "recording": refusal.recording, "error": str(refusal)}))
        raise ValueError(f"{refusal.outcome}: {refusal}") from refusal


def limit_lines(verifier: Verifier) -> Iterator[str]:
    """Yield what follows every decision: the warning about the model if there is one, and the limits of use."""
    if verifier.basis["warning"] is not None:
        yield f"warning: {verifier.basis['warning']}"
    yield f"limits: {LIMITS_OF_USE}"
