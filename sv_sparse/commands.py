"""What the console script does besides training: prepare corpora and noise, check archives, evaluate."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import nn

from sv_sparse import checkpoint
from sv_sparse.build import MEL_BINS, choose_device
from sv_sparse.corpus import refuse_known_to
from sv_sparse.data.archives import verify
from sv_sparse.data.audio import SAMPLE_RATE, recording
from sv_sparse.data.cnceleb import prepare_cnceleb
from sv_sparse.data.noise import build_store
from sv_sparse.data.prepared import Judged, read_listed
from sv_sparse.data.shards import UTTERANCES, write_shards
from sv_sparse.data.trials import read_trials
from sv_sparse.data.voxceleb import prepare_voxceleb
from sv_sparse.embedding import Array
from sv_sparse.evaluate import Evaluation, evaluate_lists, keep_evaluations
from sv_sparse.features import Filterbank
from sv_sparse.scoring.metrics import OperatingPoint


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse prepare``."""
    kinds = parser.add_subparsers(required=True, metavar="WHAT", dest="what")
    for name, words in (("voxceleb", "VoxCeleb1 and 2"), ("cnceleb", "CN-Celeb 1 and 2")):
        corpus = kinds.add_parser(name, help=f"{words}, in whatever layout, to a manifest and trial lists")
        corpus.add_argument("--root", type=Path, nargs="+", required=True, help="folders to look through")
        corpus.add_argument("--out", type=Path, required=True, help="the prepared folder")
        corpus.add_argument("--flac", action="store_true", help="convert everything to FLAC below --out")
        corpus.add_argument("--partial", action="store_true", help="accept a part of the corpus")
        if name == "voxceleb":
            corpus.add_argument("--lists", type=Path, nargs="+", default=[], help="trial lists, or folders of them")
    noise = kinds.add_parser("noise", help="MUSAN and RIRS_NOISES to a store that is mapped into memory")
    noise.add_argument("--root", type=Path, nargs="+", required=True, help="folders to look through")
    noise.add_argument("--out", type=Path, required=True, help="the store, for augment.store")
    archives = kinds.add_parser("archives", help="check the MD5 sums of downloaded archives")
    archives.add_argument("files", type=Path, nargs="+", metavar="FILE", help="archives, their parts, or folders")


def prepare(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse prepare``.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if chosen.what == "archives":
        results = verify(chosen.files)
        for name, same in results:
            print(f"{name}: {'as published' if same else 'DIFFERENT from what was published'}")
        if not all(same for _, same in results):
            raise ValueError("an archive is not as published; download it again")
    elif chosen.what == "noise":
        counts = build_store(chosen.root, chosen.out)
        print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    elif chosen.what == "voxceleb":
        prepare_voxceleb(chosen.root, chosen.out, lists=chosen.lists, flac=chosen.flac, partial=chosen.partial)
    else:
        prepare_cnceleb(chosen.root, chosen.out, flac=chosen.flac, partial=chosen.partial)


def add_shard(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse shard``."""
    parser.add_argument("prepared", type=Path, help="a prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder of shards, itself a prepared folder")
    parser.add_argument("--utterances", type=int, default=UTTERANCES, help="how many go into a shard")


def shard(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse shard``.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    if chosen.utterances < 1:
        raise ValueError(f"--utterances must be 1 or more, got {chosen.utterances}")
    write_shards(chosen.prepared, chosen.out, utterances=chosen.utterances)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
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


def evaluate(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse evaluate``.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    files = [path for path in chosen.networks if not path.is_dir()]
    if chosen.scores is None and files:
        raise ValueError(f"{files[0]} is no run folder; --scores is needed where a network file is given")
    if chosen.scores is not None and len(chosen.networks) > 1:
        raise ValueError("--scores takes the scores of one network; those of several go to their run folders")
    lists = [*_of_folder(chosen.root, chosen.trials), *_elsewhere(chosen.on)]
    names = [one.trials.name for one in lists]
    if not lists or len(set(names)) < len(names):
        raise ValueError("expected lists of different names, by --on PREPARED:LIST, or by --root and --trials")
    runs = [path if path.is_dir() else path.parent.parent for path in chosen.networks]
    for run in runs:
        refuse_known_to(run, lists)
    for path, run in zip(chosen.networks, runs, strict=True):
        if len(runs) > 1:
            print(f"{path}:")
        evaluations = _evaluate(path, lists, chosen.scores or run / "scores", chosen.device)
        if path.is_dir():
            keep_evaluations(run, evaluations)


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
    return [Judged(one, [recording(root / name) for name in one.utterances], [], [], None) for one in found]


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
    network: nn.Module = instantiate(state["config"]["model"], mel_bins=MEL_BINS)
    network.load_state_dict(state["model"])
    mean: torch.Tensor = state["mean"]
    return network.eval(), mean.numpy(), OperatingPoint(**state["config"]["scoring"])
