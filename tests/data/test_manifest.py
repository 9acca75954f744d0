import errno
import os
import pickle
import shutil
import tempfile
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sv_sparse.data import mmap_table
from sv_sparse.data.manifest import SCHEMA, AudioSegment, Manifest, match_utterances

COLUMNS = {
    "utterance": ["b/s/1.wav", "a/s/1.wav", "c/s/1.flac", "a/s/2.wav", "c/t/1.wav"],
    "speaker": ["b", "a", "c", "a", "c"],
    "session": ["s", "s", "s", "s", "t"],
    "genre": ["vlog", "vlog", "drama", "", ""],
    "subset": ["", "", "", "", ""],
    "samples": [100, 200, 300, 400, 500],
    "sample_rate": [16000, 16000, 8000, 16000, 16000],
    "channels": [1, 1, 2, 1, 1],
    "segments": [
        [{"file": f"wav/{name}", "samples": samples, "offset": 0, "size": 9, "pcm_offset": -1}]
        for name, samples in (("b.wav", 100), ("a.wav", 200), ("c.flac", 300), ("a2.wav", 400), ("c2.wav", 500))
    ],
    "split": ["train", "train", "validation", "train", "test"],
}


@pytest.fixture
def manifest(tmp_path):
    return Manifest.write(tmp_path / "new" / "manifest.parquet", pa.table(COLUMNS), tmp_path / "speech")


def test_what_is_written_reads_back(manifest, tmp_path):
    again = Manifest(manifest.source)
    assert len(again) == 5
    assert again.samples.tolist() == COLUMNS["samples"]
    assert again.sample_rate.tolist() == COLUMNS["sample_rate"]
    assert again.utterance(3) == "a/s/2.wav"
    assert again.segments(3) == [AudioSegment(str(tmp_path / "speech" / "wav" / "a2.wav"), 400, 0, 9, -1)]
    assert [again.genre(row) for row in range(5)] == COLUMNS["genre"]


def test_genre_and_subset_are_empty_where_they_are_left_out(tmp_path):
    table = pa.table(COLUMNS).drop_columns(["genre", "subset"])
    assert Manifest.write(tmp_path / "manifest.parquet", table, tmp_path).genre(0) == ""


def test_a_relative_root_is_stored_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest = Manifest.write("manifest.parquet", pa.table(COLUMNS), "speech")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(manifest)).segments(0)[0].path == str(tmp_path / "speech" / "wav" / "b.wav")


def test_columns_made_of_pieces_are_joined(tmp_path):
    table = pa.concat_tables([pa.table(COLUMNS).slice(0, 2), pa.table(COLUMNS).slice(2)])
    manifest = Manifest.write(tmp_path / "manifest.parquet", table, tmp_path)
    assert manifest.labels(np.arange(5)).tolist() == [1, 0, 2, 0, 2]


def test_a_split_is_the_ascending_rows_that_carry_its_name(manifest):
    assert manifest.split("train").tolist() == [0, 1, 3]
    assert manifest.split("test").tolist() == [4]
    assert manifest.split("unused").tolist() == []


def test_an_unknown_split_lists_the_choices(manifest):
    with pytest.raises(ValueError, match="split='dev': expected one of train, validation, test, unused"):
        manifest.split("dev")


def test_a_label_is_the_position_in_the_sorted_speakers_of_the_split(manifest):
    rows = manifest.split("train")
    assert manifest.speakers("train") == ["a", "b"]
    assert manifest.labels(rows).tolist() == [1, 0, 0]
    assert manifest.labels(rows).dtype == np.int64


def test_labels_are_contiguous_within_the_rows_given(manifest):
    assert manifest.labels(np.array([2, 0, 4])).tolist() == [1, 0, 1]


def test_rows_follow_the_order_of_the_utterances_asked_for(manifest):
    assert manifest.rows(["c/t/1.wav", "b/s/1.wav", "c/t/1.wav"]).tolist() == [4, 0, 4]


def test_a_list_that_says_wav_finds_the_flac(manifest):
    assert manifest.rows(["a/s/1.wav", "c/s/1.wav"]).tolist() == [1, 2]


def test_an_ending_that_leaves_a_choice_is_missing():
    assert match_utterances(["a.wav", "a.ogg"], pa.array(["a.flac", "a.opus", "a.ogg"])).tolist() == [-1, 2]


def test_dots_in_a_folder_or_a_name_are_no_ending():
    assert match_utterances(["a.b/c", "a/b.c.wav"], pa.array(["a/c.wav", "a/b.flac", "a/b.c.flac"])).tolist() == [-1, 2]


def test_composed_and_decomposed_names_are_one_name_unless_both_are_there():
    composed, decomposed = (unicodedata.normalize(form, "Zoë/1.wav") for form in ("NFC", "NFD"))
    assert match_utterances([composed], pa.array(["a/1.wav", decomposed])).tolist() == [1]
    assert match_utterances([decomposed], pa.array([composed])).tolist() == [0]
    assert match_utterances([decomposed.replace("wav", "ogg")], pa.array([composed])).tolist() == [0]
    assert match_utterances([composed, decomposed], pa.array([decomposed, composed])).tolist() == [1, 0]


def test_missing_utterances_are_counted_and_the_first_are_named(manifest):
    with pytest.raises(ValueError, match=r"manifest.parquet: 4 of 5 utterances are missing; first v, w, x$"):
        manifest.rows(["a/s/1.wav", "v", "w", "x", "y"])


def test_pickling_keeps_the_path_alone(manifest):
    pickled = pickle.dumps(manifest)
    assert len(pickled) < 500
    again = pickle.loads(pickled)
    assert again.segments(2) == manifest.segments(2)
    assert again.labels(np.arange(5)).tolist() == manifest.labels(np.arange(5)).tolist()


