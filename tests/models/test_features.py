import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sv_sparse.data.torchaudio_guard import torchaudio
from sv_sparse.models.features import FEATURES, Filterbank, build_features, crop_samples, network_features

KINDS = list(FEATURES)


@pytest.fixture
def waveform() -> Tensor:
    """Two seconds of two voiced-like sounds with a gliding pitch, pauses and a little noise, [2, S]."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.arange(crop_samples(2.0)) / 16000
    sounds = []
    for pitch in (110.0, 210.0):
        phase = 2 * torch.pi * (pitch * seconds + 3 * torch.sin(4 * seconds))
        harmonics = sum(torch.sin(k * phase) / k for k in range(1, 30))
        sounds.append(0.1 * harmonics * torch.sin(5 * seconds).clamp(min=0))
    return torch.stack(sounds) + 1e-3 * torch.randn(2, len(seconds), generator=generator)


def kaldi(waveform: Tensor, sample_rate: int, mel_bins: int, **settings: object) -> Tensor:
    """Kaldi's features of one waveform, mean-normalized, [F, T]."""
    fbank = torchaudio.compliance.kaldi.fbank(
        waveform.unsqueeze(0), num_mel_bins=mel_bins, sample_frequency=sample_rate, dither=0.0, **settings
    ).T
    return fbank - fbank.mean(dim=1, keepdim=True)


def speechbrain(waveform: Tensor, sample_rate: int, mel_bins: int) -> Tensor:
    """SpeechBrain's features of one waveform, as its published networks take them, [F, T]."""
    from speechbrain.lobes.features import Fbank  # noqa: PLC0415  # after torchaudio
    from speechbrain.processing.features import InputNormalization  # noqa: PLC0415

    fbank = Fbank(n_mels=mel_bins, sample_rate=sample_rate, n_fft=sample_rate // 40)(waveform.unsqueeze(0))
    return InputNormalization(norm_type="sentence", std_norm=False)(fbank, torch.ones(1))[0].T


REFERENCES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "3dspeaker": kaldi,
    "wespeaker": lambda waveform, *sizes: kaldi(waveform * 32768, *sizes, window_type="hamming"),
    "speechbrain": speechbrain,
    "sv_sparse": lambda waveform, *sizes: kaldi(
        waveform * 32768, *sizes, window_type="hamming", preemphasis_coefficient=0.0, remove_dc_offset=False
    ),
}


def assert_reference(kind: str, waveforms: Tensor, sample_rate: int = 16000, mel_bins: int = 80) -> None:
    """Compare a batch of features with the toolkit's, which it computes of each utterance alone."""
    filterbanks = build_features(kind, sample_rate, mel_bins)(waveforms)
    assert filterbanks.dtype == torch.float32
    for filterbank, waveform in zip(filterbanks, waveforms, strict=True):
        expected = REFERENCES[kind](waveform, sample_rate, mel_bins)
        torch.testing.assert_close(filterbank, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 3999, 16000, 32240, 50001])
@pytest.mark.parametrize("kind", KINDS)
def test_features_of_noise_of_any_length_and_level_are_the_toolkits(kind: str, samples: int) -> None:
    generator = torch.Generator().manual_seed(samples)
    levels = torch.tensor([[0.5], [0.1], [1e-2], [1e-3], [1e-5]])
    assert_reference(kind, levels * torch.randn(len(levels), samples, generator=generator))


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_voices_with_pauses_an_offset_and_digital_silence_are_the_toolkits(
    kind: str, waveform: Tensor
) -> None:
    assert_reference(kind, waveform)
    assert_reference(kind, waveform + 0.1)
    waveform[:, 8000:16000] = 0
    assert_reference(kind, waveform)
    # In 16 bits, as files have them.
    assert_reference(kind, (waveform * 32768).round() / 32768)


@pytest.mark.parametrize(("sample_rate", "mel_bins"), [(8000, 40), (44000, 23)])
@pytest.mark.parametrize("kind", KINDS)
def test_features_at_other_rates_are_the_toolkits(kind: str, sample_rate: int, mel_bins: int) -> None:
    noise = torch.randn(2, sample_rate, generator=torch.Generator().manual_seed(0))
    assert_reference(kind, 0.1 * noise, sample_rate, mel_bins)


