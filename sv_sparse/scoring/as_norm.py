"""Adaptive symmetric score normalization (AS-norm) with a cohort of training speakers."""

import numpy as np

from sv_sparse.scoring.arrays import Float32Array, IndexArray

# In scores. So many stay in the processor's cache while the highest are selected.
_CHUNK_SIZE = 1_000_000
# Keeps a cohort that has the same embedding many times from a division by zero.
_MIN_DEVIATION = np.float32(1e-6)


def cohort_statistics(unit: Float32Array, cohort: Float32Array, top_n: int) -> tuple[Float32Array, Float32Array]:
    """Compute mean and standard deviation of each embedding's highest scores against a cohort.

    Args:
        unit: float32 [N, E], embeddings of length 1.
        cohort: float32 [K, E], embeddings of length 1, one per speaker.
        top_n: number of highest scores that count, from 2 to K.

    Returns:
        Means and standard deviations, float32 [N] each; the deviations are above 0.

    Raises:
        ValueError: ``top_n`` is below 2, or the cohort has fewer speakers.
    """
    if not 2 <= top_n <= len(cohort):
        limits = f"at least 2 and at most {len(cohort)}, the speakers of the cohort"
        raise ValueError(f"scoring.top_n={top_n}: expected {limits}")
    means = np.empty(len(unit), np.float32)
    deviations = np.empty(len(unit), np.float32)
    num_rows = max(1, _CHUNK_SIZE // len(cohort))
    for start in range(0, len(unit), num_rows):
        chunk = slice(start, start + num_rows)
        scores = unit[chunk] @ cohort.T
        # A partition is enough, since the order of the highest does not matter.
        scores.partition(len(cohort) - top_n, axis=1)
        highest = scores[:, -top_n:]
        means[chunk] = highest.mean(axis=1)
        deviations[chunk] = highest.std(axis=1)
    return means, np.maximum(deviations, _MIN_DEVIATION)


def as_norm(
    scores: Float32Array, means: Float32Array, deviations: Float32Array, enrollment: IndexArray, test: IndexArray
) -> Float32Array:
    """Normalize float32 scores [trials] by the cohort statistics [N] of rows ``enrollment`` and ``test`` [trials].

    Returns:
        float32 [trials]: standard deviations above the cohort's mean, averaged over both sides.
    """
    # Matejka et al., Analysis of score normalization in multilingual speaker recognition (Interspeech 2017).
    by_enrollment = (scores - means[enrollment]) / deviations[enrollment]
    by_test = (scores - means[test]) / deviations[test]
    return np.float32(0.5) * (by_enrollment + by_test)
