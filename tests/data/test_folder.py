import logging

import numpy as np
import pytest

from sv_sparse.data.corpora import headers
from sv_sparse.data.corpora.folder import scan_folder
from sv_sparse.data.decoding import inspect


@pytest.fixture
def trials(tmp_path):
    """Trials between speakers 4 and 5, of their first utterance in each session."""
    path = tmp_path / "veri_test.txt"
    path.write_text("1 id00004/a/00001.wav id00004/b/00001.wav\n0 id00004/a/00001.wav id00005/a/00001.wav\n")
    return path


@pytest.fixture
def scan(tmp_path, corpus, trials):
    def run(root=corpus, **changes):
        settings = {
            "trial_lists": [trials],
            "train_utterances": None,
            "val_fraction": 0.0,
            "seed": 1,
            "max_unreadable_fraction": 0.0,
            "out": tmp_path / "manifest.parquet",
        }
        return scan_folder(root, **(settings | changes))

    return run


def utterances(manifest, split):
    return [manifest.utterance(row) for row in manifest.split(split)]


def test_evaluation_speakers_are_excluded_from_training_and_the_log_counts_them(scan, caplog):
    caplog.set_level(logging.INFO)
    manifest = scan()
    assert len(manifest) == 24
    assert manifest.speakers("train") == [f"id{speaker:05d}" for speaker in range(4)]
    assert utterances(manifest, "test") == [
        "id00004/a/00001.wav",
        "id00004/b/00001.wav",
        "id00005/a/00001.wav",
    ]
    assert len(manifest.split("unused")) == 5
    assert "2 speakers of the trial lists are excluded from training, with 8 utterances" in caplog.text


def test_a_header_gives_samples_and_rate(scan, corpus, record):
    record(corpus / "id00000" / "a" / "9.flac", samples=9410, rate=44100, channels=2)
    manifest = scan()
    row = manifest.rows(["id00000/a/9.flac"])[0]
    assert (manifest.samples[row], manifest.sample_rate[row]) == (9410, 44100)
    assert manifest.segments(row)[0].path == str(corpus / "id00000" / "a" / "9.flac")


@pytest.mark.parametrize("name", ["9.wav", "9.WAV", "9.flac", "9.ogg", "9.opus"])
def test_every_ending_is_found_in_any_case(scan, corpus, record, name):
    record(corpus / "id00000" / "a" / name)
    assert f"id00000/a/{name}" in utterances(scan(), "train")


def test_several_trial_lists_make_one_evaluation_set(scan, trials, tmp_path):
    other = tmp_path / "hard.txt"
    other.write_text("1 id00003/a/00001.wav id00003/a/00002.wav\n0 id00003/a/00001.wav id00004/a/00001.wav\n")
    manifest = scan(trial_lists=[trials, other])
    assert manifest.speakers("train") == ["id00000", "id00001", "id00002"]
    assert len(manifest.split("test")) == 5


def test_without_trial_lists_everything_trains(scan):
    assert len(scan(trial_lists=[]).split("train")) == 24


def test_a_training_list_chooses_the_utterances(scan, tmp_path):
    path = tmp_path / "train_list"
    path.write_text("id00000 id00000/a/00001.wav\r\n\nid00001\tid00001/b/00002.wav\n")
    manifest = scan(train_utterances=path)
    assert utterances(manifest, "train") == ["id00000/a/00001.wav", "id00001/b/00002.wav"]
    assert len(manifest.split("unused")) == 19


