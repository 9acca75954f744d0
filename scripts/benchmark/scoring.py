"""Measure scoring and error rates at the sizes of VoxCeleb1-E and CN-Celeb, beside toolkits and scripts.

A row for each job: median seconds over interleaved rounds, the most memory it took beside its input, and how many
times as long a peer takes. Peers that would take minutes get a part of the job, and are scaled up; those that cannot
finish say what they would need.
"""

import argparse
import json
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from interleaved import medians
from sklearn.metrics import roc_curve
from sklearn.metrics.pairwise import cosine_similarity
from threadpoolctl import threadpool_limits

from sv_sparse.data.torchaudio_guard import torchaudio  # before speechbrain, which fails on CPU-only torch otherwise
from sv_sparse.scoring.as_norm import as_norm, cohort_statistics
from sv_sparse.scoring.cosine import center_and_normalize, cosine_scores
from sv_sparse.scoring.metrics import OperatingPoint, eer, min_dcf, sort_scores

assert torchaudio is not None
from speechbrain.utils.metric_stats import EER, minDCF  # noqa: E402

SIZE = 192  # of an embedding
POINT = OperatingPoint()
SPEECHBRAIN_EER, SPEECHBRAIN_MIN_DCF = 20_000, 5_000  # scores that these can take in seconds


class Job(NamedTuple):
    """Computation that is timed.

    Attributes:
        function: our computation.
        peers: functions of others by name, each with the number of times that makes the complete job.
        amount: number of trials, scores or utterances.
        unit: trials, scores or utterances.
        target: most seconds that our computation should take, or None.
    """

    function: Callable[[], object]
    peers: dict[str, tuple[Callable[[], object], float]]
    amount: int
    unit: str
    target: float | None


