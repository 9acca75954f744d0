"""sv-sparse identify: which enrolled speaker a recording is of, or that it is none of them."""

import argparse
import json
import time
from pathlib import Path

from sv_sparse.commands.common import add_decision, add_model, limit_lines, load_model, refused_input
from sv_sparse.runtime.decision import NOT_DIFFERENT, Outcome, Verification
from sv_sparse.runtime.speaker_db import UNKNOWN, Store, default_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse identify``."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a recording")
    parser.add_argument(
        "--store", type=Path, help="the file of all speakers; ~/.local/share/sv-sparse/speakers.sqlite if not given"
    )
    parser.add_argument("--top", type=int, default=5, metavar="N", help="likeliest speakers to name (5)")
    add_model(parser)
    add_decision(parser)


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse identify``.

    Raises:
        ValueError: the model or the store cannot be read, the recording cannot be judged, nobody is enrolled, or no
            such threshold is known; names it.
    """
    if chosen.top < 1:
        raise ValueError(f"--top must be at least 1, got {chosen.top}")
    path = chosen.store or default_path()
    verifier = load_model(chosen)
    enrolled = Store(path).enrolled(verifier.fingerprint)
    if not enrolled:
        raise ValueError(f"{path}: nobody is enrolled; sv-sparse enroll NAME FILE... does")
    started = time.perf_counter()
    with refused_input(chosen):
        verifications = verifier.identify(
            chosen.file,
            list(enrolled.values()),
            prior=chosen.prior,
            false_alarms=chosen.false_alarms,
            threshold=chosen.threshold,
        )
    ranked = sorted(zip(enrolled, verifications, strict=True), key=lambda pair: _likelihood(pair[1]), reverse=True)
    name, best = ranked[0]
    answer = None if best.accepted is None else name if best.accepted else UNKNOWN
    seconds = time.perf_counter() - started
    top = ranked[: chosen.top]
    if chosen.json:
        speakers = [{"name": name} | each.as_dict() for name, each in top]
        decision = {"outcome": best.outcome, "answer": answer, "known": best.accepted}
        print(json.dumps(decision | verifier.basis | {"speakers": speakers}, ensure_ascii=False))
        return
    print(answer or f"{best.outcome}: the model knows no threshold; --threshold gives one")
    for name, each in top:
        print(f"  {name}: {_words(each)}")
    if verifier.basis["calibration"] is not None:
        print(f"log-likelihood ratios by {verifier.basis['calibration']}")
    print(_threshold(best, len(ranked)), end="")
    print("\n".join(limit_lines(verifier)))
    print(f"{seconds:.3f} seconds")


def _likelihood(found: Verification) -> float:
    return found.score if found.llr is None else found.llr


def _words(found: Verification) -> str:
    if found.llr is None:
        return f"score {found.score:.4f}"
    return f"log-likelihood ratio {found.llr:.2f}, probability {found.probability:.2%}, score {found.score:.4f}"


def _threshold(found: Verification, speakers: int) -> str:
    """What was decided by, in a line; nothing where nothing was decided."""
    if found.threshold is None:
        return ""
    line = f"{found.outcome}: threshold {found.threshold:.2f}"
    if found.false_alarms is not None:
        most = min(1.0, speakers * found.false_alarms)
        line += f", for {100 * found.false_alarms:g}% false alarms a speaker: up to {most:.2%} for {speakers} together"
    if found.outcome == Outcome.NOT_ACCEPTED:
        line += f"; {NOT_DIFFERENT}"
    return f"{line}\n"
