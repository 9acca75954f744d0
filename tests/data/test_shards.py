"""Shards hold the same speech as the folder they were made from, for us and for any WebDataset reader."""

import gc
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import webdataset
from helpers import trees

from sv_sparse.data.audio import read_utterance
from sv_sparse.data.augment import Augmentation
from sv_sparse.data.corpora.cnceleb import prepare_cnceleb
from sv_sparse.data.dataset import CropDataset
from sv_sparse.data.loader import CropLoader, EpochBatchSampler
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.noise import build_noise_store
from sv_sparse.data.prepared import load_trial_sets, write_run_manifest
from sv_sparse.data.shard_loader import ShardLoader
from sv_sparse.data.shards import write_shards
from sv_sparse.data.unreadable import UnreadableLimit


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A prepared corpus of FLAC and wav, with joined utterances, and its shards."""
    folder = tmp_path_factory.mktemp("shards")
    trees.write_cnceleb(folder / "root")
    for path in sorted((folder / "root").rglob("*-001.flac")):
        samples, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".wav"), samples, rate)
        path.unlink()
    prepare_cnceleb([folder / "root"], folder / "prepared", allow_partial=True)
    write_shards(folder / "prepared", folder / "out", utts_per_shard=7)
    return folder / "prepared", folder / "out"


def test_every_utterance_is_the_same_and_lies_in_a_tar_file(folders):
    files, shards = (Manifest(folder / "manifest.parquet") for folder in folders)
    assert len(files) == len(shards)
    for row in range(len(files)):
        (part,) = shards.segments(row)
        assert part.path.endswith(".tar")
        assert part.offset > 0
        assert shards.utterance(row) == files.utterance(row)
        assert torch.equal(read_utterance(shards.segments(row)), read_utterance(files.segments(row)))
    names = ["utterance", "speaker", "session", "genre", "subset", "samples", "sample_rate", "split"]
    tables = [pq.read_table(folder / "manifest.parquet", columns=names) for folder in folders]
    assert tables[0].to_pylist() == tables[1].to_pylist()


@pytest.fixture
def moved(folders, tmp_path):
    """The manifest of a copy of the prepared corpus, with a copy of its recordings."""
    shutil.copytree(folders[0], tmp_path / "prepared")
    shutil.copytree(folders[0].parent / "root", tmp_path / "root")
    source = tmp_path / "prepared" / "manifest.parquet"
    return Manifest.write(source, pq.read_table(source), tmp_path)


def files_of(manifest, ending):
    """Rows and paths of the utterances that are one file with this ending."""
    several = ((row, manifest.segments(row)) for row in range(len(manifest)))
    return [(row, Path(parts[0].path)) for row, parts in several if len(parts) == 1 and parts[0].path.endswith(ending)]


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def silence(path):
    soundfile.write(path, np.zeros(soundfile.info(path).frames), 16000)


def test_a_recording_that_cannot_be_used_is_named_left_out_and_tried_again(moved, tmp_path, caplog):
    bad = [files_of(moved, ending)[place] for ending in (".flac", ".wav") for place in (0, 1)]
    rows = [row for row, _ in bad]
    content = [path.read_bytes() for _, path in bad]
    for (_, path), spoil in zip(bad, [half, silence, half, silence], strict=True):
        spoil(path)
    out = tmp_path / "out"
    write_shards(tmp_path / "prepared", out, utts_per_shard=7)
    assert all(f"left out: {path}: " in caplog.text for _, path in bad)
    assert all(f"left out: {path}: holds nothing but silence" in caplog.text for _, path in bad[1::2])
    shards = Manifest(out / "manifest.parquet")
    assert len(shards) == len(moved)
    assert np.flatnonzero(shards.samples == 0).tolist() == sorted(rows)
    before = [shards.segments(row) for row in range(len(shards))]
    for row in np.flatnonzero(shards.samples):
        assert torch.equal(read_utterance(before[row]), read_utterance(moved.segments(row)))
    for (_, path), whole in zip(bad, content, strict=True):
        path.write_bytes(whole)
    write_shards(tmp_path / "prepared", out, utts_per_shard=7)
    shards = Manifest(out / "manifest.parquet")
    for row in range(len(shards)):
        assert torch.equal(read_utterance(shards.segments(row)), read_utterance(moved.segments(row)))
        assert row in rows or shards.segments(row) == before[row]  # which the manifests of earlier runs point at
    assert not list(out.glob(".*.part"))
    unchanged = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.tar")}
    write_shards(tmp_path / "prepared", out, utts_per_shard=7)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.tar")} == unchanged


def test_lists_of_shards_know_recordings_that_were_left_out_and_no_run_trains_on_them(moved, tmp_path):
    def trained_on(prepared):
        lists = load_trial_sets(prepared, ["cnceleb_average"])
        train = ["cn1_dev", "cn2_dev"]
        run = write_run_manifest(
            prepared, train_subsets=train, trial_sets=lists, val_fraction=0.0, seed=0, out=tmp_path / "run.parquet"
        )
        return {run.utterance(row) for row in range(len(run))}

    (complete,) = load_trial_sets(tmp_path / "prepared", ["cnceleb_average"])
    path_of = {moved.utterance(row): path for row, path in files_of(moved, ".flac") + files_of(moved, ".wav")}
    trained = trained_on(tmp_path / "prepared")
    bad_trained = next(name for name in path_of if name in trained)
    bad_tested = next(name for name in path_of if name in complete.trials.utterances)
    for name in (bad_trained, bad_tested):
        half(path_of[name])
    write_shards(tmp_path / "prepared", tmp_path / "out")
    (one,) = load_trial_sets(tmp_path / "out", ["cnceleb_average"])
    place = one.trials.utterances.index(bad_tested)
    assert [position for position, seconds in enumerate(one.seconds) if not seconds] == [place]
    assert one.concat_enrollments().seconds[len(one.trials.utterances) :].count(0) == sum(
        place in members for members in one.trials.models.values()
    )
    assert trained - trained_on(tmp_path / "out") == {bad_trained}


def test_too_many_recordings_that_cannot_be_used_end_it_and_the_next_call_goes_on(moved, tmp_path):
    row, path = files_of(moved, ".flac")[0]
    whole = path.read_bytes()
    half(path)
    strict = UnreadableLimit(0.0, "--max-unreadable ")
    message = f"^--max-unreadable 0.0: 1 of {len(moved)} recordings cannot be used; first {path}: "
    for _ in range(2):  # a shard without it is not taken for whole
        with pytest.raises(ValueError, match=message):
            write_shards(tmp_path / "prepared", tmp_path / "out", limit=strict)
        assert not (tmp_path / "out" / "manifest.parquet").exists()
    path.write_bytes(whole)
    write_shards(tmp_path / "prepared", tmp_path / "out", limit=strict)
    shards = Manifest(tmp_path / "out" / "manifest.parquet")
    assert torch.equal(read_utterance(shards.segments(row)), read_utterance(moved.segments(row)))


@pytest.mark.parametrize("ending", [".flac", ".wav"])
def test_a_disk_that_is_away_ends_it_and_leaves_no_shard_without_its_recordings(moved, tmp_path, ending):
    for row in range(len(moved)):
        for part in moved.segments(row):
            if part.path.endswith(ending):
                Path(part.path).unlink(missing_ok=True)
    with pytest.raises((ValueError, OSError), match=f"{ending}.*No such file|No such file.*{ending}"):
        write_shards(tmp_path / "prepared", tmp_path / "out", utts_per_shard=100)
    assert not list((tmp_path / "out").glob("cn*_dev*.tar"))
    assert not (tmp_path / "out" / "manifest.parquet").exists()


@pytest.mark.parametrize("place", [-1, -2, -4])
def test_a_shard_that_broke_off_is_filled_up_or_refused_by_name(moved, tmp_path, place):
    out = tmp_path / "out"
    write_shards(tmp_path / "prepared", out, utts_per_shard=100)
    path = sorted(out.glob("*.tar"))[0]
    whole = path.read_bytes()
    with tarfile.open(path) as shard:
        cut = shard.getmembers()[place].offset
    path.write_bytes(whole[:cut])
    write_shards(tmp_path / "prepared", out, utts_per_shard=100)
    assert path.read_bytes().rstrip(b"\0") == whole.rstrip(b"\0")
    path.write_bytes(whole[: cut + tarfile.BLOCKSIZE + 10])
    with pytest.raises(ValueError, match=rf"{path}: cannot be read as a shard \(.*\); remove it and run again"):
        write_shards(tmp_path / "prepared", out, utts_per_shard=100)


def test_shards_of_another_size_are_refused_by_name(folders, tmp_path):
    out = shutil.copytree(folders[1], tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"000000.tar: was made with another --utts-per-shard; remove it and run again"
    ):
        write_shards(folders[0], out, utts_per_shard=5)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the reader leaves files to the collector
def test_any_webdataset_reader_reads_them(folders):
    shards = Manifest(folders[1] / "manifest.parquet")
    found = {}
    paths = sorted(str(path) for path in folders[1].glob("*.tar"))
    for sample in webdataset.WebDataset(paths, shardshuffle=False):
        about = json.loads(sample["json"])
        samples, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")
        assert rate == 16000
        assert len(samples) == about["samples"]
        found[about["utterance"]] = samples
    gc.collect()
    assert len(found) == len(shards)
    for row in range(len(shards)):
        assert np.array_equal(found[shards.utterance(row)], read_utterance(shards.segments(row)).numpy())


def test_an_epoch_has_the_same_batches_from_files_and_from_shards(folders, tmp_path):
    loaded = []
    for number, folder in enumerate(folders):
        lists = load_trial_sets(folder, ["cnceleb_average"])
        out = tmp_path / f"{number}.parquet"
        train = ["cn1_dev", "cn2_dev"]
        manifest = write_run_manifest(folder, train_subsets=train, trial_sets=lists, val_fraction=0.0, seed=0, out=out)
        rows = manifest.split("train")
        crops = CropDataset(manifest, rows, manifest.labels(rows), crop_samples=9000, seed=1)
        loaded.append(list(CropLoader(crops, EpochBatchSampler(len(rows), 4, 1), 0, "cpu")))
    for one, other in zip(*loaded, strict=True):
        assert one.unreadable == other.unreadable == []
        assert torch.equal(one.waveforms, other.waveforms)
        assert torch.equal(one.labels, other.labels)


def test_a_shard_holds_many_speakers(folders):
    shards = pq.read_table(folders[1] / "manifest.parquet").to_pylist()
    first = {row["speaker"] for row in shards if row["segments"][0]["file"] == "cn_segments-000000.tar"}
    assert len(first) == 3


def test_shards_of_another_corpus_are_not_taken_for_this_ones(folders, tmp_path):
    prepared, _ = folders
    write_shards(prepared, tmp_path / "out", utts_per_shard=100)
    other = pq.read_table(prepared / "manifest.parquet")
    fewer = other.filter(np.array([name != "id00000" for name in other.column("speaker").to_pylist()]))
    Manifest.write(tmp_path / "other" / "manifest.parquet", fewer, Manifest(prepared / "manifest.parquet").root)
    with pytest.raises(ValueError, match=r"000000.tar: holds another corpus than .*other; remove it and run again"):
        write_shards(tmp_path / "other", tmp_path / "out", utts_per_shard=100)
    with pytest.raises(ValueError, match="expected another folder"):
        write_shards(prepared, prepared)


def test_a_shard_that_was_cut_is_named(folders, tmp_path):
    prepared, _ = folders
    write_shards(prepared, tmp_path / "out", utts_per_shard=100)
    manifest = Manifest(tmp_path / "out" / "manifest.parquet")
    row = max(range(len(manifest)), key=lambda row: manifest.segments(row)[0].offset)
    (part,) = manifest.segments(row)
    with open(part.path, "r+b") as file:
        file.truncate(part.offset + 10)
    with pytest.raises(ValueError, match=part.path):
        read_utterance(manifest.segments(row))


@pytest.fixture(scope="module")
def selected(folders, tmp_path_factory):
    """CropDataset of the training speakers, from files and from shards, with rooms, noises and speeds."""
    folder = tmp_path_factory.mktemp("selected")
    for kind in ("noise", "music", "speech", "simulated_rirs"):
        trees.write(folder / "sounds" / kind / "1.wav", kind)
    build_noise_store([folder / "sounds"], folder / "store")
    augmentation = Augmentation(
        noise_dir=str(folder / "store"), aug_prob=0.6, speed_perturb=(1.0, 0.9), spec_augment_prob=0.5
    )
    found = []
    for number, prepared in enumerate(folders):
        lists = load_trial_sets(prepared, ["cnceleb_average"])
        out = folder / f"{number}.parquet"
        manifest = write_run_manifest(
            prepared, train_subsets=["cn1_dev", "cn2_dev"], trial_sets=lists, val_fraction=0.0, seed=0, out=out
        )
        rows = manifest.split("train")
        labels = manifest.labels(rows)
        found.append(CropDataset(manifest, rows, labels, crop_samples=9000, seed=1, augmentation=augmentation))
    return found


def heard(batches):
    """All that there is of each utterance: samples, speaker, speed, mask, room, noise and its level."""
    found = []
    for batch in batches:
        assert batch.unreadable == []
        extras = batch.augmentation
        rooms = dict(zip(extras.rir_rows.tolist(), extras.rirs.numpy(), strict=True))
        noises = dict(zip(extras.noise_rows.tolist(), zip(extras.noises, extras.snr, strict=True), strict=True))
        for row, label in enumerate(batch.labels.tolist()):
            samples = np.trim_zeros(batch.waveforms[row].numpy(), "b").tobytes()
            room = np.trim_zeros(rooms.get(row, np.zeros(0)), "b").tobytes()
            noise = tuple(value.numpy().tobytes() for value in noises.get(row, ()))
            found.append((label, samples, int(extras.speed[row]), extras.mask[row].numpy().tobytes(), room, noise))
    return sorted(found)


def sizes(batches):
    return {len(batch.labels) for batch in batches}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_in_order_an_epoch_has_the_same_crops_as_from_files_in_batches_of_one_size(selected, num_workers):
    files, shards = selected
    size = 5
    assert len(files) % size  # the last batch is not whole
    batches = EpochBatchSampler(len(files), size, 1)
    streamed = ShardLoader(shards, batches, num_workers, "cpu")
    orders = []
    for epoch in (0, 3):
        batches.epoch = epoch
        found = list(streamed)
        expected = list(CropLoader(files, batches, 0, "cpu"))
        assert all(any(one[kind] for one in heard(expected)) for kind in (4, 5))  # rooms and noises
        assert sizes(found) == {size}
        assert heard(found) == heard(expected)
        orders.append([batch.labels.tolist() for batch in found])
        assert [batch.labels.tolist() for batch in streamed] == orders[-1]
        batches.start = 2
        assert [batch.labels.tolist() for batch in streamed] == orders[-1][2:]
        batches.start = 0
    assert orders[0] != orders[1]


def of_rank(crops, rank, ranks):
    return EpochBatchSampler(len(crops), 2 * ranks, 1, rank=rank, world_size=ranks)


def test_ranks_read_shards_of_their_own_and_have_as_many_batches(selected):
    _, shards = selected
    batches = EpochBatchSampler(len(shards), 2, 1)
    whole = heard(ShardLoader(shards, batches, 0, "cpu"))
    loaded = [list(ShardLoader(shards, of_rank(shards, rank, 2), 0, "cpu")) for rank in range(2)]
    parts = [heard(found) for found in loaded]
    assert len(loaded[0]) == len(loaded[1]) > 0
    assert not set(parts[0]) & set(parts[1])
    assert set(parts[0]) | set(parts[1]) <= set(whole)
    with pytest.raises(ValueError, match="8 processes need as many shards"):
        ShardLoader(shards, of_rank(shards, 0, 8), 0, "cpu")


def test_files_of_their_own_are_not_read_in_order(selected):
    files, _ = selected
    with pytest.raises(ValueError, match="are files of their own; make shards by: sv-sparse shard"):
        ShardLoader(files, EpochBatchSampler(len(files), 2, 1), 0, "cpu")


def test_a_shard_that_breaks_off_or_is_gone_is_named(selected, folders, tmp_path):
    _, shards = selected
    batches = EpochBatchSampler(len(shards), 2, 1)
    copy = tmp_path / "copy"
    shutil.copytree(folders[1], copy)
    names = shards.manifest.first_files(shards.rows).dictionary.to_pylist()
    table = pq.read_table(shards.manifest.source)
    manifest = Manifest.write(tmp_path / "run.parquet", table, copy)
    rows = manifest.split("train")
    moved = CropDataset(manifest, rows, manifest.labels(rows), crop_samples=9000, seed=1)
    with tarfile.open(copy / names[0]) as shard:
        members = shard.getmembers()
    for place, message in (
        (members[-1].offset_data + 100, "cannot be read as a shard"),
        (members[-1].offset, "utterances are missing, such as .*; remove it and run sv-sparse shard again"),
        (members[-2].offset, "utterances are missing"),
        (members[1].offset, "utterances are missing"),
    ):
        with open(copy / names[0], "r+b") as file:
            file.truncate(place)
        with pytest.raises(ValueError, match=f"{names[0]}: .*{message}"):
            list(ShardLoader(moved, EpochBatchSampler(len(rows), 1, 1), 0, "cpu"))
    (copy / names[0]).unlink()
    with pytest.raises(FileNotFoundError, match=names[0]):
        list(ShardLoader(moved, batches, 0, "cpu"))
