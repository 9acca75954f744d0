"""Files of scored trials, for other tools and for comparisons: lines ``enrollment test score label``.

The fields are separated by a space, or by a tab if names have spaces.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from sv_sparse.data.trials import Trials, delimiter
from sv_sparse.io import atomic_write, write_text
from sv_sparse.scoring.arrays import BoolArray, Float32Array, Float64Array
from sv_sparse.scoring.bootstrap import Interval, SpeakerBootstrap, bootstrap_eer, eer_difference_interval, resample
from sv_sparse.scoring.metrics import eer, sort_scores

_LINE_CHUNK_SIZE = 200_000
_COLUMNS = {"enrollment": pa.string(), "test": pa.string(), "score": pa.float32(), "label": pa.int8()}


def write_scores(path: Path, trials: Trials, scores: Float32Array) -> None:
    """Write a line for each trial, atomically; scores, float32 [trials], have the digits that restore them exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = pa.array(trials.sides, pa.string())
    labels = pa.array(["0", "1"])
    separator = delimiter(trials.sides)
    # In pieces, as the text of millions of lines is much larger than its arrays.
    with atomic_write(path) as file:
        for start in range(0, len(trials), _LINE_CHUNK_SIZE):
            chunk = slice(start, start + _LINE_CHUNK_SIZE)
            lines = pc.binary_join_element_wise(
                sides.take(pa.array(trials.enrollment[chunk])),
                sides.take(pa.array(trials.test[chunk])),
                pa.array(scores[chunk]).cast(pa.string()),
                labels.take(pa.array(trials.is_target[chunk].astype(np.int8))),
                separator,
            )
            file.write("\n".join(lines.to_pylist()).encode() + b"\n")


def write_speakers(path: Path, trials: Trials, speakers: Sequence[str]) -> None:
    """Write the speaker of each side of a list's trials, lines ``side<tab>speaker``; no file if they are not known."""
    # An older file would be about other trials.
    if not speakers:
        path.unlink(missing_ok=True)
        return
    lines = [f"{side}\t{speaker}\n" for side, speaker in zip(trials.sides, speakers, strict=True)]
    write_text(path, "".join(lines))


def read_speakers(path: Path) -> dict[str, str]:
    """Read the speaker of each side from a file of ``write_speakers``; empty if there is no file."""
    if not path.is_file():
        return {}
    # Not splitlines(): names may have other characters that Unicode calls line ends.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return dict(line.split("\t") for line in lines)


def read_scores(path: Path) -> tuple[Float32Array, BoolArray]:
    """Read scores and labels, [trials] each, from a file of ``write_scores``."""
    table = _read_table(path, ["score", "label"])
    return table.column("score").to_numpy(), table.column("label").to_numpy() == 1


def eer_difference(path: Path, other_path: Path) -> tuple[float, Interval] | None:
    """Compute the EER of a score file less that of another one, with the 95 % interval over speakers.

    Returns:
        The difference and the interval; None if the trials differ, or if speakers are unknown or few.
    """
    table = _read_table(path, list(_COLUMNS))
    other_table = _read_table(other_path, list(_COLUMNS))
    if not table.drop_columns("score").equals(other_table.drop_columns("score")):
        return None
    bootstrap = _speaker_bootstrap(table, path)
    if bootstrap is None:
        return None
    scores = table.column("score").to_numpy()
    other = other_table.column("score").to_numpy()
    rate, _ = eer(sort_scores(scores, bootstrap.is_target))
    other_rate, _ = eer(sort_scores(other, bootstrap.is_target))
    return rate - other_rate, eer_difference_interval(scores, other, bootstrap)


def bootstrap_eers(path: Path) -> Float64Array | None:
    """Compute the EER of each bootstrap sample of speakers, float64 [samples], from a file of scores.

    Files of the same trials have the same samples. The result is None if speakers are unknown or few.
    """
    table = _read_table(path, list(_COLUMNS))
    bootstrap = _speaker_bootstrap(table, path)
    if bootstrap is None:
        return None
    return bootstrap_eer(resample(table.column("score").to_numpy(), bootstrap))


def _speaker_bootstrap(table: pa.Table, path: Path) -> SpeakerBootstrap | None:
    """Return the bootstrap over the speakers of a score file, or None if they are unknown or few."""
    speakers = read_speakers(path.with_suffix(".speakers"))
    sides = pa.array(speakers, pa.string())
    enrollment = pc.index_in(table.column("enrollment"), value_set=sides)
    test = pc.index_in(table.column("test"), value_set=sides)
    if enrollment.null_count or test.null_count:
        return None
    ids = np.unique(list(speakers.values()), return_inverse=True)[1]
    is_target = table.column("label").to_numpy() == 1
    bootstrap = SpeakerBootstrap(is_target, ids[enrollment.to_numpy()], ids[test.to_numpy()])
    return bootstrap if bootstrap.is_reliable else None


def _read_table(path: Path, columns: list[str]) -> pa.Table:
    # The first line tells: a name with spaces makes the whole file one with tabs.
    with path.open("rb") as file:
        separator = "\t" if b"\t" in file.readline() else " "
    return csv.read_csv(
        path,
        csv.ReadOptions(column_names=list(_COLUMNS)),
        csv.ParseOptions(delimiter=separator, quote_char=False),
        csv.ConvertOptions(column_types=_COLUMNS, include_columns=columns),
    )