def test_columns_are_views_of_the_mapped_file(manifest):
    assert not manifest.samples.flags.owndata
    assert pa.total_allocated_bytes() < 2**20


def refused(tmp_path, columns):
    return Manifest.write(tmp_path / "manifest.parquet", pa.table(columns), tmp_path)


def test_duplicates_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.parquet: 1 utterances occur more than once; first a/s/1.wav"):
        refused(tmp_path, COLUMNS | {"utterance": ["a/s/1.wav", "a/s/1.wav", "x", "y", "z"]})


def test_an_empty_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.parquet: the manifest is empty"):
        refused(tmp_path, {name: values[:0] for name, values in COLUMNS.items()})


def test_utterances_without_samples_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.parquet: the manifest has utterances without samples"):
        refused(tmp_path, COLUMNS | {"samples": [1, 2, 3, 0, 5]})
    with pytest.raises(ValueError, match=r"manifest.parquet: the manifest has utterances without samples"):
        refused(tmp_path, COLUMNS | {"samples": [1, 2, 0, 4, 5]})


def test_utterances_without_samples_stay_where_nothing_trains_on_them(tmp_path):
    columns = COLUMNS | {"samples": [100, 200, 300, 0, 0], "split": ["train", "train", "validation", "unused", "test"]}
    manifest = Manifest.write(tmp_path / "manifest.parquet", pa.table(columns), tmp_path)
    assert manifest.samples.tolist() == columns["samples"]


def test_unknown_splits_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.parquet: splits are .*; found dev$"):
        refused(tmp_path, COLUMNS | {"split": ["train", "dev", "test", "test", "test"]})


def parquet_file(path, table):
    pq.write_table(table, path)
    return path


def test_missing_columns_are_named(tmp_path):
    path = parquet_file(tmp_path / "m.parquet", pa.table(COLUMNS).drop_columns(["split", "samples"]))
    with pytest.raises(ValueError, match=r"m.parquet: not a manifest, it lacks samples, split"):
        Manifest(path)


def test_a_table_without_its_root_is_refused(tmp_path):
    path = parquet_file(tmp_path / "m.parquet", pa.table(COLUMNS).cast(SCHEMA))
    with pytest.raises(ValueError, match=r"m.parquet: not a manifest, it lacks the root folder"):
        Manifest(path)


def test_empty_cells_are_refused(tmp_path):
    columns = pa.table(COLUMNS | {"session": ["s", None, "s", "s", "t"]})
    schema = pa.schema([field.with_nullable(True) for field in SCHEMA]).with_metadata({"root": "/"})
    path = parquet_file(tmp_path / "m.parquet", columns.cast(schema))
    with pytest.raises(ValueError, match=r"m.parquet: not a manifest \(.*session"):
        Manifest(path)


@pytest.mark.parametrize("content", [b"", b"id10001 id10001/a/00001.wav\n" * 9])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"list.txt: not a manifest"):
        Manifest(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Manifest(tmp_path / "nowhere")


def test_a_newer_manifest_is_not_served_from_an_old_copy(manifest, tmp_path):
    other = {name: values[:2] for name, values in COLUMNS.items()}
    assert len(Manifest.write(manifest.source, pa.table(other), tmp_path)) == 2
    assert len(Manifest(manifest.source)) == 2


def test_an_older_manifest_in_its_place_is_not_served_from_the_copy_either(manifest, tmp_path):
    other = {name: values[:2] for name, values in COLUMNS.items()}
    old = Manifest.write(tmp_path / "old" / "manifest.parquet", pa.table(other), tmp_path).source
    os.utime(old, (1, 1))
    shutil.copy2(old, manifest.source)
    assert len(Manifest(manifest.source)) == 2
    assert len(pickle.loads(pickle.dumps(manifest))) == 2


def test_a_copy_that_broke_off_is_made_again(manifest):
    copy = manifest.source.with_suffix(".arrow")
    copy.write_bytes(copy.read_bytes()[:100])
    assert len(Manifest(manifest.source)) == 5


@pytest.mark.parametrize("left", ["no copy", "a copy of another manifest"])
def test_in_a_folder_that_cannot_be_written_the_copy_is_a_temporary_file(manifest, tmp_path, monkeypatch, left):
    folder, temporary = manifest.source.parent, tmp_path / "temporary"
    (folder / "manifest.arrow").unlink()
    if left != "no copy":
        other = Manifest.write(tmp_path / "other" / "manifest.parquet", pa.table(COLUMNS).slice(2), tmp_path)
        shutil.copy(other.source.with_suffix(".arrow"), folder)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def write(path, *arguments):
        if path.parent == folder:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, *arguments)

    real = mmap_table.atomic_write
    monkeypatch.setattr(mmap_table, "atomic_write", write)
    found = Manifest(manifest.source)
    assert len(found) == 5
    assert [found.utterance(row) for row in found.split("train")] == ["b/s/1.wav", "a/s/1.wav", "a/s/2.wav"]
    monkeypatch.setattr(mmap_table, "atomic_write", None)  # a worker finds the copy and writes nothing
    assert len(pickle.loads(pickle.dumps(found))) == 5
    (copy,) = temporary.rglob("*.arrow")
    assert copy.parent.stat().st_mode & 0o077 == 0


def test_a_full_disk_is_an_error_where_the_copy_is_written(manifest, monkeypatch):
    def write(path, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    manifest.source.with_suffix(".arrow").unlink()
    monkeypatch.setattr(mmap_table, "atomic_write", write)
    with pytest.raises(OSError, match="No space left on device"):
        Manifest(manifest.source)
