"""Cosine scores of trials."""

import numpy as np
from numpy.typing import NDArray

_TRIALS_AT_ONCE = 16384  # so that the gathered rows stay in the processor's cache


def cosine_scores(
    embeddings: NDArray[np.float32], mean: NDArray[np.float32], enrolment: NDArray[np.int64], test: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosine of the mean-subtracted embeddings of each trial.

    Args:
        embeddings: [N, E].
        mean: [E], mean embedding of training speech.
        enrolment: [trials], row of each trial's enrolment utterance.
        test: [trials], row of each trial's test utterance.

    Returns:
        Scores in [-1, 1], [trials]; an embedding equal to the mean scores 0 against everything.

    >>> rows = np.array([[1.0, 1.0], [2.0, 2.0], [1.0, -1.0]], dtype=np.float32)
    >>> cosine_scores(rows, np.zeros(2, np.float32), np.array([0, 0]), np.array([1, 2])).round(3)
    array([1., 0.], dtype=float32)
    """
    centred = embeddings - mean
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    if len(enrolment) > _TRIALS_AT_ONCE:
        rows, row = np.unique(enrolment, return_inverse=True)
        columns, column = np.unique(test, return_inverse=True)
        if len(rows) * len(columns) <= 2 * len(enrolment):  # all against all, or nearly: one product of matrices
            return (unit[rows] @ unit[columns].T)[row, column].clip(-1, 1)
    scores = np.empty(len(enrolment), dtype=np.float32)
    for start in range(0, len(enrolment), _TRIALS_AT_ONCE):
        part = slice(start, start + _TRIALS_AT_ONCE)
        scores[part] = np.einsum("te,te->t", unit[enrolment[part]], unit[test[part]])
    return scores.clip(-1, 1)
