"""Evaluation of a network on trial lists: whole utterances are embedded once, whatever lists they are in."""

import json
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sv_sparse.data.manifest import UNUSABLE, AudioSegment
from sv_sparse.data.trial_set import TrialSet
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.distributed import rank
from sv_sparse.evaluation.embed import embed, progress_bar
from sv_sparse.evaluation.embedding_cache import EmbeddingCache
from sv_sparse.evaluation.result import TrialSetResult, compute_metrics, result_id, side_speakers
from sv_sparse.evaluation.score_files import write_scores, write_speakers
from sv_sparse.io import write_json
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.config import ScoringConfig
from sv_sparse.scoring.cosine import average_enrollments

Recording = tuple[AudioSegment, ...]

# Recordings in a message.
_MAX_NAMED = 3

logger = logging.getLogger(__name__)


def evaluate_trial_sets(
    network: nn.Module,
    filterbank: nn.Module,
    trial_sets: Sequence[TrialSet],
    backend: Backend,
    scoring: ScoringConfig,
    *,
    limit: UnreadableLimit,
    output_dir: Path | None,
    cache: EmbeddingCache | None = None,
    with_details: bool = True,
) -> list[TrialSetResult]:
    """Embed all utterances of the lists, score each list, compute its metrics, and write its scores.

    Trials of a recording that cannot be used are left out with a warning.

    Args:
        network: filterbank [B, F, T] to embedding [B, E]; it is put into evaluation mode.
        filterbank: waveform [B, S] to filterbank [B, F, T].
        trial_sets: trial lists and the recordings of their utterances.
        backend: back-end that scores embeddings.
        scoring: treatment of several enrollment utterances, and operating points.
        limit: number of recordings of all lists that may be left out.
        output_dir: folder for ``<id>.txt`` and ``<id>.speakers``, see ``score_files``; it is made. None writes nothing.
        cache: cache of embeddings.
        with_details: False leaves out intervals over speakers and the breakdown, which take most of the time.

    Returns:
        The results of the lists in their order; nothing in other processes than the first.

    Raises:
        ValueError: a recording is missing, more recordings cannot be used than ``limit`` allows, or a
            list has no targets or no nontargets left.
    """
    trial_sets = [apply_enrollment_mode(trial_set, scoring) for trial_set in trial_sets]
    # A recording that is in several lists is embedded once.
    position_of: dict[Recording, int] = {}
    without_samples: dict[int, str] = {}
    for trial_set in trial_sets:
        for utterance in trial_set.trials.used_utterances():
            position = position_of.setdefault(tuple(trial_set.audio[utterance]), len(position_of))
            if _lacks_samples(trial_set, utterance):
                without_samples[position] = f"{trial_set.trials.utterances[utterance]}: {UNUSABLE}"
    embeddings = embed(
        network, filterbank, list(position_of), title="trial lists", limit=limit, cache=cache, unusable=without_samples
    )
    # Embedding takes nearly all of the time, so only that is shared.
    results: list[TrialSetResult] = []
    if rank() > 0:
        return results
    unusable = {recording for recording, position in position_of.items() if position in embeddings.unusable}
    with progress_bar(len(trial_sets), "scoring", "list") as progress:
        for complete in trial_sets:
            trial_set = _usable_part(complete, unusable)
            trials = trial_set.trials
            utterances = trials.used_utterances()
            positions = [position_of[tuple(trial_set.audio[utterance])] for utterance in utterances]
            # An utterance that no trial needs has no embedding; its zeros are never scored.
            own = np.zeros((len(trials.utterances), embeddings.values.shape[1]), np.float32)
            own[utterances] = embeddings.values[positions]
            sides = average_enrollments(own, list(trials.models.values()))
            scores = backend.score(sides, trials.enrollment, trials.test)
            magnitudes = np.linalg.norm(sides, axis=1)
            result = compute_metrics(trial_set, scores, backend, scoring, magnitudes, with_details=with_details)
            results.append(result)
            if output_dir is not None:
                output_dir.mkdir(parents=True, exist_ok=True)
                write_speakers(output_dir / f"{result.id}.speakers", trials, side_speakers(trial_set))
                write_scores(output_dir / f"{result.id}.txt", trials, scores)
            progress.update()
    return results


