"""Shards hold the same speech as the folder they were made from, for us and for any WebDataset reader."""

import gc
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import trees
import webdataset

from sv_sparse.data.audio import read_utterance
from sv_sparse.data.cnceleb import prepare_cnceleb
from sv_sparse.data.dataset import Crops, EpochBatches, make_loader
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.prepared import read_listed, select
from sv_sparse.data.shards import write_shards


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
        loaded.append(list(make_loader(crops, EpochBatches(len(rows), 4, 1), 0, "cpu")))
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
