"""Files of scored trials, for whoever wants to judge them otherwise: lines ``enrolment test score label``.

The fields are separated by a space, or by a tab where names have spaces.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from sv_sparse.data.trials import Trials, delimiter
from sv_sparse.io import atomic_write, write_text
from sv_sparse.scoring.bootstrap import Drawn, Interval, difference, eers, redraw
from sv_sparse.scoring.cosine import Array
from sv_sparse.scoring.metrics import eer, rank_scores

_LINES_AT_ONCE = 200_000
_COLUMNS = {"enrolment": pa.string(), "test": pa.string(), "score": pa.float32(), "label": pa.int8()}


def write_scores(path: Path, trials: Trials, scores: Array) -> None:
    """Write a line for each trial, atomically; a score has as many digits as tell it from its neighbours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = pa.array(trials.sides, pa.string())
    labels = pa.array(["0", "1"])
    space = delimiter(trials.sides)
    with atomic_write(path) as file:
        for start in range(0, len(trials), _LINES_AT_ONCE):
            part = slice(start, start + _LINES_AT_ONCE)
            words = (
                sides.take(pa.array(trials.enrolment[part])),
                sides.take(pa.array(trials.test[part])),
                pa.array(scores[part]).cast(pa.string()),
                labels.take(pa.array(trials.is_target[part].astype(np.int8))),
            )
            lines = pc.binary_join_element_wise(*words, space)
            file.write("\n".join(lines.to_pylist()).encode() + b"\n")


def write_speakers(path: Path, trials: Trials, speakers: Sequence[str]) -> None:
    """Write who speaks in each side of a list's trials, lines ``side<tab>speaker``; nobody is no file."""
    if not speakers:
        path.unlink(missing_ok=True)
        return
    write_text(path, "".join(f"{side}\t{speaker}\n" for side, speaker in zip(trials.sides, speakers, strict=True)))


def read_speakers(path: Path) -> dict[str, str]:
    """Who speaks in each side, from a file that ``write_speakers`` wrote; nothing where there is none."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # other ends of lines may lie in names
    return dict(line.split("\t") for line in lines)


def read_scores(path: Path) -> tuple[Array, NDArray[np.bool_]]:
    """Scores and labels of a file that ``write_scores`` wrote.

    Raises:
        OSError: It cannot be opened.
    """
    table = _read(path, ["score", "label"])
    return table.column("score").to_numpy(), table.column("label").to_numpy() == 1


def difference_of(ours: Path, theirs: Path) -> tuple[float, Interval] | None:
    """How two systems' EERs differ that scored the same list: ours less theirs, and its 95 % interval over speakers.

    Args:
        ours: A file of scores, with its ``.speakers`` beside it.
        theirs: Another one.

    Returns:
        None where the trials are not the same, or speakers are not known, or few.
    """
    left, right = (_read(path, list(_COLUMNS)) for path in (ours, theirs))
    drawn = _drawn(left, ours) if left.drop_columns("score").equals(right.drop_columns("score")) else None
    if drawn is None:
        return None
    own, other = (table.column("score").to_numpy() for table in (left, right))
    gap = eer(rank_scores(own, drawn.is_target))[0] - eer(rank_scores(other, drawn.is_target))[0]
    return gap, difference(own, other, drawn)


def redrawn_eers(path: Path) -> NDArray[np.float64] | None:
    """The EER of each draw of other speakers, [draws], of a file of scores with its ``.speakers`` beside it.

    Files of the same trials have the same draws, so that what is computed of several draw by draw can be compared.

    Returns:
        None where speakers are not known, or few.
    """
    table = _read(path, list(_COLUMNS))
    drawn = _drawn(table, path)
    return eers(redraw(table.column("score").to_numpy(), drawn)) if drawn is not None else None


def _drawn(table: pa.Table, path: Path) -> Drawn | None:
    """What intervals are drawn from; None where speakers are not known, or few."""
    speakers = read_speakers(path.with_suffix(".speakers"))
    is_target, sides = table.column("label").to_numpy() == 1, pa.array(speakers, pa.string())
    rows = [pc.index_in(table.column(name), value_set=sides) for name in ("enrolment", "test")]
    if any(row.null_count for row in rows):
        return None
    numbers = np.unique(list(speakers.values()), return_inverse=True)[1]
    drawn = Drawn(is_target, *(numbers[row.to_numpy()] for row in rows))
    return drawn if drawn.enough else None


def _read(path: Path, columns: list[str]) -> pa.Table:
    with path.open("rb") as file:
        space = "\t" if b"\t" in file.readline() else " "
    return csv.read_csv(
        path,
        csv.ReadOptions(column_names=list(_COLUMNS)),
        csv.ParseOptions(delimiter=space, quote_char=False),
        csv.ConvertOptions(column_types=_COLUMNS, include_columns=columns),
    )
