"""Settings to what a run listens to: the manifest, and the trial lists it is judged by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hydra.utils import instantiate

from sv_sparse.data.folder import scan_folder
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.prepared import Judged, judged, read_listed, refuse_trained_on, select
from sv_sparse.data.trials import read_trials
from sv_sparse.settings import Settings


@dataclass
class Corpus:
    """What a run trains on, and what it is judged by."""

    manifest: Manifest
    lists: list[Judged]


def prepare_corpus(settings: Settings, folder: Path) -> Corpus:
    """Make the corpus if it is made up, scan or select it (a resumed run reads its manifest), and read the lists.

    Raises:
        ValueError: a folder or list is not as expected; names the setting.
        OSError: something cannot be read or written.
    """
    data = settings["data"]
    names = [data["trials"]] if isinstance(data["trials"], str) else list(data["trials"])
    stems = [Path(name.rpartition(":")[2]).stem for name in names]
    if not names or len(set(stems)) < len(stems):
        raise ValueError(f"data.trials={data['trials']}: expected one list or several of different names")
    found = _prepared(settings, names, folder) if "prepared" in data else _scanned(settings, names, folder)
    if settings["init_from"] is not None:
        refuse_known_to(Path(settings["init_from"]), found.lists, "init_from=")
    return found


def _prepared(settings: Settings, names: Sequence[str], folder: Path) -> Corpus:
    manifest = folder / "manifest.parquet"
    lists = read_listed(settings["data"]["prepared"], names)
    if not manifest.is_file():
        _select(settings, lists, manifest)
    return Corpus(Manifest(manifest), lists)


def _scanned(settings: Settings, names: Sequence[str], folder: Path) -> Corpus:
    manifest = folder / "manifest.parquet"
    if not manifest.is_file():
        if "make" in settings["data"]:
            instantiate(settings["data"]["make"])
        _scan(settings, names, manifest)
    found = Manifest(manifest)
    return Corpus(found, [_listed(name, found) for name in names])


def _select(settings: Settings, lists: Sequence[Judged], out: Path) -> None:
    data = settings["data"]
    train = [data["train"]] if isinstance(data["train"], str) else list(data["train"])
    share = data["validation_share"]
    select(data["prepared"], train=train, lists=lists, validation_share=share, seed=settings["seed"], out=out)


def _scan(settings: Settings, names: Sequence[str], out: Path) -> None:
    data = settings["data"]
    scan_folder(
        data["root"],
        trials=[name for name in names if not is_elsewhere(name)],
        train_list=data["train_list"],
        validation_share=data["validation_share"],
        seed=settings["seed"],
        max_unreadable=data["max_unreadable"],
        out=out,
    )


def is_elsewhere(name: str) -> bool:
    """Whether a list is one of a prepared folder, ``FOLDER:list``, and not a file."""
    return Path(name.rpartition(":")[0] or "/nowhere", "manifest.parquet").is_file()


def _listed(name: str, own: Manifest) -> Judged:
    if not is_elsewhere(name):
        return judged(read_trials(name), own)
    (one,) = read_listed("", [name])
    refuse_trained_on(one, _trained_on(own.source), own.source, "data.root")
    return one


def refuse_known_to(run: Path, lists: Sequence[Judged], setting: str = "") -> None:
    """Raise if a run trained on speakers of a list that its network is to be judged by.

    Args:
        run: its folder.
        lists: what is to be judged by.
        setting: what named the run, for the message.

    Raises:
        ValueError: it did.
    """
    manifest = run / "manifest.parquet"
    if manifest.is_file():
        trained = _trained_on(manifest)
        for one in [one for one in lists if one.speakers]:
            refuse_trained_on(one, trained, manifest, f"{setting}{run}")


def _trained_on(manifest: Path) -> pa.Table:
    table = pq.read_table(manifest)
    return table.filter(pc.is_in(table.column("split").cast("string"), value_set=pa.array(["train", "validation"])))
