"""Augmentation: what is drawn, what it does to the samples, and when it is off."""

import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from helpers.trees import RATE, noise

from sv_sparse.data.augment import NUM_BABBLE_SPEAKERS, SNR_RANGE_DB, Augmentation
from sv_sparse.data.augment_ops import AugmentOnDevice, add_reverb, mask_filterbank, speed_perturb
from sv_sparse.data.dataset import CropDataset
from sv_sparse.data.loader import CropLoader, EpochBatchSampler
from sv_sparse.data.noise import NOISE_KINDS, RIR, NoiseStore, build_noise_store
from sv_sparse.models.features import Filterbank

CROP = 8000


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """MUSAN's and RIRS_NOISES's folders, with a few recordings each."""
    root = tmp_path_factory.mktemp("noise") / "speech"  # a name that says nothing about what is deeper
    for kind in NOISE_KINDS:
        for number in range(3):
            write(root / "musan" / kind / "source" / f"{kind}-{number}.wav", noise(f"{kind}{number}", 0.3 + number))
    for number in range(4):
        response = noise(f"room{number}", 0.4) * np.exp(-np.arange(6400) / 300)
        response[50] = 3.0
        write(root / "RIRS_NOISES" / "simulated_rirs" / "smallroom" / "Room001" / f"Room001-{number}.wav", response)
    real = root / "RIRS_NOISES" / "real_rirs_isotropic_noises"
    write(real / "RVB2014_type1_rir_room1.wav", np.tile(response[:, None], (1, 8)))
    write(real / "RVB2014_type1_noise_room1.wav", noise("isotropic", 0.5))
    write(root / "RIRS_NOISES" / "pointsource_noises" / "noise-free.wav", noise("point", 0.5))
    out = root.parent / "store"
    assert build_noise_store([root], out) == {"noise": 5, "music": 3, "speech": 3, "rir": 5}
    return out


@pytest.fixture
def crops(corpus, tabulate):
    def make(augmentation, seed=3):
        manifest = tabulate(corpus, sorted(corpus.rglob("*.wav")))
        rows = manifest.split("train")
        labels = manifest.labels(rows)
        return CropDataset(manifest, rows, labels, crop_samples=CROP, seed=seed, augmentation=augmentation)

    return make


def drawn(crops, count=24, epoch=0):
    return crops.__getitems__([(epoch, position) for position in range(count)])


def test_a_room_has_unit_energy_begins_with_its_direct_sound_and_ends_where_it_is_silent(store):
    found = NoiseStore(store)
    for number in range(found.num(RIR)):
        room = found.rir(number)
        assert np.sum(room.astype(np.float64) ** 2) == pytest.approx(1, abs=1e-5)
        assert np.argmax(np.abs(room)) == 0
        assert 100 < len(room) < 6400


def test_a_sound_is_a_stretch_of_its_recording_and_begins_again_where_that_is_short(store):
    found = NoiseStore(store)
    whole = found.noise("music", 0, 0.0, int(0.3 * RATE))
    np.testing.assert_allclose(whole / 32768, noise("music0", 0.3), atol=1 / 32768)
    np.testing.assert_array_equal(found.noise("music", 0, 0.9, 6000), np.resize(whole, 6000))
    inside = found.noise("music", 2, 0.5, 1000) / 32768
    assert any(np.allclose(inside, noise("music2", 2.3)[k : k + 1000], atol=1 / 32768) for k in range(17_000, 19_000))
    assert pickle.loads(pickle.dumps(found)).num("music") == 3


def test_a_folder_that_is_no_store_and_one_without_noise_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"augment.noise_dir=.*: expected a folder made by: sv-sparse prepare noise"):
        NoiseStore(tmp_path)
    with pytest.raises(ValueError, match="found none"):
        build_noise_store([tmp_path], tmp_path / "out")


