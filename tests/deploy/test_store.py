"""Laws of the store of speakers: nothing half done, nothing mixed up, nothing left of who was removed."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny import ROOT

from sv_sparse.deploy.decision import Heard
from sv_sparse.deploy.store import Store, default_path

MODEL = "f" * 64


def heard(number: int, seconds: float | None = 2.0, size: int = 4) -> Heard:
    return Heard(np.random.default_rng(number).normal(size=size).astype(np.float32), seconds)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "deep" / "speakers.sqlite"


def test_what_is_enrolled_comes_back_as_the_mean_of_all_recordings_whenever_they_were_added(path):
    Store(path).enroll("A", [heard(0), heard(1)], MODEL)
    Store(path).enroll("B", [heard(2, None)], MODEL)
    Store(path).enroll("A", [heard(3, 0.5)], MODEL)
    found = Store(path).enrolled(MODEL)
    assert list(found) == ["A", "B"]
    expected = np.stack([heard(n).embedding for n in (0, 1, 3)]).mean(axis=0)
    assert np.array_equal(found["A"].embedding, expected)
    assert (found["A"].seconds, found["B"].seconds) == (4.5, None)
    listed = Store(path).speakers()
    assert [(each.name, each.recordings, each.seconds) for each in listed] == [("A", 3, 4.5), ("B", 1, None)]
    assert listed[0].created.endswith("+00:00")


def test_a_store_that_is_not_there_is_empty_and_not_made_by_looking(path):
    assert Store(path).speakers() == []
    assert Store(path).enrolled(MODEL) == {}
    with pytest.raises(ValueError, match="nobody is enrolled as A"):
        Store(path).remove("A")
    assert not path.parent.exists()


@pytest.mark.parametrize("name", ["José", "李小龍", "O'Brien; DROP TABLE recordings", "a b", "🎤", "%", "x" * 200])
def test_names_are_any_text(path, name):
    store = Store(path)
    store.enroll(name, [heard(0)], MODEL)
    assert list(store.enrolled(MODEL)) == [name]
    store.remove(name)
    assert store.speakers() == []


def test_names_that_look_the_same_are_the_same(path):
    Store(path).enroll("Jose\u0301", [heard(0)], MODEL)
    Store(path).enroll("Jos\u00e9", [heard(1)], MODEL)
    assert [each.recordings for each in Store(path).speakers()] == [2]
    Store(path).remove("Jose\u0301")


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", "tab\t", "x" * 201, "\ud800"])
def test_names_that_cannot_be_shown_are_refused(path, name):
    with pytest.raises(ValueError, match="name must be one line"):
        Store(path).enroll(name, [heard(0)], MODEL)
    assert not path.exists()


def test_embeddings_of_different_models_are_never_mixed(path):
    store = Store(path)
    store.enroll("A", [heard(0)], MODEL)
    for act in (lambda: store.enroll("B", [heard(1)], "e" * 64), lambda: store.enrolled("e" * 64)):
        with pytest.raises(ValueError, match=r"speakers.sqlite: its speakers were enrolled by another model"):
            act()
    assert [each.name for each in store.speakers()] == ["A"]
    store.remove("A")
    store.enroll("B", [heard(1, size=8)], "e" * 64)  # of an empty store, anybody's
    assert list(store.enrolled("e" * 64)) == ["B"]


@pytest.mark.parametrize(
    ("recordings", "words"),
    [
        ([], "no recordings of A"),
        ([heard(0), heard(1, size=5)], "have one size"),
        ([heard(0, size=5)], "embeddings have 4 numbers, these have 5"),
        ([Heard(np.array([1, 2, 3, np.nan]))], "finite numbers"),
        ([heard(0), Heard(np.array([1, 2, 3, np.inf]))], "finite numbers"),
    ],
)
def test_what_does_not_fit_leaves_the_store_as_it_was(path, recordings, words):
    Store(path).enroll("B", [heard(9)], MODEL)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=words):
        Store(path).enroll("A", recordings, MODEL)
    assert path.read_bytes() == before


def test_nothing_is_left_of_a_speaker_who_was_removed(path):
    Store(path).enroll("Anna Removed", [heard(n) for n in range(50)], MODEL)
    Store(path).enroll("B", [heard(99)], MODEL)
    traces = [b"Anna", *(heard(n).embedding.tobytes() for n in range(50))]
    assert all(trace in path.read_bytes() for trace in traces)
    Store(path).remove("Anna Removed")
    assert not any(trace in path.read_bytes() for trace in traces)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_only_its_owner_can_read_it(path):
    Store(path).enroll("A", [heard(0)], MODEL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recordings (speaker)")
    connection.close()


def damaged(path: Path) -> None:
    Store(path).enroll("A", [heard(n, size=512) for n in range(20)], MODEL)
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def changed(statement: str):
    def change(path: Path) -> None:
        Store(path).enroll("A", [heard(0)], MODEL)
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()

    return change


BAD = {
    "text": (lambda path: path.write_text("no database at all " * 20), "not a readable store"),
    "foreign": (foreign, "is a database, but no store of speakers"),
    "damaged": (damaged, "speakers.sqlite"),
    "newer": (changed("PRAGMA user_version = 2"), "has version 2 of a store of speakers, this program reads 1"),
    "cut": (changed("UPDATE recordings SET embedding = x'00'"), "another size"),
    "not finite": (changed("UPDATE recordings SET embedding = x'0000c07f0000c07f0000c07f0000c07f'"), "not finite"),
    "words": (changed("UPDATE recordings SET seconds = 'many'"), "not a readable store"),
    "no table": (changed("DROP TABLE model"), "speakers.sqlite"),
    "folder": (lambda path: path.mkdir(), "unable to open|readable"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_store_or_damaged_is_named(path, kind):
    make, words = BAD[kind]
    path.parent.mkdir()
    make(path)
    with pytest.raises((ValueError, OSError), match=words) as refusal:
        Store(path).enrolled(MODEL)
    assert str(path) in str(refusal.value)


def test_of_two_who_enrol_at_once_nobody_is_lost(path):
    def enrol(first: int) -> None:
        for number in range(first, first + 10):
            Store(path).enroll(f"speaker {number}", [heard(number)], MODEL)

    threads = [threading.Thread(target=enrol, args=(first,)) for first in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Store(path).speakers()) == 30


KILLED = """
import os, sqlite3, sys
from pathlib import Path
import numpy as np
from sv_sparse.deploy.decision import Heard
from sv_sparse.deploy.store import Store
store = Store(Path(sys.argv[1]))
with store._changing() as connection:
    connection.execute("PRAGMA cache_size = 1")  # so that changes are in the file before they are committed
    connection.executemany(
        "INSERT INTO recordings VALUES ('B', ?, 1.0, '')", [(np.ones(4, "<f4").tobytes(),) for _ in range(5000)]
    )
    os._exit(9)
"""


def test_a_change_that_was_killed_halfway_never_happened(path):
    Store(path).enroll("A", [heard(0)], MODEL)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert killed.returncode == 9
    assert [(each.name, each.recordings) for each in Store(path).speakers()] == [("A", 1)]


def test_a_store_that_was_made_halfway_is_empty(path):
    path.parent.mkdir()
    path.touch()
    assert Store(path).speakers() == []
    Store(path).enroll("A", [heard(0)], MODEL)
    assert len(Store(path).speakers()) == 1


def test_its_place_follows_the_desktop_standard(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path() == tmp_path / "sv-sparse" / "speakers.sqlite"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local/share/sv-sparse/speakers.sqlite"
