"""VoxCeleb in the layouts that people have comes out the same, and what is wrong with it is said."""

import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import trees

from sv_sparse.data.corpora import headers, published
from sv_sparse.data.corpora.voxceleb import parse_path, prepare_voxceleb
from sv_sparse.data.decoding import AudioInfo
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.prepared import load_trial_sets, write_run_manifest

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="converting m4a needs ffmpeg, which is absent")


def prepared(root: Path, out: Path, **options) -> Path:
    if not list(root.rglob("veri_test2.txt")):
        trees.write_vox_lists(root / "lists")
    prepare_voxceleb([root], out, allow_partial=True, **options)
    return out


def rows(out: Path) -> list[dict]:
    """The manifest without what depends on where files lie."""
    names = ["utterance", "speaker", "session", "genre", "subset", "samples", "sample_rate", "channels", "split"]
    return pq.read_table(out / "manifest.parquet", columns=names).to_pylist()


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    trees.released(folder / "root")
    return prepared(folder / "root", folder / "out")


@pytest.mark.parametrize("layout", trees.LAYOUTS)
def test_every_layout_prepares_to_the_same_manifest_and_lists(tmp_path, reference, layout):
    trees.LAYOUTS[layout](tmp_path / "root")
    out = prepared(tmp_path / "root", tmp_path / "out")
    assert rows(out) == rows(reference)
    assert len(rows(out)) == 40
    manifest = Manifest(out / "manifest.parquet")
    for row in range(len(manifest)):
        (part,) = manifest.segments(row)
        assert Path(part.path).is_file()
    assert sorted(path.name for path in (out / "trials").iterdir()) == [
        "vox1_E_cleaned.txt",
        "vox1_H_cleaned.txt",
        "vox1_O_cleaned.txt",
    ]


@needs_ffmpeg
def test_the_released_m4a_files_are_converted_and_named_like_all_others(tmp_path, reference):
    trees.released(tmp_path / "root", ".m4a")
    out = prepared(tmp_path / "root", tmp_path / "out")
    keys = ("utterance", "speaker", "session", "subset", "sample_rate", "channels")
    assert [[row[key] for key in keys] for row in rows(out)] == [[row[key] for key in keys] for row in rows(reference)]
    assert len(list((out / "flac").rglob("*.flac"))) == 20


