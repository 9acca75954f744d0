"""Laws of scoring: cosines and AS-norm are what a loop in float64 gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sv_sparse.scoring import as_norm as as_norm_module
from sv_sparse.scoring import cosine as cosine_module
from sv_sparse.scoring.as_norm import as_norm, cohort_statistics
from sv_sparse.scoring.cosine import average_enrollments, center_and_normalize, cosine_scores


def drawn(seed: int, count: int = 40, size: int = 8):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, size)).astype(np.float32), generator.normal(size=size).astype(np.float32)


def cosine(left, right) -> float:
    """In float64, one pair at a time."""
    left, right = (side.astype(np.float64) for side in (left, right))
    return float(left @ right / np.sqrt(left @ left) / np.sqrt(right @ right))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 200))
def test_scores_of_a_list_are_cosines_of_centred_embeddings(seed, trials):
    embeddings, mean = drawn(seed)
    left, right = np.random.default_rng(seed).integers(len(embeddings), size=(2, trials))
    expected = [cosine(embeddings[a] - mean, embeddings[b] - mean) for a, b in zip(left, right, strict=True)]
    found = cosine_scores(center_and_normalize(embeddings, mean), left, right)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("full", [True, False])
def test_a_list_that_is_all_against_all_is_scored_as_any_other(full, monkeypatch):
    monkeypatch.setattr(cosine_module, "_CHUNK_SIZE", 64)
    embeddings, mean = drawn(0, count=60)
    left, right = np.repeat(np.arange(5), 50), np.tile(np.arange(10, 60), 5)
    if not full:
        left, right = left[::3], right[::3]
    order = np.random.default_rng(0).permutation(len(left))
    left, right = left[order], right[order]
    expected = [cosine(embeddings[a] - mean, embeddings[b] - mean) for a, b in zip(left, right, strict=True)]
    found = cosine_scores(center_and_normalize(embeddings, mean), left, right)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_embedding_equal_to_the_mean_scores_zero():
    embeddings = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    assert cosine_scores(center_and_normalize(embeddings, embeddings[0]), np.array([0]), np.array([1])).tolist() == [
        0.0
    ]


def test_an_enrolment_of_several_is_the_mean_of_what_was_embedded_not_normalized():
    embeddings, _ = drawn(1)
    found = average_enrollments(embeddings, [[3], [1, 2, 5]])
    np.testing.assert_array_equal(found[:40], embeddings)
    np.testing.assert_array_equal(found[40], embeddings[3])
    np.testing.assert_allclose(found[41], sum(embeddings[k].astype(np.float64) for k in (1, 2, 5)) / 3, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 30), st.data())
def test_as_norm_is_what_a_loop_over_trials_gives(seed, speakers, data):
    top_n = data.draw(st.integers(2, speakers))
    embeddings, mean = drawn(seed)
    cohort, _ = drawn(seed + 1, count=speakers)
    left, right = np.random.default_rng(seed).integers(len(embeddings), size=(2, 30))
    expected = []
    for a, b in zip(left, right, strict=True):
        score = cosine(embeddings[a] - mean, embeddings[b] - mean)
        normalized = []
        for side in (a, b):
            closest = sorted(cosine(embeddings[side] - mean, other - mean) for other in cohort)[-top_n:]
            normalized.append((score - np.mean(closest)) / np.std(closest))
        expected.append(sum(normalized) / 2)
    unit = center_and_normalize(embeddings, mean)
    means, deviations = cohort_statistics(unit, center_and_normalize(cohort, mean), top_n)
    found = as_norm(cosine_scores(unit, left, right), means, deviations, left, right)
    grown = (1 + np.abs(expected)) / np.minimum(deviations[left], deviations[right])  # what a cosine's error becomes
    np.testing.assert_array_less(np.abs(found - expected), 1e-6 * np.maximum(1, grown))


def test_statistics_do_not_depend_on_how_many_are_computed_at_once(monkeypatch):
    embeddings, mean = drawn(3)
    unit, cohort = center_and_normalize(embeddings, mean), center_and_normalize(drawn(4, count=12)[0], mean)
    whole = cohort_statistics(unit, cohort, 5)
    monkeypatch.setattr(as_norm_module, "_CHUNK_SIZE", 36)
    for one, other in zip(whole, cohort_statistics(unit, cohort, 5), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_cohort_of_one_embedding_many_times_does_not_divide_by_zero():
    unit = center_and_normalize(drawn(5)[0], np.zeros(8, np.float32))
    _, deviations = cohort_statistics(unit, np.repeat(unit[:1], 4, axis=0), 3)
    assert (deviations > 0).all()


@pytest.mark.parametrize("top_n", [1, 13])
def test_more_close_strangers_than_there_are_strangers_or_fewer_than_two_are_refused(top_n):
    unit = center_and_normalize(drawn(6, count=12)[0], np.zeros(8, np.float32))
    with pytest.raises(ValueError, match=f"scoring.top_n={top_n}: expected at least 2 and at most 12"):
        cohort_statistics(unit, unit, top_n)