@pytest.mark.parametrize("kind", KINDS)
def test_silence_alone_is_zero(kind: str) -> None:
    assert (build_features(kind)(torch.zeros(2, 16000)).abs() < 1e-4).all()


@pytest.mark.parametrize("frames", [1, 2, 37, 200])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crop_has_its_frames_and_a_sample_less_has_not(kind: str, frames: int) -> None:
    samples = crop_samples(frames / 100, features=kind)
    filterbank = build_features(kind)
    assert filterbank(torch.randn(1, samples)).shape == (1, 80, frames)
    if frames > 1:
        assert filterbank(torch.randn(1, samples - 1)).shape == (1, 80, frames - 1)
    more = 158 if samples == 1 else 159
    assert filterbank(torch.randn(1, samples + more)).shape == (1, 80, frames)


def test_n_frames_are_n_minus_one_shifts_and_a_window_where_frames_lie_inside() -> None:
    assert crop_samples(2.0) == crop_samples(2.0, features="wespeaker") == 199 * 160 + 400
    assert crop_samples(2.0, features="speechbrain") == 199 * 160


@pytest.mark.parametrize("kind", KINDS)
def test_each_bin_has_mean_zero_over_the_utterance(kind: str, waveform: Tensor) -> None:
    assert build_features(kind)(waveform).mean(dim=2).abs().max() < 1e-4


def test_loudness_does_not_matter(waveform: Tensor) -> None:
    filterbank = Filterbank()
    torch.testing.assert_close(filterbank(waveform), filterbank(waveform / 8), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_utterance_does_not_depend_on_its_batch(kind: str) -> None:
    # One loud utterance: what is cut off below the maximum is that of each alone.
    waveform = torch.randn(7, 4000) * torch.tensor([1, 1e-4, 1, 1, 1, 1e-4, 1]).unsqueeze(1)
    filterbank = build_features(kind)
    torch.testing.assert_close(filterbank(waveform)[5:6], filterbank(waveform[5:6]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_float32_under_autocast(kind: str, waveform: Tensor) -> None:
    filterbank = build_features(kind)
    with torch.autocast("cpu", torch.bfloat16):
        inside = filterbank(waveform)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, filterbank(waveform))


def test_it_has_nothing_to_train_and_its_state_loads() -> None:
    filterbank = Filterbank()
    assert not list(filterbank.parameters())
    assert list(filterbank.state_dict()) == ["spectrogram.window", "mel_scale.fb"]
    Filterbank().load_state_dict(filterbank.state_dict())


def test_it_works_at_telephone_rate() -> None:
    assert crop_samples(1.0, sample_rate=8000) == 99 * 80 + 200
    assert Filterbank(sample_rate=8000, mel_bins=40)(torch.randn(2, crop_samples(1.0, 8000))).shape == (2, 40, 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 22050}, "sample_rate must be a positive multiple of 200 Hz, got 22050"),
        ({"sample_rate": 0}, "sample_rate must be .*, got 0"),
        ({"mel_bins": 3}, "mel_bins must be at least 4 .*, got 3"),
        ({"mel_bins": 200}, "mel_bins must be .* few enough .* 512-point spectrum at 16000 Hz, got 200"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filterbank(**settings)


def test_a_crop_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crop_seconds must be at least 0.01, got 0.001"):
        crop_samples(0.001)
    with pytest.raises(ValueError, match="crop_seconds must be a finite number, got nan"):
        crop_samples(float("nan"))


def test_a_waveform_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 400 samples, got 399"):
        Filterbank()(torch.zeros(1, 399))


def test_features_of_no_kind_are_refused_with_those_that_there_are() -> None:
    message = "features must be one of 3dspeaker, wespeaker, speechbrain, sv_sparse, got 'mfcc'"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_features("mfcc")
    with pytest.raises(ValueError, match=re.escape(message)):
        crop_samples(1.0, features="mfcc")


def test_a_network_that_was_not_built_from_settings_has_the_default_features() -> None:
    network = nn.Linear(2, 2)
    assert network_features(network) == "sv_sparse"
    network.features = "wespeaker"
    assert network_features(network) == "wespeaker"
