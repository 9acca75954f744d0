"""Laws of a verifier: its embeddings and scores are those of judging, and every answer says what it rests on."""

import math
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from helpers import deployed
from helpers.tiny import RATE, tone
from hypothesis import given, settings
from hypothesis import strategies as st

from sv_sparse.data.audio import single_file
from sv_sparse.data.decoding import MIN_SECONDS
from sv_sparse.evaluation.embed import embed
from sv_sparse.export.package import write_package
from sv_sparse.models.features import FEATURES, Filterbank, build_features
from sv_sparse.runtime.decision import SYNTHETIC_WARNING, EmbeddedRecording, RefusedInputError
from sv_sparse.runtime.long_audio import WindowedEmbedding
from sv_sparse.runtime.verifier import Verifier
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import quality_measures

NETWORK = deployed.trained(deployed.ECAPA)
BACKEND = deployed.backend()
WINDOW = 2.0  # seconds
ONE = np.array([0]), np.array([1])  # the trial of the first against the second


def verifier(backend: Backend = BACKEND, window_seconds: float = WINDOW) -> Verifier:
    return Verifier(NETWORK, backend, {}, features=deployed.FEATURES, window_seconds=window_seconds)


def means(samples: np.ndarray, *lengths: int) -> np.ndarray:
    """Embeddings of consecutive windows, averaged by hand."""
    parts = np.split(samples, np.cumsum(lengths)[:-1])
    assert [len(part) for part in parts] == list(lengths)
    return np.average([verifier().embed(part, RATE) for part in parts], axis=0, weights=lengths)


def test_an_utterance_has_the_embedding_that_it_is_judged_by(tmp_path):
    path = tmp_path / "one.flac"
    soundfile.write(path, tone(0, 0, 1.7), RATE)
    expected = embed(NETWORK, Filterbank(), [single_file(path)], title="").values[0]
    found = verifier().embed_file(path)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)
    assert np.array_equal(verifier().embed(soundfile.read(path, dtype="int16")[0], RATE), expected)
    assert np.array_equal(verifier().embed_recording(path.read_bytes()).embedding, expected)


@pytest.mark.parametrize("kind", FEATURES)
def test_the_features_are_those_of_the_network(tmp_path, kind):
    model = deployed.ECAPA | {"features": kind}
    network = deployed.trained(model)
    write_package(tmp_path / "m.safetensors", network, model, BACKEND, {}, features=deployed.FEATURES)
    waveform = tone(2, 0, 1.3)
    with torch.no_grad():
        expected = network(build_features(kind)(torch.from_numpy(waveform).unsqueeze(0)))[0]
    embedding = Verifier.from_pretrained(tmp_path / "m.safetensors", threads=1).embed(waveform, RATE)
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=5e-5)
    if kind != "sv_sparse":
        ours = verifier().embed(waveform, RATE)
        assert np.abs(embedding - ours).max() > 5e-4


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_file_a_waveform_a_tensor_and_a_stream_of_any_rate_have_one_embedding(tmp_path, rate):
    samples = tone(1, 0, 5.0)
    soundfile.write(tmp_path / "one.wav", samples, rate, subtype="FLOAT")
    expected = verifier().embed(samples, rate)
    assert np.array_equal(verifier().embed_file(tmp_path / "one.wav"), expected)
    assert np.array_equal(verifier().embed(torch.from_numpy(samples), rate), expected)
    stream = verifier().stream(rate, window_seconds=WINDOW)
    for chunk in np.split(samples, range(700, len(samples), 700)):
        stream.push(chunk)
    assert stream.seconds == pytest.approx(len(samples) / rate, abs=0.25)
    assert np.linalg.norm(stream.embedding() - expected) < 0.1 * np.linalg.norm(expected)


def test_a_batch_has_the_embeddings_of_its_waveforms_whatever_their_lengths():
    seconds = [1.0, 0.4, 1.0, 5.1, 0.4, 1.0, 2.0, 5.1]
    waveforms = [tone(number, 1, length) for number, length in enumerate(seconds)]
    found = verifier().embed_batch(waveforms, 8000)
    expected = np.stack([verifier().embed(waveform, 8000) for waveform in waveforms])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert verifier().embed_batch([], RATE).shape == (0, 16)


