"""Trial lists in VoxCeleb's format: ``label enrolment test``, the label 1 (target) or 0 (nontarget) first."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sv_sparse.storage import write_text

_LABELS = {"0": False, "1": True}


@dataclass(frozen=True)
class Trials:
    """A trial list, its utterances named once and pointed at by index.

    Attributes:
        name: The list's file name without its ending, e.g. ``veri_test``.
        is_target: bool [N]; True where both sides are the same speaker.
        enrolment: int64 [N], index into ``utterances``.
        test: int64 [N], index into ``utterances``.
        utterances: The distinct utterances in order of first appearance.
    """

    name: str
    is_target: NDArray[np.bool_]
    enrolment: NDArray[np.int64]
    test: NDArray[np.int64]
    utterances: list[str]

    def __len__(self) -> int:
        return len(self.is_target)


def read_trials(path: str | Path) -> Trials:
    """Read a trial list; tabs, blank lines and Windows line ends are tolerated.

    Raises:
        ValueError: A line is not ``label enrolment test`` (named by its number), the file is not text, or the
            list lacks targets or nontargets, so that no error rate could be computed from it.
        OSError: The file cannot be opened.
    """
    path = Path(path)
    is_target: list[bool] = []
    sides: list[int] = []
    index: dict[str, int] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fields = line.split()
        if len(fields) == 3 and fields[0] in _LABELS:
            is_target.append(_LABELS[fields[0]])
            sides.append(index.setdefault(fields[1], len(index)))
            sides.append(index.setdefault(fields[2], len(index)))
        elif fields:
            raise ValueError(
                f"{path}, line {number}: expected 'label enrolment test' with a label of 0 or 1, "
                f"such as '1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav'; got {line[:200]!r}"
            )
    targets = sum(is_target)
    if targets in {0, len(is_target)}:
        raise ValueError(
            f"{path}: a trial list needs targets (label 1) and nontargets (label 0); "
            f"found {targets} targets and {len(is_target) - targets} nontargets"
        )
    pairs = np.array(sides, dtype=np.int64).reshape(-1, 2)
    return Trials(path.stem, np.array(is_target), pairs[:, 0].copy(), pairs[:, 1].copy(), list(index))


def write_trials(path: str | Path, is_target: Sequence[bool], enrolment: Sequence[str], test: Sequence[str]) -> None:
    """Write a trial list that :func:`read_trials` reads back, whole or not at all.

    Args:
        path: The file to write; its folder must exist.
        is_target: [N], True where both sides are the same speaker.
        enrolment: [N] utterances.
        test: [N] utterances.

    Raises:
        ValueError: The three differ in length.
    """
    rows = zip(is_target, enrolment, test, strict=True)
    write_text(path, "".join(f"{int(label)} {left} {right}\n" for label, left, right in rows))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file in UTF-8; {error}") from error
