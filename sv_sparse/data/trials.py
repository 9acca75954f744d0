"""Trial lists: VoxCeleb's text format, ``label enrollment test``, or Parquet for lists of millions.

The label is 1 for a target trial and 0 for a nontarget trial.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sv_sparse.io import atomic_write, write_text

_LABELS = {"0": False, "1": True}


@dataclass(frozen=True)
class Trials:
    """Trial list, with each utterance named once and referred to by index.

    Attributes:
        name: file name of the list without its suffix, such as ``veri_test``.
        is_target: bool [N], True for trials of one speaker.
        enrollment: int64 [N], index into ``sides``.
        test: int64 [N], index into ``utterances``.
        utterances: names of the distinct utterances.
        models: enrollments of several utterances, as indices into ``utterances`` by the enrollment's name.
    """

    name: str
    is_target: NDArray[np.bool_]
    enrollment: NDArray[np.int64]
    test: NDArray[np.int64]
    utterances: list[str]
    models: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.is_target)

    @cached_property
    def checksum(self) -> str:
        """Checksum of the trials and their order, 16 hexadecimal digits."""
        digest = hashlib.blake2b("\n".join(self.sides).encode(), digest_size=8)
        for column in (self.is_target, self.enrollment, self.test):
            digest.update(column.tobytes())
        return digest.hexdigest()

    @property
    def sides(self) -> list[str]:
        """Names of everything that can be a side of a trial: the utterances, then the models."""
        return [*self.utterances, *self.models]

    def describe(self, trial: int) -> str:
        """Return the name of a trial for error messages, by its position."""
        return f"{self.name}, {self.sides[self.enrollment[trial]]} {self.sides[self.test[trial]]}"

    def used_utterances(self) -> NDArray[np.int64]:
        """Return the indices of the utterances that some trial needs, ascending, int64."""
        count = len(self.utterances)
        sides = np.unique(np.concatenate([self.enrollment, self.test]))
        models = list(self.models.values())
        members = [np.array(models[model - count], np.int64) for model in sides[sides >= count]]
        return np.unique(np.concatenate([sides[sides < count], *members]))

    def without(self, unusable: Collection[int]) -> tuple["Trials", NDArray[np.int64]]:
        """Return the list without some utterances, by their indices, as if their trials had never been in it.

        Also return, for each of the remaining utterances, its index in this list, ascending, int64.
        """
        count = len(self.utterances)
        usable = np.ones(count + len(self.models), np.bool_)
        usable[list(unusable)] = False
        # A model keeps the members that are left. Without any, it loses its trials.
        models = []
        for members in self.models.values():
            models.append([member for member in members if usable[member]])
        usable[count:] = [bool(members) for members in models]
        remains = usable[self.enrollment] & usable[self.test]
        trials = replace(
            self,
            is_target=self.is_target[remains],
            enrollment=self.enrollment[remains],
            test=self.test[remains],
            models=dict(zip(self.models, models, strict=True)),
        )
        # The trials still have this list's indices. Number the utterances and models that they need anew.
        rows = trials.used_utterances()
        used_models = np.unique(trials.enrollment[trials.enrollment >= count])
        index = np.full(len(usable), -1)
        index[np.concatenate([rows, used_models])] = np.arange(len(rows) + len(used_models))
        names = list(self.models)
        trials = replace(
            trials,
            enrollment=index[trials.enrollment],
            test=index[trials.test],
            utterances=[self.utterances[row] for row in rows],
            models={names[model]: index[models[model]].tolist() for model in (used_models - count).tolist()},
        )
        return trials, rows


def read_trials(path: str | Path) -> Trials:
    """Read a trial list, text or Parquet.

    Fields of a text are separated by spaces, or by tabs if names contain spaces. Blank lines are skipped.

    Raises:
        ValueError: a line is not ``label enrollment test`` (names its number), the file is not text, or the
            list lacks targets or nontargets.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file in UTF-8; {error}") from error
    is_target: list[bool] = []
    enrollment: list[int] = []
    test: list[int] = []
    index: dict[str, int] = {}
    # Only "\n" ends a line: str.splitlines would split at other characters, which names may contain.
    for line_number, line in enumerate(text.split("\n"), start=1):
        fields = split_fields(line, 3)
        if len(fields) == 3 and fields[0] in _LABELS:
            is_target.append(_LABELS[fields[0]])
            enrollment.append(index.setdefault(fields[1], len(index)))
            test.append(index.setdefault(fields[2], len(index)))
        elif fields:
            raise ValueError(
                f"{path}, line {line_number}: expected 'label enrollment test' with a label of 0 or 1, "
                f"such as '1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav'; got {line[:200]!r}; "
                "where paths have spaces, separate by tabs"
            )
    _check_both_classes(str(path), sum(is_target), len(is_target))
    return Trials(path.stem, np.array(is_target), np.array(enrollment), np.array(test), list(index))


