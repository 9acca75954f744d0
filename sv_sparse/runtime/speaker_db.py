"""Enrolled speakers on this machine: one SQLite file, which only its owner can read.

Embeddings are kept, no recordings. An embedding is a biometric trait all the same: removing a speaker overwrites it in
the file. Each recording's row has a check sum, so that no embedding is compared that has changed since it was enrolled.
"""

import json
import math
import os
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sv_sparse.io import checksum
from sv_sparse.runtime.decision import Heard, Outcome

UNKNOWN = "unknown"  # the answer for a recording of nobody who is enrolled
RESERVED = (UNKNOWN, "nobody", Outcome.NO_DECISION.value)  # what the program says instead of a name

_APPLICATION = 0x53565350  # "SVSP", which SQLite keeps in the file's header
_VERSION = 2
_WITHOUT_SUMS = 1  # had no check sums, and models' fingerprints were of compressed bytes
_LONGEST_NAME = 200
_SPACES = dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")  # Unicode's class Zs
_TABLES = """
CREATE TABLE model (fingerprint TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE recordings (
    speaker TEXT NOT NULL, embedding BLOB NOT NULL, seconds REAL, created TEXT NOT NULL, check_sum TEXT NOT NULL
);
CREATE INDEX by_speaker ON recordings (speaker);
"""


class Speaker(NamedTuple):
    """Who is enrolled.

    Attributes:
        name: as ``speaker_name`` spells it.
        recordings: that were heard.
        seconds: of them together; None where that is not known.
        created: when the first was enrolled, in ISO 8601, UTC.
    """

    name: str
    recordings: int
    seconds: float | None
    created: str


def default_path() -> Path:
    """``$XDG_DATA_HOME/sv-sparse/speakers.sqlite``, by default in ``~/.local/share``."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "sv-sparse" / "speakers.sqlite"


class _Row(NamedTuple):
    """A recording as it is stored, of whatever types: a database holds what anybody has written to it."""

    speaker: object
    embedding: object
    seconds: object
    created: object

    def check_sum(self, fingerprint: str) -> str:
        """Of all columns and the model's fingerprint."""
        words = json.dumps([fingerprint, self.speaker, self.seconds, self.created], default=repr)
        content = self.embedding if isinstance(self.embedding, bytes) else repr(self.embedding).encode()
        return checksum(words.encode(), content)


