"""Command ``sv-sparse verify``: decides whether two recordings are of the same speaker."""

import argparse
import json
from pathlib import Path

from sv_sparse.commands import common
from sv_sparse.runtime.decision import Verification
from sv_sparse.runtime.verifier import Verifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse verify``."""
    parser.add_argument("enrollment", type=Path, metavar="ENROLLMENT", help="recording of the claimed speaker")
    parser.add_argument("test", type=Path, metavar="TEST", help="recording to compare with it")
    common.add_model_arguments(parser)
    common.add_decision_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse verify``."""
    verifier = common.load_verifier(args)
    with common.report_refused_input(args):
        verification = verifier.verify(
            args.enrollment, args.test, prior=args.prior, target_far=args.target_far, threshold=args.threshold
        )
    if args.json:
        # JSON has neither NaN nor infinity.
        print(json.dumps(verification.to_dict() | verifier.basis, allow_nan=False))
    else:
        _print_verification(verification, verifier)


def _print_verification(verification: Verification, verifier: Verifier) -> None:
    print(common.describe_decision(verification))
    score_norm = verifier.backend.score_norm
    print(f"score: {verification.score:.4f} ({'cosine' if score_norm == 'none' else score_norm})")
    if verification.llr is not None:
        print(f"LLR: {verification.llr:.2f} (natural log-likelihood ratio)")
    print(common.describe_probability(verification))
    common.print_basis(verifier)
    print(f"time: {verification.seconds:.3f} s")