def split_fields(line: str, count: int) -> list[str]:
    r"""Return the fields of a line of a list: between tabs if these make ``count`` fields, else between spaces.

    >>> split_fields("1\ta voice.wav\tb.wav", 3)
    ['1', 'a voice.wav', 'b.wav']
    """
    fields = [field.strip() for field in line.split("\t")]
    return fields if len(fields) == count and all(fields) else line.split()


def _check_both_classes(source: str, targets: int, trials: int) -> None:
    # Without one of them a list has no error rate.
    if targets in {0, trials}:
        raise ValueError(
            f"{source}: a trial list needs targets (label 1) and nontargets (label 0); "
            f"found {targets} targets and {trials - targets} nontargets"
        )


def from_columns(
    name: str,
    is_target: pa.ChunkedArray,
    enrollment: pa.ChunkedArray,
    test: pa.ChunkedArray,
    models: Mapping[str, Sequence[str]],
) -> Trials:
    """Return trials from columns [N] of names.

    Those in ``enrollment`` are names in ``models``, which has the names of their utterances, or names of utterances
    if ``models`` is empty. Those in ``test`` are names of utterances.

    Raises:
        ValueError: an enrollment is not in ``models``, or there are only targets or only nontargets.
    """
    enrollment_names = list(models) or enrollment.unique().to_pylist()
    members: list[str] = []
    for model in enrollment_names:
        members += models.get(model, [model])
    # From here on a million trials are integers, not Python objects.
    utterances = list(dict.fromkeys([*members, *test.unique().to_pylist()]))
    index = {utterance: position for position, utterance in enumerate(utterances)}
    # An enrollment of one utterance is that utterance; only several make a side of their own.
    new_models: dict[str, list[int]] = {}
    side: list[int] = []
    for model in enrollment_names:
        parts = [index[utterance] for utterance in models.get(model, [model])]
        if len(parts) == 1:
            side += parts
        else:
            side.append(len(utterances) + len(new_models))
            new_models[model] = parts
    position = pc.index_in(enrollment, value_set=pa.array(enrollment_names, pa.string()))
    if position.null_count:
        missing = enrollment.filter(pc.is_null(position)).unique().to_pylist()
        raise ValueError(f"{name}: {len(missing)} enrollments have no utterances; first {', '.join(missing[:3])}")
    _check_both_classes(name, pc.sum(is_target).as_py() or 0, len(is_target))
    test_index = pc.index_in(test, value_set=pa.array(utterances, pa.string()))
    return Trials(
        name,
        is_target.to_numpy(),
        np.array(side, dtype=np.int64)[position.to_numpy()],
        test_index.to_numpy().astype(np.int64),
        utterances,
        new_models,
    )


def write_parquet(path: str | Path, trials: Trials) -> None:
    """Write trials as Parquet, which :func:`read_trials` reads many times as fast as text."""
    sides = pa.array(trials.sides, pa.string())
    columns = {
        "is_target": pa.array(trials.is_target),
        "enrollment": pa.DictionaryArray.from_arrays(pa.array(trials.enrollment, pa.int32()), sides),
        "test": pa.DictionaryArray.from_arrays(pa.array(trials.test, pa.int32()), sides),
    }
    models = {}
    for model, members in trials.models.items():
        models[model] = [trials.utterances[member] for member in members]
    table = pa.table(columns).replace_schema_metadata({b"models": json.dumps(models).encode()})
    with atomic_write(path) as file:
        pq.write_table(table, file)


def _read_parquet(path: Path) -> Trials:
    try:
        table = pq.read_table(path, columns=["is_target", "enrollment", "test"])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a trial list ({error})") from error
    models = json.loads((table.schema.metadata or {}).get(b"models", b"{}"))
    enrollment = table.column("enrollment").cast(pa.string())
    test = table.column("test").cast(pa.string())
    # Enrollments of one utterance are not among the models.
    if models:
        for name in enrollment.unique().to_pylist():
            models.setdefault(name, [name])
    return from_columns(path.stem, table.column("is_target"), enrollment, test, models)


def write_trials(path: str | Path, is_target: Sequence[bool], enrollment: Sequence[str], test: Sequence[str]) -> None:
    """Write N labels and twice N names of utterances as a trial list, or raise a ValueError if a name cannot be."""
    separator = delimiter({*enrollment, *test})
    trials = zip(is_target, enrollment, test, strict=True)
    lines = [f"{int(label)}{separator}{first}{separator}{second}\n" for label, first, second in trials]
    write_text(path, "".join(lines))


def delimiter(names: Collection[str]) -> str:
    """Return the delimiter for a list with these names: a space, or a tab if a name contains a space.

    Raises:
        ValueError: a name is empty, begins or ends with a space, or contains tabs or line ends.
    """
    for name in names:
        if not name or name != name.strip() or not {"\t", "\n", "\r"}.isdisjoint(name):
            raise ValueError(
                f"{name!r}: expected a name without tabs and ends of lines, and without spaces around it, as a list of "
                f"trials needs it"
            )
    # Every character that Unicode calls a space counts, since ``str.split`` splits at them all.
    return "\t" if any(map(str.isspace, "".join(names))) else " "
