"""A prepared folder to what a run trains on and is judged by."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sv_sparse.data.corpora.folder import check_validation_share, validation_speakers
from sv_sparse.data.manifest import Manifest, Part, match
from sv_sparse.data.speakers import read_sexes
from sv_sparse.data.trials import Trials, read_trials
from sv_sparse.io import nfc

SPEAKERS = "speakers.csv"  # of a prepared folder, where something is known of them
_SAME_SECONDS = 0.01


@dataclass(frozen=True)
class LeftOut:
    """What a trial list lost because recordings cannot be used.

    Attributes:
        recordings: Names of those recordings, as the list has them.
        trials: Number of trials that need them.
        list_digest: Digest of the complete list's trials.
    """

    recordings: list[str]
    trials: int
    list_digest: str


@dataclass(frozen=True)
class Judged:
    """A trial list and where its utterances are.

    Attributes:
        trials: The list.
        recordings: The files of each of its utterances.
        genres: What each of its utterances is, empty where that is not known.
        speakers: Who speaks in each of its utterances, empty where that is not known.
        seconds: How long each of its utterances is, empty where that is not known; 0 for one that could not be used
            when its manifest was written, which is left out whatever lies there now.
        source: The manifest that it lies in; None where there is none.
        sexes: Of each of its utterances, ``f``, ``m`` or empty.
        left_out: What the list lost; None where it is complete.
    """

    trials: Trials
    recordings: list[list[Part]]
    genres: list[str]
    speakers: list[str]
    seconds: list[float]
    source: Path | None
    sexes: list[str] = field(default_factory=list)
    left_out: LeftOut | None = None


def judged(trials: Trials, manifest: Manifest, sexes: Mapping[str, str]) -> Judged:
    """A list whose utterances are in a manifest.

    Args:
        trials: The list.
        manifest: Where its utterances are.
        sexes: Of speakers by their composed names, as far as they are known.

    Raises:
        ValueError: Some are not; names the first.
    """
    rows = manifest.rows(trials.utterances)
    columns = zip(*((manifest.parts(row), manifest.genre(row), manifest.speaker(row)) for row in rows), strict=True)
    recordings, genres, speakers = (list(column) for column in columns)
    seconds = (manifest.samples[rows] / manifest.sample_rate[rows]).tolist()
    known = [sexes.get(nfc(speaker), "") for speaker in speakers]
    return Judged(trials, recordings, genres, speakers, seconds, manifest.source, known)


def concatenated(one: Judged) -> Judged:
    """The list with each enrolment of several utterances as one that they are joined to."""
    models = one.trials.models
    if not models:
        return one

    def joined(values: list[Any], several: Sequence[int]) -> Any:
        return sum((values[k] for k in several[1:]), start=values[several[0]])

    def first(values: list[Any], several: Sequence[int]) -> Any:
        return values[several[0]]

    def duration(values: list[float], several: Sequence[int]) -> float:
        return float(joined(values, several)) if all(values[k] for k in several) else 0.0

    def longer(values: list[Any], join: Callable[[list[Any], Sequence[int]], Any]) -> list[Any]:
        return [*values, *(join(values, several) for several in models.values())] if values else []

    return replace(
        one,
        trials=replace(one.trials, utterances=one.trials.sides, models={}),
        recordings=longer(one.recordings, joined),
        genres=longer(one.genres, first),
        speakers=longer(one.speakers, first),
        seconds=longer(one.seconds, duration),
        sexes=longer(one.sexes, first),
    )


def without(complete: Judged, unusable: Collection[int]) -> Judged:
    """The list as it would be without the trials that need some of its utterances.

    Args:
        complete: The list.
        unusable: Positions of utterances whose recordings cannot be used, at least one.
    """
    trials, rows = complete.trials.without(unusable)

    def rest(values: list[Any]) -> list[Any]:
        return [values[row] for row in rows] if values else []

    return replace(
        complete,
        trials=trials,
        recordings=rest(complete.recordings),
        genres=rest(complete.genres),
        speakers=rest(complete.speakers),
        seconds=rest(complete.seconds),
        sexes=rest(complete.sexes),
        left_out=LeftOut(
            recordings=[complete.trials.utterances[position] for position in unusable],
            trials=len(complete.trials) - len(trials),
            list_digest=complete.trials.digest,
        ),
    )


def list_path(prepared: str | Path, name: str) -> Path:
    """The file of a trial list in a prepared folder.

    Raises:
        ValueError: There is no such folder or list; names those that are there.
    """
    folder = Path(prepared) / "trials"
    if not (Path(prepared) / "manifest.parquet").is_file():
        raise ValueError(
            f"{prepared}: expected a folder made by: sv-sparse prepare CORPUS --root PATH --out {prepared}"
        )
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in {".txt", ".parquet"}}
    if name not in found:
        raise ValueError(f"{prepared}: no trial list {name!r}; it has {', '.join(found) or 'none'}")
    return found[name]


def read_listed(prepared: str | Path, names: Sequence[str]) -> list[Judged]:
    """Lists of a prepared folder; a name such as ``OTHER:list`` means a list of another one.

    Raises:
        ValueError: A folder or list is not there.
    """
    found = []
    places: dict[Path, tuple[Manifest, dict[str, str]]] = {}
    for name in names:
        folder, _, own = name.rpartition(":")
        path = list_path(folder or prepared, own)
        place = path.parent.parent
        if place not in places:
            known = place / SPEAKERS
            places[place] = Manifest(place / "manifest.parquet"), read_sexes(known) if known.is_file() else {}
        found.append(judged(read_trials(path), *places[place]))
    return found


def select(
    prepared: str | Path,
    *,
    train: Sequence[str],
    lists: Sequence[Judged],
    validation_share: float,
    seed: int,
    out: str | Path,
) -> Manifest:
    """The manifest of a run: some subsets to train on, of which some speakers are held out for validation.

    Utterances without samples are left out.

    Args:
        prepared: The prepared folder.
        train: Names of subsets.
        lists: What the run is judged by; their speakers must not be among those that are trained on.
        validation_share: Share of the training speakers that are held out.
        seed: Chooses them.
        out: The manifest file to write.

    Raises:
        ValueError: A subset is not there, or has speakers that the run is judged by.
    """
    source = Manifest(Path(prepared) / "manifest.parquet")
    table = pq.read_table(source.source)
    subset = table.column("subset").cast(pa.string())
    present = sorted(subset.unique().to_pylist())
    unknown = [name for name in train if name not in present]
    if unknown or not train:
        raise ValueError(f"data.train_subsets={list(train)}: expected some of {', '.join(present)}, found in {prepared}")
    is_chosen = pc.is_in(subset, value_set=pa.array(train))
    chosen = table.filter(pc.and_(is_chosen, pc.greater(table.column("samples"), 0)))
    for one in lists:
        refuse_trained_on(one, chosen, source.source, f"data.train_subsets={list(train)}")
    check_validation_share(validation_share)
    speaker = np.array(chosen.column("speaker").to_pylist(), dtype=object)
    held_out = validation_speakers(speaker, validation_share, seed)
    split = np.where(np.isin(speaker, held_out), "validation", "train")
    index = chosen.schema.get_field_index("split")
    chosen = chosen.set_column(index, "split", pa.array(split, pa.string()))
    return Manifest.write(out, chosen, source.root)


def rows_of(manifest: str | Path, *splits: str) -> pa.Table:
    """The rows of a manifest file that are in some splits, all columns."""
    table = pq.read_table(manifest)
    return table.filter(pc.is_in(table.column("split").cast(pa.string()), value_set=pa.array(splits)))


def refuse_trained_on(one: Judged, trained: pa.Table, corpus: Path, setting: str) -> None:
    """Raise if speakers of a list are trained on: by name within a corpus, by their utterances elsewhere.

    An utterance is known elsewhere by its name and its length; one that is joined from several by its name.

    Args:
        one: The list.
        trained: Columns of a manifest, all of it training speech.
        corpus: The manifest that it is taken from.
        setting: What chose it, for the message.

    Raises:
        ValueError: Speakers are.
    """
    if not len(trained):
        return
    if one.source == corpus:
        known = set(trained.column("speaker").unique().to_pylist())
        shared = {speaker for speaker in one.speakers if speaker in known}
    else:
        names = pc.replace_substring_regex(trained.column("utterance").combine_chunks(), r"\+\d+$", "")
        row = match(one.trials.utterances, names)
        seconds = trained.column("samples").to_numpy() / trained.column("sample_rate").to_numpy()
        joined = pc.greater(pc.list_value_length(trained.column("parts")), 1).to_numpy()
        same = (row >= 0) & (joined[row] | (np.abs(seconds[row] - one.seconds) < _SAME_SECONDS))
        shared = {one.speakers[position] for position in np.flatnonzero(same)}
    if not shared:
        return
    advice = (
        "; E and H use the speakers of all of VoxCeleb1, so train on data.train_subsets=[vox2_dev], or judge on vox1_O_cleaned"
        if one.trials.name.startswith(("vox1_E", "vox1_H"))
        else ""
    )
    raise ValueError(f"list {one.trials.name}: {len(shared):,} of its speakers are trained on with {setting}{advice}")
