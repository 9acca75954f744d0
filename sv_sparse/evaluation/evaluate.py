"""Trial lists to scores and error rates: whole utterances are embedded once, whatever lists they are in."""

import json
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from sv_sparse.data.manifest import NO_SAMPLES, Part
from sv_sparse.data.prepared import Judged, concatenated, without
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.distributed import rank
from sv_sparse.evaluation.embed import embed
from sv_sparse.evaluation.embedding_cache import EmbeddingCache
from sv_sparse.evaluation.result import Evaluation, Sides, judge, key_of
from sv_sparse.evaluation.score_files import write_scores, write_speakers
from sv_sparse.io import write_json
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.config import Scoring
from sv_sparse.scoring.cosine import Rows, average_enrolments

Recording = tuple[Part, ...]

_NAMED = 3  # recordings in a message

logger = logging.getLogger(__name__)


def evaluate_lists(
    network: nn.Module,
    filterbank: nn.Module,
    lists: Sequence[Judged],
    backend: Backend,
    scoring: Scoring,
    *,
    limit: UnreadableLimit,
    scores_to: Path | None,
    cache: EmbeddingCache | None = None,
    whole: bool = True,
) -> list[Evaluation]:
    """Embed every utterance of the lists once, score each list, judge it, and write its scores.

    Of several processes, each embeds some of the utterances; the first does the rest, the others get nothing.

    Trials of a recording that cannot be used are left out with a warning; see ``without``. The scores and the error
    rates are those of the trials that remain.

    Args:
        network: see ``embed``.
        filterbank: see ``embed``.
        lists: trial lists and where their utterances are.
        backend: what makes scores of embeddings.
        scoring: how enrolments of several utterances are made one, and what is to be known of the scores.
        limit: how many recordings of all lists may be left out.
        scores_to: folder for ``<list>.txt`` with lines ``enrolment test score label``, and ``<list>.speakers`` where
            they are known; made if absent; None: they are not kept.
        cache: see ``embed``.
        whole: with intervals over speakers and error rates of groups.

    Raises:
        ValueError: a recording is not there, more recordings cannot be used than ``limit`` allows, or a list has no
            targets or no nontargets left.
    """
    chosen = _enrolled(lists, scoring)
    heard = [one.trials.heard() for one in chosen]
    utterances = dict.fromkeys(tuple(one.recordings[k]) for one, own in zip(chosen, heard, strict=True) for k in own)
    index = {parts: position for position, parts in enumerate(utterances)}
    without_samples = {
        index[tuple(one.recordings[k])]: f"{one.trials.utterances[k]}: {NO_SAMPLES}"
        for one, own in zip(chosen, heard, strict=True)
        for k in own
        if _lacks_samples(one, k)
    }
    embeddings = embed(
        network,
        filterbank,
        list(utterances),
        title="trial lists",
        limit=limit,
        cache=cache,
        known_unusable=without_samples,
    )
    evaluations: list[Evaluation] = []
    if rank() > 0:
        return evaluations
    unusable = {parts for parts, position in index.items() if position in embeddings.unusable}
    for complete, needed in zip(chosen, heard, strict=True):
        one = _usable(complete, needed, unusable)
        trials = one.trials
        rows = needed if one is complete else np.arange(len(trials.utterances))
        own = np.zeros((len(trials.utterances), embeddings.values.shape[1]), np.float32)
        own[rows] = embeddings.values[[index[tuple(one.recordings[k])] for k in rows]]
        sides = average_enrolments(own, list(trials.models.values()))
        scores = backend.score(sides, trials.enrolment, trials.test)
        evaluation = judge(one, scores, backend, scoring, np.linalg.norm(sides, axis=1), whole=whole)
        evaluations.append(evaluation)
        if scores_to is not None:
            scores_to.mkdir(parents=True, exist_ok=True)
            write_speakers(scores_to / f"{evaluation.key}.speakers", trials, Sides.of(one).speakers)
            write_scores(scores_to / f"{evaluation.key}.txt", trials, scores)
    return evaluations


def _usable(complete: Judged, needed: Rows, unusable: Collection[Recording]) -> Judged:
    """The list without the trials of recordings that cannot be used.

    Raises:
        ValueError: a recording is not there at all, or no targets or no nontargets are left.
    """
    trials = complete.trials
    left_out = [k for k in needed.tolist() if tuple(complete.recordings[k]) in unusable]
    if not left_out:
        return complete
    read = [k for k in left_out if not _lacks_samples(complete, k)]
    absent = [part.path for k in read for part in complete.recordings[k] if not os.path.lexists(part.path)]
    if absent:
        raise ValueError(f"list {trials.name}: {len(absent)} recordings are not there; first {absent[0]}")
    rest = without(complete, left_out)
    names = [trials.utterances[k] for k in left_out]
    first = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    reason = f"{len(names)} recordings cannot be used ({first})"
    if rest.trials.is_target.all() or not rest.trials.is_target.any():
        raise ValueError(
            f"list {trials.name}: {reason}; without their trials it has {rest.trials.is_target.sum()} targets and "
            f"{(~rest.trials.is_target).sum()} nontargets, and both are needed"
        )
    logger.warning(
        "list %s: %d of %d trials are left out, since %s",
        trials.name,
        len(trials) - len(rest.trials),
        len(trials),
        reason,
    )
    return rest


def _lacks_samples(one: Judged, k: int) -> bool:
    """Whether an utterance has none in its manifest: even if it can be read now, its duration is not known there."""
    return bool(one.seconds) and not one.seconds[k]


def _enrolled(lists: Sequence[Judged], scoring: Scoring) -> list[Judged]:
    """The lists with their enrolments of several utterances as they are wanted."""
    return [concatenated(one) if scoring.enrolment == "concatenated" else one for one in lists]


def refuse_other_lists(run: Path, lists: Sequence[Judged], scoring: Scoring) -> None:
    """Raise if a finished run's files speak of other trials under the name of a list.

    Raises:
        ValueError: they do; names the list.
    """
    for name in ("results.json", "evaluations.json"):
        path = run / name
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        known = known.get("evaluations", {}) if name == "results.json" else known
        for one in _enrolled(lists, scoring):
            there = known.get(key_of(one, scoring))
            if there is not None and there.get("list_digest", there["digest"]) != one.trials.digest:
                trials = there["trials"] + there.get("trials_left_out", 0)
                raise ValueError(
                    f"{run} was judged by another list called {one.trials.name}, of {trials:,} trials; call "
                    f"this one otherwise, or write its scores elsewhere: --scores FOLDER"
                )


def keep_evaluations(run: Path, evaluations: Sequence[Evaluation]) -> bool:
    """Write what a finished run was judged by since into its ``evaluations.json``, beside what is there.

    Returns:
        Whether that has changed anything.
    """
    path = run / "evaluations.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = {evaluation.key: json.loads(json.dumps(evaluation.as_dict())) for evaluation in evaluations}
    if known | found == known:
        return False
    write_json(path, known | found)
    return True
