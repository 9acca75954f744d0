"""Database of enrolled speakers on this machine: one SQLite file, which only its owner can read."""

import json
import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sv_sparse.io import checksum, nfc
from sv_sparse.runtime.decision import EmbeddedRecording, Outcome

# The answer for a recording of nobody who is enrolled.
UNKNOWN = "unknown"
# Answers that must not look like a name.
RESERVED = (UNKNOWN, "nobody", Outcome.NO_DECISION.value)

# "SVSP", which SQLite stores in the file's header.
_APPLICATION_ID = 0x53565350
_VERSION = 3
_MAX_NAME = 200
# Unicode's class Zs: Japanese input methods type U+3000, word processors U+00A0.
_SPACES = dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
# Each row has a checksum, so that no embedding is compared that has changed since it was enrolled.
_SCHEMA = """
CREATE TABLE model (fingerprint TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE recordings (
    speaker TEXT NOT NULL, embedding BLOB NOT NULL, seconds REAL, created TEXT NOT NULL, checksum TEXT NOT NULL
);
CREATE INDEX by_speaker ON recordings (speaker);
"""


class Speaker(NamedTuple):
    """Enrolled speaker."""

    # Name as normalize_name spells it.
    name: str
    num_recordings: int
    # Of all recordings together; None where it is unknown.
    seconds: float | None
    # Time of the first enrollment, ISO 8601 in UTC.
    created: str


