"""sv-sparse evaluate: score trial lists with a trained network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from sv_sparse import checkpoint
from sv_sparse.build import MEL_BINS
from sv_sparse.compute import choose_device
from sv_sparse.corpus import refuse_known_to
from sv_sparse.data.audio import SAMPLE_RATE, recording
from sv_sparse.data.folder import ENDINGS
from sv_sparse.data.manifest import match
from sv_sparse.data.prepared import Judged, read_listed, rows_of
from sv_sparse.data.trials import read_trials
from sv_sparse.embedding import Array
from sv_sparse.evaluate import Evaluation, evaluate_lists, keep_evaluations
from sv_sparse.features import Filterbank
from sv_sparse.scoring.metrics import OperatingPoint


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse evaluate``."""
    parser.add_argument(
        "networks",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folders, or one network file: RUN/checkpoints/best.pt",
    )
    parser.add_argument("--on", nargs="+", default=[], metavar="PREPARED:LIST", help="lists of prepared folders")
    parser.add_argument("--root", type=Path, help="folder that the paths in --trials are relative to")
    parser.add_argument("--trials", type=Path, nargs="+", default=[], help="VoxCeleb-format trial lists")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--scores", type=Path, help="folder that the scores are written to; RUN/scores if not given")


def run(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse evaluate``.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    files = [path for path in chosen.networks if not path.is_dir()]
    absent = [path for path in files if not path.exists()]
    if absent:
        raise ValueError(f"{absent[0]}: no such run folder or network file")
    if chosen.scores is None and files:
        raise ValueError(f"{files[0]} is no run folder; --scores is needed where a network file is given")
    if chosen.scores is not None and len(chosen.networks) > 1:
        raise ValueError("--scores takes the scores of one network; those of several go to their run folders")
    lists = [*_of_folder(chosen.root, chosen.trials), *_elsewhere(chosen.on)]
    names = [one.trials.name for one in lists]
    if not lists or len(set(names)) < len(names):
        raise ValueError("expected lists of different names, by --on PREPARED:LIST, or by --root and --trials")
    folders = [path if path.is_dir() else path.parent.parent for path in chosen.networks]
    for folder in folders:
        refuse_known_to(folder, lists)
        _warn_of_known(folder, lists)
    for path, folder in zip(chosen.networks, folders, strict=True):
        if len(folders) > 1:
            print(f"{path}:")
        evaluations = _evaluate(path, lists, chosen.scores or folder / "scores", chosen.device)
        if chosen.scores is None:
            keep_evaluations(folder, evaluations)


def _evaluate(path: Path, lists: Sequence[Judged], scores: Path, device_name: str) -> list[Evaluation]:
    network, mean, point = load_network(path / "checkpoints" / "model.pt" if path.is_dir() else path)
    device = choose_device(device_name, "--device ")
    network, filterbank = network.to(device), Filterbank(SAMPLE_RATE, MEL_BINS).to(device)
    evaluations = evaluate_lists(network, filterbank, lists, mean, point, scores_to=scores)
    for evaluation in evaluations:
        _print(evaluation)
    return evaluations


def _of_folder(root: Path | None, lists: Sequence[Path]) -> list[Judged]:
    if not lists:
        return []
    if root is None or not root.is_dir():
        raise ValueError(f"--root {root}: no such folder")
    found = [read_trials(path) for path in lists]
    return [Judged(one, [recording(_there(root / name)) for name in one.utterances], [], [], [], None) for one in found]


def _warn_of_known(run: Path, lists: Sequence[Judged]) -> None:
    """Say how many utterances of lists whose speakers nobody knows have names that a run trained on."""
    manifest = run / "manifest.parquet"
    unknown = [one for one in lists if not one.speakers]
    if not unknown or not manifest.is_file():
        return
    trained = rows_of(manifest, "train").column("utterance").combine_chunks()
    for one in unknown:
        count = int((match(one.trials.utterances, trained) >= 0).sum())
        if count:
            print(f"warning: {run} trained on {count} utterances of these names; the EER says little", file=sys.stderr)


def _there(path: Path) -> Path:
    """The recording, where lists name another ending than its file has."""
    others = (path.with_suffix(ending) for ending in ENDINGS)
    return path if path.is_file() else next((other for other in others if other.is_file()), path)


def _elsewhere(names: Sequence[str]) -> list[Judged]:
    wrong = [name for name in names if not name.rpartition(":")[0]]
    if wrong:
        raise ValueError(f"--on {wrong[0]}: expected PREPARED:LIST, a prepared folder and the name of one of its lists")
    return read_listed("", names)


def _print(evaluation: Evaluation) -> None:
    print(
        f"{evaluation.name}: EER {evaluation.eer:.2%} at {evaluation.eer_threshold:.4f}, "
        f"minDCF({evaluation.p_target}) {evaluation.min_dcf:.3f} at {evaluation.min_dcf_threshold:.4f}, "
        f"{evaluation.trials} trials"
    )
    for genre, found in evaluation.genres.items():
        print(f"  {genre}: EER {found['eer']:.2%}, {found['trials']} trials, {found['targets']} targets")


def load_network(path: Path) -> tuple[nn.Module, Array, OperatingPoint]:
    """A trained network, its mean embedding [E], and its run's operating point, from a network file."""
    state = checkpoint.load(path, checkpoint.NETWORK_KEYS)
    _refuse_foreign(path, state["config"]["model"])
    network: nn.Module = instantiate(state["config"]["model"], mel_bins=MEL_BINS)
    network.load_state_dict(state["model"])
    mean: torch.Tensor = state["mean"]
    return network.eval(), mean.numpy(), OperatingPoint(**state["config"]["scoring"])


def _refuse_foreign(path: Path, model: dict[str, Any]) -> None:
    """Raise a ValueError if a file names other code than our networks, which building the network would run."""
    nested = any(isinstance(value, dict) for value in model.values())
    if nested or not str(model.get("_target_")).startswith("sv_sparse.models."):
        raise ValueError(f"{path}: its network is {model.get('_target_')}, expected one of sv_sparse.models")
