import json

import pytest

from sv_sparse import io as storage
from sv_sparse.io import atomic_write, file_lock, write_json, write_text


def test_a_written_file_takes_the_place_of_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_old_file_and_no_temporary(tmp_path, error):
    def interrupted_write():
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise error

    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        interrupted_write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_noticed_before_the_old_file_is_replaced(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic_write(tmp_path / "nowhere" / "file"):
        pass


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_text_is_utf_8_with_line_feeds(tmp_path):
    write_text(tmp_path / "a.txt", "λ\nδ\n")
    assert (tmp_path / "a.txt").read_bytes() == "λ\nδ\n".encode()


def test_json_reads_back(tmp_path):
    value = {"eer": 0.01, "lists": ["O", "E"], "name": "λ"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_json_refuses_numbers_that_other_readers_would_choke_on_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_name_that_is_not_utf_8_is_written_escaped_and_read_from_json_as_it_was(tmp_path):
    write_text(tmp_path / "a.txt", "b\udcffd.wav \u03bb\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "b\\xffd.wav \u03bb\n"
    write_json(tmp_path / "a.json", {"file": "b\udcffd.wav"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file": "b\udcffd.wav"}


def test_a_second_process_is_refused(tmp_path):
    with (
        file_lock(tmp_path, "first"),
        pytest.raises(ValueError, match="it is taken"),
        file_lock(tmp_path, "it is taken"),
    ):
        pass


def test_a_system_without_locks_says_so_once_and_goes_on(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(storage, "fcntl", None)
    for _ in range(2):
        with file_lock(tmp_path, "refused"):
            write_text(tmp_path / "a.txt", "written")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: there are no file locks here; let no other process write into it"
    ]
