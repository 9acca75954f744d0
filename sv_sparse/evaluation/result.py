"""Metrics of a scored trial list, with the conditions that they were measured under."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sv_sparse.data.trial_set import LeftOut, TrialSet
from sv_sparse.data.trials import Trials
from sv_sparse.scoring.arrays import BoolArray, Float32Array, FloatArray, IndexArray
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.bootstrap import (
    BootstrapRates,
    Interval,
    SpeakerBootstrap,
    bootstrap_eer,
    bootstrap_min_dcf,
    interval,
    resample,
)
from sv_sparse.scoring.calibration import Calibration, quality_measures
from sv_sparse.scoring.config import ScoringConfig
from sv_sparse.scoring.metrics import SortedScores, act_dcf, cllr, eer, min_cllr, min_dcf, sort_scores

logger = logging.getLogger(__name__)

# Seconds.
_DURATION_EDGES = (2, 4, 8)
_DURATION_LABELS = ("below 2", "2 to 4", "4 to 8", "8 and more")
# Of targets, and of nontargets. An EER of fewer says nothing.
_MIN_TRIALS_PER_GROUP = 20

# Trials, targets and EER by kind (genre, seconds, sex), then by label.
Breakdown = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class TrialSetResult:
    """Metrics on a trial list, with the conditions that they depend on.

    Rates are fractions in [0, 1], Cllr is in bits, thresholds of ``dcf`` are scores.

    Attributes:
        id: name of the list, and the scoring if it is not the usual one; it names the result's files.
        checksum: checksum of the trials that were scored.
        list_checksum: checksum of all trials of the list; it differs if some were left out.
        trials: number of trials that were scored; ``targets`` and ``speakers`` (None if unknown) are those in them.
        trials_left_out: number of trials with one of the ``recordings_left_out``, which cannot be used.
        enrollment: treatment of several enrollment utterances in words; so are ``score_norm`` and ``calibration``.
        eer: equal error rate, reached at the score ``eer_threshold``.
        eer_interval: 95 % interval over speakers; None if speakers are unknown or few, or without errors.
        dcf: for each operating point ``p_target``, ``c_miss``, ``c_fa``, ``min_dcf`` with its threshold and
            interval, and ``act_dcf``.
        cllr: cost of the log-likelihood ratios, None without calibration; ``min_cllr`` after the best monotone map.
        thresholds: for each threshold of the calibration, the false-alarm rate ``target_far`` that it was
            made for, the log-likelihood ratio ``threshold``, and ``p_fa`` and ``p_miss`` on this list.
        breakdown: trials, targets and EER by genre of the test utterance, by seconds of the shorter
            side, and by sex if both sides have the same.
    """

    name: str
    id: str
    checksum: str
    list_checksum: str
    trials: int
    trials_left_out: int
    recordings_left_out: int
    targets: int
    speakers: int | None
    enrollment: str
    score_norm: str
    calibration: str | None
    eer: float
    eer_threshold: float
    eer_interval: Interval | None
    dcf: list[dict[str, Any]]
    cllr: float | None
    min_cllr: float
    thresholds: list[dict[str, float]]
    breakdown: Breakdown

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for results.json."""
        return asdict(self)


def side_speakers(trial_set: TrialSet) -> list[str]:
    """Return the speaker of each side of a list: utterances, then enrollments of several; empty if unknown."""
    speakers = trial_set.concat_enrollments().speakers
    trials = trial_set.trials
    # The name of an enrollment of several utterances is no path, which could name its speaker.
    if speakers or trials.models:
        return speakers
    # VoxCeleb's paths begin with the speaker. Those of other corpora may not, which the labels show.
    speakers = [utterance.partition("/")[0] for utterance in trials.utterances]
    ids = np.unique(speakers, return_inverse=True)[1]
    is_same = ids[trials.enrollment] == ids[trials.test]
    return speakers if (is_same == trials.is_target).all() else []


