"""A scored list to error rates, each with the conditions that it was measured under."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sv_sparse.data.prepared import Judged, LeftOut, concatenated
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.bootstrap import Drawn, Interval, Redrawn, eers, interval, min_dcfs, redraw
from sv_sparse.scoring.calibration import Calibration, qualities_of
from sv_sparse.scoring.config import Scoring
from sv_sparse.scoring.cosine import Array, Rows
from sv_sparse.scoring.metrics import Ranked, act_dcf, cllr, eer, min_cllr, min_dcf, rank_scores

logger = logging.getLogger(__name__)

_SECONDS = (2, 4, 8)  # bounds of the groups by duration
_FEWEST_OF_GROUP = 20  # targets, and nontargets
_LENGTHS = ("below 2", "2 to 4", "4 to 8", "8 and more")

Group = dict[str, float]
Groups = dict[str, dict[str, Group]]  # by kind: genre, seconds, sex


@dataclass(frozen=True)
class Evaluation:
    """Error rates on one trial list, with what they depend on; rates are fractions, Cllr is in bits.

    Attributes:
        name: Of the list.
        key: The name, and how trials were scored where that is not the usual way; names its files.
        digest: Of the trials that were scored.
        list_digest: Of the list's trials; another one where some were left out.
        trials: How many were scored.
        trials_left_out: How many were not, as they need recordings that cannot be used.
        recordings_left_out: How many recordings of the list cannot be used.
        targets: Of them.
        speakers: In them; None where that is not known.
        enrolment: How enrolments of several utterances were made one, in words.
        normalization: Of the scores, in words.
        calibration: What log-likelihood ratios come from, in words; None where there are none.
        eer: Equal error rate.
        eer_threshold: Score at which it is reached.
        eer_interval: 95 % of draws of other speakers lie in it; None where speakers are not known, or few, or where
            there are no errors: all draws agree then.
        costs: For each operating point ``p_target``, ``c_miss``, ``c_fa``, ``min_dcf`` with its threshold and
            interval, and ``act_dcf``.
        cllr: Of the log-likelihood ratios.
        min_cllr: Of the best monotone map.
        decisions: For each threshold that calibration gives, the ``false_alarms`` it was made for, the ``threshold``
            of the log-likelihood ratio, and ``p_fa`` and ``p_miss`` on this list.
        groups: Trials, targets and EER by genre of the test utterance, by seconds of the shorter side, by sex where
            both sides have the same.
    """

    name: str
    key: str
    digest: str
    list_digest: str
    trials: int
    trials_left_out: int
    recordings_left_out: int
    targets: int
    speakers: int | None
    enrolment: str
    normalization: str
    calibration: str | None
    eer: float
    eer_threshold: float
    eer_interval: Interval | None
    costs: list[dict[str, Any]]
    cllr: float | None
    min_cllr: float
    decisions: list[dict[str, float]]
    groups: Groups

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for results.json."""
        return asdict(self)


@dataclass(frozen=True)
class Sides:
    """What is known of all that can stand in a trial, utterances first, then enrolments of several.

    Attributes:
        speakers: [sides]; empty where that is not known.
        sexes: [sides]; empty where that is not known.
        seconds: [sides]; of several utterances their sum; empty where that is not known.
    """

    speakers: list[str]
    sexes: list[str]
    seconds: list[float]

    @classmethod
    def of(cls, one: Judged) -> "Sides":
        """The sides of a list."""
        whole = concatenated(one)
        return cls(whole.speakers or _speakers_in_paths(one), whole.sexes, whole.seconds)

    def drawn(self, one: Judged) -> Drawn | None:
        """What intervals are drawn from; None where speakers are not known, or too few to say anything."""
        if not self.speakers:
            return None
        numbers = np.unique(self.speakers, return_inverse=True)[1]
        drawn = Drawn(one.trials.is_target, numbers[one.trials.enrolment], numbers[one.trials.test])
        return drawn if drawn.enough else None


def _speakers_in_paths(one: Judged) -> list[str]:
    """First parts of the utterances' paths, if those are what the labels go by; nothing otherwise."""
    trials = one.trials
    first = [utterance.partition("/")[0] for utterance in trials.utterances]
    numbers = np.unique(first, return_inverse=True)[1]
    agree = not trials.models and ((numbers[trials.enrolment] == numbers[trials.test]) == trials.is_target).all()
    return first if agree else []


def key_of(one: Judged, scoring: Scoring) -> str:
    """What a list's evaluation is called, of which a run has several where it is scored in several ways."""
    joined = scoring.enrolment == "concatenated" and _enrolment(one).endswith("concatenated")
    normalized = f"_as_norm_{scoring.top_n}" if scoring.normalization == "as_norm" else ""
    return one.trials.name + ("_concatenated" if joined else "") + normalized