def default_path() -> Path:
    """Return ``$XDG_DATA_HOME/sv-sparse/speakers.sqlite``, by default in ``~/.local/share``."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "sv-sparse" / "speakers.sqlite"


class SpeakerDatabase:
    """Speakers by name, with the embeddings of their recordings by one model.

    Several processes may use a database at once; each change is complete or not made.

    Args:
        path: The file; it is created, with its folder, when somebody is enrolled.

    Raises:
        ValueError: There is something else at that path, or it is damaged or of another version; the message names it.

    >>> import tempfile
    >>> database = SpeakerDatabase(Path(tempfile.mkdtemp()) / "speakers.sqlite")
    >>> database.enroll("Ada", [EmbeddedRecording(np.ones(3, np.float32), 2.5)], fingerprint="model 1")
    >>> database.embeddings("model 1")["Ada"].seconds
    2.5
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._read():
            pass

    def enroll(self, name: str, recordings: Sequence[EmbeddedRecording], fingerprint: str) -> None:
        """Add recordings to a speaker, who is new or already enrolled.

        Args:
            name: Name that ``normalize_name`` allows.
            recordings: One or more; their seconds are at least 0.
            fingerprint: Fingerprint of the model that embedded them.

        Raises:
            ValueError: The name is not allowed, there are no recordings, or the database belongs to another model.
            OSError: The file cannot be written.
        """
        name = normalize_name(name)
        if not recordings:
            raise ValueError(f"expected at least one recording of {name}, got none")
        sizes = {recording.embedding.shape for recording in recordings}
        if len(sizes) > 1:
            raise ValueError(f"embeddings of one model have one size, got {sorted(sizes)}")
        created = datetime.now(UTC).isoformat(timespec="seconds")
        rows = []
        for recording in recordings:
            row = (name, *_columns(recording), created)
            rows.append((*row, _row_checksum(fingerprint, *row)))
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQLite itself would create a file that others can read.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._transaction() as connection:
            self._check_model(connection, fingerprint, len(recordings[0].embedding))
            connection.executemany("INSERT INTO recordings VALUES (?, ?, ?, ?, ?)", rows)

    def speakers(self) -> list[Speaker]:
        """Return the enrolled speakers, sorted by name; errors as of ``embeddings``."""
        with self._read() as connection:
            rows_by_speaker = self._rows(connection) if connection is not None else {}
        speakers = []
        for name, rows in rows_by_speaker.items():
            recordings, times = zip(*rows, strict=True)
            speakers.append(Speaker(name, len(rows), EmbeddedRecording.mean_of(recordings).seconds, min(times)))
        return speakers

    def embeddings(self, fingerprint: str) -> dict[str, EmbeddedRecording]:
        """Return the mean embedding of each speaker's recordings, by name.

        Raises:
            ValueError: The database belongs to another model than that of ``fingerprint``, or what is stored of a
                speaker is damaged; the message names the file and the speaker.
        """
        embeddings: dict[str, EmbeddedRecording] = {}
        with self._read() as connection:
            if connection is not None:
                rows_by_speaker = self._rows(connection)
                size = self._check_model(connection, fingerprint)
                for name, rows in rows_by_speaker.items():
                    embeddings[name] = EmbeddedRecording.mean_of([recording for recording, _ in rows])
                    if embeddings[name].embedding.shape != (size,):
                        raise sqlite3.DatabaseError("an embedding has another size than the model's")
        return embeddings

    def remove(self, name: str) -> None:
        """Remove a speaker, also one whose rows are damaged; raise ValueError if there is nobody of that name."""
        name = _canonical_spelling(name)
        row_ids = []
        if self.path.exists():
            with self._transaction() as connection:
                # Compared here and not by SQL, which knows only valid UTF-8.
                for row_id, speaker in connection.execute("SELECT rowid, speaker FROM recordings").fetchall():
                    if str(speaker) == name:
                        row_ids.append((row_id,))
                connection.executemany("DELETE FROM recordings WHERE rowid = ?", row_ids)
                if not connection.execute("SELECT count(*) FROM recordings").fetchone()[0]:
                    # An empty database belongs to any model.
                    connection.execute("DELETE FROM model")
        if not row_ids:
            raise ValueError(f"{self.path}: nobody is enrolled as {name}")

    def _rows(self, connection: sqlite3.Connection) -> dict[str, list[tuple[EmbeddedRecording, str]]]:
        """Return all recordings and their times by speaker, in the order of enrollment."""
        # An empty database belongs to no model.
        (fingerprint,) = connection.execute("SELECT fingerprint FROM model").fetchone() or ("",)
        rows_by_speaker: dict[str, list[tuple[EmbeddedRecording, str]]] = {}
        query = "SELECT speaker, embedding, seconds, created, checksum FROM recordings ORDER BY speaker, rowid"
        for *columns, stored_checksum in connection.execute(query):
            speaker, embedding, seconds, created = columns
            if stored_checksum != _row_checksum(fingerprint, *columns):
                raise ValueError(
                    f"{self.path}: what is stored of {speaker} is damaged, it has changed since it was enrolled; "
                    f"remove this speaker, and enroll again"
                )
            recording = EmbeddedRecording(np.frombuffer(embedding, "<f4").astype(np.float32), seconds)
            rows_by_speaker.setdefault(speaker, []).append((recording, created))
        (problem,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        # A row that has disappeared has no checksum that could differ.
        if problem != "ok":
            raise sqlite3.DatabaseError(problem.replace("\n", " "))
        return rows_by_speaker

    def _check_model(self, connection: sqlite3.Connection, fingerprint: str, size: int | None = None) -> int:
        """Return the size of embeddings of this model's database; with ``size``, an empty one becomes this model's."""
        model = connection.execute("SELECT fingerprint, size FROM model").fetchone()
        if model is None and size is not None:
            connection.execute("INSERT INTO model VALUES (?, ?)", (fingerprint, size))
        stored_fingerprint, stored_size = model or (fingerprint, size or 0)
        if stored_fingerprint != fingerprint:
            raise ValueError(
                f"{self.path}: its speakers were enrolled by another model, whose embeddings cannot be compared with "
                f"this one's; enroll them again in another database"
            )
        if size is not None and size != stored_size:
            raise ValueError(f"{self.path}: its embeddings have {stored_size} numbers, these have {size}")
        return int(stored_size)

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection | None]:
        """Yield a connection that sees one state of the database; None where there is none yet."""
        if not self.path.exists():
            yield None
            return
        with self._connect("BEGIN") as connection:
            is_empty = _is_empty(connection)
            if not is_empty:
                self._check_schema(connection)
            yield None if is_empty else connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection whose changes are all made, or none of them after an error; an empty file gets tables."""
        with self._connect("BEGIN IMMEDIATE") as connection:
            if _is_empty(connection):
                # Not executescript, which commits what came before.
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            self._check_schema(connection)
            yield connection
            connection.execute("COMMIT")

    @contextmanager
    def _connect(self, begin: str) -> Iterator[sqlite3.Connection]:
        """Yield a connection in a transaction, read-only where the file is; what it does not commit is undone."""
        try:
            # Not the plain path, for which sqlite3 creates a missing file.
            uri = f"{self.path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)) as connection:
                # An embedding is biometric data: what is removed is overwritten in the file.
                connection.execute("PRAGMA secure_delete = ON")
                # Damaged bytes become characters that no checksum matches.
                connection.text_factory = lambda content: content.decode(errors="replace")
                connection.execute(begin)
                yield connection
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path} is not a readable database of speakers: {error}") from error

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application_id != _APPLICATION_ID:
            raise ValueError(f"{self.path} is a database, but not one of speakers")
        if version != _VERSION:
            raise ValueError(
                f"{self.path} has version {version} of the database of speakers. sv-sparse 0.1 reads versions 1 and 2, "
                f"this version reads {_VERSION}: enroll the speakers again in another database, and delete this file"
            )


def normalize_name(name: str) -> str:
    """Return the one spelling of a speaker's name: Unicode's normal form C, without spaces around it.

    Raises:
        ValueError: It is not one line of 1 to 200 printable characters, or one of RESERVED in upper or lower case.

    >>> normalize_name(" Jose\u0301 ")
    'José'
    """
    spelling = _canonical_spelling(name)
    # Names are printed to terminals, one in a line.
    if not spelling or len(spelling) > _MAX_NAME or not spelling.isprintable():
        raise ValueError(
            f"a speaker's name must be one line of 1 to {_MAX_NAME} printable characters, got {name[:80]!r}"
        )
    if spelling.casefold() in RESERVED:
        raise ValueError(
            f"a speaker cannot be called {spelling}, which is an answer of this program: {', '.join(RESERVED)}"
        )
    return spelling


def _canonical_spelling(name: str) -> str:
    return nfc(name.translate(_SPACES)).strip(" ")


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _columns(recording: EmbeddedRecording) -> tuple[bytes, float | None]:
    """Return embedding and seconds as they are stored; raise ValueError for numbers that are not finite."""
    embedding = recording.embedding
    seconds = recording.seconds
    if embedding.ndim != 1 or not np.isfinite(embedding).all():
        raise ValueError(f"expected an embedding [E] of finite numbers, got {list(embedding.shape)}")
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"a recording's seconds must be a number of at least 0, got {seconds}")
    # A float, as the database returns it, or the checksum would differ.
    return embedding.astype("<f4").tobytes(), None if seconds is None else float(seconds)


def _row_checksum(fingerprint: object, speaker: object, embedding: object, seconds: object, created: object) -> str:
    # Of any types, since a database holds whatever anybody has written to it. The model's fingerprint counts too:
    # embeddings of another model cannot be compared.
    text = json.dumps([fingerprint, speaker, seconds, created], default=repr)
    return checksum(text.encode(), embedding if isinstance(embedding, bytes) else repr(embedding).encode())
