"""Prepared folders: a corpus's manifest with its trial lists, and the manifest of a run on it."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sv_sparse.data.corpora.folder import validation_speakers
from sv_sparse.data.manifest import Manifest, set_column
from sv_sparse.data.speakers import read_sexes
from sv_sparse.data.trial_set import TrialSet, check_not_trained_on
from sv_sparse.data.trials import read_trials

# Table of speakers in a prepared folder; absent if nothing is known.
SPEAKER_METADATA = "speakers.csv"


def trial_list_path(prepared: str | Path, name: str) -> Path:
    """Return the file of a trial list, by its name without suffix; a ValueError names the lists that are there."""
    folder = Path(prepared) / "trials"
    if not (Path(prepared) / "manifest.parquet").is_file():
        raise ValueError(
            f"{prepared}: expected a folder made by: sv-sparse prepare CORPUS --root PATH --out {prepared}"
        )
    paths = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in {".txt", ".parquet"}}
    if name not in paths:
        raise ValueError(f"{prepared}: no trial list {name!r}; it has {', '.join(paths) or 'none'}")
    return paths[name]


def load_trial_sets(prepared: str | Path, names: Sequence[str]) -> list[TrialSet]:
    """Load trial lists of a prepared folder by name; ``OTHER:list`` is a list of another prepared folder.

    Raises:
        ValueError: a folder or list is not there, or an utterance is not in the manifest.
    """

    @cache
    def load(folder: Path) -> tuple[Manifest, dict[str, str]]:
        metadata = folder / SPEAKER_METADATA
        return Manifest(folder / "manifest.parquet"), read_sexes(metadata) if metadata.is_file() else {}

    trial_sets = []
    for name in names:
        other, _, list_name = name.rpartition(":")
        path = trial_list_path(other or prepared, list_name)
        trial_sets.append(TrialSet.from_manifest(read_trials(path), *load(path.parent.parent)))
    return trial_sets


def write_run_manifest(
    prepared: str | Path,
    *,
    train_subsets: Sequence[str],
    trial_sets: Sequence[TrialSet],
    val_fraction: float,
    seed: int,
    out: str | Path,
) -> Manifest:
    """Write the manifest of a run: subsets to train on, with some speakers held out for validation.

    Args:
        prepared: the prepared folder.
        train_subsets: names of subsets; their utterances without samples are left out.
        trial_sets: lists that the run is evaluated on.
        val_fraction: fraction of the training speakers that are held out by ``seed``, in [0, 1).
        seed: seed of that choice.
        out: manifest file to write.

    Raises:
        ValueError: a subset is not there, or has speakers of a trial list.
    """
    source = Manifest(Path(prepared) / "manifest.parquet")
    table = pq.read_table(source.source)
    subset = table.column("subset").cast(pa.string())
    present = sorted(subset.unique().to_pylist())
    setting = f"data.train_subsets={list(train_subsets)}"
    if not train_subsets or not set(train_subsets) <= set(present):
        raise ValueError(f"{setting}: expected some of {', '.join(present)}, found in {prepared}")
    is_selected = pc.is_in(subset, value_set=pa.array(train_subsets))
    trained = table.filter(pc.and_(is_selected, pc.greater(table.column("samples"), 0)))
    for trial_set in trial_sets:
        check_not_trained_on(trial_set, trained, source.source, setting)
    speaker = np.array(trained.column("speaker").to_pylist(), dtype=object)
    is_validation = np.isin(speaker, validation_speakers(speaker, val_fraction, seed))
    split = np.where(is_validation, "validation", "train")
    return Manifest.write(out, set_column(trained, "split", pa.array(split, pa.string())), source.root)


def read_split(manifest: str | Path, *splits: str) -> pa.Table:
    """Return the rows of a manifest file that are in some splits, with all columns."""
    table = pq.read_table(manifest)
    return table.filter(pc.is_in(table.column("split").cast(pa.string()), value_set=pa.array(splits)))
