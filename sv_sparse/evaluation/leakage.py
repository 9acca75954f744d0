"""Checks against leakage: no run is evaluated or validated on speakers that it was trained on."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sv_sparse.config.schema import SELF_TEACHER
from sv_sparse.data.manifest import Manifest, match_utterances
from sv_sparse.data.prepared import read_split
from sv_sparse.data.trial_set import TrialSet, check_not_trained_on

# Settings that name a network from which a run has what it knows.
SOURCE_SETTINGS = ("init_from", "teacher")

logger = logging.getLogger(__name__)


def check_speaker_overlap(run: Path, trial_sets: Sequence[TrialSet], setting: str = "") -> None:
    """Check that a run, and those it started or learned from, were not trained on speakers of trial lists.

    Args:
        run: folder of the run, or a network file.
        trial_sets: lists to evaluate on. Lists whose speakers are unknown pass.
        setting: text before the run's folder in messages, such as ``init_from=``.

    Raises:
        ValueError: a run was; names it and the list.
    """
    trial_sets = [trial_set for trial_set in trial_sets if trial_set.speakers]
    if not trial_sets:
        return
    for run_dir in _ancestor_runs(run):
        manifest = run_dir / "manifest.parquet"
        if not manifest.is_file():
            logger.warning("%s: training speakers unknown; they may overlap with the evaluation speakers", run_dir)
            continue
        # Names of speakers count within a corpus only, so the corpus that the rows come from matters.
        folder = _read_config(run_dir).get("data", {}).get("prepared_dir")
        source = Path(folder) / "manifest.parquet" if folder else manifest
        trained = read_split(manifest, "train", "validation")
        for trial_set in trial_sets:
            check_not_trained_on(trial_set, trained, source, f"{setting}{run_dir}")


def check_validation_overlap(run: Path, manifest: Manifest, setting: str) -> None:
    """Check that a run, and those it started or learned from, were not trained on what a manifest holds out.

    Args:
        run: folder of the run, or a network file.
        manifest: training data of a new run.
        setting: text before the run's folder in messages, such as ``init_from=``.

    Raises:
        ValueError: a run was; names it.
    """
    validation = read_split(manifest.source, "validation").column("utterance").to_pylist()
    if not validation:
        return
    # Validating on speech that the weights know would choose the epoch that knows it best.
    for run_dir in _ancestor_runs(run):
        path = run_dir / "manifest.parquet"
        # ``check_speaker_overlap`` has warned of it.
        if not path.is_file():
            continue
        trained = read_split(path, "train").column("utterance").combine_chunks()
        if (match_utterances(validation, trained) >= 0).any():
            raise ValueError(
                f"data.val_fraction: utterances that are held out here were trained on by {setting}{run_dir}; "
                "hold out the same (data.val_fraction and data.val_seed as there), or nobody: data.val_fraction=0"
            )


def _ancestor_runs(run: Path) -> Iterator[Path]:
    """Yield the folder of a run, of the runs that it started from or learned from, and so on, each once."""
    # Their training speech counts as the run's own (DECISIONS 33).
    remaining = [run_dir_of(run)]
    visited: set[Path] = set()
    while remaining:
        run_dir = remaining.pop(0)
        if run_dir in visited:
            continue
        visited.add(run_dir)
        yield run_dir
        config = _read_config(run_dir)
        for setting in SOURCE_SETTINGS:
            origin = config.get(setting)
            if origin not in {None, SELF_TEACHER}:
                remaining.append(run_dir_of(Path(origin)))


def run_dir_of(path: Path) -> Path:
    """Return the folder of the run that a network file lies in; any other path stays as it is."""
    # A path of another shape says nothing about a run.
    resolved = path.resolve()
    if resolved.is_file() and resolved.parent.name == "checkpoints":
        return resolved.parent.parent
    return path


def _read_config(run_dir: Path) -> Any:
    path = run_dir / "config.yaml"
    return OmegaConf.load(path) if path.is_file() else {}
