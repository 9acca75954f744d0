"""Trial lists: in VoxCeleb's text format, ``label enrolment test``, or as Parquet where millions are to be read.

The label comes first, 1 for a target, 0 for a nontarget.
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
    """A trial list, its utterances named once and pointed at by index.

    Attributes:
        name: The list's file name without its ending, e.g. ``veri_test``.
        is_target: bool [N]; True where both sides are the same speaker.
        enrolment: int64 [N], index into ``sides``.
        test: int64 [N], index into ``utterances``.
        utterances: The distinct utterances.
        models: Enrolments of several utterances: indices into ``utterances`` by name.
    """

    name: str
    is_target: NDArray[np.bool_]
    enrolment: NDArray[np.int64]
    test: NDArray[np.int64]
    utterances: list[str]
    models: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.is_target)

    @cached_property
    def digest(self) -> str:
        """What other trials, or the same in another order, would not have."""
        found = hashlib.blake2b("\n".join(self.sides).encode(), digest_size=8)
        for column in (self.is_target, self.enrolment, self.test):
            found.update(column.tobytes())
        return found.hexdigest()

    def describe(self, trial: int) -> str:
        """What a trial is called in an error, by its position."""
        sides = self.sides
        return f"{self.name}, {sides[self.enrolment[trial]]} {sides[self.test[trial]]}"

    def heard(self) -> NDArray[np.int64]:
        """The utterances that some trial needs, ascending."""
        count = len(self.utterances)
        used = np.unique(np.concatenate([self.enrolment, self.test]))
        models = list(self.models.values())
        members = [member for model in used[used >= count] for member in models[model - count]]
        return np.unique(np.concatenate([used[used < count], np.array(members, np.int64)]))

    def without(self, unusable: Collection[int]) -> tuple["Trials", NDArray[np.int64]]:
        """The trials that need none of some utterances, as if the others had never been in the list.

        An enrolment of several utterances keeps those that can be used; one that has none loses its trials.

        Args:
            unusable: Indices into ``utterances``.

        Returns:
            The remaining trials, and for each of their utterances its index in this list, ascending.
        """
        count = len(self.utterances)
        usable = np.ones(count, np.bool_)
        usable[list(unusable)] = False
        members = {model: [part for part in parts if usable[part]] for model, parts in self.models.items()}
        usable_sides = np.concatenate([usable, np.array([bool(parts) for parts in members.values()], np.bool_)])
        remains = usable_sides[self.enrolment] & usable_sides[self.test]
        # The trials that remain, still with this list's utterances and indices.
        rest = replace(
            self,
            is_target=self.is_target[remains],
            enrolment=self.enrolment[remains],
            test=self.test[remains],
            models=members,
        )
        # The same with the utterances and models that they need alone, and indices into these.
        rows = rest.heard()
        used_models = np.unique(rest.enrolment[rest.enrolment >= count])
        position = np.full(len(usable_sides), -1)
        position[rows] = np.arange(len(rows))
        position[used_models] = len(rows) + np.arange(len(used_models))
        names = list(members)
        models = {
            names[model - count]: position[members[names[model - count]]].tolist() for model in used_models.tolist()
        }
        return replace(
            rest,
            enrolment=position[rest.enrolment],
            test=position[rest.test],
            utterances=[self.utterances[row] for row in rows],
            models=models,
        ), rows

    @property
    def sides(self) -> list[str]:
        """Names of all that can stand in a trial: the utterances, then the models."""
        return [*self.utterances, *self.models]


def read_trials(path: str | Path) -> Trials:
    """Read a trial list, text or Parquet.

    In a text, the fields may be separated by tabs, between which names may have spaces; blank lines and Windows line
    ends are tolerated.

    Raises:
        ValueError: A line is not ``label enrolment test`` (named by its number), the file is not text, or the
            list lacks targets or nontargets, so that no error rate could be computed from it.
        OSError: The file cannot be opened.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _read_table(path)
    is_target: list[bool] = []
    sides: list[int] = []
    index: dict[str, int] = {}
    for number, line in enumerate(_text(path).split("\n"), start=1):
        fields = split_fields(line, 3)
        if len(fields) == 3 and fields[0] in _LABELS:
            is_target.append(_LABELS[fields[0]])
            sides.append(index.setdefault(fields[1], len(index)))
            sides.append(index.setdefault(fields[2], len(index)))
        elif fields:
            raise ValueError(
                f"{path}, line {number}: expected 'label enrolment test' with a label of 0 or 1, "
                f"such as '1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav'; got {line[:200]!r}; "
                "where paths have spaces, separate by tabs"
            )
    _refuse_one_class(str(path), sum(is_target), len(is_target))
    pairs = np.array(sides, dtype=np.int64).reshape(-1, 2)
    return Trials(path.stem, np.array(is_target), pairs[:, 0].copy(), pairs[:, 1].copy(), list(index))


def split_fields(line: str, count: int) -> list[str]:
    r"""Return the fields of a line of a list: between tabs where they make ``count`` fields, else between spaces.

    >>> split_fields("1\ta voice.wav\tb.wav", 3)
    ['1', 'a voice.wav', 'b.wav']
    """
    fields = [field.strip() for field in line.split("\t")]
    return fields if len(fields) == count and all(fields) else line.split()


