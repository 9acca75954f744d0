"""Confidence intervals of error rates: a bootstrap over speakers, not over trials.

Trials of a speaker depend on each other, so resampling trials gives intervals that are too narrow
(DECISIONS 48; Bengio and Mariéthoz, A statistical significance test for person authentication, Odyssey 2004).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array

from sv_sparse.scoring.arrays import BoolArray, Float64Array, FloatArray, IndexArray
from sv_sparse.scoring.metrics import OperatingPoint

Interval = tuple[float, float]

# With targets. An interval from fewer says nothing.
_MIN_SPEAKERS = 5
_NUM_SAMPLES = 1000
_LEVEL = 0.95
# Bootstrap samples at a time, to bound the memory.
_CHUNK_SIZE = 64
# Fractions of a class at which thresholds are placed. They are finer at the end where errors are rare.
_GRID = np.concatenate([np.linspace(0, 1, 801), np.geomspace(1e-6, 1e-2, 400)])


@dataclass(frozen=True)
class SpeakerBootstrap:
    """Bootstrap samples of the speakers in a trial list.

    Equal trials get equal samples, so systems can be compared on them sample by sample.

    Args:
        is_target: bool [trials].
        enrollment: int64 [trials], the speaker of each trial's enrollment, as any number.
        test: int64 [trials], the speaker of each trial's test utterance.

    >>> bootstrap = SpeakerBootstrap(np.array([True, False]), np.array([7, 7]), np.array([7, 9]))
    >>> bootstrap.num_speakers, bootstrap.is_reliable
    (2, False)
    """

    is_target: BoolArray
    enrollment: IndexArray
    test: IndexArray

    @property
    def is_reliable(self) -> bool:
        """True if enough speakers have targets for an interval to say something."""
        return len(np.unique(self.enrollment[self.is_target])) >= _MIN_SPEAKERS

    @cached_property
    def speaker_ids(self) -> IndexArray:
        """Each trial's speaker counted from 0: enrollments, then tests."""
        return np.unique(np.concatenate([self.enrollment, self.test]), return_inverse=True)[1]

    @property
    def num_speakers(self) -> int:
        """Number of different speakers."""
        return int(self.speaker_ids.max()) + 1

    @cached_property
    def speaker_pairs(self) -> tuple[IndexArray, IndexArray, IndexArray]:
        """Both speakers of each distinct pair, counted from 0, and the pair of each trial."""
        enrollment, test = np.split(self.speaker_ids, 2)
        distinct, pair_of_trial = np.unique(enrollment * self.num_speakers + test, return_inverse=True)
        first, second = np.divmod(distinct, self.num_speakers)
        return first, second, pair_of_trial

    @cached_property
    def multiplicities(self) -> FloatArray:
        """Times that each speaker is in each bootstrap sample, float32 [speakers, samples]."""
        # A fixed seed gives equal trials equal samples.
        generator = np.random.default_rng(0)
        uniform = np.full(self.num_speakers, 1 / self.num_speakers)
        counts = generator.multinomial(self.num_speakers, uniform, size=_NUM_SAMPLES)
        return counts.T.astype(np.float32)


class BootstrapRates(NamedTuple):
    """Error rates in [0, 1] of each bootstrap sample at rising thresholds, float64 [thresholds, samples]."""

    p_miss: Float64Array
    p_fa: Float64Array


def resample(scores: FloatArray, bootstrap: SpeakerBootstrap) -> BootstrapRates:
    """Compute the error rates of scores [trials] in each bootstrap sample, at some 2,000 thresholds.

    Samples without a target or without a nontarget are left out.
    """
    is_target = bootstrap.is_target
    target_levels = np.quantile(scores[is_target], _GRID)
    nontarget_levels = np.quantile(scores[~is_target], 1 - _GRID)
    thresholds = np.unique(np.concatenate([target_levels, nontarget_levels])).astype(scores.dtype)
    # Counting trials between thresholds once makes each sample a sparse matrix product, not a sort.
    num_accepting = np.searchsorted(thresholds, scores, "right")
    first, second, pair_of_trial = bootstrap.speaker_pairs

    def count_trials(selected: BoolArray) -> csr_array:
        """Count trials by the number of thresholds that accept them, and by pair of speakers."""
        ones = np.ones(selected.sum(), np.float32)
        shape = (len(thresholds) + 1, len(first))
        return coo_array((ones, (num_accepting[selected], pair_of_trial[selected])), shape=shape).tocsr()

    target_counts = count_trials(is_target)
    nontarget_counts = count_trials(~is_target)
    p_miss = []
    p_fa = []
    for start in range(0, _NUM_SAMPLES, _CHUNK_SIZE):
        times = bootstrap.multiplicities[:, start : start + _CHUNK_SIZE]
        # A nontarget trial counts as often as both its speakers were sampled, multiplied; a target as often as its one.
        pair_times = np.where((first == second)[:, None], times[first], times[first] * times[second])
        # Sums in float64: float32 does not count beyond 2 ** 24.
        targets = np.cumsum(target_counts @ pair_times, axis=0, dtype=np.float64)
        nontargets = np.cumsum(nontarget_counts @ pair_times, axis=0, dtype=np.float64)
        has_both = (targets[-1] > 0) & (nontargets[-1] > 0)
        p_miss.append(targets[:-1, has_both] / targets[-1, has_both])
        p_fa.append(1 - nontargets[:-1, has_both] / nontargets[-1, has_both])
    return BootstrapRates(np.concatenate(p_miss, axis=1), np.concatenate(p_fa, axis=1))


def bootstrap_eer(rates: BootstrapRates) -> Float64Array:
    """Compute the equal error rate of each bootstrap sample, [samples], interpolated between thresholds."""
    num_samples = rates.p_miss.shape[1]
    # Above all thresholds nothing is accepted.
    p_miss = np.concatenate([rates.p_miss, np.ones((1, num_samples))])
    p_fa = np.concatenate([rates.p_fa, np.zeros((1, num_samples))])
    sample = np.arange(num_samples)
    following = np.argmax(p_miss > p_fa, axis=0)
    # It exists: at the lowest threshold nothing is missed.
    previous = following - 1
    gap = p_fa - p_miss
    gap_previous = gap[previous, sample]
    gap_following = gap[following, sample]
    fraction = gap_previous / (gap_previous - gap_following)
    return p_fa[previous, sample] + fraction * (p_fa[following, sample] - p_fa[previous, sample])


def bootstrap_min_dcf(rates: BootstrapRates, point: OperatingPoint) -> Float64Array:
    """Compute the minimum normalized detection cost of each bootstrap sample, [samples]."""
    miss, fa = point.weights
    costs = miss * rates.p_miss + fa * rates.p_fa
    return np.minimum(costs.min(axis=0), 1.0)


def interval(values: Float64Array) -> Interval:
    """Return the interval that holds the middle 95 % of the values."""
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def eer_difference_interval(scores: FloatArray, other: FloatArray, bootstrap: SpeakerBootstrap) -> Interval:
    """Compute the 95 % interval of the difference of two systems' EERs on the same trials.

    Args:
        scores: [trials].
        other: [trials], scores of the system whose EER is subtracted.
        bootstrap: speakers of these trials.
    """
    # Both systems get the same samples, so that speakers who are hard for both do not count.
    return interval(bootstrap_eer(resample(scores, bootstrap)) - bootstrap_eer(resample(other, bootstrap)))
