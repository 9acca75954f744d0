"""What is checked by name alone, before hours of converting and opening, and what --allow-partial lets pass."""

import errno
import hashlib
import shutil

import pytest
from helpers import trees

from sv_sparse import io as storage
from sv_sparse.data.corpora import archives, headers, published, voxceleb
from sv_sparse.data.corpora.archives import verify_md5
from sv_sparse.data.corpora.cnceleb import prepare_cnceleb
from sv_sparse.data.corpora.voxceleb import prepare_voxceleb


@pytest.fixture
def root(tmp_path):
    trees.merged(tmp_path / "root")
    trees.write_vox_lists(tmp_path / "root" / "lists")
    return tmp_path / "root"


def lists(out) -> list[str]:
    return sorted(path.stem for path in (out / "trials").iterdir())


def test_a_list_with_missing_utterances_is_left_out_of_a_part_of_the_corpus_with_a_warning(root, tmp_path, caplog):
    key = trees.utterances("vox1_dev")[0]
    (root / "wav" / f"{key}.wav").unlink()
    prepare_voxceleb([root], tmp_path / "out", allow_partial=True)
    assert lists(tmp_path / "out") == ["vox1_O_cleaned"]
    assert f"list_test_all2.txt: 1 of its utterances are missing or unusable: {key}.wav" in caplog.text


def test_a_list_with_an_unusable_utterance_is_left_out_once_that_is_known(root, tmp_path, caplog):
    key = trees.utterances("vox1_dev")[0]
    (root / "wav" / f"{key}.wav").write_bytes(b"nothing")
    prepare_voxceleb([root], tmp_path / "out", allow_partial=True)
    assert lists(tmp_path / "out") == ["vox1_O_cleaned"]
    assert f"list_test_hard2.txt: 1 of its utterances are missing or unusable: {key}.wav" in caplog.text


def test_without_any_list_left_the_preparation_says_so_and_removes_those_of_an_earlier_run(root, tmp_path, caplog):
    out = tmp_path / "out"
    prepare_voxceleb([root], out, allow_partial=True)
    (out / "trials" / "mine.txt").write_text("1 a b\n")
    assert len(lists(out)) == 4
    shutil.rmtree(root / "lists")
    prepare_voxceleb([root], out, allow_partial=True)
    assert lists(out) == ["mine"]
    assert "out: no trial list was prepared" in caplog.text


def test_other_counts_than_published_are_accepted_for_a_part_of_the_corpus_with_a_warning(root, tmp_path, caplog):
    prepare_voxceleb([root], tmp_path / "out", allow_partial=True)
    assert "accepted with --allow-partial, " in caplog.text
    assert "veri_test2.txt: 21 trials with 9 targets, as no published list; veri_test2.txt" in caplog.text


def test_what_names_can_tell_is_said_before_any_file_is_opened(root, tmp_path, monkeypatch):
    monkeypatch.setattr(voxceleb, "checked_table", None)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"133 trials with 21 targets, as no published list"):
        prepare_voxceleb([root], out)
    for name, (ours, _) in list(published.TRIALS.items()):
        path = root / "lists" / name
        if path.is_file():
            targets = [line[0] == "1" for line in path.read_text().splitlines()]
            counts = published.TrialCount(len(targets), sum(targets))
            monkeypatch.setitem(published.TRIALS, name, (ours, counts))
    with pytest.raises(ValueError, match="--allow-partial") as error:
        prepare_voxceleb([root], out)
    assert "vox2_dev has 3 of 5,994 published speakers" in str(error.value)
    assert "vox1_test has 8 of 4,874 published utterances" in str(error.value)
    (root / "lists" / "list_test_all2.txt").write_text("id1 id2 1\n")
    with pytest.raises(ValueError, match=r"list_test_all2.txt, line 1: expected 'label enrollment test'"):
        prepare_voxceleb([root], out, allow_partial=True)


def test_two_lists_of_one_name_that_differ_are_refused(root, tmp_path):
    other = root / "old" / "veri_test2.txt"
    other.parent.mkdir()
    shutil.copy(root / "lists" / "veri_test2.txt", other)
    prepare_voxceleb([root], tmp_path / "out", allow_partial=True)
    other.write_text("1 a b\n0 a c\n")
    message = r"(?=.*old/veri_test2.txt)(?=.*lists/veri_test2.txt).*: two lists of one name that differ"
    with pytest.raises(ValueError, match=message):
        prepare_voxceleb([root], tmp_path / "out", allow_partial=True)
    with pytest.raises(ValueError, match=message):
        prepare_voxceleb([root / "wav"], tmp_path / "out", lists=[root / "lists", root / "old"], allow_partial=True)


