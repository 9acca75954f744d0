"""Laws of the database of speakers: nothing half done, nothing mixed up, nothing left of who was removed."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import ROOT

from sv_sparse.runtime.decision import EmbeddedRecording
from sv_sparse.runtime.speaker_db import RESERVED, SpeakerDatabase, default_path

MODEL = "f" * 64


def recording(number: int, seconds: float | None = 2.0, size: int = 4) -> EmbeddedRecording:
    return EmbeddedRecording(np.random.default_rng(number).normal(size=size).astype(np.float32), seconds)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "deep" / "speakers.sqlite"


def test_what_is_enrolled_comes_back_as_the_mean_of_all_recordings_whenever_they_were_added(path):
    SpeakerDatabase(path).enroll("A", [recording(0), recording(1)], MODEL)
    SpeakerDatabase(path).enroll("B", [recording(2, None)], MODEL)
    SpeakerDatabase(path).enroll("A", [recording(3, 0.5)], MODEL)
    found = SpeakerDatabase(path).embeddings(MODEL)
    assert list(found) == ["A", "B"]
    expected = np.stack([recording(n).embedding for n in (0, 1, 3)]).mean(axis=0)
    assert np.array_equal(found["A"].embedding, expected)
    assert (found["A"].seconds, found["B"].seconds) == (4.5, None)
    listed = SpeakerDatabase(path).speakers()
    assert [(each.name, each.num_recordings, each.seconds) for each in listed] == [("A", 3, 4.5), ("B", 1, None)]
    assert listed[0].created.endswith("+00:00")


def test_a_store_that_is_not_there_is_empty_and_not_made_by_looking(path):
    assert SpeakerDatabase(path).speakers() == []
    assert SpeakerDatabase(path).embeddings(MODEL) == {}
    with pytest.raises(ValueError, match="nobody is enrolled as A"):
        SpeakerDatabase(path).remove("A")
    assert not path.parent.exists()


@pytest.mark.parametrize("name", ["José", "李小龍", "O'Brien; DROP TABLE recordings", "a b", "🎤", "%", "x" * 200])
def test_names_are_any_text(path, name):
    database = SpeakerDatabase(path)
    database.enroll(name, [recording(0)], MODEL)
    assert list(database.embeddings(MODEL)) == [name]
    database.remove(name)
    assert database.speakers() == []


def test_names_that_look_the_same_are_the_same(path):
    spellings = ["Jos\u00e9 A", "Jose\u0301 A", "  Jos\u00e9 A ", "Jos\u00e9\u3000A", "Jos\u00e9\u00a0A\u2003"]
    for number, name in enumerate(spellings):
        SpeakerDatabase(path).enroll(name, [recording(number)], MODEL)
    assert [(each.name, each.num_recordings) for each in SpeakerDatabase(path).speakers()] == [("Jos\u00e9 A", 5)]
    SpeakerDatabase(path).remove(" Jose\u0301 A")
    assert SpeakerDatabase(path).speakers() == []


@pytest.mark.parametrize("name", ["", "  ", "\u3000", "two\nlines", "tab\t", "\x1b[2J", "x" * 201, "\ud800", "a\udcff"])
def test_names_that_cannot_be_shown_are_refused(path, name):
    with pytest.raises(ValueError, match="name must be one line of 1 to 200 printable characters") as refusal:
        SpeakerDatabase(path).enroll(name, [recording(0)], MODEL)
    assert str(refusal.value).isprintable()
    assert not path.exists()


@pytest.mark.parametrize("name", [*RESERVED, "unknown", " Unknown ", "NOBODY"])
def test_a_name_that_is_an_answer_is_refused(path, name):
    with pytest.raises(ValueError, match=f"cannot be called {name.strip()}, which is an answer of this program"):
        SpeakerDatabase(path).enroll(name, [recording(0)], MODEL)
    assert not path.exists()


@pytest.mark.parametrize("name", ["", "\ud800", "unknown"])
def test_a_name_that_nobody_can_have_is_nobodys_when_it_is_removed(path, name):
    SpeakerDatabase(path).enroll("A", [recording(0)], MODEL)
    with pytest.raises(ValueError, match="nobody is enrolled as"):
        SpeakerDatabase(path).remove(name)


def test_embeddings_of_different_models_are_never_mixed(path):
    database = SpeakerDatabase(path)
    database.enroll("A", [recording(0)], MODEL)
    for act in (lambda: database.enroll("B", [recording(1)], "e" * 64), lambda: database.embeddings("e" * 64)):
        with pytest.raises(ValueError, match=r"speakers.sqlite: its speakers were enrolled by another model"):
            act()
    assert [each.name for each in database.speakers()] == ["A"]
    database.remove("A")
    database.enroll("B", [recording(1, size=8)], "e" * 64)  # of an empty database, anybody's
    assert list(database.embeddings("e" * 64)) == ["B"]


@pytest.mark.parametrize(
    ("recordings", "words"),
    [
        ([], "expected at least one recording of A, got none"),
        ([recording(0), recording(1, size=5)], "have one size"),
        ([recording(0, size=5)], "embeddings have 4 numbers, these have 5"),
        ([EmbeddedRecording(np.array([1, 2, 3, np.nan]))], "finite numbers"),
        ([recording(0), EmbeddedRecording(np.array([1, 2, 3, np.inf]))], "finite numbers"),
        ([recording(0, float("nan"))], "seconds must be"),
        ([recording(0, -1.0)], "seconds must be"),
    ],
)
def test_what_does_not_fit_leaves_the_store_as_it_was(path, recordings, words):
    SpeakerDatabase(path).enroll("B", [recording(9)], MODEL)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=words):
        SpeakerDatabase(path).enroll("A", recordings, MODEL)
    assert path.read_bytes() == before


def test_nothing_is_left_of_a_speaker_who_was_removed(path):
    SpeakerDatabase(path).enroll("Anna Removed", [recording(n) for n in range(50)], MODEL)
    SpeakerDatabase(path).enroll("B", [recording(99)], MODEL)
    traces = [b"Anna", *(recording(n).embedding.tobytes() for n in range(50))]
    assert all(trace in path.read_bytes() for trace in traces)
    SpeakerDatabase(path).remove("Anna Removed")
    assert not any(trace in path.read_bytes() for trace in traces)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_only_its_owner_can_read_it(path):
    SpeakerDatabase(path).enroll("A", [recording(0)], MODEL)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recordings (speaker)")
    connection.close()


def damaged(path: Path) -> None:
    SpeakerDatabase(path).enroll("A", [recording(n, size=512) for n in range(20)], MODEL)
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def changed(statement: str):
    def change(path: Path) -> None:
        SpeakerDatabase(path).enroll("A", [recording(0)], MODEL)
        with sqlite3.connect(path) as connection:
            connection.execute(statement)
        connection.close()

    return change


BAD = {
    "text": (lambda path: path.write_text("no database at all " * 20), "not a readable database of speakers"),
    "foreign": (foreign, "is a database, but not one of speakers"),
    "damaged": (damaged, "speakers.sqlite"),
    "newer": (changed("PRAGMA user_version = 4"), "has version 4 of the database of speakers"),
    "older": (changed("PRAGMA user_version = 2"), "sv-sparse 0.1 reads versions 1 and 2, this version reads 3"),
    "other size": (changed("UPDATE model SET size = 5"), "another size"),
    "cut": (changed("UPDATE recordings SET embedding = x'00'"), "stored of A is damaged"),
    "not finite": (
        changed("UPDATE recordings SET embedding = x'0000c07f0000c07f0000c07f0000c07f'"),
        "stored of A is damaged",
    ),
    "words": (changed("UPDATE recordings SET seconds = 'many'"), "stored of A is damaged"),
    "other words": (changed("UPDATE recordings SET embedding = 'many'"), "stored of A is damaged"),
    "other seconds": (changed("UPDATE recordings SET seconds = seconds + 1"), "stored of A is damaged"),
    "other time": (changed("UPDATE recordings SET created = '2000-01-01'"), "stored of A is damaged"),
    "other name": (changed("UPDATE recordings SET speaker = 'B'"), "stored of B is damaged"),
    "no name": (changed("UPDATE recordings SET speaker = CAST(x'41ff' AS TEXT)"), "stored of A\ufffd is damaged"),
    "other model": (changed(f"UPDATE model SET fingerprint = '{'e' * 64}'"), "stored of A is damaged"),
    "lost model": (changed("DELETE FROM model"), "stored of A is damaged"),
    "other sum": (changed("UPDATE recordings SET checksum = ''"), "stored of A is damaged"),
    "no table": (changed("DROP TABLE model"), "speakers.sqlite"),
    "folder": (lambda path: path.mkdir(), "unable to open|readable"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_store_or_damaged_is_named(path, kind):
    make, words = BAD[kind]
    path.parent.mkdir()
    make(path)
    with pytest.raises((ValueError, OSError), match=words) as refusal:
        SpeakerDatabase(path).embeddings(MODEL)
    assert str(path) in str(refusal.value)


def test_a_flipped_bit_is_refused_or_changes_nothing(path):
    database = SpeakerDatabase(path)
    for number in range(3):
        database.enroll(f"speaker {number}", [recording(number, size=32), recording(number + 9, size=32)], MODEL)
    content, expected, listed = path.read_bytes(), database.embeddings(MODEL), database.speakers()
    generator, refused = np.random.default_rng(0), 0
    for place in generator.choice(len(content), size=600, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            enrolled, speakers = SpeakerDatabase(path).embeddings(MODEL), SpeakerDatabase(path).speakers()
        except (ValueError, OSError) as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
            continue
        assert speakers == listed
        assert all(np.array_equal(each.embedding, expected[name].embedding) for name, each in enrolled.items())
    assert refused > 20


def test_a_bit_of_an_embedding_on_the_disk_names_the_speaker_who_can_be_removed(path):
    database = SpeakerDatabase(path)
    for number, name in enumerate("ABC"):
        database.enroll(name, [recording(number)], MODEL)
    content = bytearray(path.read_bytes())
    content[content.index(recording(1).embedding.tobytes()) + 5] ^= 4
    path.write_bytes(content)
    for act in (database.speakers, lambda: database.embeddings(MODEL)):
        with pytest.raises(ValueError, match=r"speakers\.sqlite: what is stored of B is damaged.*remove this speaker"):
            act()
    database.remove("B")
    assert list(database.embeddings(MODEL)) == ["A", "C"]


def test_a_recording_that_became_somebody_elses_is_noticed(path):
    database = SpeakerDatabase(path)
    database.enroll("A", [recording(0)], MODEL)
    database.enroll("B", [recording(1)], MODEL)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE recordings SET (embedding, checksum) ="
            " (SELECT embedding, checksum FROM recordings WHERE speaker = 'A') WHERE speaker = 'B'"
        )
    connection.close()
    with pytest.raises(ValueError, match="stored of B is damaged"):
        database.embeddings(MODEL)


def test_a_speaker_who_got_lost_on_the_disk_is_noticed(path):
    for number, name in enumerate("ABC"):
        SpeakerDatabase(path).enroll(name, [recording(number)], MODEL)
    with sqlite3.connect(path) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'by_speaker'").fetchone()[0]
        start = (page - 1) * connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    content = bytearray(path.read_bytes())
    assert content[start + 3 : start + 5] == bytes([0, 3])  # entries of this page of the index
    content[start + 4] = 2
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"speakers\.sqlite is not a readable database of speakers"):
        SpeakerDatabase(path).embeddings(MODEL)


def test_a_name_that_is_no_text_any_more_can_be_removed(path):
    changed("UPDATE recordings SET speaker = CAST(x'41ff' AS TEXT)")(path)
    SpeakerDatabase(path).remove("A\ufffd")
    assert SpeakerDatabase(path).speakers() == []


def test_of_two_who_enroll_at_once_nobody_is_lost(path):
    def enroll(first: int) -> None:
        for number in range(first, first + 10):
            SpeakerDatabase(path).enroll(f"speaker {number}", [recording(number)], MODEL)

    threads = [threading.Thread(target=enroll, args=(first,)) for first in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(SpeakerDatabase(path).speakers()) == 30


KILLED = """
import os, sqlite3, sys
from pathlib import Path
import numpy as np
from sv_sparse.runtime.decision import EmbeddedRecording
from sv_sparse.runtime.speaker_db import SpeakerDatabase
database = SpeakerDatabase(Path(sys.argv[1]))
with database._transaction() as connection:
    connection.execute("PRAGMA cache_size = 1")  # so that changes are in the file before they are committed
    connection.executemany(
        "INSERT INTO recordings VALUES ('B', ?, 1.0, '', '')", [(np.ones(4, "<f4").tobytes(),) for _ in range(5000)]
    )
    os._exit(9)
"""


def test_a_change_that_was_killed_halfway_never_happened(path):
    SpeakerDatabase(path).enroll("A", [recording(0)], MODEL)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert killed.returncode == 9
    assert [(each.name, each.num_recordings) for each in SpeakerDatabase(path).speakers()] == [("A", 1)]


def test_a_store_that_was_made_halfway_is_empty(path):
    path.parent.mkdir()
    path.touch()
    assert SpeakerDatabase(path).speakers() == []
    SpeakerDatabase(path).enroll("A", [recording(0)], MODEL)
    assert len(SpeakerDatabase(path).speakers()) == 1


def test_its_place_follows_the_desktop_standard(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path() == tmp_path / "sv-sparse" / "speakers.sqlite"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path() == tmp_path / ".local/share/sv-sparse/speakers.sqlite"
