"""Adaptive symmetric normalization of scores by a cohort of other speakers (AS-norm).

Each side of a trial is scored against the cohort once; its ``top_n`` highest scores say what a close stranger
scores. Matejka et al., Analysis of score normalization in multilingual speaker recognition (Interspeech 2017).
"""

import numpy as np

from sv_sparse.scoring.cosine import Array, Rows

_SCORES_AT_ONCE = 1_000_000  # so that they stay in the processor's cache
_LEAST_SPREAD = 1e-6  # of the closest scores, where a cohort has the same embedding many times


def cohort_statistics(unit: Array, cohort: Array, top_n: int) -> tuple[Array, Array]:
    """Mean and standard deviation of each row's highest scores against a cohort.

    Args:
        unit: [N, E], of length 1.
        cohort: [K, E], of length 1, one row for each speaker.
        top_n: how many scores, from 2 to K.

    Returns:
        Two arrays [N].

    Raises:
        ValueError: the cohort has fewer speakers than ``top_n``.
    """
    if not 2 <= top_n <= len(cohort):
        raise ValueError(
            f"scoring.top_n={top_n}: expected at least 2 and at most {len(cohort)}, the speakers of the cohort"
        )
    means, deviations = np.empty(len(unit), np.float32), np.empty(len(unit), np.float32)
    rows = max(1, _SCORES_AT_ONCE // len(cohort))
    for start in range(0, len(unit), rows):
        part = slice(start, start + rows)
        scores = unit[part] @ cohort.T
        scores.partition(len(cohort) - top_n, axis=1)
        closest = scores[:, -top_n:]
        means[part], deviations[part] = closest.mean(axis=1), closest.std(axis=1)
    return means, np.maximum(deviations, np.float32(_LEAST_SPREAD))


def as_norm(scores: Array, means: Array, deviations: Array, enrolment: Rows, test: Rows) -> Array:
    """Scores in standard deviations above the mean of close strangers, on average of both sides.

    Args:
        scores: [trials].
        means: [N], of each embedding: see ``cohort_statistics``.
        deviations: [N].
        enrolment: [trials], row of each trial's enrolment.
        test: [trials], row of each trial's test utterance.

    Returns:
        [trials].
    """
    left = (scores - means[enrolment]) / deviations[enrolment]
    right = (scores - means[test]) / deviations[test]
    return np.float32(0.5) * (left + right)