def embeddings(count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors [count, SIZE]."""
    vectors = np.random.default_rng(seed).normal(size=(count, SIZE)).astype(np.float32)
    return center_and_normalize(vectors, np.zeros(SIZE, np.float32))


def scikit_learn_loop(unit: np.ndarray, left: np.ndarray, right: np.ndarray, count: int) -> Callable[[], object]:
    """scikit-learn's cosine, a call for each of the first trials."""
    return lambda: [
        cosine_similarity(unit[a : a + 1], unit[b : b + 1])[0, 0]
        for a, b in zip(left[:count], right[:count], strict=True)
    ]


def torch_loop(unit: np.ndarray, left: np.ndarray, right: np.ndarray, count: int) -> Callable[[], object]:
    """A call of torch's cosine for each of the first trials, as recipes score."""
    rows, similarity = torch.from_numpy(unit), torch.nn.CosineSimilarity(dim=-1)
    return lambda: [similarity(rows[a], rows[b]) for a, b in zip(left[:count], right[:count], strict=True)]


def cosine_job(unit: np.ndarray, left: np.ndarray, right: np.ndarray, target: float | None) -> Job:
    """Cosines of a list."""
    peers = {
        "scikit-learn, trial by trial": (scikit_learn_loop(unit, left, right, 2_000), len(left) / 2_000),
        "torch, trial by trial": (torch_loop(unit, left, right, 5_000), len(left) / 5_000),
    }
    return Job(lambda: cosine_scores(unit, left, right), peers, len(left), "trials", target)


def as_norm_job(utterances: int) -> Job:
    """AS-norm of listed trials by the 300 closest of 6,000 speakers."""
    unit, cohort = embeddings(utterances), embeddings(6_000, seed=1)
    left, right = np.random.default_rng(0).integers(utterances, size=(2, 100_000))
    scores = cosine_scores(unit, left, right)

    def normalize() -> None:
        as_norm(scores, *cohort_statistics(unit, cohort, 300), left, right)

    def sorting() -> None:
        for row in unit[:500]:
            closest = np.sort(cohort @ row)[::-1][:300]
            closest.mean(), closest.std()

    peers: dict[str, tuple[Callable[[], object], float]] = {
        "sorting each utterance's scores": (sorting, utterances / 500)
    }
    return Job(normalize, peers, utterances, "utterances", 7.0 * utterances / 145_000)


def rates_job(count: int, share: float, target: float | None) -> Job:
    """EER and minDCF of scores."""
    generator = np.random.default_rng(0)
    is_target = generator.random(count) < share
    scores = (generator.normal(size=count) + 2 * is_target).astype(np.float32)

    def error_rates() -> None:
        ranked = sort_scores(scores, is_target)
        eer(ranked), min_dcf(ranked, POINT)

    def by_roc_curve() -> None:
        p_fa, hit, _ = roc_curve(is_target, scores)
        rate, cost = p_fa[np.nanargmin(np.abs(1 - hit - p_fa))], (0.01 * (1 - hit) + 0.99 * p_fa).min() / 0.01
        assert rate + cost > 0

    peers: dict[str, tuple[Callable[[], object], float]] = {"scikit-learn's roc_curve": (by_roc_curve, 1.0)}
    sides = torch.from_numpy(scores[is_target]), torch.from_numpy(scores[~is_target])
    if count <= SPEECHBRAIN_EER:
        peers["SpeechBrain's EER"] = (lambda: EER(*sides), 1.0)
    if count <= SPEECHBRAIN_MIN_DCF:
        peers["SpeechBrain's minDCF"] = (lambda: minDCF(*sides), 1.0)
    return Job(error_rates, peers, count, "scores", target)


def jobs() -> dict[str, Job]:
    """Return all jobs by name."""
    generator = np.random.default_rng(0)
    unit = embeddings(145_000)
    enrollments, tests = 196, 17_777
    matrix_left = np.repeat(np.arange(enrollments), tests)
    matrix_right = np.tile(np.arange(enrollments, enrollments + tests), enrollments)
    left, right = generator.integers(145_000, size=(2, 580_000))
    return {
        "cosine, 580 k listed trials": cosine_job(unit, left, right, 580_000 / 2.5e6),
        "cosine, 3.48 M matrix trials": cosine_job(unit, matrix_left, matrix_right, 3_484_292 / 2.5e6),
        "AS-norm, 20 k x 6 k, top 300": as_norm_job(20_000),
        "AS-norm, 145 k x 6 k, top 300": as_norm_job(145_000),
        "EER and minDCF, 5 k scores": rates_job(5_000, 0.5, None),
        "EER and minDCF, 20 k scores": rates_job(20_000, 0.5, None),
        "EER and minDCF, 1e5 scores": rates_job(100_000, 0.5, None),
        "EER and minDCF, 5.8e5 scores": rates_job(580_000, 0.5, 0.05),
        "EER and minDCF, 3.48e6 scores": rates_job(3_484_292, 17_755 / 3_484_292, None),
        "EER and minDCF, 1e7 scores": rates_job(10_000_000, 0.5, 0.7),
    }


def peak_megabytes(function: Callable[[], object]) -> float:
    """Measure the most memory in MB that a function has allocated at once."""
    tracemalloc.start()
    function()
    peak: int = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def would_need(count: int, seconds: float) -> str:
    """Estimate the time and memory of SpeechBrain's functions from the time that its EER took for fewer scores.

    Both compare each score with two thresholds for each score; minDCF holds those of the targets at once, in float32.
    """
    minutes = seconds * (count / SPEECHBRAIN_EER) ** 2 / 60
    gigabytes = 4 * 2 * count * count / 2 / 1e9
    return f"SpeechBrain's EER would take {minutes:,.1f} minutes, its minDCF at least {gigabytes:,.0f} GB"


def main() -> None:
    """Print a row per job and peer, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="jobs whose names begin so")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"numpy {np.__version__}, {args.threads} threads, median of {args.rounds} interleaved rounds")
    figures: dict[str, dict[str, object]] = {}
    quadratic = 0.0  # seconds of SpeechBrain's EER for SPEECHBRAIN_EER scores, where that was run
    for name, job in jobs().items():
        if not name.startswith(args.only):
            continue
        with threadpool_limits(args.threads):
            seconds = medians({"ours": job.function} | {peer: run for peer, (run, _) in job.peers.items()}, args.rounds)
        our_seconds, memory = seconds["ours"], peak_megabytes(job.function)
        ratios = {peer: seconds[peer] * times / our_seconds for peer, (_, times) in job.peers.items()}
        print(f"{name:32} {our_seconds:8.4f} s {job.amount / our_seconds / 1e6:8.2f} M {job.unit}/s {memory:8.0f} MB")
        for peer, ratio in ratios.items():
            print(f"    {peer:40} {ratio:10.1f} x as long")
        if "SpeechBrain's EER" in seconds:
            quadratic = seconds["SpeechBrain's EER"]
        elif job.unit == "scores" and job.amount > SPEECHBRAIN_EER and quadratic > 0:
            print(f"    not run: {would_need(job.amount, quadratic)}")
        figures[name] = {
            "seconds": round(our_seconds, 4),
            "megabytes": round(memory, 1),
            "peers": {peer: round(ratio, 2) for peer, ratio in ratios.items()},
            "at_most": job.target,
            "met": None if job.target is None else our_seconds <= job.target,
        }
    print(json.dumps({"benchmark": "scoring", "threads": args.threads, "jobs": figures}))


if __name__ == "__main__":
    main()
