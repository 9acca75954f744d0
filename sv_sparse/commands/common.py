"""Arguments and messages that several commands share: the model, the decision, the limits of use."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sv_sparse.models.registry import MODEL_CLASS_ENV
from sv_sparse.runtime.decision import (
    CONSENT,
    CONSENT_SENTENCE,
    NOT_DETECTED,
    NOT_DIFFERENT,
    Outcome,
    RefusedInputError,
    Verification,
)
from sv_sparse.runtime.engine.runtime import Runtime, check_threads
from sv_sparse.runtime.verifier import Verifier

MODEL_ENV = "SV_SPARSE_MODEL"
_OUTCOMES = f"""Outcomes:
  {Outcome.ACCEPTED:<14} The evidence reaches the threshold.
  {Outcome.NOT_ACCEPTED:<14} It does not; {NOT_DIFFERENT}.
  {Outcome.NO_DECISION:<14} The model has no threshold; --threshold sets one.
  {Outcome.REFUSED_INPUT:<14} A recording cannot be used; the reason is printed.

Exit status: 0 with one of the first three outcomes, 2 with refused input and after any other error, 128 + N after \
signal N.

Limits of use: {NOT_DETECTED}. {CONSENT_SENTENCE}"""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the model and the number of threads."""
    group = parser.add_argument_group("model")
    model_help = f"file that sv-sparse export wrote (default: the environment variable {MODEL_ENV})"
    group.add_argument("--model", type=Path, metavar="FILE", help=model_help)
    threads_help = "threads (default: 1 for up to ten seconds of speech, all cores for longer recordings)"
    group.add_argument("--threads", type=int, metavar="N", help=threads_help)


def add_model_class_argument(parser: argparse._ActionsContainer) -> None:
    """Add the argument that names a class of the user's own."""
    # Importing a class runs its code, so no file may name one by itself (DECISIONS 92).
    model_class_help = (
        "import path of your own network class, such as mypkg.net.Net; a class that only a file names is never "
        f"imported (default: the environment variable {MODEL_CLASS_ENV})"
    )
    parser.add_argument("--model-class", metavar="CLASS", help=model_class_help)


def add_max_unreadable_argument(parser: argparse._ActionsContainer, default: float | None) -> None:
    """Add the argument that limits how many recordings may be left out; None: as in the run."""
    max_unreadable_help = (
        "largest fraction of recordings that may be left out because they cannot be used, 0 for none "
        f"(default: {'that of RUN' if default is None else default})"
    )
    parser.add_argument("--max-unreadable", type=float, default=default, metavar="FRACTION", help=max_unreadable_help)


def add_database_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the database of speakers."""
    database_help = "database of enrolled speakers (default: ~/.local/share/sv-sparse/speakers.sqlite)"
    parser.add_argument("--database", type=Path, metavar="FILE", help=database_help)


def add_decision_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a decision, and ``--json``."""
    group = parser.add_argument_group("decision")
    target_far_help = (
        "false-alarm rate, the fraction of other speakers that may be accepted, such as 0.01 (default: the smallest "
        "rate that the model has a threshold for)"
    )
    group.add_argument("--target-far", type=float, metavar="RATE", help=target_far_help)
    threshold_help = (
        "threshold of the log-likelihood ratio, or of the score if the model is not calibrated (default: by "
        "--target-far)"
    )
    group.add_argument("--threshold", type=float, metavar="X", help=threshold_help)
    prior_help = "prior probability that the speakers are the same (default: 0.5)"
    group.add_argument("--prior", type=float, default=0.5, metavar="P", help=prior_help)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = _OUTCOMES


def load_verifier(args: argparse.Namespace) -> Verifier:
    """Return the verifier of the model that the command line or the environment names."""
    if args.threads is not None:
        torch.set_num_threads(check_threads(args.threads))
    verifier = Verifier.from_pretrained(model_path(args), threads=args.threads)
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
    evidence, name = verification.score, "score"
    if verification.llr is not None:
        evidence, name = verification.llr, "LLR"
    relation = "is below" if verification.outcome == Outcome.NOT_ACCEPTED else "reaches"
    digits = 2
    # Two numbers that differ are not printed as the same.
    while evidence < verification.threshold and f"{evidence:.{digits}f}" == f"{verification.threshold:.{digits}f}":
        digits += 1
    text = f"{verification.outcome}: {name} {evidence:.{digits}f} {relation} "
    text += f"the threshold {verification.threshold:.{digits}f}"
    if verification.target_far is not None:
        text += f" (false-alarm rate {100 * verification.target_far:g} %"
        if num_speakers is not None and num_speakers > 1:
            # The union bound: a stranger is compared with each speaker.
            joint_far = min(1.0, num_speakers * verification.target_far)
            text += f" per speaker, up to {100 * joint_far:g} % for {num_speakers} speakers"
        text += ")"
    if verification.outcome == Outcome.NOT_ACCEPTED:
        text += f"\n  {NOT_DIFFERENT}"
    return text


def describe_probability(verification: Verification) -> str:
    """Return the posterior and the prior probability in words."""
    probability = verification.probability
    if probability is None:
        return "P(same speaker): none, the model is not calibrated"
    # Nobody is told 0 or 100 %: a calibration cannot know that.
    limited = min(max(probability, 0.001), 0.999)
    sign = "= " if limited == probability else ("> " if limited < probability else "< ")
    return f"P(same speaker) {sign}{100 * limited:.1f} % (prior {100 * verification.prior:.3g} %)"


def print_basis(verifier: Verifier) -> None:
    """Print the calibration, the warning about the model, if there is one, and the limits of use."""
    for name, text in verifier.basis.items():
        if text is not None:
            print(f"{name}: {text}")
    print(f"limits: {NOT_DETECTED}")
    print(f"consent: {CONSENT}")
