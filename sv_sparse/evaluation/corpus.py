"""Corpus of a run, from its settings: the manifest, and the trial lists that it is evaluated on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sv_sparse.config.schema import (
    SELF_TEACHER,
    AudioDataConfig,
    Config,
    DemoDataConfig,
    FolderDataConfig,
    PreparedDataConfig,
)
from sv_sparse.data.corpora.folder import check_is_file, scan_folder
from sv_sparse.data.corpora.unlabeled import scan_unlabeled
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.prepared import load_trial_sets, read_split, write_run_manifest
from sv_sparse.data.speakers import read_sexes
from sv_sparse.data.synthetic.demo import make_demo_corpus
from sv_sparse.data.trial_files import trial_sets_from_files
from sv_sparse.data.trial_set import TrialSet, check_not_trained_on
from sv_sparse.data.trials import read_trials
from sv_sparse.evaluation.leakage import SOURCE_SETTINGS, check_speaker_overlap, check_validation_overlap


@dataclass
class Corpus:
    """Table of a run's utterances with their splits, and the trial lists that it is evaluated on."""

    manifest: Manifest
    trial_sets: list[TrialSet]


def corpus_summary(config: Config) -> dict[str, Any]:
    """Return a run's corpus as plain data, for results.json; a folder of recordings has no training subsets."""
    data = config.data
    is_prepared = isinstance(data, PreparedDataConfig)
    return {
        "name": data.corpus,
        "synthetic": config.is_synthetic,
        "path": data.prepared_dir if is_prepared else data.root,
        "train": _as_list(data.train_subsets) if is_prepared else None,
        "trials": _as_list(data.trial_lists),
    }


def _as_list(value: str | list[str] | None) -> list[str]:
    # A setting is a name, a list of names, or null.
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def load_corpus(config: Config, run_dir: Path) -> Corpus:
    """Load a run's corpus: a new run writes ``manifest.parquet`` into its folder, a resumed one reads it.

    A synthetic corpus is made first if it is not there.

    Raises:
        ValueError: a folder or list is not as expected; names the setting.
    """
    data = config.data
    names = _as_list(data.trial_lists)
    # Results are named by the list.
    stems = {Path(name.rpartition(":")[2]).stem for name in names}
    if len(stems) < len(names):
        raise ValueError(f"data.trial_lists={data.trial_lists}: expected one list or several of different names")
    # A resumed run keeps its manifest, so that the same speakers stay held out.
    manifest_path = run_dir / "manifest.parquet"
    options: dict[str, Any] = {"val_fraction": data.val_fraction, "seed": config.val_seed, "out": manifest_path}
    if isinstance(data, PreparedDataConfig):
        trial_sets = load_trial_sets(data.prepared_dir, names)
        if not manifest_path.is_file():
            subsets = _as_list(data.train_subsets)
            write_run_manifest(data.prepared_dir, train_subsets=subsets, trial_sets=trial_sets, **options)
        manifest = Manifest(manifest_path)
    elif isinstance(data, AudioDataConfig):
        manifest, trial_sets = _load_unlabeled(data, names, options)
    else:
        assert isinstance(data, (FolderDataConfig, DemoDataConfig))
        manifest, trial_sets = _load_folder(data, names, options)
    # A teacher passes on what it knows of its training speakers.
    for setting in SOURCE_SETTINGS:
        origin = getattr(config, setting)
        if origin not in {None, SELF_TEACHER}:
            check_speaker_overlap(Path(origin), trial_sets, f"{setting}=")
            # Without labels nothing is chosen by what is held out.
            if data.has_labels:
                check_validation_overlap(Path(origin), manifest, f"{setting}=")
    return Corpus(manifest, trial_sets)


def _is_prepared_reference(name: str) -> bool:
    """Return True if a list is one of a prepared folder, ``FOLDER:list``, and not a file."""
    # A colon may also be in the name of a file.
    folder = name.rpartition(":")[0]
    return bool(folder) and Path(folder, "manifest.parquet").is_file()


def _load_folder(
    data: FolderDataConfig | DemoDataConfig, names: Sequence[str], options: dict[str, Any]
) -> tuple[Manifest, list[TrialSet]]:
    """Load a folder of speakers, and the trial lists ``names`` of a run on it; ``options`` are of ``scan_folder``."""
    if not options["out"].is_file():
        if isinstance(data, DemoDataConfig):
            try:
                make_demo_corpus(data.cache_dir, **vars(data.synthesize))
            except ValueError as error:
                # Its arguments are named; the setting is the group that they lie in.
                raise ValueError(f"data.synthesize: {error}") from error
        scan_folder(
            data.root,
            # Speakers of these lists are not trained on. DECISIONS 30
            trial_lists=[name for name in names if not _is_prepared_reference(name)],
            train_utterances=data.train_utterances,
            max_unreadable_fraction=data.max_unreadable_fraction,
            **options,
        )
    manifest = Manifest(options["out"])
    sexes = read_sexes(data.speaker_metadata) if data.speaker_metadata is not None else {}
    trial_sets = [_load_trial_set(name, manifest, sexes) for name in names]
    return manifest, trial_sets


def _load_unlabeled(
    data: AudioDataConfig, names: Sequence[str], options: dict[str, Any]
) -> tuple[Manifest, list[TrialSet]]:
    """Load recordings without labels, and the trial lists ``names``; ``options`` are of ``scan_unlabeled``."""
    setting, trial_root = ("data.root", data.root) if data.trial_root is None else ("data.trial_root", data.trial_root)
    by_name = {}
    for name in names:
        if not _is_prepared_reference(name):
            check_is_file("data.trial_lists", name)
            try:
                (by_name[name],) = trial_sets_from_files(Path(trial_root), [Path(name)], {})
            except ValueError as error:
                raise ValueError(f"data.trial_lists={name}, {setting}={trial_root}: {error}") from error
    if not options["out"].is_file():
        trial_files: dict[str, None] = {}
        for trial_set in by_name.values():
            trial_files |= dict.fromkeys(segment.path for (segment,) in trial_set.audio)
        limit = data.max_unreadable_fraction
        scan_unlabeled(data.root, trial_files=list(trial_files), max_unreadable_fraction=limit, **options)
    manifest = Manifest(options["out"])
    trial_sets = []
    for name in names:
        trial_sets.append(by_name[name] if name in by_name else _load_trial_set(name, manifest, {}))
    return manifest, trial_sets


def _load_trial_set(name: str, manifest: Manifest, sexes: Mapping[str, str]) -> TrialSet:
    """Load a trial list, a file or ``FOLDER:list``, of a run on a folder of recordings."""
    if not _is_prepared_reference(name):
        return TrialSet.from_manifest(read_trials(name), manifest, sexes)
    (trial_set,) = load_trial_sets("", [name])
    # A published list whose speakers are trained on is a mistake, not a wish. DECISIONS 30
    trained = read_split(manifest.source, "train", "validation")
    check_not_trained_on(trial_set, trained, manifest.source, "data.root")
    return trial_set
