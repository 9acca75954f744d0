"""Embeddings to cosine scores of trials."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Floats = NDArray[np.floating]
Rows = NDArray[np.int64]

_TRIALS_AT_ONCE = 16384  # so that the gathered rows stay in the processor's cache


def average_enrolments(embeddings: Array, models: Sequence[Sequence[int]]) -> Array:
    """Embeddings [N, E], and below them the mean [E] of those of each enrolment of several utterances.

    >>> average_enrolments(np.array([[0.0, 2.0], [4.0, 0.0]], dtype=np.float32), [[0, 1]])[2]
    array([2., 1.], dtype=float32)
    """
    means = [embeddings[list(several)].mean(axis=0, keepdims=True) for several in models]
    return np.concatenate([embeddings, *means])


def centred_unit(embeddings: Array, mean: Array) -> Array:
    """Embeddings [N, E] with ``mean`` [E] subtracted, at length 1; those equal to the mean stay 0."""
    centred = embeddings - mean
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)


def cosine_scores(unit: Array, enrolment: Rows, test: Rows) -> Array:
    """Cosine of both sides of each trial.

    Trials that are all against all, or nearly, are one product of matrices; others are gathered in pieces.

    Args:
        unit: [N, E], of length 1: see ``centred_unit``.
        enrolment: [trials], row of each trial's enrolment.
        test: [trials], row of each trial's test utterance.

    Returns:
        Scores in [-1, 1], [trials]; a row of zeros scores 0 against everything.

    >>> unit = centred_unit(np.array([[1.0, 1.0], [2.0, 2.0], [1.0, -1.0]], np.float32), np.zeros(2, np.float32))
    >>> cosine_scores(unit, np.array([0, 0]), np.array([1, 2])).round(3)
    array([1., 0.], dtype=float32)
    """
    if len(enrolment) > _TRIALS_AT_ONCE:
        rows, row = _numbered(enrolment, len(unit))
        columns, column = _numbered(test, len(unit))
        if len(rows) * len(columns) <= 2 * len(enrolment):
            return (unit[rows] @ unit[columns].T)[row, column].clip(-1, 1)
    scores = np.empty(len(enrolment), dtype=np.float32)
    for start in range(0, len(enrolment), _TRIALS_AT_ONCE):
        part = slice(start, start + _TRIALS_AT_ONCE)
        scores[part] = np.einsum("te,te->t", unit[enrolment[part]], unit[test[part]])
    return scores.clip(-1, 1)


def _numbered(rows: Rows, count: int) -> tuple[Rows, Rows]:
    """The distinct rows among ``count``, ascending, and the position of each row among them."""
    distinct = np.flatnonzero(np.bincount(rows, minlength=count))
    position = np.empty(count, dtype=np.int64)
    position[distinct] = np.arange(len(distinct))
    return distinct, position[rows]