def used_recordings(trial_sets: Sequence[TrialSet], scoring: ScoringConfig) -> list[Recording]:
    """Return the recordings that trials use, each once, as ``evaluate_trial_sets`` embeds them."""
    recordings: dict[Recording, None] = {}
    for trial_set in trial_sets:
        scored = apply_enrollment_mode(trial_set, scoring)
        for utterance in scored.trials.used_utterances():
            if not _lacks_samples(scored, utterance):
                recordings[tuple(scored.audio[utterance])] = None
    return list(recordings)


def _usable_part(complete: TrialSet, unusable: Collection[Recording]) -> TrialSet:
    """Return the list without the trials of recordings that cannot be used."""
    trials = complete.trials
    left_out = [index for index in trials.used_utterances().tolist() if tuple(complete.audio[index]) in unusable]
    if not left_out:
        return complete
    _check_files_exist(complete, left_out)
    remaining = complete.without(left_out)
    names = ", ".join(trials.utterances[index] for index in left_out[:_MAX_NAMED])
    if len(left_out) > _MAX_NAMED:
        names += ", ..."
    reason = f"{len(left_out)} recordings cannot be used ({names})"
    is_target = remaining.trials.is_target
    if is_target.all() or not is_target.any():
        raise ValueError(
            f"list {trials.name}: {reason}; without their trials it has {is_target.sum()} targets and "
            f"{(~is_target).sum()} nontargets, and both are needed"
        )
    num_left_out = len(trials) - len(remaining.trials)
    logger.warning("list %s: %d of %d trials are left out, since %s", trials.name, num_left_out, len(trials), reason)
    return remaining


def _check_files_exist(trial_set: TrialSet, utterances: Sequence[int]) -> None:
    """Raise a ValueError if files are missing."""
    # The limit on unusable recordings is not for these: a missing file is a wrong path, not a bad recording.
    missing = []
    for utterance in utterances:
        if not _lacks_samples(trial_set, utterance):
            missing += [segment.path for segment in trial_set.audio[utterance] if not os.path.lexists(segment.path)]
    if missing:
        raise ValueError(f"list {trial_set.trials.name}: {len(missing)} recordings are not there; first {missing[0]}")


def _lacks_samples(trial_set: TrialSet, utterance: int) -> bool:
    """Return True for an utterance that the manifest has without samples."""
    # It is left out even if it can be read now, since calibration may need its duration. DECISIONS 70
    return bool(trial_set.seconds) and not trial_set.seconds[utterance]


def apply_enrollment_mode(trial_set: TrialSet, scoring: ScoringConfig) -> TrialSet:
    """Return the list with several enrollment utterances concatenated if the settings say so."""
    return trial_set.concat_enrollments() if scoring.enrollment == "concatenated" else trial_set


def check_trial_checksums(run_dir: Path, trial_sets: Sequence[TrialSet], scoring: ScoringConfig) -> None:
    """Raise a ValueError if a run has results of other trials under the name of a list, by ``scoring``."""
    previous = read_json(run_dir / "results.json").get("evaluations", {})
    previous |= read_json(run_dir / "evaluations.json")
    for trial_set in trial_sets:
        scored = apply_enrollment_mode(trial_set, scoring)
        trials = scored.trials
        result = previous.get(result_id(scored, scoring))
        if result is not None and result["list_checksum"] != trials.checksum:
            num_trials = result["trials"] + result["trials_left_out"]
            raise ValueError(
                f"{run_dir} was evaluated on another list called {trials.name}, of {num_trials:,} trials; rename "
                f"this list, or write its scores elsewhere: --output-dir FOLDER"
            )


def update_evaluations_file(run_dir: Path, results: Sequence[TrialSetResult]) -> bool:
    """Add results to the ``evaluations.json`` of a finished run, and return True if the file changed."""
    path = run_dir / "evaluations.json"
    previous = read_json(path)
    # By way of JSON, so that tuples compare equal to the lists in the file.
    added = {result.id: json.loads(json.dumps(result.to_dict())) for result in results}
    if previous | added == previous:
        return False
    write_json(path, previous | added)
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a run folder, or nothing if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
