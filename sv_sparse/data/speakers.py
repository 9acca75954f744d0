"""Tables of speakers, one line each, such as VoxCeleb's ``vox1_meta.csv``."""

import csv
from collections.abc import Mapping
from pathlib import Path

from sv_sparse.io import nfc

_SPEAKER_COLUMNS = ("speaker", "voxceleb1 id", "voxceleb2 id")
_SEX_COLUMNS = ("sex", "gender")
_SEXES = {"f": "f", "female": "f", "m": "m", "male": "m"}


def read_sexes(path: str | Path) -> dict[str, str]:
    """Read ``f`` or ``m`` by the speaker's name in Unicode's composed form; speakers with another entry are absent.

    The table has commas or tabs between its columns and names in its first line, among them ``speaker`` (or
    ``VoxCeleb1 ID``, ``VoxCeleb2 ID``) and ``sex`` (or ``gender``).

    Raises:
        ValueError: the table lacks these columns or is no text; names the file.
        OSError: the file cannot be read.
    """
    try:
        # Only "\n" ends a line: str.splitlines would split at other characters, which names may contain.
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file in UTF-8; {error}") from error
    header, *rows = csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ",")
    names = [name.strip().lower() for name in header]
    speaker_columns = [names.index(name) for name in _SPEAKER_COLUMNS if name in names]
    sex_columns = [names.index(name) for name in _SEX_COLUMNS if name in names]
    if not speaker_columns or not sex_columns:
        raise ValueError(f"{path}: expected columns 'speaker' and 'sex', divided by commas or tabs; got {header}")
    speaker, sex = speaker_columns[0], sex_columns[0]
    sexes = {}
    for row in rows:
        if len(row) > max(speaker, sex) and row[sex].strip().lower() in _SEXES:
            sexes[nfc(row[speaker].strip())] = _SEXES[row[sex].strip().lower()]
    return sexes


def format_sexes(sexes: Mapping[str, str]) -> str:
    """Return the text of a table that :func:`read_sexes` reads back, with ``f`` or ``m`` by speaker."""
    return "speaker,sex\n" + "".join([f"{name},{sex}\n" for name, sex in sorted(sexes.items())])