def test_a_training_list_that_asks_for_evaluation_speakers_is_warned_about(scan, tmp_path, caplog):
    path = tmp_path / "train_list"
    path.write_text("".join(f"id0000{s} id0000{s}/a/00002.wav\n" for s in (0, 1, 4)))
    assert scan(train_utterances=path).speakers("train") == ["id00000", "id00001"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "1 speakers of the trial lists are excluded from training, with 1 utterances" in caplog.text


def test_validation_speakers_are_a_share_that_depends_on_the_seed_alone(scan):
    share = {"trial_lists": [], "val_fraction": 0.5}
    first, again = scan(**share).speakers("validation"), scan(**share).speakers("validation")
    assert len(first) == 3
    assert first == again
    assert {tuple(scan(**share, seed=seed).speakers("validation")) for seed in range(9)} != {tuple(first)}


def test_any_val_fraction_above_zero_holds_out_two_speakers(scan):
    manifest = scan(val_fraction=0.001)
    assert len(manifest.speakers("validation")) == 2
    assert len(manifest.speakers("train")) == 2
    assert not set(manifest.speakers("validation")) & set(manifest.speakers("train"))


def test_speakers_with_one_utterance_are_never_held_out(scan, tmp_path):
    path = tmp_path / "train_list"
    lines = [f"id0000{s} id0000{s}/a/0000{u}.wav" for s in range(4) for u in (1, 2) if (s < 2 or u == 1)]
    path.write_text("\n".join(lines))
    for seed in range(5):
        manifest = scan(train_utterances=path, val_fraction=0.1, seed=seed)
        assert manifest.speakers("validation") == ["id00000", "id00001"]


def test_too_few_speakers_to_hold_out_is_an_error(scan, tmp_path):
    path = tmp_path / "train_list"
    path.write_text("".join(f"id0000{s} id0000{s}/a/00001.wav\n" for s in range(4)))
    message = r"data.val_fraction=0.1: expected 2 training speakers with two .*; found 0"
    with pytest.raises(ValueError, match=message):
        scan(train_utterances=path, val_fraction=0.1)


def test_too_few_training_speakers_is_an_error_that_names_the_setting(scan, tmp_path):
    path = tmp_path / "train_list"
    path.write_text("id00000 id00000/a/00001.wav\n")
    with pytest.raises(ValueError, match=r"data.train_utterances=.*train_list: expected at least 2 .*; found 1 "):
        scan(train_utterances=path)
    with pytest.raises(ValueError, match=r"data.root=.*speech: expected at least 2 .*; found 0 .* 4 held out"):
        scan(val_fraction=0.9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"data.root=.*nowhere: expected a folder of <speaker>/.*found nothing"),
        ("veri_test.txt", r"data.root=.*veri_test.txt: expected a folder .*; found a file"),
        ("empty", r"data.root=.*empty: expected recordings as .*; found an empty folder"),
        (".", r"expected recordings as <speaker>/<session>/.*found speech/id0000"),
        ("texts", r"found x/y/1.txt$"),
    ],
)
def test_a_root_without_recordings_in_the_layout_is_refused_with_examples(scan, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts" / "x" / "y").mkdir(parents=True)
    (tmp_path / "texts" / "x" / "y" / "1.txt").write_text("text")
    with pytest.raises(ValueError, match=message):
        scan(tmp_path / name)


def test_recordings_in_another_layout_are_counted_and_named_in_a_warning(scan, corpus, record, caplog):
    record(corpus / "1.wav")
    record(corpus / "id00000" / "a" / "deeper" / "1.wav")
    assert len(scan()) == 24
    assert "left out: 2 recordings below data.root=" in caplog.text
    assert "first 1.wav, id00000/a/deeper/1.wav" in caplog.text


def test_hidden_files_are_passed_over(scan, corpus, caplog):
    (corpus / "id00000" / "a" / "._00001.wav").write_bytes(b"left by another system")
    assert len(scan()) == 24
    assert not caplog.text


def test_linked_folders_are_followed_but_not_in_a_circle(scan, corpus, record, tmp_path):
    record(tmp_path / "elsewhere" / "s" / "1.wav")
    (corpus / "linked").symlink_to(tmp_path / "elsewhere")
    (corpus / "id00000" / "a" / "up").symlink_to(corpus)
    manifest = scan()
    assert "linked/s/1.wav" in utterances(manifest, "train")
    assert len(manifest) == 25


@pytest.mark.parametrize("setting", ["trial_lists", "train_utterances"])
def test_a_missing_list_is_refused(scan, tmp_path, setting):
    path = tmp_path / "nowhere.txt"
    with pytest.raises(ValueError, match=rf"data.{setting}=.*nowhere.txt: expected a text file; there is none"):
        scan(**{setting: [path] if setting == "trial_lists" else path})


def test_missing_trial_utterances_are_named_with_their_list_and_count(scan, trials):
    with trials.open("a") as file:
        file.writelines(f"0 id00004/a/00001.wav gone/a/{number}.wav\n" for number in range(5))
    message = r"data.trial_lists=.*veri_test.txt: 5 of 8 utterances are missing; first gone/a/0.wav, gone/a/1.wav"
    with pytest.raises(ValueError, match=message):
        scan()


def test_missing_training_utterances_are_named_with_their_list_and_count(scan, tmp_path):
    path = tmp_path / "train_list"
    path.write_text("id00000 id00000/a/00001.wav\ngone gone/a/1.wav\n")
    with pytest.raises(ValueError, match=r"data.train_utterances=.*: 1 of 2 utterances .* missing; first gone/a/1.wav"):
        scan(train_utterances=path)


def test_a_training_list_in_another_format_is_refused_with_the_line(scan, tmp_path):
    path = tmp_path / "train_list"
    path.write_text("id00000 id00000/a/00001.wav\nid00001/a/00001.wav\n")
    with pytest.raises(ValueError, match=r"line 2: expected 'speaker path', got 'id00001/a/00001.wav'"):
        scan(train_utterances=path)


def test_a_training_list_with_other_speakers_than_the_folders_is_refused(scan, tmp_path):
    path = tmp_path / "train_list"
    path.write_text("id00000 id00000/a/00001.wav\nbob id00001/a/00001.wav\n")
    with pytest.raises(ValueError, match=r"data.train_utterances=.*1 lines differ, first 'bob id00001/a/00001.wav'"):
        scan(train_utterances=path)


def test_lists_that_say_wav_find_flac_files(scan, corpus, record):
    for session in "ab":
        (corpus / "id00004" / session / "00001.wav").unlink()
        record(corpus / "id00004" / session / "00001.flac")
    assert utterances(scan(), "test")[:2] == ["id00004/a/00001.flac", "id00004/b/00001.flac"]


@pytest.fixture(params=["no recording", "no samples", "empty", "cut off", "a broken link"])
def spoil(request, record):
    def run(path):
        path.unlink()
        if request.param == "no recording":
            path.write_bytes(b"<html>not found</html>")
        elif request.param == "no samples":
            record(path, samples=0)
        elif request.param == "cut off":
            path.write_bytes(record(path).read_bytes()[:1000])
        elif request.param == "empty":
            path.touch()
        else:
            path.symlink_to("nowhere.wav")

    return run


def test_unreadable_training_speech_within_the_allowed_share_is_named_and_left_out(scan, corpus, spoil, caplog):
    spoil(corpus / "id00000" / "a" / "00002.wav")
    manifest = scan(max_unreadable_fraction=0.1)
    assert len(manifest) == 23
    assert len(manifest.split("train")) == 15
    assert "left out: id00000/a/00002.wav" in caplog.text


def test_unreadable_training_speech_past_the_allowed_share_is_an_error(scan, corpus, spoil):
    paths = sorted(corpus.glob("id0000[0-2]/*/*.wav"))
    spoil(paths[1])
    with pytest.raises(
        ValueError, match=r"data.max_unreadable_fraction=0.0: 1 of 16 training .* first id00000/a/00002.wav"
    ):
        scan(max_unreadable_fraction=0.0)
    for path in paths[2:11]:
        spoil(path)
    assert len(scan(max_unreadable_fraction=0.1)) == 14
    spoil(paths[11])
    message = r"data.max_unreadable_fraction=0.1: 11 of 16 training .* first id00000/a/00002.wav, id00000/b/00001.wav"
    with pytest.raises(ValueError, match=message):
        scan(max_unreadable_fraction=0.1)


def test_an_unreadable_trial_utterance_stays_in_the_manifest_without_samples_and_is_named(scan, corpus, spoil, caplog):
    spoil(corpus / "id00005" / "a" / "00001.wav")
    manifest = scan(max_unreadable_fraction=0.1)
    row = manifest.rows(["id00005/a/00001.wav"])[0]
    assert (manifest.samples[row], row in manifest.split("test")) == (0, True)
    assert "left out: id00005/a/00001.wav: " in caplog.text


def test_unreadable_trial_utterances_past_the_allowed_share_are_an_error(scan, corpus, trials, spoil):
    paths = sorted(corpus.glob("id0000[3-5]/*/*.wav"))
    keys = [path.relative_to(corpus).as_posix() for path in paths]
    trials.write_text("".join(f"{int(key[:7] == keys[0][:7])} {keys[0]} {key}\n" for key in keys[1:]))
    spoil(paths[2])
    with pytest.raises(
        ValueError, match=r"data.max_unreadable_fraction=0.0: 1 of 12 data.trial_lists .* first id00003/b/00001.wav"
    ):
        scan(max_unreadable_fraction=0.0)
    for path in paths[3:12]:
        spoil(path)
    assert len(scan(max_unreadable_fraction=0.5).split("test")) == 12
    spoil(paths[1])
    with pytest.raises(
        ValueError, match=r"data.max_unreadable_fraction=0.5: 11 of 12 data.trial_lists utterances cannot be used"
    ):
        scan(max_unreadable_fraction=0.5)


def test_scanning_twice_writes_the_same_bytes(scan, tmp_path):
    first = scan(val_fraction=0.1).source.read_bytes()
    assert scan(val_fraction=0.1).source.read_bytes() == first


def test_labels_of_the_training_split_count_its_speakers(scan):
    manifest = scan(val_fraction=0.1)
    labels = manifest.labels(manifest.split("train"))
    assert np.unique(labels).tolist() == list(range(len(manifest.speakers("train"))))


def test_what_begins_like_a_recording_is_one_whatever_its_name_ends_in_and_other_files_are_not(scan, corpus, record):
    wav = record(corpus / "id00000" / "a" / "9.wav").read_bytes()
    (corpus / "id00000" / "a" / "9.wav").unlink()
    for name in ("none", "some.bak"):
        (corpus / "id00000" / "a" / name).write_bytes(wav)
    (corpus / "id00000" / "a" / "00001.txt").write_text("what is said in 00001.wav")
    found = utterances(scan(), "train")
    assert {"id00000/a/none", "id00000/a/some.bak"} <= set(found)
    assert not any(name.endswith(".txt") for name in found)


def test_a_format_that_is_not_read_is_named_with_the_remedy_unless_it_was_converted(scan, corpus, trials, caplog):
    m4a = b"\0\0\0\x20ftypM4A " + bytes(100)
    (corpus / "id00000" / "a" / "9.m4a").write_bytes(m4a)
    (corpus / "id00000" / "a" / "00001.m4a").write_bytes(m4a)
    (corpus / "id00005" / "a" / "00001.wav").unlink()
    (corpus / "id00005" / "a" / "00001.m4a").write_bytes(m4a)
    manifest = scan(max_unreadable_fraction=0.1)
    path = corpus / "id00000" / "a" / "9.m4a"
    reason = f"is of a format that is not read here; convert it: ffmpeg -i {path} {path.with_suffix('.flac')}"
    assert f"left out: id00000/a/9.m4a: {reason}" in caplog.text
    assert "id00000/a/00001.m4a" not in caplog.text
    assert "id00005/a/00001.m4a" in utterances(manifest, "test")


def test_a_listed_recording_that_is_laid_out_otherwise_is_said_to_be_there(scan, corpus, record, trials):
    record(corpus / "id00004" / "a" / "deep" / "1.wav")
    trials.write_text("1 id00004/a/deep/1.wav id00004/a/00001.wav\n0 id00004/a/00001.wav id00005/a/00001.wav\n")
    with pytest.raises(ValueError, match=r"id00004/a/deep/1.wav is there, but not laid out as <speaker>/<session>/"):
        scan()


def test_a_training_list_may_compose_the_names_of_speakers_as_no_file_system_does(scan, corpus, record, tmp_path):
    names = ["Jose\u0301", "Rene\u0301"]
    for name in names:
        record(corpus / name / "s" / "0.wav")
    path = tmp_path / "train_list"
    path.write_text("Jos\u00e9 Jos\u00e9/s/0.wav\nRene\u0301 Ren\u00e9/s/0.wav\n", encoding="utf-8")
    assert scan(train_utterances=path).speakers("train") == names


def test_a_recording_that_cannot_be_used_is_opened_once(scan, corpus, monkeypatch, caplog):
    bad = corpus / "id00000" / "a" / "00002.wav"
    bad.write_bytes(b"no recording")
    opened = []

    def counted(path):
        opened.append(str(path))
        return inspect(path)

    monkeypatch.setattr(headers, "inspect", counted)
    scan(max_unreadable_fraction=0.1)
    assert opened.count(str(bad)) == 1
    assert "left out: id00000/a/00002.wav: cannot be read as a recording" in caplog.text