def _refuse_one_class(source: str, targets: int, trials: int) -> None:
    if targets in {0, trials}:
        raise ValueError(
            f"{source}: a trial list needs targets (label 1) and nontargets (label 0); "
            f"found {targets} targets and {trials - targets} nontargets"
        )


def from_columns(
    name: str,
    is_target: pa.ChunkedArray,
    enrolment: pa.ChunkedArray,
    test: pa.ChunkedArray,
    models: Mapping[str, Sequence[str]],
) -> Trials:
    """Trials from columns of names, millions at a time.

    Args:
        name: Of the list.
        is_target: bool [N].
        enrolment: [N], names in ``models``; where there are none, utterances.
        test: [N], utterances.
        models: The utterances of each enrolment by its name.

    Raises:
        ValueError: An enrolment is in no model, or there are only targets or only nontargets.
    """
    known = pa.array(models, pa.string()) if models else enrolment.unique()
    single = {model: members[0] for model, members in models.items() if len(members) == 1}
    members = [utterance for several in models.values() for utterance in several] or known.to_pylist()
    utterances = list(dict.fromkeys([*members, *test.unique().to_pylist()]))
    index = {utterance: position for position, utterance in enumerate(utterances)}
    several = {model: [index[part] for part in parts] for model, parts in models.items() if len(parts) > 1}
    extra = {model: len(utterances) + position for position, model in enumerate(several)}
    side = [extra[model] if model in extra else index[single.get(model, model)] for model in known.to_pylist()]
    chosen = pc.index_in(enrolment, value_set=known)
    if chosen.null_count:
        missing = enrolment.filter(pc.is_null(chosen)).unique().to_pylist()
        raise ValueError(f"{name}: {len(missing)} enrolments have no utterances; first {', '.join(missing[:3])}")
    targets = pc.sum(is_target).as_py() or 0
    _refuse_one_class(name, targets, len(is_target))
    place = pc.index_in(test, value_set=pa.array(utterances, pa.string()))
    return Trials(
        name,
        is_target.to_numpy(),
        np.array(side, dtype=np.int64)[chosen.to_numpy()],
        place.to_numpy().astype(np.int64),
        utterances,
        several,
    )


def write_table(path: str | Path, trials: Trials) -> None:
    """Write trials as Parquet, which ``read_trials`` reads back many times as fast as text."""
    sides = pa.array(trials.sides, pa.string())
    columns = {
        "is_target": pa.array(trials.is_target),
        "enrolment": pa.DictionaryArray.from_arrays(pa.array(trials.enrolment, pa.int32()), sides),
        "test": pa.DictionaryArray.from_arrays(pa.array(trials.test, pa.int32()), sides),
    }
    models = {model: [trials.utterances[part] for part in parts] for model, parts in trials.models.items()}
    table = pa.table(columns).replace_schema_metadata({b"models": json.dumps(models).encode()})
    with atomic_write(path) as file:
        pq.write_table(table, file)


def _read_table(path: Path) -> Trials:
    try:
        table = pq.read_table(path, columns=["is_target", "enrolment", "test"])
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a trial list ({error})") from error
    models = json.loads((table.schema.metadata or {}).get(b"models", b"{}"))
    enrolment, test = (table.column(name).cast(pa.string()) for name in ("enrolment", "test"))
    alone = {name: [name] for name in enrolment.unique().to_pylist() if name not in models} if models else {}
    return from_columns(path.stem, table.column("is_target"), enrolment, test, models | alone)


def write_trials(path: str | Path, is_target: Sequence[bool], enrolment: Sequence[str], test: Sequence[str]) -> None:
    """Write a trial list that :func:`read_trials` reads back, whole or not at all.

    Args:
        path: The file to write; its folder must exist.
        is_target: [N], True where both sides are the same speaker.
        enrolment: [N] utterances.
        test: [N] utterances.

    Raises:
        ValueError: The three differ in length, or a name could not be read back.
    """
    rows = list(zip(is_target, enrolment, test, strict=True))
    space = delimiter({*enrolment, *test})
    write_text(path, "".join(f"{int(label)}{space}{left}{space}{right}\n" for label, left, right in rows))


def delimiter(names: Collection[str]) -> str:
    """Return what stands between the fields of a list with these names: a space, or a tab where a name has spaces.

    Spaces are all characters that Unicode calls so, at which a line without tabs is split.

    Raises:
        ValueError: A name cannot be told from its neighbors: it is empty, begins or ends with a space, or has tabs or
            ends of lines.
    """
    for name in names:
        if not name or name != name.strip() or not {"\t", "\n", "\r"}.isdisjoint(name):
            raise ValueError(
                f"{name!r}: expected a name without tabs and ends of lines, and without spaces around it, as a list of "
                f"trials needs it"
            )
    return "\t" if any(map(str.isspace, "".join(names))) else " "


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file in UTF-8; {error}") from error
