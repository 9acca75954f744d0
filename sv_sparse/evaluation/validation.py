"""Held-out training speakers: the validation EER while training, and the calibration of scores.

Trial lists play no part here, so nothing is tuned on them (DECISIONS 49).
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import nn

from sv_sparse.data.manifest import Manifest
from sv_sparse.data.trials import Trials
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.distributed import rank
from sv_sparse.evaluation.embed import Embeddings, embed
from sv_sparse.evaluation.embedding_cache import EmbeddingCache
from sv_sparse.scoring.arrays import Float32Array, IndexArray
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import Calibration, quality_measures
from sv_sparse.scoring.config import ScoringConfig, unique_list
from sv_sparse.scoring.fit_calibration import calibrate
from sv_sparse.scoring.metrics import eer, sort_scores

# 480 utterances take seconds to embed, and all their pairs are 115,000 trials.
_MAX_SPEAKERS = 40
_MAX_UTTERANCES_PER_SPEAKER = 12

logger = logging.getLogger(__name__)

# ``embed`` with all but its utterances and title bound.
_EmbedFunction = Callable[..., Embeddings]


def validation_trials(manifest: Manifest) -> tuple[IndexArray, Trials | None]:
    """Make trials of all pairs of utterances of the held-out speakers, targets across sessions if possible.

    Returns:
        Rows of the manifest, and the trials over them; no rows and None if no speakers are held out, or if held-out
        recordings have no labels.
    """
    rows = manifest.split("validation")
    if not manifest.speakers("validation"):
        return rows[:0], None
    labels = manifest.labels(rows)
    by_speaker = [rows[labels == speaker] for speaker in range(_MAX_SPEAKERS)]
    selected = [_spread_over_sessions(manifest, own, _MAX_UTTERANCES_PER_SPEAKER) for own in by_speaker]
    rows = np.concatenate(selected)
    labels = manifest.labels(rows)
    sessions = np.array([manifest.session(row) for row in rows])
    first, second = np.triu_indices(len(rows), k=1)
    is_target = labels[first] == labels[second]
    # Within a session the channel is the same, and would make targets too easy.
    across_sessions = sessions[first] != sessions[second]
    if (is_target & across_sessions).any():
        used = ~is_target | across_sessions
        is_target, first, second = is_target[used], first[used], second[used]
    return rows, Trials("validation", is_target, first, second, [manifest.utterance(row) for row in rows])


def _spread_over_sessions(manifest: Manifest, rows: IndexArray, max_rows: int) -> IndexArray:
    """Select at most ``max_rows`` rows of a speaker, ascending, from as many sessions as possible."""
    num_visits: Counter[str] = Counter()
    # 0 for the first row of a session, 1 for its second, ...
    visit_index = []
    for row in rows:
        session = manifest.session(row)
        visit_index.append(num_visits[session])
        num_visits[session] += 1
    return np.sort(rows[np.argsort(visit_index, kind="stable")[:max_rows]])


def validate(
    network: nn.Module, filterbank: nn.Module, manifest: Manifest, limit: UnreadableLimit
) -> tuple[float, Float32Array] | None:
    """Compute the EER of a network on held-out training speakers; arguments and errors are as of ``embed``.

    Returns:
        The EER in [0, 1], and the mean embedding [E] of those speakers, which was subtracted. None if
        no speakers are held out, or if too few of their recordings can be used.
    """
    validation = _embed_validation(partial(embed, network, filterbank, limit=limit), manifest, "validation")
    if validation is None:
        return None
    trials = validation.trials
    # The training mean would cost a pass over training crops at each validation.
    mean: Float32Array = validation.embeddings.mean(axis=0)
    scores = Backend(mean).score(validation.embeddings, trials.enrollment, trials.test)
    rate, _ = eer(sort_scores(scores, trials.is_target, trials.describe))
    return rate, mean


class _ValidationSet(NamedTuple):
    """Rows [N] of the manifest whose recordings can all be used, trials over them, and embeddings [N, E]."""

    rows: IndexArray
    trials: Trials
    embeddings: Float32Array


def _embed_validation(embed_utterances: _EmbedFunction, manifest: Manifest, title: str) -> _ValidationSet | None:
    """Embed the utterances of the validation trials; None if too few can be used, or nobody is held out."""
    rows, trials = validation_trials(manifest)
    if trials is None:
        return None
    embeddings = embed_utterances([manifest.segments(row) for row in rows], title=title)
    if not embeddings.unusable:
        return _ValidationSet(rows, trials, embeddings.values)
    usable_trials, usable = trials.without(embeddings.unusable)
    num_targets = usable_trials.is_target.sum()
    num_nontargets = len(usable_trials) - num_targets
    if num_targets and num_nontargets:
        return _ValidationSet(rows[usable], usable_trials, embeddings.values[usable])
    if rank() == 0:
        message = "no %s: the recordings of held-out speakers that can be used make %d targets and %d nontargets"
        logger.warning(message, title, num_targets, num_nontargets)
    return None


def fit_scoring_backend(
    network: nn.Module,
    filterbank: nn.Module,
    manifest: Manifest,
    mean: Float32Array,
    scoring: ScoringConfig,
    limit: UnreadableLimit,
    cache: EmbeddingCache | None = None,
) -> Backend:
    """Fit the scoring back-end on training speech: the cohort on trained speakers, the calibration on held-out ones.

    Arguments are as of ``embed``, with the mean, float32 [E], that scoring subtracts from embeddings. The limit is for
    the cohort and the calibration each.

    Raises:
        ValueError: there are fewer training speakers than ``scoring.top_n``, or they are unknown, or more recordings
            cannot be used than ``limit`` allows.
    """
    embed_utterances = partial(embed, network, filterbank, limit=limit, cache=cache)
    backend = Backend(mean)
    if scoring.score_norm == "as_norm":
        if not manifest.speakers("train"):
            raise ValueError(f"score_norm=as_norm needs training speakers, and those of {manifest.source} are unknown")
        cohort = _cohort_embeddings(embed_utterances, manifest, scoring.cohort_utts_per_speaker)
        top_n = scoring.top_n
        # Speakers without a usable recording are missing. Scoring refuses a setting that is too large anyway.
        if len(cohort) < top_n <= len(manifest.speakers("train")):
            top_n = len(cohort)
            if rank() == 0:
                logger.warning("scoring.top_n=%d is lowered to the %d speakers of the cohort", scoring.top_n, top_n)
        backend = Backend(mean, cohort, top_n)
    return replace(backend, calibration=_fit_calibration(embed_utterances, manifest, backend, scoring))


def _cohort_embeddings(embed_utterances: _EmbedFunction, manifest: Manifest, utts_per_speaker: int) -> Float32Array:
    """Compute the mean embedding of each training speaker who has a usable recording, [K, E]."""
    rows = manifest.split("train")
    labels = manifest.labels(rows)
    order = np.argsort(labels, kind="stable")
    speaker_starts = np.flatnonzero(np.diff(labels[order])) + 1
    by_speaker = np.split(rows[order], speaker_starts)
    selected = [_spread_over_sessions(manifest, own, utts_per_speaker) for own in by_speaker]
    utterances = [manifest.segments(row) for row in np.concatenate(selected)]
    embeddings = embed_utterances(utterances, title="cohort")
    if not embeddings.usable.any():
        raise ValueError("scoring.score_norm=as_norm: no recording of the training speakers can be used")
    speakers = np.repeat(np.arange(len(selected)), [len(own) for own in selected])
    present, starts, counts = np.unique(speakers[embeddings.usable], return_index=True, return_counts=True)
    # A bad recording makes its speaker's mean one of fewer utterances; only without any is the speaker missing.
    num_missing = len(selected) - len(present)
    if num_missing and rank() == 0:
        logger.warning("left out of the cohort: %d training speakers without a recording that can be used", num_missing)
    # Rows are sorted by speaker, so each speaker's sum is that of a range.
    sums: Float32Array = np.add.reduceat(embeddings.values[embeddings.usable], starts, axis=0)
    return sums / counts.astype(np.float32)[:, None]


def _fit_calibration(
    embed_utterances: _EmbedFunction, manifest: Manifest, backend: Backend, scoring: ScoringConfig
) -> Calibration | None:
    validation = _embed_validation(embed_utterances, manifest, "calibration")
    if validation is None:
        return None
    rows, trials, embeddings = validation
    measured = {
        "duration": manifest.samples[rows] / manifest.sample_rate[rows],
        "magnitude": np.linalg.norm(embeddings, axis=1),
    }
    inputs = {name: measured[name] for name in scoring.quality_measures}
    calibration = calibrate(
        # Scored as trials will be, with the cohort if there is one.
        backend.score(embeddings, trials.enrollment, trials.test),
        trials.is_target,
        quality_measures(inputs, trials.enrollment, trials.test),
        num_speakers=len(np.unique(manifest.labels(rows))),
        target_fars=unique_list(scoring.target_fars),
    )
    if calibration is None and rank() == 0:
        logger.warning("scores do not separate the held-out speakers: there is no calibration")
    return calibration
