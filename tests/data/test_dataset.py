import pickle

import numpy as np
import pytest
import soundfile
import torch

from sv_sparse.data.audio import read_utterance, single_file
from sv_sparse.data.dataset import CropDataset
from sv_sparse.data.decoding import AudioFile
from sv_sparse.data.loader import CropLoader, EpochBatchSampler
from sv_sparse.data.rng import generator, randint

CROP = 800


def crops_of(root, files, tabulate, **changes):
    manifest = tabulate(root, files)
    rows = manifest.split("train")
    settings = {"crop_samples": CROP, "seed": 7} | changes
    return CropDataset(manifest, rows, manifest.labels(rows), **settings)


def drawn(crops, epoch, position):
    """Waveform and label of one crop."""
    batch = crops.__getitems__([(epoch, position)])
    assert batch.unreadable == []
    return batch.waveforms[0] / 32768, int(batch.labels[0])


def truncate(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def ramp(path, samples, rate=16000, channels=1):
    """A recording whose values tell where they come from; the second channel is silent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((samples, channels), dtype=np.float32)
    values[:, 0] = np.arange(samples) / samples
    soundfile.write(path, values, rate, subtype="FLOAT")
    return path


def test_a_crop_has_its_length_and_its_speaker_whatever_the_format_rate_and_length(crops):
    for position in range(len(crops)):
        waveform, label = drawn(crops, 0, position)
        assert waveform.shape == (CROP,)
        assert waveform.std() > 0.1
        key = crops.manifest.utterance(crops.rows[position])
        assert crops.manifest.speakers("train")[label] == key.split("/")[0]


def test_a_crop_is_a_stretch_of_the_first_channel(tmp_path, tabulate):
    crops = crops_of(tmp_path, [ramp(tmp_path / "a" / "s" / "1.wav", 4000, channels=2)], tabulate)
    waveform, _ = drawn(crops, 3, 0)
    places = (waveform * 4000).round()
    assert torch.equal(places.diff(), torch.ones(CROP - 1))


def test_crops_of_an_utterance_differ_between_epochs_and_reach_both_ends(tmp_path, tabulate):
    crops = crops_of(tmp_path, [ramp(tmp_path / "a" / "s" / "1.wav", CROP + 3)], tabulate)
    starts = {round(drawn(crops, epoch, 0)[0][0].item() * (CROP + 3)) for epoch in range(60)}
    assert starts == {0, 1, 2, 3}


def test_a_crop_depends_on_seed_epoch_and_utterance_and_on_nothing_else(crops, corpus, files, tabulate):
    backwards = {position: drawn(crops, 2, position) for position in reversed(range(len(crops)))}
    alone = crops_of(corpus, files[5:6], tabulate)
    for position in range(len(crops)):
        assert torch.equal(drawn(crops, 2, position)[0], backwards[position][0])
    assert torch.equal(drawn(alone, 2, 0)[0], backwards[5][0])
    other = crops_of(corpus, files, tabulate, seed=8)
    assert not torch.equal(drawn(other, 2, 0)[0], backwards[0][0])


def test_drawing_crops_leaves_the_global_generator_alone(crops):
    before = torch.get_rng_state()
    for batch in CropLoader(crops, EpochBatchSampler(len(crops), 4, 0), 0, "cpu"):
        assert len(batch.labels) == 4
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_the_same_on_every_machine():
    assert generator(1, "crop", 2, "id10001/a/1.wav").integers(10**6, size=3).tolist() == [512065, 459349, 691817]
    assert randint(10**6, 1, "crop", 2, "id10001/a/1.wav") == 727480


def test_a_short_utterance_is_repeated(tmp_path, tabulate):
    crops = crops_of(tmp_path, [ramp(tmp_path / "a" / "s" / "1.wav", 300)], tabulate)
    waveform, _ = drawn(crops, 0, 0)
    once = torch.arange(300) / 300
    assert torch.equal(waveform, (once.repeat(3)[:CROP] * 32768).round() / 32768)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_a_tone_keeps_its_pitch_at_every_rate(tmp_path, tabulate, rate):
    path = tmp_path / "a" / "s" / "1.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate), rate)
    waveform, _ = drawn(crops_of(tmp_path, [path], tabulate, crop_samples=1600), 0, 0)
    assert waveform.shape == (1600,)
    assert torch.fft.rfft(waveform).abs().argmax() == 100  # 1000 Hz in steps of 10 Hz
    assert waveform.abs().max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", ["1.wav", "1.flac"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_crop_has_the_file_s_samples_rounded_to_16_bits(tmp_path, tabulate, record, name, subtype, channels):
    path = record(tmp_path / "a" / "s" / name, CROP, channels=channels, subtype=subtype)
    samples = soundfile.read(path, always_2d=True)[0][:, 0]
    batch = crops_of(tmp_path, [path], tabulate).__getitems__([(0, 0)])
    np.testing.assert_array_equal(batch.waveforms[0], np.rint(32768 * samples))


def test_what_cannot_be_read_leaves_no_gap_in_a_batch(tmp_path, tabulate, record):
    files = [record(tmp_path / name / "s" / "1.wav", CROP) for name in "abc"]
    crops = crops_of(tmp_path, files, tabulate)
    whole = crops.__getitems__([(0, position) for position in range(3)])
    files[1].unlink()
    batch = crops.__getitems__([(0, position) for position in range(3)])
    assert batch.labels.tolist() == [0, 2]
    assert torch.equal(batch.waveforms, whole.waveforms[[0, 2]])


def test_a_crop_shorter_than_a_sample_is_refused(tmp_path, tabulate, files, corpus):
    with pytest.raises(ValueError, match="crop_samples=0: expected at least one sample"):
        crops_of(corpus, files, tabulate, crop_samples=0)


def spoil_body(path):
    truncate(path)


def spoil_header(path):
    path.write_bytes(b"no recording")


def spoil_rate(path):
    soundfile.write(path, np.ones(4000), 8000)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("spoil", [spoil_body, spoil_header, spoil_rate, remove])
def test_a_file_spoilt_after_the_scan_is_skipped_named_and_counted(tmp_path, tabulate, record, spoil):
    files = [record(tmp_path / name / "s" / "1.flac", 1600) for name in "ab"]
    crops = crops_of(tmp_path, files, tabulate, crop_samples=1600)
    spoil(files[0])
    batch = crops.__getitems__([(0, 0), (0, 1)])
    assert batch.waveforms.shape == (1, 1600)
    assert batch.labels.tolist() == [1]
    assert len(batch.unreadable) == 1
    assert batch.unreadable[0].startswith(str(files[0]))


def test_samples_that_are_not_finite_are_skipped(tmp_path, tabulate):
    path = ramp(tmp_path / "a" / "s" / "1.wav", CROP)
    crops = crops_of(tmp_path, [path], tabulate)
    soundfile.write(path, np.full(CROP, np.nan), 16000, subtype="FLOAT")
    assert crops.__getitems__([(0, 0)]).unreadable == [f"{path}: holds samples that are not finite, or beyond 2 ** 31"]


def test_a_batch_may_be_left_with_nothing(corpus, files, crops):
    for file in files:
        file.unlink()
    batch = crops.__getitems__([(0, 0), (0, 1)])
    assert len(batch.waveforms) == len(batch.labels) == 0
    assert batch.labels.dtype == torch.int64
    assert len(batch.unreadable) == 2


def test_an_utterance_is_read_whole_at_the_rate_asked_for(tmp_path, record):
    samples = torch.arange(3200) / 3200
    assert torch.equal(read_utterance(single_file(ramp(tmp_path / "1.wav", 3200, channels=2))), samples)
    assert read_utterance(single_file(record(tmp_path / "2.flac", 1600, rate=8000))).shape == (3200,)
    assert read_utterance(single_file(record(tmp_path / "3.wav", 3200)), sample_rate=8000).shape == (1600,)


def test_an_utterance_of_which_nothing_can_be_said_is_an_error_that_names_it(tmp_path, record):
    with pytest.raises(ValueError, match=r"1\.wav: is too short: 0\.19 seconds, at least 0\.2 are needed"):
        read_utterance(single_file(record(tmp_path / "1.wav", 3199)))
    soundfile.write(tmp_path / "2.wav", np.zeros(4000), 16000)
    with pytest.raises(ValueError, match=r"2\.wav: holds nothing but silence"):
        read_utterance(single_file(tmp_path / "2.wav"))


def test_a_silent_crop_of_an_utterance_is_taken_and_nothing_else_of_it_is_decoded(tmp_path, tabulate, monkeypatch):
    samples = np.zeros(100 * CROP)
    samples[-1] = 0.5
    path = tmp_path / "a" / "s" / "1.flac"
    path.parent.mkdir(parents=True)
    soundfile.write(path, samples, 16000)
    crops = crops_of(tmp_path, [path], tabulate)
    decoded = []
    read = AudioFile.read

    def counted(file, **stretch):
        found = read(file, **stretch)
        decoded.append(len(found))
        return found

    monkeypatch.setattr(AudioFile, "read", counted)
    batch = crops.__getitems__([(0, 0)])
    assert not batch.unreadable
    assert not batch.waveforms.any()
    assert decoded == [CROP]


@pytest.mark.parametrize("name", ["missing.wav", "text.wav", "empty.wav", "broken.flac"])
def test_an_utterance_that_cannot_be_read_is_an_error_that_names_it(tmp_path, record, name):
    (tmp_path / "text.wav").write_text("no recording")
    record(tmp_path / "empty.wav", 0)
    truncate(record(tmp_path / "broken.flac", 16000))
    with pytest.raises(ValueError, match=name):
        read_utterance(single_file(tmp_path / name))


def test_crops_travel_to_other_processes_without_their_table(crops):
    again = pickle.loads(pickle.dumps(crops))
    assert torch.equal(drawn(again, 1, 4)[0], drawn(crops, 1, 4)[0])