def result_id(trial_set: TrialSet, scoring: ScoringConfig) -> str:
    """Return the name of a list's result, which tells the ways apart in which a run scored it."""
    name = trial_set.trials.name
    if scoring.enrollment == "concatenated" and _enrollment_description(trial_set).endswith("concatenated"):
        name += "_concatenated"
    if scoring.score_norm == "as_norm":
        name += f"_as_norm_{scoring.top_n}"
    return name


def compute_metrics(
    trial_set: TrialSet,
    scores: Float32Array,
    backend: Backend,
    scoring: ScoringConfig,
    magnitudes: Float32Array | None = None,
    *,
    with_details: bool,
) -> TrialSetResult:
    """Compute the metrics of a scored trial list.

    Args:
        trial_set: trial list and metadata of its utterances.
        scores: float32 [trials]; one that is not finite is a ValueError.
        backend: back-end that made the scores; its calibration gives log-likelihood ratios.
        scoring: operating points, and the settings that name the result.
        magnitudes: float32 [sides], lengths of the embeddings; None if they are not known.
        with_details: True adds intervals and the breakdown, which take most of the time.
    """
    trials = trial_set.trials
    left_out = trial_set.left_out or LeftOut([], 0, trials.checksum)
    speakers = side_speakers(trial_set)
    seconds = trial_set.concat_enrollments().seconds
    sorted_scores = sort_scores(scores, trials.is_target, trials.describe)
    rates = _bootstrap_rates(trials, scores, speakers) if with_details else None
    measured = {"duration": np.array(seconds)} if seconds else {}
    if magnitudes is not None:
        measured["magnitude"] = magnitudes
    ratios = _log_likelihood_ratios(trials, scores, backend.calibration, measured)
    calibration = backend.calibration if ratios is not None else None
    rate, threshold = eer(sorted_scores)
    # Labels that are the wrong way round give such an EER.
    if with_details and rate > 0.5:
        logger.warning(
            "%s: EER %.2f %%, targets score below nontargets; are the labels right?", trials.name, 100 * rate
        )
    return TrialSetResult(
        name=trials.name,
        id=result_id(trial_set, scoring),
        # Results can be compared if this agrees, whatever the lists are called. DECISIONS 71
        checksum=trials.checksum,
        list_checksum=left_out.list_checksum,
        trials=len(trials),
        trials_left_out=left_out.trials,
        recordings_left_out=len(left_out.recordings),
        targets=int(trials.is_target.sum()),
        speakers=len(set(speakers)) or None,
        enrollment=_enrollment_description(trial_set),
        score_norm=backend.score_norm,
        calibration=calibration.description if calibration is not None else None,
        eer=rate,
        eer_threshold=threshold,
        # Without errors all samples agree. The interval would claim that there never are any.
        eer_interval=interval(bootstrap_eer(rates)) if rates is not None and rate > 0 else None,
        dcf=_detection_costs(sorted_scores, ratios, rates, scoring),
        cllr=cllr(ratios) if ratios is not None else None,
        min_cllr=min_cllr(sorted_scores),
        thresholds=_threshold_results(ratios, calibration),
        breakdown=_breakdown(trial_set, scores) if with_details else {},
    )


def _bootstrap_rates(trials: Trials, scores: Float32Array, speakers: Sequence[str]) -> BootstrapRates | None:
    """Compute the error rates of bootstrap samples; None if speakers are unknown or few."""
    if not speakers:
        return None
    ids = np.unique(speakers, return_inverse=True)[1]
    bootstrap = SpeakerBootstrap(trials.is_target, ids[trials.enrollment], ids[trials.test])
    return resample(scores, bootstrap) if bootstrap.is_reliable else None


