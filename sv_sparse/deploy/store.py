"""Enrolled speakers on this machine: one SQLite file, which only its owner can read.

Embeddings are kept, no recordings. An embedding is a biometric trait all the same: removing a speaker overwrites it in
the file.
"""

import os
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import NamedTuple

import numpy as np

from sv_sparse.deploy.decision import Heard

_APPLICATION = 0x53565350  # "SVSP", which SQLite keeps in the file's header
_VERSION = 1
_LONGEST_NAME = 200
_TABLES = """
CREATE TABLE model (fingerprint TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE recordings (
    speaker TEXT NOT NULL, embedding BLOB NOT NULL, seconds REAL, created TEXT NOT NULL
);
CREATE INDEX by_speaker ON recordings (speaker);
"""


class Speaker(NamedTuple):
    """Who is enrolled.

    Attributes:
        name: as it was given.
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


class Store:
    """Speakers by name, with the embeddings of their recordings; every change is done whole or not at all.

    Several processes may use a store at once.

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
            name: any text, up to 200 characters, in one line.
            recordings: one or more.
            fingerprint: of the model that embedded them.

        Raises:
            ValueError: the name is not allowed, there are no recordings, or the store is of another model.
            OSError: the file cannot be written.
        """
        name = _normal(name)
        if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            raise ValueError(f"a speaker's name must be one line of 1 to {_LONGEST_NAME} characters, got {name[:80]!r}")
        if not recordings:
            raise ValueError(f"no recordings of {name} are given")
        sizes = {each.embedding.shape for each in recordings}
        if len(sizes) > 1:
            raise ValueError(f"embeddings of one model have one size, got {sorted(sizes)}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows = [(name, _to_bytes(each.embedding), each.seconds, now) for each in recordings]
        self._make()
        with self._changing() as connection:
            self._refuse_other(connection, fingerprint, len(recordings[0].embedding))
            connection.executemany("INSERT INTO recordings VALUES (?, ?, ?, ?)", rows)

    def speakers(self) -> list[Speaker]:
        """Who is enrolled, by name."""
        query = (
            "SELECT speaker, count(*), CASE WHEN count(seconds) = count(*) THEN sum(seconds) END, min(created) "
            "FROM recordings GROUP BY speaker ORDER BY speaker"
        )
        with self._reading() as connection:
            return [Speaker(*row) for row in connection.execute(query)] if connection is not None else []

    def enrolled(self, fingerprint: str) -> dict[str, Heard]:
        """What was heard of each speaker, by name: all their recordings together.

        Args:
            fingerprint: of the model that other recordings will be embedded by.

        Raises:
            ValueError: the store is of another model.
        """
        with self._reading() as connection:
            if connection is None:
                return {}
            size = self._refuse_other(connection, fingerprint)
            found: dict[str, list[Heard]] = {}
            rows = connection.execute("SELECT speaker, embedding, seconds FROM recordings ORDER BY speaker, rowid")
            for name, content, seconds in rows:
                found.setdefault(str(name), []).append(_heard(content, seconds, size))
        return {name: Heard.together(several) for name, several in found.items()}

    def remove(self, name: str) -> None:
        """Remove a speaker, and overwrite what was kept.

        Raises:
            ValueError: there is none of that name.
            OSError: the file cannot be written.
        """
        name = _normal(name)
        with self._reading() as connection:
            known = connection is not None
        count = 0
        if known:
            with self._changing() as changed:
                count = changed.execute("DELETE FROM recordings WHERE speaker = ?", (name,)).rowcount
                if not changed.execute("SELECT count(*) FROM recordings").fetchone()[0]:
                    changed.execute("DELETE FROM model")  # anybody's from now on
        if not count:
            raise ValueError(f"{self.path}: nobody is enrolled as {name}")

    def _refuse_other(self, connection: sqlite3.Connection, fingerprint: str, size: int | None = None) -> int:
        """The size of embeddings, of a store of this model; a new one becomes one of it."""
        known = connection.execute("SELECT fingerprint, size FROM model").fetchone()
        if known is None and size is not None:
            connection.execute("INSERT INTO model VALUES (?, ?)", (fingerprint, size))
            return size
        if known is None:
            return 0
        if known[0] != fingerprint:
            raise ValueError(
                f"{self.path}: its speakers were enrolled by another model, whose embeddings cannot be compared with "
                f"this one's; enrol them again in another store"
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
                return
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
                yield connection
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is not a readable store of speakers: {error}") from error

    def _refuse_foreign(self, connection: sqlite3.Connection) -> None:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != _APPLICATION:
            raise ValueError(f"{self.path} is a database, but no store of speakers")
        if version != _VERSION:
            raise ValueError(f"{self.path} has version {version} of a store of speakers, this program reads {_VERSION}")


def _is_empty(connection: sqlite3.Connection) -> bool:
    """Whether there is nothing in the file: it was just made."""
    return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0)


def _normal(name: str) -> str:
    """One spelling of what looks the same."""
    return unicodedata.normalize("NFC", name)


def _to_bytes(embedding: np.ndarray) -> bytes:
    if embedding.ndim != 1 or not np.isfinite(embedding).all():
        raise ValueError(f"expected an embedding [E] of finite numbers, got {list(embedding.shape)}")
    return embedding.astype("<f4").tobytes()


def _heard(content: object, seconds: object, size: int) -> Heard:
    """A recording as it was stored; an error of the database where it was not stored by this program."""
    if not isinstance(content, bytes) or len(content) != 4 * size:
        raise sqlite3.DatabaseError("an embedding has another size than the model's")
    found = np.frombuffer(content, "<f4").astype(np.float32)
    if not np.isfinite(found).all() or not isinstance(seconds, (float, NoneType)):
        raise sqlite3.DatabaseError("an embedding, or its seconds, is not finite")
    return Heard(found, seconds)
