"""Settings to what a run listens to: the manifest, and the trial lists it is judged by."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sv_sparse.config.schema import Config, DemoDataConfig, PreparedDataConfig
from sv_sparse.data.corpora.folder import scan_folder
from sv_sparse.data.manifest import Manifest, match
from sv_sparse.data.prepared import Judged, judged, read_listed, refuse_trained_on, rows_of, select
from sv_sparse.data.speakers import read_sexes
from sv_sparse.data.synthetic.demo import make_demo
from sv_sparse.data.trials import read_trials

logger = logging.getLogger(__name__)


@dataclass
class Corpus:
    """What a run trains on, and what it is judged by."""

    manifest: Manifest
    lists: list[Judged]


def describe_corpus(config: Config) -> dict[str, Any]:
    """Return what a run trains on and is judged by, as plain data.

    Returns:
        ``name`` of the corpus; ``synthetic``, whether its voices are; ``path``, the prepared folder or that of the
        recordings; ``train``, the subsets that are trained on, or None where there are none; ``trials``, the lists.
    """
    data = config.data
    is_prepared = isinstance(data, PreparedDataConfig)
    path = data.prepared_dir if is_prepared else data.root
    train = data.train_subsets if is_prepared else None
    trials = data.trial_lists
    return {
        "name": data.corpus,
        "synthetic": config.is_synthetic,
        "path": path,
        "train": [train] if isinstance(train, str) else train,
        "trials": [trials] if isinstance(trials, str) else list(trials),
    }


def prepare_corpus(config: Config, folder: Path) -> Corpus:
    """Make the corpus if it is made up, scan or select it (a resumed run reads its manifest), and read the lists.

    Raises:
        ValueError: a folder or list is not as expected; names the setting.
        OSError: something cannot be read or written.
    """
    data = config.data
    names = [data.trial_lists] if isinstance(data.trial_lists, str) else list(data.trial_lists)
    stems = [Path(name.rpartition(":")[2]).stem for name in names]
    if not names or len(set(stems)) < len(stems):
        raise ValueError(f"data.trial_lists={data.trial_lists}: expected one list or several of different names")
    is_prepared = isinstance(data, PreparedDataConfig)
    found = _prepared(config, names, folder) if is_prepared else _scanned(config, names, folder)
    if config.init_from is not None:
        refuse_known_to(Path(config.init_from), found.lists, "init_from=")
        _refuse_held_out(Path(config.init_from), found.manifest)
    return found


def _prepared(config: Config, names: Sequence[str], folder: Path) -> Corpus:
    manifest = folder / "manifest.parquet"
    lists = read_listed(config.data.prepared_dir, names)
    if not manifest.is_file():
        _select(config, lists, manifest)
    return Corpus(Manifest(manifest), lists)


def _scanned(config: Config, names: Sequence[str], folder: Path) -> Corpus:
    manifest = folder / "manifest.parquet"
    if not manifest.is_file():
        if isinstance(config.data, DemoDataConfig):
            make_demo(config.data.cache_dir, **vars(config.data.synthesize))
        _scan(config, names, manifest)
    found = Manifest(manifest)
    speakers = config.data.speaker_metadata
    sexes = read_sexes(speakers) if speakers is not None else {}
    return Corpus(found, [_listed(name, found, sexes) for name in names])


def _select(config: Config, lists: Sequence[Judged], out: Path) -> None:
    data = config.data
    train = [data.train_subsets] if isinstance(data.train_subsets, str) else list(data.train_subsets)
    select(
        data.prepared_dir,
        train=train,
        lists=lists,
        validation_share=data.val_fraction,
        seed=config.val_seed,
        out=out,
    )


def _scan(config: Config, names: Sequence[str], out: Path) -> None:
    data = config.data
    scan_folder(
        data.root,
        trials=[name for name in names if not is_elsewhere(name)],
        train_list=data.train_utterances,
        validation_share=data.val_fraction,
        seed=config.val_seed,
        max_unreadable=data.max_unreadable_fraction,
        out=out,
    )


def is_elsewhere(name: str) -> bool:
    """Whether a list is one of a prepared folder, ``FOLDER:list``, and not a file."""
    return Path(name.rpartition(":")[0] or "/nowhere", "manifest.parquet").is_file()


def _listed(name: str, own: Manifest, sexes: Mapping[str, str]) -> Judged:
    if not is_elsewhere(name):
        return judged(read_trials(name), own, sexes)
    (one,) = read_listed("", [name])
    refuse_trained_on(one, rows_of(own.source, "train", "validation"), own.source, "data.root")
    return one


def refuse_known_to(run: Path, lists: Sequence[Judged], setting: str = "") -> None:
    """Raise if a run, or one that it started from, trained on speakers of a list that its network is to be judged by.

    Args:
        run: its folder, or a file of weights.
        lists: what is to be judged by; lists whose speakers nobody knows pass.
        setting: what named the run, for the message.

    Raises:
        ValueError: it did.
    """
    known = [one for one in lists if one.speakers]
    for folder in _with_origins(run) if known else ():
        config: Any = OmegaConf.load(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
        manifest = folder / "manifest.parquet"
        if not manifest.is_file():
            logger.warning("%s: what it was trained on is not known; it may know the speakers", folder)
            continue
        trained, prepared = rows_of(manifest, "train", "validation"), config.get("data", {}).get("prepared_dir")
        source = Path(prepared) / "manifest.parquet" if prepared else manifest
        for one in known:
            refuse_trained_on(one, trained, source, f"{setting}{folder}")


def _with_origins(run: Path) -> Iterator[Path]:
    """A run's folder, that of the run it started from, and so on; a network file stands for its run."""
    folder: Path | None = run_of(run)
    while folder is not None:
        yield folder
        config = folder / "config.yaml"
        settings: Any = OmegaConf.load(config) if config.is_file() else {}
        before = settings.get("init_from")
        folder = run_of(Path(before)) if before else None


def run_of(path: Path) -> Path:
    """The folder of the run that a network file lies in; a path that is none stays as it is."""
    whole = path.resolve()
    return whole.parent.parent if whole.is_file() and whole.parent.name == "checkpoints" else path


def _refuse_held_out(run: Path, own: Manifest) -> None:
    """Raise a ValueError if a run trained on speakers that are held out now."""
    held_out = rows_of(own.source, "validation").column("utterance").to_pylist()
    for folder in _with_origins(run) if held_out else ():
        if (folder / "manifest.parquet").is_file():
            trained = rows_of(folder / "manifest.parquet", "train").column("utterance").combine_chunks()
            if (match(held_out, trained) >= 0).any():
                raise ValueError(
                    f"data.validation_share: speakers that are held out here were trained on by init_from={folder}; "
                    f"hold out the same (data.validation_share and data.validation_seed as there), or nobody: "
                    f"data.validation_share=0"
                )