def test_without_ffmpeg_m4a_is_an_error_that_says_how_to_get_it(tmp_path, monkeypatch):
    trees.merged(tmp_path / "root")
    for path in (tmp_path / "root" / "wav" / "id00012").rglob("*.wav"):
        path.rename(path.with_suffix(".m4a"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"4 recordings such as .*m4a need ffmpeg .* apt install ffmpeg"):
        prepared(tmp_path / "root", tmp_path / "out")


def test_all_can_be_converted_to_flac_and_keep_their_samples(tmp_path, reference):
    trees.released(tmp_path / "root")
    out = prepared(tmp_path / "root", tmp_path / "out", to_flac=True)
    assert rows(out) == rows(reference)
    manifest = Manifest(out / "manifest.parquet")
    assert all(manifest.segments(row)[0].path.endswith(".flac") for row in range(len(manifest)))


def test_the_subset_is_the_speakers_whatever_the_folders_are_called():
    assert parse_path("test/wav/id00012/21Uxsk56VDQ/00001.wav").subset == "vox2_dev"
    assert parse_path("dev/wav/id00017/21Uxsk56VDQ/00001.wav").subset == "vox2_test"
    assert parse_path("dev/wav/id10270/21Uxsk56VDQ/00001.wav").subset == "vox1_test"
    assert len(published.VOX2_TEST) == published.SIZES["vox2_test"].speakers
    assert len(published.VOX1_TEST) == published.SIZES["vox1_test"].speakers
    assert len(published.VOX1) == published.SIZES["vox1_dev"].speakers + published.SIZES["vox1_test"].speakers


@pytest.mark.parametrize(
    "path", ["id10270/21Uxsk56VDQ/1.wav", "id1027/21Uxsk56VDQ/00001.wav", "id10270/short/00001.wav", "meta.csv"]
)
def test_other_files_are_no_utterances(path):
    assert parse_path(path) is None


def test_a_part_of_the_corpus_is_refused_with_what_is_missing_unless_asked_for(tmp_path):
    trees.merged(tmp_path / "root")
    trees.write_vox_lists(tmp_path / "root")
    with pytest.raises(ValueError, match=r"list_test_all2.txt: 133 trials with 21 targets, as no published list"):
        prepare_voxceleb([tmp_path / "root"], tmp_path / "out")
    for name in ("veri_test2.txt", "list_test_all2.txt", "list_test_hard2.txt"):
        (tmp_path / "root" / name).unlink()
    with pytest.raises(ValueError, match="--allow-partial") as error:
        prepare_voxceleb([tmp_path / "root"], tmp_path / "out")
    assert "vox2_dev has 3 of 5,994 published speakers" in str(error.value)
    assert "vox1_test has 8 of 4,874 published utterances" in str(error.value)
    assert "list_test_hard2.txt (vox1_H_cleaned) was not found" in str(error.value)


def test_the_original_list_under_the_cleaned_ones_name_is_told_apart(tmp_path, monkeypatch):
    trees.merged(tmp_path / "root")
    trees.write_vox_lists(tmp_path / "root")
    lines = (tmp_path / "root" / "veri_test2.txt").read_text().splitlines()
    counts = published.TrialCount(len(lines), sum(line[0] == "1" for line in lines))
    fewer = published.TrialCount(len(lines) - 1, counts.targets)
    monkeypatch.setitem(published.TRIALS, "veri_test.txt", ("vox1_O", counts))
    monkeypatch.setitem(published.TRIALS, "veri_test2.txt", ("vox1_O_cleaned", fewer))
    for name in ("list_test_all2.txt", "list_test_hard2.txt"):
        (tmp_path / "root" / name).unlink()
    for partial in (False, True):
        with pytest.raises(ValueError, match=r"veri_test2.txt: .* those of veri_test.txt \(vox1_O\)"):
            prepare_voxceleb([tmp_path / "root"], tmp_path / "out", allow_partial=partial)


def test_every_bad_file_is_named_with_its_problem(tmp_path):
    root = tmp_path / "root"
    trees.merged(root)
    names = [root / "wav" / f"{key}.wav" for key in trees.utterances("vox2_dev")]
    names[0].write_bytes(b"nothing")
    trees.soundfile.write(names[1], [], 16000)
    trees.soundfile.write(names[2], trees.noise("short", 0.1), 16000)
    trees.soundfile.write(names[3], trees.noise("slow", 0.5), 8000)
    trees.soundfile.write(names[4], trees.np.stack([trees.noise("left", 0.5), trees.np.zeros(8000)], axis=1), 16000)
    trees.soundfile.write(names[5], trees.np.zeros((8000, 2)), 16000)
    out = prepared(root, tmp_path / "out")
    problems = dict(line.split("\t") for line in (out / "problems.tsv").read_text().splitlines()[1:])
    assert problems == dict(
        zip(
            (str(name.relative_to(tmp_path)) for name in names[:6]),
            (
                "left out: cannot be read as a recording (Format not recognised.)",
                "left out: has no samples",
                "left out: is too short: 0.10 seconds, at least 0.2 are needed",
                "8000 Hz; resampled when read",
                "2 channels; the first is used",
                "left out: holds nothing but silence",
            ),
            strict=True,
        )
    )
    assert len(rows(out)) == 36


def test_training_on_all_of_voxceleb_leaves_only_o_to_judge_on(reference, tmp_path):
    options = {"val_fraction": 0.0, "seed": 0, "out": tmp_path / "manifest.parquet"}
    o, e = (load_trial_sets(reference, [name]) for name in ("vox1_O_cleaned", "vox1_E_cleaned"))
    both = ["vox1_dev", "vox2_dev"]
    assert len(write_run_manifest(reference, train_subsets=both, trial_sets=o, **options).speakers("train")) == 6
    assert (
        len(write_run_manifest(reference, train_subsets=["vox2_dev"], trial_sets=e, **options).speakers("train")) == 3
    )
    with pytest.raises(
        ValueError, match=r"vox1_E_cleaned: 3 of its speakers are trained on .* data.train_subsets=\[vox2_dev\]"
    ):
        write_run_manifest(reference, train_subsets=both, trial_sets=e, **options)
    with pytest.raises(ValueError, match=r"data.train_subsets=\['vox3'\]: expected some of vox1_dev, vox1_test"):
        write_run_manifest(reference, train_subsets=["vox3"], trial_sets=o, **options)


def test_links_that_lead_nowhere_in_circles_or_are_no_text_are_named_and_do_not_end_the_scan(tmp_path, reference):
    trees.by_part(tmp_path / "root")
    one, two = (tmp_path / "root" / name for name in ("vox1", "vox2"))
    (one / "back").symlink_to(two)
    (two / "back").symlink_to(one)
    (one / "itself").symlink_to(one / "itself")
    lost = two / "dev" / "wav" / "id00012" / trees.SESSIONS[0] / "00009.wav"
    lost.symlink_to(tmp_path / "nowhere.wav")
    out = prepared(tmp_path / "root", tmp_path / "out")
    assert rows(out) == rows(reference)
    assert "00009.wav'\tleft out: cannot be found (No such file or directory)" in (out / "problems.tsv").read_text()


def test_the_prepared_folder_may_lie_below_the_root_by_any_path(tmp_path):
    trees.released(tmp_path / "root")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    for root in ("root", "link"):
        out = prepared(tmp_path / root, tmp_path / "root" / "prepared", to_flac=True)
        assert (out / "problems.tsv").read_text() == "file\tproblem\n"


def test_what_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    trees.merged(tmp_path / "root")
    real, nothing = headers.inspect, AudioInfo(0, 0, 0, 0, -1, "is away")
    monkeypatch.setattr(headers, "inspect", lambda path: nothing if "id00012" in path else real(path))
    out = prepared(tmp_path / "root", tmp_path / "out")
    assert len(rows(out)) == 36
    assert (out / "problems.tsv").read_text().count("left out: is away\n") == 4
    monkeypatch.setattr(headers, "inspect", real)
    assert len(rows(prepared(tmp_path / "root", tmp_path / "out"))) == 40


@needs_ffmpeg
def test_a_recording_that_breaks_off_is_not_taken_for_a_shorter_one(tmp_path):
    trees.merged(tmp_path / "root")
    path = tmp_path / "root" / "wav" / f"{trees.utterances('vox2_dev')[0]}.wav"
    path.unlink()
    whole = trees.write(path.with_suffix(".m4a"), "long", 3.0).read_bytes()
    command = ["ffmpeg", "-v", "error", "-y", "-i", path.with_suffix(".m4a"), "-c", "copy", "-movflags", "+faststart"]
    subprocess.run([*command, tmp_path / "fast.m4a"], check=True)
    path.with_suffix(".m4a").write_bytes((tmp_path / "fast.m4a").read_bytes()[: int(0.6 * len(whole))])
    out = prepared(tmp_path / "root", tmp_path / "out")
    assert len(rows(out)) == 39
    assert "left out: cannot be converted" in (out / "problems.tsv").read_text()
