import pytest
import torch
from torch import Tensor

from sv_sparse.data.torchaudio_guard import torchaudio
from sv_sparse.models.features import ENERGY_FLOOR, Filterbank, crop_samples


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


def kaldi(waveform: Tensor, mel_bins: int = 80) -> Tensor:
    """Kaldi's features of one waveform with 16-bit sample values, mean-normalized, [F, T]."""
    fbank = torchaudio.compliance.kaldi.fbank(
        waveform.unsqueeze(0) * 32768,
        num_mel_bins=mel_bins,
        window_type="hamming",
        dither=0.0,
        preemphasis_coefficient=0.0,
        remove_dc_offset=False,
    ).T
    return fbank - fbank.mean(dim=1, keepdim=True)


def test_the_filterbank_is_kaldis(waveform: Tensor) -> None:
    # What remains is float32 rounding in energies far below the loudest of their frame.
    filterbank = Filterbank()(waveform)
    for ours, sound in zip(filterbank, waveform, strict=True):
        torch.testing.assert_close(ours, kaldi(sound), rtol=0, atol=1e-3)
        assert (ours - kaldi(sound)).abs().mean() < 1e-5


@pytest.mark.parametrize(("sample_rate", "mel_bins"), [(16000, 80), (8000, 40), (44000, 23)])
def test_window_spectrum_and_filters_are_torchaudios_to_the_bit(sample_rate: int, mel_bins: int) -> None:
    ours = Filterbank(sample_rate, mel_bins)
    window, fft_size = sample_rate // 40, ours.spectrogram.n_fft
    spectrogram = torchaudio.transforms.Spectrogram(
        fft_size,
        win_length=window,
        hop_length=sample_rate // 100,
        pad=(fft_size - window) // 2,
        window_fn=lambda length: torch.hamming_window(length, periodic=False),
        power=None,
        center=False,
    )
    mel_scale = torchaudio.transforms.MelScale(mel_bins, sample_rate, n_stft=fft_size // 2 + 1)
    filters, _ = torchaudio.compliance.kaldi.get_mel_banks(
        mel_bins, fft_size, float(sample_rate), 20.0, sample_rate / 2, 100.0, -500.0, 1.0
    )
    mel_scale.fb.copy_(torch.nn.functional.pad(filters, (0, 1)).T)
    theirs = torch.nn.ModuleDict({"spectrogram": spectrogram, "mel_scale": mel_scale}).state_dict()
    assert list(ours.state_dict()) == list(theirs)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    sound = 0.1 * torch.randn(3, sample_rate, generator=torch.Generator().manual_seed(0))
    spectrum = spectrogram(sound)
    assert torch.equal(ours.spectrogram(sound), spectrum)
    power = spectrum.real.square() + spectrum.imag.square()
    energies = mel_scale(power).clamp(min=ENERGY_FLOOR).log()
    assert torch.equal(ours(sound), energies - energies.mean(dim=-1, keepdim=True))


def test_digital_silence_is_floored_as_kaldi_floors_it(waveform: Tensor) -> None:
    waveform[:, 8000:16000] = 0
    filterbank = Filterbank(mel_bins=40)(waveform)
    assert filterbank.isfinite().all()
    torch.testing.assert_close(filterbank[0], kaldi(waveform[0], mel_bins=40), rtol=0, atol=1e-3)


def test_silence_alone_is_zero() -> None:
    assert (Filterbank()(torch.zeros(1, 16000)).abs() < 1e-4).all()


@pytest.mark.parametrize("frames", [1, 2, 37, 200])
def test_n_frames_are_n_minus_one_shifts_and_a_window(frames: int) -> None:
    samples = (frames - 1) * 160 + 400
    assert crop_samples(frames / 100) == samples
    assert Filterbank()(torch.randn(1, samples)).shape == (1, 80, frames)
    assert Filterbank()(torch.randn(1, samples + 159)).shape == (1, 80, frames)


def test_each_bin_has_mean_zero_over_the_utterance(waveform: Tensor) -> None:
    assert Filterbank()(waveform).mean(dim=2).abs().max() < 1e-4


def test_loudness_does_not_matter(waveform: Tensor) -> None:
    filterbank = Filterbank()
    torch.testing.assert_close(filterbank(waveform), filterbank(waveform / 8), rtol=0, atol=1e-3)


def test_an_utterance_does_not_depend_on_its_batch() -> None:
    waveform = torch.randn(7, 4000)
    filterbank = Filterbank()
    torch.testing.assert_close(filterbank(waveform)[5:6], filterbank(waveform[5:6]), rtol=0, atol=1e-4)


def test_it_is_float32_under_autocast(waveform: Tensor) -> None:
    filterbank = Filterbank()
    with torch.autocast("cpu", torch.bfloat16):
        inside = filterbank(waveform)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, filterbank(waveform))


def test_it_has_nothing_to_train_and_its_state_loads() -> None:
    filterbank = Filterbank()
    assert not list(filterbank.parameters())
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
