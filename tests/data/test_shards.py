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
import trees
import webdataset

from sv_sparse.data.audio import read_utterance
from sv_sparse.data.augment import Augmentation
from sv_sparse.data.cnceleb import prepare_cnceleb
from sv_sparse.data.dataset import Crops
from sv_sparse.data.loader import CropLoader, EpochBatches
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.noise import build_store
from sv_sparse.data.prepared import read_listed, select
from sv_sparse.data.shards import write_shards
from sv_sparse.data.stream import ShardLoader


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A prepared corpus of FLAC and wav, with joined utterances, and its shards."""
    folder = tmp_path_factory.mktemp("shards")
    trees.write_cnceleb(folder / "root")
    for path in sorted((folder / "root").rglob("*-001.flac")):
        samples, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".wav"), samples, rate)
        path.unlink()
    prepare_cnceleb([folder / "root"], folder / "prepared", partial=True)
    write_shards(folder / "prepared", folder / "out", utterances=7)
    return folder / "prepared", folder / "out"


def test_every_utterance_is_the_same_and_lies_in_a_tar_file(folders):
    files, shards = (Manifest(folder / "manifest.parquet") for folder in folders)
    assert len(files) == len(shards)
    for row in range(len(files)):
        (part,) = shards.parts(row)
        assert part.path.endswith(".tar")
        assert part.offset > 0
        assert shards.utterance(row) == files.utterance(row)
        assert torch.equal(read_utterance(shards.parts(row)), read_utterance(files.parts(row)))
    names = ["utterance", "speaker", "session", "genre", "subset", "samples", "sample_rate", "split"]
    tables = [pq.read_table(folder / "manifest.parquet", columns=names) for folder in folders]
    assert tables[0].to_pylist() == tables[1].to_pylist()


def test_a_recording_that_was_damaged_since_is_named_and_left_out(folders, tmp_path, caplog):
    shutil.copytree(folders[0], tmp_path / "prepared")
    shutil.copytree(folders[0].parent / "root", tmp_path / "root")
    manifest = Manifest(tmp_path / "prepared" / "manifest.parquet")
    moved = pq.read_table(manifest.source)
    Manifest.write(manifest.source, moved, tmp_path)
    manifest = Manifest(manifest.source)
    paths = [Path(manifest.parts(row)[0].path) for row in range(len(manifest)) if len(manifest.parts(row)) == 1]
    damaged = [next(path for path in paths if path.suffix == ending) for ending in (".flac", ".wav")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write_shards(tmp_path / "prepared", tmp_path / "out", utterances=7)
    shards = Manifest(tmp_path / "out" / "manifest.parquet")
    assert len(shards) == len(manifest) - 2
    assert all(f"left out: {path}: " in caplog.text for path in damaged)
    for row in range(len(shards)):
        read_utterance(shards.parts(row))


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
        assert np.array_equal(found[shards.utterance(row)], read_utterance(shards.parts(row)).numpy())


def test_an_epoch_has_the_same_batches_from_files_and_from_shards(folders, tmp_path):
    loaded = []
    for number, folder in enumerate(folders):
        lists = read_listed(folder, ["cnceleb_average"])
        out = tmp_path / f"{number}.parquet"
        train = ["cn1_dev", "cn2_dev"]
        manifest = select(folder, train=train, lists=lists, validation_share=0.0, seed=0, out=out)
        rows = manifest.split("train")
        crops = Crops(manifest, rows, manifest.labels(rows), crop_samples=9000, seed=1)
        loaded.append(list(CropLoader(crops, EpochBatches(len(rows), 4, 1), 0, "cpu")))
    for one, other in zip(*loaded, strict=True):
        assert one.unreadable == other.unreadable == []
        assert torch.equal(one.waveforms, other.waveforms)
        assert torch.equal(one.labels, other.labels)


def test_a_shard_holds_many_speakers(folders):
    shards = pq.read_table(folders[1] / "manifest.parquet").to_pylist()
    first = {row["speaker"] for row in shards if row["parts"][0]["file"] == "cn_segments-000000.tar"}
    assert len(first) == 3


def test_shards_of_another_corpus_are_not_taken_for_this_ones(folders, tmp_path):
    prepared, _ = folders
    write_shards(prepared, tmp_path / "out", utterances=100)
    other = pq.read_table(prepared / "manifest.parquet")
    fewer = other.filter(np.array([name != "id00000" for name in other.column("speaker").to_pylist()]))
    Manifest.write(tmp_path / "other" / "manifest.parquet", fewer, Manifest(prepared / "manifest.parquet").root)
    with pytest.raises(ValueError, match=r"000000.tar: holds another corpus than .*other; remove it and run again"):
        write_shards(tmp_path / "other", tmp_path / "out", utterances=100)
    with pytest.raises(ValueError, match="expected another folder"):
        write_shards(prepared, prepared)


def test_a_shard_that_was_cut_is_named(folders, tmp_path):
    prepared, _ = folders
    write_shards(prepared, tmp_path / "out", utterances=100)
    manifest = Manifest(tmp_path / "out" / "manifest.parquet")
    row = max(range(len(manifest)), key=lambda row: manifest.parts(row)[0].offset)
    (part,) = manifest.parts(row)
    with open(part.path, "r+b") as file:
        file.truncate(part.offset + 10)
    with pytest.raises(ValueError, match=part.path):
        read_utterance(manifest.parts(row))


@pytest.fixture(scope="module")
def selected(folders, tmp_path_factory):
    """Crops of the training speakers, from files and from shards, with rooms, noises and speeds."""
    folder = tmp_path_factory.mktemp("selected")
    for kind in ("noise", "music", "speech", "simulated_rirs"):
        trees.write(folder / "sounds" / kind / "1.wav", kind)
    build_store([folder / "sounds"], folder / "store")
    augmentation = Augmentation(store=str(folder / "store"), probability=0.6, speeds=(1.0, 0.9), mask_probability=0.5)
    found = []
    for number, prepared in enumerate(folders):
        lists = read_listed(prepared, ["cnceleb_average"])
        out = folder / f"{number}.parquet"
        manifest = select(prepared, train=["cn1_dev", "cn2_dev"], lists=lists, validation_share=0.0, seed=0, out=out)
        rows = manifest.split("train")
        labels = manifest.labels(rows)
        found.append(Crops(manifest, rows, labels, crop_samples=9000, seed=1, augmentation=augmentation))
    return found


def heard(batches):
    """All that there is of each utterance: samples, speaker, speed, mask, room, noise and its level."""
    found = []
    for batch in batches:
        assert batch.unreadable == []
        extras = batch.extras
        rooms = dict(zip(extras.room_rows.tolist(), extras.rooms.numpy(), strict=True))
        noises = dict(zip(extras.noise_rows.tolist(), zip(extras.noises, extras.snr, strict=True), strict=True))
        for row, label in enumerate(batch.labels.tolist()):
            samples = np.trim_zeros(batch.waveforms[row].numpy(), "b").tobytes()
            room = np.trim_zeros(rooms.get(row, np.zeros(0)), "b").tobytes()
            noise = tuple(value.numpy().tobytes() for value in noises.get(row, ()))
            found.append((label, samples, int(extras.speed[row]), extras.mask[row].numpy().tobytes(), room, noise))
    return sorted(found)


def sizes(batches):
    return {len(batch.labels) for batch in batches}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_in_order_an_epoch_has_the_same_crops_as_from_files_in_batches_of_one_size(selected, workers):
    files, shards = selected
    size = 5
    assert len(files) % size  # the last batch is not whole
    batches = EpochBatches(len(files), size, 1)
    streamed = ShardLoader(shards, batches, workers, "cpu")
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
    return EpochBatches(len(crops), 2 * ranks, 1, rank=rank, ranks=ranks)


def test_ranks_read_shards_of_their_own_and_have_as_many_batches(selected):
    _, shards = selected
    batches = EpochBatches(len(shards), 2, 1)
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
        ShardLoader(files, EpochBatches(len(files), 2, 1), 0, "cpu")


def test_a_shard_that_breaks_off_or_is_gone_is_named(selected, folders, tmp_path):
    _, shards = selected
    batches = EpochBatches(len(shards), 2, 1)
    copy = tmp_path / "copy"
    shutil.copytree(folders[1], copy)
    names = shards.manifest.first_files(shards.rows).dictionary.to_pylist()
    table = pq.read_table(shards.manifest.source)
    manifest = Manifest.write(tmp_path / "run.parquet", table, copy)
    rows = manifest.split("train")
    moved = Crops(manifest, rows, manifest.labels(rows), crop_samples=9000, seed=1)
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
            list(ShardLoader(moved, EpochBatches(len(rows), 1, 1), 0, "cpu"))
    (copy / names[0]).unlink()
    with pytest.raises(FileNotFoundError, match=names[0]):
        list(ShardLoader(moved, batches, 0, "cpu"))
