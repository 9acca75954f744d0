"""Held-out training speakers: what a run is chosen by, and what scores are calibrated on. Trial lists play no part."""

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sv_sparse.data.manifest import Manifest
from sv_sparse.data.trials import Trials
from sv_sparse.embedding import embed
from sv_sparse.embedding_cache import EmbeddingCache
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import Calibration, qualities_of
from sv_sparse.scoring.cosine import Array
from sv_sparse.scoring.metrics import eer, rank_scores
from sv_sparse.scoring.regression import calibrate
from sv_sparse.scoring.settings import Scoring, listed

_SPEAKERS = 40
_UTTERANCES = 12  # per speaker

logger = logging.getLogger(__name__)


def validation_trials(manifest: Manifest) -> tuple[NDArray[np.int64], Trials | None]:
    """Trials among the held-out training speakers: every pair of utterances, targets across sessions where possible.

    Returns:
        Rows of the manifest, and the trials over them; None where no speakers are held out.
    """
    rows = manifest.split("validation")
    if not len(rows):
        return rows, None
    labels = manifest.labels(rows)
    few = np.concatenate([_few(manifest, rows[labels == k], _UTTERANCES) for k in range(_SPEAKERS)])
    labels = manifest.labels(few)
    utterances = [manifest.utterance(row) for row in few]
    sessions = np.array([manifest.session(row) for row in few])
    first, second = np.triu_indices(len(few), k=1)
    target = labels[first] == labels[second]
    crossing = sessions[first] != sessions[second]
    wanted = ~target | crossing if (target & crossing).any() else np.ones_like(target)
    return few, Trials("validation", target[wanted], first[wanted], second[wanted], utterances)


def _few(manifest: Manifest, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` of a speaker's rows, from as many sessions as possible."""
    seen: Counter[str] = Counter()
    turn = []
    for row in rows:
        session = manifest.session(row)
        turn.append(seen[session])
        seen[session] += 1
    return np.sort(rows[np.argsort(turn, kind="stable")[:count]])


def validate(network: nn.Module, filterbank: nn.Module, manifest: Manifest) -> tuple[float, Array] | None:
    """Judge a network on the held-out training speakers.

    Returns:
        The EER, and the mean embedding [E] of those speakers, which was subtracted; None where no speakers are held
        out.
    """
    rows, trials = validation_trials(manifest)
    if trials is None:
        return None
    found = embed(network, filterbank, [manifest.parts(row) for row in rows], title="validation")
    mean = found.mean(axis=0)
    scores = Backend(mean).score(found, trials.enrolment, trials.test)
    return eer(rank_scores(scores, trials.is_target, trials.describe))[0], mean


def make_backend(
    network: nn.Module,
    filterbank: nn.Module,
    manifest: Manifest,
    mean: Array,
    scoring: Scoring,
    cache: EmbeddingCache | None = None,
) -> Backend:
    """What scores embeddings, from training speech alone: cohort from who is trained on, calibration from who is not.

    Args:
        network: see ``embed``.
        filterbank: see ``embed``.
        manifest: of the run.
        mean: [E], which is subtracted from embeddings.
        scoring: whether scores are normalized, and what calibration may know.
        cache: see ``embed``.

    Raises:
        ValueError: the cohort has fewer speakers than ``scoring.top_n``.
    """
    plain = Backend(mean)
    if scoring.normalization == "as_norm":
        plain = Backend(mean, _cohort(network, filterbank, manifest, scoring.cohort_utterances, cache), scoring.top_n)
    return replace(plain, calibration=_calibration(network, filterbank, manifest, plain, scoring, cache))


def _cohort(
    network: nn.Module, filterbank: nn.Module, manifest: Manifest, utterances: int, cache: EmbeddingCache | None
) -> Array:
    """Mean embedding of each training speaker, [K, E]."""
    rows = manifest.split("train")
    order = np.argsort(manifest.labels(rows), kind="stable")
    labels = manifest.labels(rows)[order]
    of_speaker = np.split(rows[order], np.flatnonzero(np.diff(labels)) + 1)
    chosen = [_few(manifest, own, utterances) for own in of_speaker]
    parts = [manifest.parts(row) for own in chosen for row in own]
    found = embed(network, filterbank, parts, title="cohort", cache=cache)
    starts = np.cumsum([0, *map(len, chosen[:-1])])
    counts = np.array([len(own) for own in chosen], np.float32)
    sums: Array = np.add.reduceat(found, starts, axis=0)
    return sums / counts[:, None]


def _calibration(
    network: nn.Module,
    filterbank: nn.Module,
    manifest: Manifest,
    backend: Backend,
    scoring: Scoring,
    cache: EmbeddingCache | None,
) -> Calibration | None:
    rows, trials = validation_trials(manifest)
    if trials is None:
        return None
    found = embed(network, filterbank, [manifest.parts(row) for row in rows], title="calibration", cache=cache)
    seconds = manifest.samples[rows] / manifest.sample_rate[rows]
    measured = {"duration": seconds, "magnitude": np.linalg.norm(found, axis=1)}
    wanted = {name: measured[name] for name in scoring.quality}
    calibration = calibrate(
        backend.score(found, trials.enrolment, trials.test),
        trials.is_target,
        qualities_of(wanted, trials.enrolment, trials.test),
        speakers=len(np.unique(manifest.labels(rows))),
        false_alarms=listed(scoring.false_alarms),
    )
    if calibration is None:
        logger.warning("scores do not tell held-out speakers apart: there is no calibration")
    return calibration