def judge(
    one: Judged, scores: Array, backend: Backend, scoring: Scoring, magnitudes: Array | None = None, *, whole: bool
) -> Evaluation:
    """Error rates of a scored list.

    Args:
        one: The list.
        scores: [trials].
        backend: What made the scores.
        scoring: What is to be known of them.
        magnitudes: [sides], lengths of the embeddings, where the calibration wants them.
        whole: With intervals and groups.

    Raises:
        ValueError: A score is not finite; names the trial.
    """
    trials, sides = one.trials, Sides.of(one)
    left_out = one.left_out or LeftOut([], 0, trials.digest)
    ranked = rank_scores(scores, trials.is_target, trials.describe)
    drawn = sides.drawn(one) if whole else None
    rates = redraw(scores, drawn) if drawn is not None else None
    llr = _ratios(one, scores, backend.calibration, sides, magnitudes)
    calibration = backend.calibration if llr is not None else None
    rate, threshold = eer(ranked)
    if whole and rate > 0.5:
        logger.warning("%s: EER %.2f%%, targets score below nontargets; are the labels right?", trials.name, 100 * rate)
    return Evaluation(
        name=trials.name,
        key=key_of(one, scoring),
        digest=trials.digest,
        list_digest=left_out.list_digest,
        trials=len(trials),
        trials_left_out=left_out.trials,
        recordings_left_out=len(left_out.recordings),
        targets=int(trials.is_target.sum()),
        speakers=len(set(sides.speakers)) if sides.speakers else None,
        enrolment=_enrolment(one),
        normalization=backend.normalization,
        calibration=calibration.words if calibration is not None else None,
        eer=rate,
        eer_threshold=threshold,
        eer_interval=interval(eers(rates)) if rates is not None and rate > 0 else None,
        costs=_costs(ranked, llr, rates, scoring),
        cllr=cllr(llr) if llr is not None else None,
        min_cllr=min_cllr(ranked),
        decisions=_decisions(llr, calibration) if llr is not None and calibration is not None else [],
        groups=_groups(one, scores, sides) if whole else {},
    )


def _ratios(
    one: Judged, scores: Array, calibration: Calibration | None, sides: Sides, magnitudes: Array | None
) -> Ranked | None:
    """Log-likelihood ratios; None without a calibration, or without what it wants to know."""
    known = {"duration": sides.seconds or None, "magnitude": magnitudes}
    if calibration is None:
        return None
    if any(known[name] is None for name in calibration.qualities):
        logger.warning("%s: not calibrated, since its utterances' lengths are not known", one.trials.name)
        return None
    measured = {name: np.asarray(known[name]) for name in calibration.qualities}
    qualities = qualities_of(measured, one.trials.enrolment, one.trials.test)
    return rank_scores(calibration.llr(scores, qualities), one.trials.is_target)


def _costs(ranked: Ranked, llr: Ranked | None, rates: Redrawn | None, scoring: Scoring) -> list[dict[str, Any]]:
    """Costs at each operating point."""
    found = []
    for point in scoring.points:
        cost, threshold = min_dcf(ranked, point)
        least = interval(min_dcfs(point)(rates)) if rates is not None else None
        actual = act_dcf(llr, point) if llr is not None else None
        costs = {"min_dcf": cost, "min_dcf_threshold": threshold, "min_dcf_interval": least, "act_dcf": actual}
        found.append(asdict(point) | costs)
    return found


def _decisions(llr: Ranked, calibration: Calibration) -> list[dict[str, float]]:
    """What the thresholds that calibration gives lead to on a list."""
    found = []
    for share, threshold in calibration.thresholds.items():
        p_miss, p_fa = llr.rates(np.array(threshold))
        found.append({"false_alarms": share, "threshold": threshold, "p_fa": float(p_fa), "p_miss": float(p_miss)})
    return found


def _enrolment(one: Judged) -> str:
    """How enrolments of several utterances were made one, in words."""
    several = max(map(len, one.trials.models.values()), default=1)
    if several > 1:
        return f"average of up to {several} utterances"
    recordings = concatenated(one).recordings  # of models, too: each has one utterance, if it has lost the others
    parts = max((len(recordings[k]) for k in np.unique(one.trials.enrolment)), default=1)
    return f"up to {parts} utterances concatenated" if parts > 1 else "one recording"


def _groups(one: Judged, scores: Array, sides: Sides) -> Groups:
    """Trials, targets and EER of groups of trials; those with few targets or few nontargets are left out."""
    trials = one.trials
    kinds: dict[str, tuple[Sequence[str], Rows]] = {}  # names, and which of them each trial has; the last for none
    if any(one.genres):
        names, genre = _numbered(one.genres)
        kinds["genre"] = names, genre[trials.test]
    if sides.seconds:
        length = np.searchsorted(_SECONDS, sides.seconds, "right")
        kinds["seconds"] = _LENGTHS, np.minimum(length[trials.enrolment], length[trials.test])
    if any(sides.sexes):
        names, sex = _numbered(sides.sexes)
        left, right = sex[trials.enrolment], sex[trials.test]
        kinds["sex"] = names, np.where(left == right, left, len(names))
    found = {kind: _by_name(scores, trials.is_target, names, group) for kind, (names, group) in kinds.items()}
    return {kind: groups for kind, groups in found.items() if groups}


def _numbered(words: Sequence[str]) -> tuple[list[str], Rows]:
    """The distinct words, and which of them each is; what is empty has the number after the last."""
    names = sorted(set(words) - {""})
    index = {name: number for number, name in enumerate(names)}
    return names, np.array([index.get(word, len(names)) for word in words])


def _by_name(scores: Array, is_target: NDArray[np.bool_], names: Sequence[str], group: Rows) -> dict[str, Group]:
    found = {}
    for index, name in enumerate(names):
        own = group == index
        targets = int(is_target[own].sum())
        if min(targets, own.sum() - targets) >= _FEWEST_OF_GROUP:
            rate, _ = eer(rank_scores(scores[own], is_target[own]))
            found[name] = {"trials": int(own.sum()), "targets": targets, "eer": rate}
    return found