def _log_likelihood_ratios(
    trials: Trials, scores: Float32Array, calibration: Calibration | None, measured: Mapping[str, FloatArray]
) -> SortedScores | None:
    """Compute log-likelihood ratios; None without a calibration, or without a quality measure that it needs."""
    if calibration is None:
        return None
    if not set(calibration.qualities).issubset(measured):
        logger.warning("%s: not calibrated, the durations of its utterances are unknown", trials.name)
        return None
    inputs = {name: measured[name] for name in calibration.qualities}
    qualities = quality_measures(inputs, trials.enrollment, trials.test)
    return sort_scores(calibration.llr(scores, qualities), trials.is_target)


def _detection_costs(
    scores: SortedScores, ratios: SortedScores | None, rates: BootstrapRates | None, scoring: ScoringConfig
) -> list[dict[str, Any]]:
    costs = []
    for point in scoring.points:
        cost, threshold = min_dcf(scores, point)
        min_dcf_interval = interval(bootstrap_min_dcf(rates, point)) if rates is not None else None
        min_values = {"min_dcf": cost, "min_dcf_threshold": threshold, "min_dcf_interval": min_dcf_interval}
        costs.append(asdict(point) | min_values | {"act_dcf": act_dcf(ratios, point) if ratios is not None else None})
    return costs


def _threshold_results(ratios: SortedScores | None, calibration: Calibration | None) -> list[dict[str, float]]:
    """Compute the error rates at the calibration's thresholds."""
    if ratios is None or calibration is None:
        return []
    results = []
    for far, threshold in calibration.thresholds.items():
        p_miss, p_fa = ratios.rates(np.array(threshold))
        results.append({"target_far": far, "threshold": threshold, "p_fa": float(p_fa), "p_miss": float(p_miss)})
    return results


def _enrollment_description(trial_set: TrialSet) -> str:
    max_utterances = max(map(len, trial_set.trials.models.values()), default=1)
    if max_utterances > 1:
        return f"average of up to {max_utterances} utterances"
    # A model may have a single utterance, if its others cannot be used.
    recordings = trial_set.concat_enrollments().audio
    max_parts = max((len(recordings[side]) for side in np.unique(trial_set.trials.enrollment)), default=1)
    return f"up to {max_parts} utterances concatenated" if max_parts > 1 else "one recording"


def _breakdown(trial_set: TrialSet, scores: Float32Array) -> Breakdown:
    """Compute trials, targets and EER by group of trials."""
    trials = trial_set.trials
    sides = trial_set.concat_enrollments()
    breakdown = {}
    # The genre is the test utterance's, since an enrollment of several utterances may have several.
    if any(trial_set.genres):
        labels, genre = np.unique(trial_set.genres, return_inverse=True)
        breakdown["genre"] = _eer_per_label(scores, trials.is_target, labels.tolist(), genre[trials.test])
    if sides.seconds:
        length = np.searchsorted(_DURATION_EDGES, sides.seconds, "right")
        shorter = np.minimum(length[trials.enrollment], length[trials.test])
        breakdown["seconds"] = _eer_per_label(scores, trials.is_target, _DURATION_LABELS, shorter)
    if any(sides.sexes):
        labels, sex = np.unique(sides.sexes, return_inverse=True)
        # Nontargets across sexes are easy, so they are in no group.
        common = np.where(sex[trials.enrollment] == sex[trials.test], sex[trials.test], -1)
        breakdown["sex"] = _eer_per_label(scores, trials.is_target, labels.tolist(), common)
    return {kind: groups for kind, groups in breakdown.items() if groups}


def _eer_per_label(
    scores: Float32Array, is_target: BoolArray, labels: Sequence[str], label_of_trial: IndexArray
) -> dict[str, dict[str, float]]:
    groups = {}
    for index, label in enumerate(labels):
        selected = label_of_trial == index
        num_trials = int(selected.sum())
        num_targets = int(is_target[selected].sum())
        # An empty label is that of utterances about which nothing is known.
        if label and min(num_targets, num_trials - num_targets) >= _MIN_TRIALS_PER_GROUP:
            rate, _ = eer(sort_scores(scores[selected], is_target[selected]))
            groups[label] = {"trials": num_trials, "targets": num_targets, "eer": rate}
    return groups