def test_long_recordings_are_averaged_over_windows_by_their_lengths():
    samples = tone(2, 0, 7.3)
    full = int(WINDOW * RATE)
    expected = means(samples, full, full, (len(samples) - 2 * full) // 2, -(-(len(samples) - 2 * full) // 2))
    np.testing.assert_allclose(verifier().embed(samples, RATE), expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(
        verifier().embed(samples[: 2 * full], RATE), means(samples[: 2 * full], full, full).astype(np.float32)
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 50_000), max_size=6), st.integers(4000, 50_000))
def test_how_a_recording_arrives_does_not_change_its_embedding(cuts, length):
    def loudest(waveforms: np.ndarray) -> np.ndarray:
        return np.abs(waveforms).max(axis=1, keepdims=True)

    samples = tone(3, 0, 3.2)[:length]
    whole, parts = WindowedEmbedding(loudest, 7000, RATE), WindowedEmbedding(loudest, 7000, RATE)
    whole.push(samples)
    for piece in np.split(samples, sorted(cuts)):
        parts.push(piece)
    assert whole.num_samples == parts.num_samples == len(samples)
    assert np.array_equal(whole.embedding(), parts.embedding())
    assert np.array_equal(parts.embedding(), parts.embedding())


def test_hours_are_embedded_in_the_memory_of_a_window(tmp_path):
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for number in range(60):
            file.write(tone(0, number, 4.0))
    held = verifier(window_seconds=4.0)
    held.embed_file(path)
    tracemalloc.start()
    try:
        held.embed_file(path)
        assert tracemalloc.get_traced_memory()[1] < 6e6  # as float32 it has 15 MB
    finally:
        tracemalloc.stop()


def test_silence_is_no_voice():
    silence, voice = np.zeros(3 * RATE, np.float32), tone(0, 0, WINDOW)
    for nothing in (silence, silence[:RATE], np.full(RATE, 0.25, np.float32)):
        with pytest.raises(ValueError, match="the waveform: holds nothing but silence"):
            verifier().embed(nothing, RATE)
        with pytest.raises(ValueError, match="waveform 1: holds nothing but silence"):
            verifier().embed_batch([voice, nothing], RATE)
    parted = np.concatenate([voice, silence[: len(voice)], voice[::-1]])
    expected = means(np.concatenate([voice, voice[::-1]]), len(voice), len(voice))
    assert np.array_equal(verifier().embed(parted, RATE), expected.astype(np.float32))


@pytest.mark.parametrize("network", [deployed.ECAPA, deployed.SPEECHBRAIN, deployed.RESNET, deployed.SE_RESNET])
def test_what_is_too_short_is_told_the_least_and_the_least_is_enough(tmp_path, network):
    least = int(MIN_SECONDS * RATE)
    write_package(
        tmp_path / "m.safetensors", deployed.trained(network), network, BACKEND, {"a": 1}, features=deployed.FEATURES
    )
    model = Verifier.from_pretrained(tmp_path / "m.safetensors", threads=1)
    assert model.card == {"a": 1}
    assert len(model.fingerprint) == 64
    assert model.embed(tone(0, 0, 1.0)[:least], RATE).shape == (16,)
    for length in (0, 1, 399, least - 1):
        with pytest.raises(ValueError, match=r"is too short: 0.[012]\d seconds, at least 0.2 are needed"):
            model.embed(tone(0, 0, 1.0)[:length], RATE)


def test_windows_that_are_too_short_are_refused():
    for make in (lambda: verifier(window_seconds=0.3), lambda: verifier().stream(RATE, window_seconds=0.3)):
        with pytest.raises(ValueError, match=r"windows must be at least 0.4 seconds long, got 0.3"):
            make()


def test_an_embedding_that_is_not_finite_is_refused():
    broken = Verifier(lambda filterbank: NETWORK(filterbank) / 0, BACKEND, {}, features=deployed.FEATURES)
    with pytest.raises(ValueError, match="the waveform: its embedding is not finite"):
        broken.embed(tone(0, 0, 1.0), RATE)


