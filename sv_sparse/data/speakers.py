"""What is known of speakers: a table with a line for each, such as VoxCeleb's ``vox1_meta.csv``."""

import csv
from collections.abc import Mapping
from pathlib import Path

from sv_sparse.io import nfc

_NAMES = ("speaker", "voxceleb1 id", "voxceleb2 id")
_SEX = ("sex", "gender")
_KNOWN = {"f": "f", "female": "f", "m": "m", "male": "m"}


def read_sexes(path: str | Path) -> dict[str, str]:
    """Sex of each speaker, ``f`` or ``m``, by the composed name; whoever has another entry is left out.

    The table is divided by tabs or commas and has a line of names on top, among them ``speaker`` (or ``VoxCeleb1 ID``,
    ``VoxCeleb2 ID``) and ``sex`` (or ``gender``).

    Raises:
        ValueError: It has no such columns; names the file.
        OSError: It cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # other ends of lines may lie in names
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file in UTF-8; {error}") from error
    head, *rows = csv.reader(lines, delimiter="\t" if "\t" in lines[0] else ",")
    names = [name.strip().lower() for name in head]
    speaker, sex = (next((names.index(name) for name in known if name in names), None) for known in (_NAMES, _SEX))
    if speaker is None or sex is None:
        raise ValueError(f"{path}: expected columns 'speaker' and 'sex', divided by commas or tabs; got {head}")
    entries = [(row[speaker].strip(), row[sex].strip().lower()) for row in rows if len(row) > max(speaker, sex)]
    return {nfc(name): _KNOWN[entry] for name, entry in entries if entry in _KNOWN}


def sexes_table(sexes: Mapping[str, str]) -> str:
    """The text of a table that :func:`read_sexes` reads back."""
    return "speaker,sex\n" + "".join(f"{name},{sex}\n" for name, sex in sorted(sexes.items()))
