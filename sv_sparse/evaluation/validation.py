"""Held-out training speakers: what a run is chosen by, and what scores are calibrated on. Trial lists play no part."""

import logging
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sv_sparse.data.manifest import Manifest
from sv_sparse.data.trials import Trials
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.distributed import rank
from sv_sparse.evaluation.embed import embed
from sv_sparse.evaluation.embedding_cache import EmbeddingCache
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import Calibration, qualities_of
from sv_sparse.scoring.config import Scoring, listed
from sv_sparse.scoring.cosine import Array
from sv_sparse.scoring.fit_calibration import calibrate
from sv_sparse.scoring.metrics import eer, rank_scores

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


def validate(
    network: nn.Module, filterbank: nn.Module, manifest: Manifest, limit: UnreadableLimit
) -> tuple[float, Array] | None:
    """Judge a network on the held-out training speakers.

    Args:
        network: see ``embed``.
        filterbank: see ``embed``.
        manifest: of the run.
        limit: how many recordings may be left out, with the trials that need them.

    Returns:
        The EER, and the mean embedding [E] of those speakers, which was subtracted; None where no speakers are held
        out, or too few of their recordings can be used.

    Raises:
        ValueError: more recordings cannot be used than ``limit`` allows.
    """
    held_out = _held_out(network, filterbank, manifest, limit, "validation")
    if held_out is None:
        return None
    trials, embeddings = held_out.trials, held_out.embeddings
    mean: Array = embeddings.mean(axis=0)
    scores = Backend(mean).score(embeddings, trials.enrolment, trials.test)
    return eer(rank_scores(scores, trials.is_target, trials.describe))[0], mean


class _HeldOut(NamedTuple):
    """Trials among the held-out speakers, all of whose recordings can be used.

    Attributes:
        rows: [N] of the manifest.
        trials: over these rows.
        embeddings: [N, E].
    """

    rows: NDArray[np.int64]
    trials: Trials
    embeddings: Array


def _held_out(
    network: nn.Module,
    filterbank: nn.Module,
    manifest: Manifest,
    limit: UnreadableLimit,
    purpose: str,
    cache: EmbeddingCache | None = None,
) -> _HeldOut | None:
    """Embed the utterances of the validation trials, and leave out the trials of recordings that cannot be used.

    Returns:
        None where no speakers are held out, or no target or no nontarget is left.
    """
    rows, trials = validation_trials(manifest)
    if trials is None:
        return None
    embeddings = embed(
        network,
        filterbank,
        [manifest.parts(row) for row in rows],
        title=purpose,
        limit=limit,
        cache=cache,
    )
    if not embeddings.unusable:
        return _HeldOut(rows, trials, embeddings.values)
    usable_trials, usable = trials.without(embeddings.unusable)
    if usable_trials.is_target.all() or not usable_trials.is_target.any():
        if rank() == 0:
            logger.warning(
                "no %s: the recordings of held-out speakers that can be used make %d targets and %d nontargets",
                purpose,
                usable_trials.is_target.sum(),
                (~usable_trials.is_target).sum(),
            )
        return None
    return _HeldOut(rows[usable], usable_trials, embeddings.values[usable])


def make_backend(
    network: nn.Module,
    filterbank: nn.Module,
    manifest: Manifest,
    mean: Array,
    scoring: Scoring,
    limit: UnreadableLimit,
    cache: EmbeddingCache | None = None,
) -> Backend:
    """What scores embeddings, from training speech alone: cohort from who is trained on, calibration from who is not.

    Args:
        network: see ``embed``.
        filterbank: see ``embed``.
        manifest: of the run.
        mean: [E], which is subtracted from embeddings.
        scoring: whether scores are normalized, and what calibration may know.
        limit: how many recordings may be left out, of the cohort and of the calibration each.
        cache: see ``embed``.

    Raises:
        ValueError: there are fewer training speakers than ``scoring.top_n``, or more recordings cannot be used than
            ``limit`` allows.
    """
    plain = Backend(mean)
    if scoring.normalization == "as_norm":
        cohort = _cohort(network, filterbank, manifest, scoring.cohort_utterances, limit, cache)
        plain = Backend(mean, cohort, _top_n(scoring, len(manifest.speakers("train")), len(cohort)))
    return replace(plain, calibration=_calibration(network, filterbank, manifest, plain, scoring, limit, cache))


def _top_n(scoring: Scoring, speakers: int, cohort: int) -> int:
    """The setting, lowered to the size of the cohort where speakers have left it."""
    if cohort < scoring.top_n <= speakers:
        if rank() == 0:
            logger.warning("scoring.top_n=%d is lowered to the %d speakers of the cohort", scoring.top_n, cohort)
        return cohort
    return scoring.top_n


def _cohort(
    network: nn.Module,
    filterbank: nn.Module,
    manifest: Manifest,
    utterances: int,
    limit: UnreadableLimit,
    cache: EmbeddingCache | None,
) -> Array:
    """Mean embedding of each training speaker who has a recording that can be used, [K, E]."""
    rows = manifest.split("train")
    order = np.argsort(manifest.labels(rows), kind="stable")
    labels = manifest.labels(rows)[order]
    of_speaker = np.split(rows[order], np.flatnonzero(np.diff(labels)) + 1)
    chosen = [_few(manifest, own, utterances) for own in of_speaker]
    parts = [manifest.parts(row) for own in chosen for row in own]
    embeddings = embed(network, filterbank, parts, title="cohort", limit=limit, cache=cache)
    speakers = np.repeat(np.arange(len(chosen)), [len(own) for own in chosen])[embeddings.usable]
    present, starts, counts = np.unique(speakers, return_index=True, return_counts=True)
    if len(present) < len(chosen) and rank() == 0:
        missing = len(chosen) - len(present)
        logger.warning("left out of the cohort: %d training speakers without a recording that can be used", missing)
    if not len(present):
        raise ValueError("scoring.normalization=as_norm: no recording of the training speakers can be used")
    sums: Array = np.add.reduceat(embeddings.values[embeddings.usable], starts, axis=0)
    return sums / counts.astype(np.float32)[:, None]


def _calibration(
    network: nn.Module,
    filterbank: nn.Module,
    manifest: Manifest,
    backend: Backend,
    scoring: Scoring,
    limit: UnreadableLimit,
    cache: EmbeddingCache | None,
) -> Calibration | None:
    held_out = _held_out(network, filterbank, manifest, limit, "calibration", cache)
    if held_out is None:
        return None
    rows, trials, embeddings = held_out
    seconds = manifest.samples[rows] / manifest.sample_rate[rows]
    measured = {"duration": seconds, "magnitude": np.linalg.norm(embeddings, axis=1)}
    wanted = {name: measured[name] for name in scoring.quality}
    calibration = calibrate(
        backend.score(embeddings, trials.enrolment, trials.test),
        trials.is_target,
        qualities_of(wanted, trials.enrolment, trials.test),
        speakers=len(np.unique(manifest.labels(rows))),
        false_alarms=listed(scoring.false_alarms),
    )
    if calibration is None and rank() == 0:
        logger.warning("scores do not tell held-out speakers apart: there is no calibration")
    return calibration