@pytest.mark.parametrize("cohort", [False, True])
def test_the_answer_is_the_back_ends_own(cohort):
    backend = deployed.backend(cohort=cohort)
    sides = np.stack([verifier().embed(tone(speaker, 0, 1.0), RATE) for speaker in (0, 1)])
    found = verifier(backend).verify(sides[0], (tone(1, 0, 1.0), RATE))
    score = backend.score(sides, *ONE)
    assert found.score == score[0]
    assert found.llr == backend.calibration.llr(score, {})[0]
    assert found.probability == pytest.approx(1 / (1 + math.exp(-found.llr)))
    assert (found.threshold, found.target_far) == (2.0, 0.01)
    assert found.accepted == (found.llr >= 2.0)
    assert found.seconds > 0
    assert set(found.to_dict()) == {"outcome", *found.__dataclass_fields__}
    assert found.to_dict()["outcome"] == found.outcome == ("accepted" if found.accepted else "not accepted")
    turned = verifier(backend).verify(sides[1], sides[0])
    assert turned.score == pytest.approx(found.score, rel=1e-5)


def test_a_calibration_hears_of_the_poorer_sides_length_and_magnitude():
    weights = {"duration": 0.7, "magnitude": -0.3}
    backend = replace(BACKEND, calibration=replace(BACKEND.calibration, qualities=weights))
    sides = [verifier(backend).embed_recording((tone(0, 0, seconds), RATE)) for seconds in (1.5, 0.5)]
    embeddings = np.stack([side.embedding for side in sides])
    measured = {"duration": np.array([1.5, 0.5]), "magnitude": np.linalg.norm(embeddings, axis=1)}
    expected = backend.calibration.llr(backend.score(embeddings, *ONE), quality_measures(measured, *ONE))
    assert verifier(backend).verify(*sides).llr == expected[0]
    with pytest.raises(ValueError, match="uses durations"):
        verifier(backend).verify(sides[0], embeddings[1])


def test_the_prior_moves_the_probability_and_nothing_else():
    sides = (tone(0, 0, 1.0), RATE), (tone(0, 1, 1.0), RATE)
    even, rare = verifier().verify(*sides), verifier().verify(*sides, prior=0.01)
    odds = even.probability / (1 - even.probability) / 99
    assert rare.probability == pytest.approx(odds / (1 + odds))
    assert (rare.llr, rare.accepted, rare.prior) == (even.llr, even.accepted, 0.01)
    sure = replace(BACKEND, calibration=replace(BACKEND.calibration, slope=1e9, offset=1e9))
    assert verifier(sure).verify(*sides).probability == 1


def test_thresholds_are_those_of_the_calibration_or_given():
    side = EmbeddedRecording(np.arange(16, dtype=np.float32))
    assert verifier().verify(side, side, target_far=0.05).threshold == 0.5
    own = verifier().verify(side, side, threshold=100.0)
    assert (own.threshold, own.target_far, own.accepted) == (100.0, None, False)
    uncalibrated = verifier(replace(BACKEND, calibration=None))
    plain = uncalibrated.verify(side, side)
    assert (plain.llr, plain.probability, plain.threshold, plain.accepted) == (None, None, None, None)
    assert uncalibrated.verify(side, side, threshold=0.9).accepted is True
    assert uncalibrated.verify(side, EmbeddedRecording(-side.embedding), threshold=0.9).accepted is False


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prior": 0.0}, "prior must be above 0 and below 1, got 0.0"),
        ({"prior": math.nan}, "prior must be"),
        (
            {"target_far": 0.02},
            r"no threshold for a false-alarm rate of 0.02; the model has thresholds for: 0.01, 0.05",
        ),
        ({"target_far": 0.01, "threshold": 1.0}, "expected a threshold or a false-alarm rate, got both"),
        ({"threshold": math.inf}, "threshold must be a number"),
    ],
)
def test_what_cannot_be_decided_by_is_refused(asked, words):
    side = EmbeddedRecording(np.ones(16, np.float32))
    with pytest.raises(ValueError, match=words):
        verifier().verify(side, side, **asked)


@pytest.mark.parametrize("wrong", [np.ones(15), np.ones((16, 1)), np.full(16, np.nan)])
def test_what_is_no_embedding_of_the_model_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected embeddings \[16\] of finite numbers"):
        verifier().verify(np.ones(16, np.float32), wrong)


