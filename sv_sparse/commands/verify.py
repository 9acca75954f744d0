"""Command ``sv-sparse verify``: compares two recordings."""

import argparse
import json
from pathlib import Path

from sv_sparse.commands import common
from sv_sparse.runtime.decision import Verification
from sv_sparse.runtime.verifier import Verifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse verify``."""
    parser.add_argument("enrollment", type=Path, metavar="ENROLLMENT", help="recording of the speaker")
    parser.add_argument("test", type=Path, metavar="TEST", help="recording that is compared with it")
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
    score_norm = verifier.backend.score_norm
    print(f"score {verification.score:.4f} ({'cosine' if score_norm == 'none' else score_norm})")
    if verification.llr is None:
        print("no probability: the model is not calibrated")
    else:
        print(f"log-likelihood ratio {verification.llr:.2f}, by {verifier.basis['calibration']}")
        print(f"probability of one speaker {verification.probability:.2%}, from a prior of {verification.prior:.2%}")
    print(common.describe_decision(verification))
    common.print_limits(verifier)
    print(f"{verification.seconds:.3f} seconds")