class Store:
    """Speakers by name, with the embeddings of their recordings; every change is done whole or not at all.

    Several processes may use a store at once. Of a store that an earlier version made (version 1, without check sums),
    speakers can be listed and removed, no more; once nobody is left, the next one who is enrolled makes it a new one.

    Args:
        path: the file; made, with its folder, when somebody is enrolled.

    Raises:
        ValueError: there is something else at that path, or it is damaged; names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._reading():
            pass

    def enroll(self, name: str, recordings: Sequence[Heard], fingerprint: str) -> None:
        """Add recordings to a speaker, who is new or there already.

        Args:
            name: any text that ``speaker_name`` allows, which spells it.
            recordings: one or more; their seconds are at least 0.
            fingerprint: of the model that embedded them.

        Raises:
            ValueError: the name is not allowed, there are no recordings, or the store is of another model or version.
            OSError: the file cannot be written.
        """
        name = speaker_name(name)
        if not recordings:
            raise ValueError(f"no recordings of {name} are given")
        sizes = {each.embedding.shape for each in recordings}
        if len(sizes) > 1:
            raise ValueError(f"embeddings of one model have one size, got {sorted(sizes)}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows = [_Row(name, _to_bytes(each.embedding), _checked(each.seconds), now) for each in recordings]
        self._make()
        with self._changing() as connection:
            self._refuse_other(connection, fingerprint, len(recordings[0].embedding))
            sealed = [(*row, row.check_sum(fingerprint)) for row in rows]
            connection.executemany("INSERT INTO recordings VALUES (?, ?, ?, ?, ?)", sealed)

    def speakers(self) -> list[Speaker]:
        """Who is enrolled, by name.

        Raises:
            ValueError: what is stored of a speaker is damaged; names both.
        """
        with self._reading() as connection:
            rows_by_speaker = self._rows(connection) if connection is not None else {}
        speakers = []
        for name, rows in rows_by_speaker.items():
            seconds = [row.seconds for row in rows if isinstance(row.seconds, float)]
            total = sum(seconds) if len(seconds) == len(rows) else None
            speakers.append(Speaker(name, len(rows), total, min(str(row.created) for row in rows)))
        return speakers

    def enrolled(self, fingerprint: str) -> dict[str, Heard]:
        """What was heard of each speaker, by name: all their recordings together.

        Args:
            fingerprint: of the model that other recordings will be embedded by.

        Raises:
            ValueError: the store is of another model or version, or what is stored of a speaker is damaged; names both.
        """
        with self._reading() as connection:
            if connection is None:
                return {}
            rows_by_speaker = self._rows(connection)
            size = self._refuse_other(connection, fingerprint)
            recordings = {name: [_heard(row, size) for row in rows] for name, rows in rows_by_speaker.items()}
        return {name: Heard.together(several) for name, several in recordings.items()}

    def remove(self, name: str) -> None:
        """Remove a speaker, and overwrite what was kept; what is damaged can be removed too.

        Raises:
            ValueError: there is none of that name.
            OSError: the file cannot be written.
        """
        name = _normal(name)
        with self._reading() as connection:
            known = connection is not None
        ids: list[tuple[int]] = []
        if known:
            with self._changing() as changed:
                # Compared here and not by SQL, which knows only valid UTF-8; version 1 kept spaces around a name.
                listed = changed.execute("SELECT rowid, speaker FROM recordings").fetchall()
                ids = [(rowid,) for rowid, speaker in listed if str(speaker).strip(" ") == name]
                changed.executemany("DELETE FROM recordings WHERE rowid = ?", ids)
                if not changed.execute("SELECT count(*) FROM recordings").fetchone()[0]:
                    changed.execute("DELETE FROM model")  # anybody's from now on
        if not ids:
            raise ValueError(f"{self.path}: nobody is enrolled as {name}")

    def _rows(self, connection: sqlite3.Connection) -> dict[str, list[_Row]]:
        """All recordings, compared with their check sums: by speaker, in the order in which they were enrolled."""
        has_sums = _version(connection) == _VERSION
        fingerprint = (connection.execute("SELECT fingerprint FROM model").fetchone() or ("",))[0]
        rows_by_speaker: dict[str, list[_Row]] = {}
        for *columns, digest in connection.execute(
            f"SELECT speaker, embedding, seconds, created, {'check_sum' if has_sums else 'NULL'} FROM recordings "
            "ORDER BY speaker, rowid"
        ):
            row = _Row(*columns)
            if has_sums and digest != row.check_sum(str(fingerprint)):
                raise ValueError(
                    f"{self.path}: what is stored of {row.speaker} is damaged, it has changed since it was enrolled; "
                    f"remove this speaker, and enroll again"
                )
            rows_by_speaker.setdefault(str(row.speaker), []).append(row)
        problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":  # a row that is lost has no check sum that could differ
            raise sqlite3.DatabaseError(problem.replace("\n", " "))
        return rows_by_speaker

    def _refuse_other(self, connection: sqlite3.Connection, fingerprint: str, size: int | None = None) -> int:
        """The size of embeddings, of a store of this model; a new one becomes one of it."""
        known = connection.execute("SELECT fingerprint, size FROM model").fetchone()
        if known is None and size is not None:
            connection.execute("INSERT INTO model VALUES (?, ?)", (fingerprint, size))
            return size
        if known is None:
            return 0
        if _version(connection) == _WITHOUT_SUMS:
            raise ValueError(
                f"{self.path}: its speakers were enrolled by an earlier version of this program, whose embeddings were "
                f"not protected against damage; enroll them again, in another store or once this file is moved away"
            )
        if known[0] != fingerprint:
            raise ValueError(
                f"{self.path}: its speakers were enrolled by another model, whose embeddings cannot be compared with "
                f"this one's; enroll them again in another store"
            )
        if size is not None and size != known[1]:
            raise ValueError(f"{self.path}: its embeddings have {known[1]} numbers, these have {size}")
        return int(known[1])

    def _make(self) -> None:
        """An empty store, unless there is one; complete or absent, whenever this is stopped."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if not _is_empty(connection):
                self._refuse_foreign(connection)
                if _version(connection) == _VERSION or connection.execute("SELECT 1 FROM recordings").fetchone():
                    return
                connection.execute("DROP TABLE recordings")
                connection.execute("DROP TABLE model")
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection that sees one state of the store; None where there is none yet."""
        if not self.path.exists():
            yield None
            return
        with self._connected() as connection:
            connection.execute("BEGIN")
            if _is_empty(connection):
                yield None
                return
            self._refuse_foreign(connection)
            yield connection

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are all kept, or none of them after an error."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._refuse_foreign(connection)
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection, which reads alone where the file cannot be written; what it does not commit is undone."""
        try:
            uri = f"{self.path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)) as connection:
                connection.execute("PRAGMA secure_delete = ON")
                connection.text_factory = _text
                yield connection
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is not a readable store of speakers: {error}") from error

    def _refuse_foreign(self, connection: sqlite3.Connection) -> None:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = _version(connection)
        if application != _APPLICATION:
            raise ValueError(f"{self.path} is a database, but no store of speakers")
        if version not in {_WITHOUT_SUMS, _VERSION}:
            raise ValueError(f"{self.path} has version {version} of a store of speakers, this program reads {_VERSION}")