def test_a_build_that_fails_leaves_the_old_store_as_it_was(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    (tmp_path / "bad" / "noise").mkdir(parents=True)
    (tmp_path / "bad" / "noise" / "1.wav").write_bytes(b"no recording")
    with pytest.raises(ValueError, match=r"bad/noise/1.wav"):
        build_noise_store([tmp_path / "bad"], tmp_path / "store")
    assert NoiseStore(tmp_path / "store").num("music") == 3


def test_a_recording_that_cannot_be_read_is_named_and_left_out_of_the_store(tmp_path, caplog):
    write(tmp_path / "bad" / "noise" / "1.wav", noise("good", 0.5))
    (tmp_path / "bad" / "noise" / "2.wav").write_bytes(b"no recording")
    write(tmp_path / "bad" / "simulated_rirs" / "3.wav", np.zeros(100))
    assert build_noise_store([tmp_path / "bad"], tmp_path / "store") == {"noise": 1, "music": 0, "speech": 0, "rir": 0}
    assert "2.wav: cannot be read as a recording" in caplog.text
    assert "3.wav: a room response of zeros" in caplog.text


def test_half_of_what_is_augmented_gets_a_room_and_the_kinds_of_noise_are_equally_often(store):
    augmentation = Augmentation(noise_dir=str(store), aug_prob=0.6)
    plans = [augmentation.sample(0, epoch, f"id{n}") for epoch in range(20) for n in range(200)]
    kinds = Counter(plan.kind for plan in plans)
    assert kinds[""] / 4000 == pytest.approx(0.4, abs=0.03)
    assert kinds[RIR] / 4000 == pytest.approx(0.3, abs=0.03)
    for kind in NOISE_KINDS:
        own = [plan for plan in plans if plan.kind == kind]
        assert len(own) / 4000 == pytest.approx(0.1, abs=0.02)
        assert SNR_RANGE_DB[kind][0] <= min(p.snr for p in own) < max(p.snr for p in own) <= SNR_RANGE_DB[kind][1]
    assert {len(plan.recordings) for plan in plans if plan.kind == "speech"} == set(
        range(NUM_BABBLE_SPEAKERS[0], NUM_BABBLE_SPEAKERS[1] + 1)
    )


@pytest.mark.parametrize(
    ("folders", "kinds"),
    [
        (["noise"], {"noise"}),
        (["simulated_rirs"], {RIR}),
        (["music", "speech"], {"music", "speech"}),
        (["speech", "simulated_rirs"], {"speech", RIR}),
    ],
)
def test_kinds_that_a_folder_lacks_have_probability_zero(tmp_path, folders, kinds):
    for folder in folders:
        write(tmp_path / "given" / folder / "1.wav", noise(folder, 0.5))
    build_noise_store([tmp_path / "given"], tmp_path / "store")
    augmentation = Augmentation(noise_dir=str(tmp_path / "store"), aug_prob=0.6)
    assert {kind for kind, count in augmentation.counts.items() if count} == kinds
    plans = [augmentation.sample(0, 0, f"id{n}") for n in range(1000)]
    shares = Counter(plan.kind for plan in plans)
    assert set(shares) == {"", *kinds}
    assert shares[""] / 1000 == pytest.approx(0.4, abs=0.05)
    assert max(shares[kind] for kind in kinds) - min(shares[kind] for kind in kinds) < 80
    speech = torch.randint(-9000, 9000, (1000, 800), dtype=torch.int16)
    changed = AugmentOnDevice(800)(speech, augmentation.collate(plans, 800)) != speech / 32768
    assert changed.any(dim=1).tolist() == [plan.kind != "" for plan in plans]


def test_all_kinds_are_drawn_as_they_were_before_some_could_be_missing(store):
    augmentation = Augmentation(noise_dir=str(store), aug_prob=0.9, speed_perturb=[1.0, 0.9], spec_augment_prob=0.5)
    plans = [augmentation.sample(3, 1, f"id{n}") for n in range(6)]
    draws = [(plan.speed, plan.kind, plan.mask[1]) for plan in plans]
    assert draws == [(0, RIR, 0), (0, RIR, 0), (0, "noise", 0), (1, "noise", 0), (1, "noise", 4), (1, "music", 0)]
    assert plans[5].recordings == ((1, 0.8451934529352217),)
    assert plans[5].snr == 8.36034191426783


def test_a_transform_gets_the_crops_of_a_batch_and_draws_that_depend_on_seed_epoch_and_utterance_alone(crops):
    calls = []

    def transform(waveforms, generator):
        calls.append(waveforms.clone())
        return waveforms + torch.rand(waveforms.shape, generator=generator)

    dataset = crops(Augmentation(has_transform=True))
    mixer = AugmentOnDevice(CROP, transform=transform)
    batches = [drawn(dataset, 4), drawn(dataset, 4), drawn(dataset, 4, epoch=1), drawn(crops(None), 4)]
    first, again, later, plain = (mixer(batch.waveforms, batch.augmentation) for batch in batches)
    assert len(calls) == 3  # crops without augmentation have none
    assert torch.equal(calls[0], batches[0].waveforms / 32768)
    assert torch.equal(plain, batches[3].waveforms / 32768)
    assert torch.equal(first, again)
    assert not torch.allclose(first - calls[0], later - calls[2])


def test_a_draw_depends_on_seed_epoch_and_utterance_alone(store, crops):
    augmentation = Augmentation(noise_dir=str(store), aug_prob=0.9, speed_perturb=[1.0, 0.9, 1.1])
    one, two = (crops(augmentation) for _ in range(2))
    assert [augmentation.sample(3, 1, f"id{n}") for n in range(9)] == [
        augmentation.sample(3, 1, f"id{n}") for n in range(9)
    ]
    forwards, backwards = drawn(one), two.__getitems__([(0, position) for position in reversed(range(24))])
    for row in range(24):
        other = 23 - row
        count = min(forwards.waveforms.shape[1], backwards.waveforms.shape[1])
        assert torch.equal(forwards.waveforms[row, :count], backwards.waveforms[other, :count])
        assert forwards.labels[row] == backwards.labels[other]
    mixer = AugmentOnDevice(CROP, augmentation.speeds)
    mixed, mixed_backwards = (
        mixer(forwards.waveforms, forwards.augmentation),
        mixer(backwards.waveforms, backwards.augmentation),
    )
    torch.testing.assert_close(mixed, mixed_backwards.flip(0), atol=1e-5, rtol=1e-4)
    assert not torch.equal(mixed, mixer(*drawn(one, epoch=1)[::3]))


def test_a_batch_is_mixed_as_its_utterances_are_one_by_one(store):
    augmentation, mixer = Augmentation(noise_dir=str(store), aug_prob=0.9), AugmentOnDevice(CROP)
    plans = [augmentation.sample(0, 0, f"id{n}") for n in range(50)]
    speech = torch.randint(-9000, 9000, (50, CROP), dtype=torch.int16)
    alone = [mixer(speech[row : row + 1], augmentation.collate([plan], CROP)) for row, plan in enumerate(plans)]
    torch.testing.assert_close(mixer(speech, augmentation.collate(plans, CROP)), torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_workers_draw_the_same(store, crops):
    dataset = crops(Augmentation(noise_dir=str(store), aug_prob=0.9, speed_perturb=[1.0, 1.1]))
    alone, together = (list(CropLoader(dataset, EpochBatchSampler(24, 8, 0), workers, "cpu")) for workers in (0, 1))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.waveforms, other.waveforms)
        assert all(torch.equal(a, b) for a, b in zip(one.augmentation, other.augmentation, strict=True))


def test_what_is_added_goes_to_a_device_and_what_says_how_to_do_it_stays(store):
    augmentation = Augmentation(noise_dir=str(store), aug_prob=1.0, speed_perturb=[1.0, 0.9])
    extras = augmentation.collate([augmentation.sample(0, 0, f"id{n}") for n in range(9)], CROP)
    moved = extras.to("meta")._asdict()
    assert moved.pop("speed") is extras.speed
    assert moved.pop("seed") is extras.seed
    assert {value.device.type for value in moved.values()} == {"meta"}


def test_every_speed_makes_new_speakers(crops):
    dataset = crops(Augmentation(speed_perturb=[1.0, 0.9, 1.1]))
    batch = drawn(dataset)
    assert dataset.num_speakers == 18
    own = torch.from_numpy(dataset.labels[:24])
    assert torch.equal(batch.labels, own + 6 * batch.augmentation.speed)
    assert set(batch.augmentation.speed.tolist()) == {0, 1, 2}
    assert AugmentOnDevice(CROP, (1.0, 0.9, 1.1))(batch.waveforms, batch.augmentation).shape == (24, CROP)


def test_mixed_precision_around_it_changes_nothing(store, crops):
    augmentation = Augmentation(
        noise_dir=str(store), aug_prob=0.8, speed_perturb=[1.0, 0.9, 1.1], spec_augment_prob=1.0
    )
    batch, mixer, filterbank = drawn(crops(augmentation)), AugmentOnDevice(CROP, augmentation.speeds), Filterbank()
    assert len(batch.augmentation.rir_rows) > 0
    assert len(batch.augmentation.noise_rows) > 0
    assert set(batch.augmentation.speed.tolist()) == {0, 1, 2}

    def features() -> tuple[torch.Tensor, torch.Tensor]:
        waveforms = mixer(batch.waveforms, batch.augmentation)
        return waveforms, mask_filterbank(filterbank(waveforms), batch.augmentation.mask)

    plain = features()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
        for around, expected in zip(features(), plain, strict=True):
            assert around.dtype == torch.float32
            assert torch.equal(around, expected)


def test_speeds_and_rooms_by_themselves_are_computed_in_float32_whatever_is_around():
    speech, rooms = torch.randn(3, CROP), torch.randn(3, 700) * torch.exp(-torch.arange(700) / 80)
    expected = speed_perturb(speech, 0.9), add_reverb(speech, rooms)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(speed_perturb(speech, 0.9), expected[0])
        assert torch.equal(add_reverb(speech, rooms), expected[1])
    halves = speech.bfloat16()
    assert speed_perturb(halves, 0.9).dtype == add_reverb(halves, rooms.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_a_faster_voice_is_higher_by_the_speed(speed):
    time = torch.arange(20_000) / RATE
    audio = speed_perturb(torch.sin(2 * np.pi * 1000 * time)[None], speed)
    assert audio.shape[1] == pytest.approx(20_000 / speed, abs=1)
    peak = torch.fft.rfft(audio[0, 1000:9000] * torch.hann_window(8000)).abs().argmax() * RATE / 8000
    assert peak == pytest.approx(1000 * speed, abs=2)


def test_a_crop_at_another_speed_has_no_silence_at_its_end(tmp_path, tabulate):
    write(tmp_path / "a" / "s" / "1.wav", noise("long", 2.0))
    manifest = tabulate(tmp_path, [tmp_path / "a" / "s" / "1.wav"])
    speeds = [1.0, 0.9, 1.1]
    rows = np.zeros(40, dtype=np.int64)
    dataset = CropDataset(
        manifest, rows, rows, crop_samples=CROP, seed=0, augmentation=Augmentation(speed_perturb=speeds)
    )
    batch = dataset.__getitems__([(epoch, 0) for epoch in range(12)])
    audio = AugmentOnDevice(CROP, speeds)(batch.waveforms, batch.augmentation)
    assert set(batch.augmentation.speed.tolist()) == {0, 1, 2}
    assert (audio[:, -50:].abs().amax(dim=1) > 0.05).all()


def test_noise_has_its_level_below_the_speech(store):
    augmentation = Augmentation(noise_dir=str(store), aug_prob=1.0)
    plans = [plan for n in range(60) if (plan := augmentation.sample(0, 0, f"id{n}")).kind in NOISE_KINDS]
    extras = augmentation.collate(plans, CROP)
    speech = torch.randint(-9000, 9000, (len(plans), CROP), dtype=torch.int16)
    added = AugmentOnDevice(CROP)(speech, extras) - speech / 32768
    level = 10 * torch.log10((speech / 32768).square().mean(1) / added.square().mean(1))
    torch.testing.assert_close(level, torch.tensor([plan.snr for plan in plans]), atol=0.01, rtol=0)


def test_noise_of_digital_silence_changes_nothing(tmp_path, store):
    for kind in NOISE_KINDS:
        write(tmp_path / kind / "zero.wav", np.zeros(9000))
    write(tmp_path / "simulated_rirs" / "one.wav", np.array([1.0, 0.0]))
    build_noise_store([tmp_path], tmp_path / "out")
    augmentation = Augmentation(noise_dir=str(tmp_path / "out"), aug_prob=1.0)
    plans = [augmentation.sample(0, 0, f"id{n}") for n in range(20)]
    speech = torch.randint(-9000, 9000, (20, CROP), dtype=torch.int16)
    torch.testing.assert_close(AugmentOnDevice(CROP)(speech, augmentation.collate(plans, CROP)), speech / 32768)


def test_a_room_is_a_convolution_as_long_and_as_loud_as_the_speech():
    speech, rooms = torch.randn(3, CROP), torch.randn(3, 700) * torch.exp(-torch.arange(700) / 80)
    audio = add_reverb(speech, rooms)
    for row in range(3):
        plain = np.convolve(speech[row].double().numpy(), rooms[row].double().numpy())[:CROP]
        plain *= speech[row].abs().max().item() / np.abs(plain).max()
        np.testing.assert_allclose(audio[row].numpy(), plain, atol=1e-4)


def test_without_augmentation_samples_are_left_alone(crops):
    batch = drawn(crops(None))
    assert batch.augmentation is None
    assert torch.equal(AugmentOnDevice(CROP)(batch.waveforms, None), batch.waveforms / 32768)
    assert drawn(crops(Augmentation(speed_perturb=[1.0, 0.9])).without_augmentation()).augmentation is None


def test_masks_hide_some_frames_and_bins_and_nothing_else():
    augmentation = Augmentation(spec_augment_prob=1.0)
    plans = [augmentation.sample(0, 0, f"id{n}") for n in range(50)]
    filterbank = torch.rand(50, 80, 200) + 1
    masked = mask_filterbank(filterbank, augmentation.collate(plans, CROP).mask)
    for row, (_, frames, _, bins) in enumerate(plan.mask for plan in plans):
        hidden = masked[row] == 0
        assert int(hidden.all(0).sum()) == frames
        assert int(hidden.all(1).sum()) == bins
        assert torch.equal(masked[row][~hidden], filterbank[row][~hidden])
    assert {plan.mask[1] for plan in plans} == set(range(11))
    assert torch.equal(mask_filterbank(filterbank, torch.zeros(50, 4)), filterbank)