@pytest.mark.parametrize("cohort", [False, True])
def test_identifying_is_verifying_against_each(cohort):
    model = verifier(deployed.backend(cohort=cohort))
    enrolled = np.stack([model.embed(tone(speaker, 0, 1.0), RATE) for speaker in range(4)])
    test = model.embed(tone(2, 1, 1.0), RATE)
    found = model.identify(test, enrolled)
    for one, side in zip(found, enrolled, strict=True):
        assert one.score == pytest.approx(model.verify(side, test).score, rel=1e-4)
    assert [each.llr for each in model.identify(test, [EmbeddedRecording(side) for side in enrolled])] == [
        e.llr for e in found
    ]
    with pytest.raises(ValueError, match="nobody is enrolled"):
        model.identify(test, [])


def test_several_recordings_of_a_speaker_are_averaged_as_enrollments_are():
    several = [EmbeddedRecording(np.full(2, float(n), np.float32), seconds=n + 1.0) for n in range(3)]
    assert EmbeddedRecording.mean_of(several).embedding.tolist() == [1.0, 1.0]
    assert EmbeddedRecording.mean_of(several).seconds == 6.0
    assert EmbeddedRecording.mean_of([*several, EmbeddedRecording(np.zeros(2, np.float32))]).seconds is None


def test_threads_may_share_a_verifier():
    model, waveforms = verifier(), [tone(number, 0, 0.5 + 0.3 * number) for number in range(8)]
    expected = [model.embed(waveform, RATE) for waveform in waveforms]
    with ThreadPoolExecutor(4) as pool:
        for found, known in zip(pool.map(lambda w: model.embed(w, RATE), waveforms * 3), expected * 3, strict=True):
            assert np.array_equal(found, known)


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, tone(0, 0, 0.1), RATE)
    with pytest.raises(ValueError, match=r"short.wav: is too short: 0.10 seconds"):
        verifier().embed_file(path)
    with pytest.raises(ValueError, match="absent.wav: No such file"):
        verifier().verify(path.with_name("absent.wav"), path)


def test_a_recording_that_cannot_be_judged_is_refused_input_with_its_number_and_reason():
    good, short, silent = (tone(0, 0, 1.0), RATE), (tone(0, 0, 0.1), RATE), (np.zeros(RATE, np.float32), RATE)
    for sides, number, reason in (
        ((short, good), 1, "is too short"),
        ((good, silent), 2, "nothing but silence"),
        ((good, b"no recording"), 2, "cannot be read as a recording"),
    ):
        with pytest.raises(RefusedInputError, match=reason) as refusal:
            verifier().verify(*sides)
        assert (refusal.value.outcome, refusal.value.recording) == ("refused input", number)
    with pytest.raises(RefusedInputError, match="is too short"):
        verifier().identify(short, [EmbeddedRecording(np.ones(16, np.float32))])


def test_every_outcome_has_its_words_and_settings_that_are_wrong_have_none():
    side = EmbeddedRecording(np.arange(16, dtype=np.float32))
    assert verifier().verify(side, side, threshold=-100.0).outcome == "accepted"
    assert verifier().verify(side, side, threshold=100.0).outcome == "not accepted"
    assert verifier(replace(BACKEND, calibration=None)).verify(side, side).outcome == "no decision"
    with pytest.raises(ValueError, match="prior") as problem:
        verifier().verify(side, side, prior=2.0)
    assert not isinstance(problem.value, RefusedInputError)


@pytest.mark.parametrize(
    ("card", "warning"),
    [
        ({}, None),
        ({"synthetic_voices_only": False}, None),
        ({"synthetic_voices_only": "\x1b[2J"}, None),  # a card is somebody's words; they are not printed
        ({"synthetic_voices_only": True}, SYNTHETIC_WARNING),
        ({"trained_on": "recordings in wav"}, None),
    ],
)
def test_what_decisions_rest_on_is_told(card, warning):
    model = Verifier(NETWORK, BACKEND, card, features=deployed.FEATURES)
    assert model.basis == {"calibration": BACKEND.calibration.description, "warning": warning}
    uncalibrated = Verifier(NETWORK, replace(BACKEND, calibration=None), card, features=deployed.FEATURES)
    assert uncalibrated.basis == {"calibration": None, "warning": warning}
