"""Cosine scores of trials, from embeddings."""

from collections.abc import Sequence

import numpy as np

from sv_sparse.scoring.arrays import Float32Array, IndexArray

# In trials. The gathered rows of so many trials stay in the processor's cache.
_CHUNK_SIZE = 16384


def average_enrollments(embeddings: Float32Array, models: Sequence[Sequence[int]]) -> Float32Array:
    """Append to embeddings [N, E], not normalized, the mean of each enrollment's rows: float32 [N + enrollments, E].

    >>> average_enrollments(np.array([[0.0, 2.0], [4.0, 0.0]], dtype=np.float32), [[0, 1]])[2]
    array([2., 1.], dtype=float32)
    """
    means = [embeddings[list(rows)].mean(axis=0, keepdims=True) for rows in models]
    return np.concatenate([embeddings, *means])


def center_and_normalize(embeddings: Float32Array, mean: Float32Array) -> Float32Array:
    """Subtract a mean [E] from embeddings [N, E] and scale them to length 1; those that equal the mean become zeros."""
    centered = embeddings - mean
    lengths = np.linalg.norm(centered, axis=1, keepdims=True)
    return np.divide(centered, lengths, out=np.zeros_like(centered), where=lengths > 0)


def cosine_scores(unit: Float32Array, enrollment: IndexArray, test: IndexArray) -> Float32Array:
    """Compute the cosines, float32 [trials] in [-1, 1], of rows of embeddings of length 1, float32 [N, E].

    ``enrollment`` and ``test``, int64 [trials], are the rows of each trial. A row of zeros scores 0.

    >>> unit = center_and_normalize(np.array([[1, 1], [2, 2], [1, -1]], np.float32), np.zeros(2, np.float32))
    >>> cosine_scores(unit, np.array([0, 0]), np.array([1, 2])).round(3)
    array([1., 0.], dtype=float32)
    """
    if len(enrollment) > _CHUNK_SIZE:
        rows, row_of_trial = _used_rows(enrollment, len(unit))
        columns, column_of_trial = _used_rows(test, len(unit))
        # CN-Celeb's list is nearly all against all. One matrix product then beats gathering rows.
        if len(rows) * len(columns) <= 2 * len(enrollment):
            matrix = unit[rows] @ unit[columns].T
            return matrix[row_of_trial, column_of_trial].clip(-1, 1)
    scores = np.empty(len(enrollment), dtype=np.float32)
    for start in range(0, len(enrollment), _CHUNK_SIZE):
        chunk = slice(start, start + _CHUNK_SIZE)
        scores[chunk] = np.einsum("te,te->t", unit[enrollment[chunk]], unit[test[chunk]])
    # Rounding takes the cosine of equal embeddings a little above 1.
    return scores.clip(-1, 1)


def _used_rows(rows: IndexArray, num_rows: int) -> tuple[IndexArray, IndexArray]:
    """Return the distinct rows, ascending, and the position of each element of ``rows`` among them."""
    # Counting is faster than the sort in np.unique for millions of trials.
    distinct = np.flatnonzero(np.bincount(rows, minlength=num_rows))
    position = np.empty(num_rows, dtype=np.int64)
    position[distinct] = np.arange(len(distinct))
    return distinct, position[rows]
