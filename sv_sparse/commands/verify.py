"""sv-sparse verify: whether two recordings are of one speaker."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from sv_sparse.commands.common import add_decision, add_model, limit_lines, load_model, refused_input
from sv_sparse.runtime.decision import NOT_DIFFERENT, Outcome, Verification
from sv_sparse.runtime.verifier import Verifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse verify``."""
    parser.add_argument("enrolment", type=Path, metavar="A", help="a recording")
    parser.add_argument("test", type=Path, metavar="B", help="another one")
    add_model(parser)
    add_decision(parser)


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse verify``.

    Raises:
        ValueError: the model cannot be read, a recording cannot be judged, or no such threshold is known; names it.
    """
    verifier = load_model(chosen)
    with refused_input(chosen):
        verification = verifier.verify(
            chosen.enrolment,
            chosen.test,
            prior=chosen.prior,
            false_alarms=chosen.false_alarms,
            threshold=chosen.threshold,
        )
    if chosen.json:
        print(json.dumps(verification.as_dict() | verifier.basis, allow_nan=False))
    else:
        print("\n".join(_lines(verification, verifier)))


def _lines(found: Verification, verifier: Verifier) -> Iterator[str]:
    """A verification for the terminal."""
    normalization = verifier.backend.score_norm
    yield f"score {found.score:.4f} ({'cosine' if normalization == 'none' else normalization})"
    if found.llr is None:
        yield "no probability: the model is not calibrated"
    else:
        yield f"log-likelihood ratio {found.llr:.2f}, by {verifier.basis['calibration']}"
        yield f"probability of one speaker {found.probability:.2%}, where it was {found.prior:.2%} before"
    if found.threshold is None:
        yield f"{found.outcome}: the model knows no threshold; --threshold gives one"
    else:
        share = f", for {100 * found.false_alarms:g}% false alarms" if found.false_alarms is not None else ""
        meaning = f"; {NOT_DIFFERENT}" if found.outcome == Outcome.NOT_ACCEPTED else ""
        yield f"{found.outcome}: threshold {found.threshold:.2f}{share}{meaning}"
    yield from limit_lines(verifier)
    yield f"{found.seconds:.3f} seconds"
