"""Command ``sv-sparse identify``: compares a recording with all enrolled speakers."""

import argparse
import json
import time
from pathlib import Path

from sv_sparse.commands import common
from sv_sparse.runtime.decision import Verification
from sv_sparse.runtime.speaker_db import UNKNOWN, SpeakerDatabase, default_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse identify``."""
    parser.add_argument("file", type=Path, metavar="FILE", help="recording of one speaker")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="number of speakers to print (default: 5)")
    common.add_database_argument(parser)
    common.add_model_arguments(parser)
    common.add_decision_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse identify``."""
    if args.top < 1:
        raise ValueError(f"--top must be at least 1, got {args.top}")
    path = args.database or default_path()
    verifier = common.load_verifier(args)
    enrollments = SpeakerDatabase(path).embeddings(verifier.fingerprint)
    if not enrollments:
        raise ValueError(f"{path}: nobody is enrolled; sv-sparse enroll NAME FILE... enrolls a speaker")
    start_time = time.perf_counter()
    with common.report_refused_input(args):
        decision = {"prior": args.prior, "target_far": args.target_far, "threshold": args.threshold}
        verifications = verifier.identify(args.file, list(enrollments.values()), **decision)
    ranking = sorted(zip(enrollments, verifications, strict=True), key=_evidence, reverse=True)
    best_name, best = ranking[0]
    # Without a threshold there is no answer, only a ranking.
    answer = None
    if best.accepted is not None:
        answer = best_name if best.accepted else UNKNOWN
    seconds = time.perf_counter() - start_time
    if args.json:
        speakers = []
        for name, verification in ranking[: args.top]:
            speakers.append({"name": name} | verification.to_dict())
        outcome = {"outcome": best.outcome, "answer": answer, "known": best.accepted}
        # Names in the letters that they were enrolled with.
        print(json.dumps(outcome | verifier.basis | {"speakers": speakers}, ensure_ascii=False))
        return
    if answer is not None:
        print(answer)
    print(common.describe_decision(best, len(ranking)))
    for name, verification in ranking[: args.top]:
        print(f"  {name}: {_describe(verification)}")
    common.print_basis(verifier)
    print(f"time: {seconds:.3f} s")


def _evidence(entry: tuple[str, Verification]) -> float:
    _, verification = entry
    return verification.score if verification.llr is None else verification.llr


def _describe(verification: Verification) -> str:
    score = f"score {verification.score:.4f}"
    if verification.llr is None:
        return score
    return f"{score}, LLR {verification.llr:.2f}, {common.describe_probability(verification)}"