def test_a_prepared_folder_below_the_root_is_no_part_of_the_corpus(root, tmp_path, caplog):
    prepare_voxceleb([root], root / "earlier", allow_partial=True, to_flac=True)
    prepare_voxceleb([root], tmp_path / "out", allow_partial=True)
    assert f"left out, made by sv-sparse prepare: {root / 'earlier'}" in caplog.text
    assert (tmp_path / "out" / "problems.tsv").read_text() == "file\tproblem\n"


def test_another_root_does_not_make_files_read_again(root, tmp_path, monkeypatch):
    opened = []
    real = headers.inspect
    monkeypatch.setattr(headers, "inspect", lambda path: opened.append(path) or real(path))
    out = root / "wav" / "prepared"
    prepare_voxceleb([root / "wav"], out, allow_partial=True)
    assert len(opened) == 40
    trees.write(tmp_path / "more" / f"{trees.SPEAKERS['vox2_dev'][0]}/{trees.SESSIONS[0]}/00009.wav", "more")
    prepare_voxceleb([root / "wav", tmp_path / "more"], out, allow_partial=True)
    assert len(opened) == 41
    prepare_voxceleb([root / "wav"], out, allow_partial=True)
    assert len(opened) == 41


def test_where_the_rules_of_what_can_be_used_have_changed_files_are_opened_again(root, tmp_path, monkeypatch):
    opened = []
    real = headers.inspect
    monkeypatch.setattr(headers, "inspect", lambda path: opened.append(path) or real(path))
    for rules in (b"1", b"1", b"2"):
        monkeypatch.setattr(headers, "_VERSION", rules)
        prepare_voxceleb([root / "wav"], tmp_path / "out", allow_partial=True)
    assert len(opened) == 2 * 40


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_about(root, tmp_path, monkeypatch, caplog, number):
    def flock(*_arguments):
        raise OSError(number, "no locks")

    monkeypatch.setattr(storage.fcntl, "flock", flock)
    prepare_voxceleb([root], tmp_path / "out", allow_partial=True)
    assert "there are no file locks here; let no other process write into it" in caplog.text
    assert (tmp_path / "out" / "manifest.parquet").is_file()


@pytest.fixture
def archive(monkeypatch):
    monkeypatch.setitem(archives.MD5, "vox1_dev_wav.zip", hashlib.md5(b"one two").hexdigest())


def test_unknown_files_among_archives_are_named(tmp_path, archive):
    (tmp_path / "vox1_dev_wav.zip").write_bytes(b"one two")
    (tmp_path / "vox3.zip").write_bytes(b"")
    assert verify_md5([tmp_path]) == ({"vox1_dev_wav.zip": True}, [tmp_path / "vox3.zip"])
    with pytest.raises(ValueError, match=r"vox3.zip: expected archives of vox1_test_wav.zip.*; found .*vox3.zip$"):
        verify_md5([tmp_path / "vox3.zip"])
    with pytest.raises(ValueError, match=r"nowhere.zip: expected an archive, .*; there is nothing"):
        verify_md5([tmp_path / "nowhere.zip"])


def test_parts_of_an_archive_in_two_folders_are_checked_together_with_a_warning(tmp_path, archive, caplog):
    for folder, name, content in (("a", "aa", b"one "), ("b", "ab", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"vox1_dev_wav_part{name}").write_bytes(content)
    assert verify_md5([tmp_path / "b", tmp_path / "a"]) == ({"vox1_dev_wav.zip": True}, [])
    assert f"its parts lie in {tmp_path / 'a'} and {tmp_path / 'b'}" in caplog.text
    shutil.copy(tmp_path / "a" / "vox1_dev_wav_partaa", tmp_path / "b")
    with pytest.raises(ValueError, match=r"a/vox1_dev_wav_partaa and .*: the same archive or part twice"):
        verify_md5([tmp_path / "a", tmp_path / "b"])


def test_a_folder_with_another_corpus_is_not_prepared_into(tmp_path):
    trees.released(tmp_path / "vox")
    trees.write_vox_lists(tmp_path / "vox" / "lists")
    prepare_voxceleb([tmp_path / "vox"], tmp_path / "out", allow_partial=True)
    trees.write_cnceleb(tmp_path / "cn")
    with pytest.raises(ValueError, match="holds another corpus, vox1_dev, vox1_test, vox2_dev, vox2_test; choose"):
        prepare_cnceleb([tmp_path / "cn"], tmp_path / "out", allow_partial=True)
    assert (tmp_path / "out" / "trials" / "vox1_O_cleaned.txt").is_file()
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"--lists .*other: holds none of veri_test.txt, "):
        prepare_voxceleb([tmp_path / "vox"], tmp_path / "out", lists=[tmp_path / "other"], allow_partial=True)