def speaker_name(name: str) -> str:
    """The one spelling of a speaker's name: Unicode's normal form C, without spaces around it.

    Args:
        name: one line of 1 to 200 printable characters, none of RESERVED in small letters or capitals.

    Raises:
        ValueError: it is something else.

    >>> speaker_name(" Jose\u0301 ")
    'José'
    """
    spelled = _normal(name)
    if not spelled or len(spelled) > _LONGEST_NAME or not spelled.isprintable():
        raise ValueError(
            f"a speaker's name must be one line of 1 to {_LONGEST_NAME} printable characters, got {name[:80]!r}"
        )
    if spelled.casefold() in RESERVED:
        raise ValueError(
            f"a speaker cannot be called {spelled}, which is an answer of this program: {', '.join(RESERVED)}"
        )
    return spelled


def _is_empty(connection: sqlite3.Connection) -> bool:
    """Whether there is nothing in the file: it was just made."""
    return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _text(content: bytes) -> str:
    """Text of the database, where damaged bytes become signs that no check sum fits."""
    return content.decode(errors="replace")


def _normal(name: str) -> str:
    """One spelling of what looks the same."""
    return unicodedata.normalize("NFC", name.translate(_SPACES)).strip(" ")


def _checked(seconds: float | None) -> float | None:
    """Seconds as the database gives them back."""
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"a recording's seconds must be a number of at least 0, got {seconds}")
    return None if seconds is None else float(seconds)


def _to_bytes(embedding: np.ndarray) -> bytes:
    if embedding.ndim != 1 or not np.isfinite(embedding).all():
        raise ValueError(f"expected an embedding [E] of finite numbers, got {list(embedding.shape)}")
    return embedding.astype("<f4").tobytes()


def _heard(row: _Row, size: int) -> Heard:
    """A recording as it was stored; an error of the database where it was not stored by this program."""
    if not isinstance(row.embedding, bytes) or len(row.embedding) != 4 * size:
        raise sqlite3.DatabaseError("an embedding has another size than the model's")
    embedding = np.frombuffer(row.embedding, "<f4").astype(np.float32)
    seconds = row.seconds
    if not np.isfinite(embedding).all() or not (seconds is None or isinstance(seconds, float)):
        raise sqlite3.DatabaseError("an embedding, or its seconds, is not finite")
    return Heard(embedding, seconds)
