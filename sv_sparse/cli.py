"""The console script: sv-sparse train | evaluate."""

import argparse
import runpy
import sys
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import nn

from sv_sparse import checkpoint
from sv_sparse.build import MEL_BINS, SAMPLE_RATE
from sv_sparse.data.trials import read_trials
from sv_sparse.embedding import Array
from sv_sparse.evaluate import evaluate_lists
from sv_sparse.features import Filterbank
from sv_sparse.run import clear_errors
from sv_sparse.scoring.metrics import OperatingPoint


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand; ``sv-sparse train`` takes the same settings as ``python train.py``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["train"]:
        _train(arguments[1:])
        return
    parser = argparse.ArgumentParser(prog="sv-sparse", description="Sparse speaker verification.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("train", help="the same as python train.py; sv-sparse train --help tells more")
    evaluating = commands.add_parser("evaluate", help="score trial lists with a trained network")
    evaluating.add_argument("network", type=Path, help="a network file, RUN/checkpoints/model.pt or best.pt")
    evaluating.add_argument("--root", type=Path, required=True, help="folder that the lists' paths are relative to")
    evaluating.add_argument("--trials", type=Path, nargs="+", required=True, help="VoxCeleb-format trial lists")
    evaluating.add_argument("--scores", type=Path, required=True, help="folder that the scores are written to")
    chosen = parser.parse_args(arguments)
    with clear_errors():
        _evaluate(chosen.network, chosen.root, chosen.trials, chosen.scores)


def _train(arguments: list[str]) -> None:
    """Run train.py, which lies in the package in an installed wheel and beside it in a checkout."""
    package = Path(__file__).parent
    home = package if (package / "train.py").is_file() else package.parent
    sys.argv = [str(home / "train.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _evaluate(network_file: Path, root: Path, lists: list[Path], scores: Path) -> None:
    if not root.is_dir():
        raise ValueError(f"--root {root}: no such folder")
    if len({path.stem for path in lists}) < len(lists):
        raise ValueError("--trials: expected lists of different file names")
    network, mean, point = load_network(network_file)
    filterbank = Filterbank(SAMPLE_RATE, MEL_BINS)
    trials = [read_trials(path) for path in lists]
    paths = {utterance: str(root / utterance) for one in trials for utterance in one.utterances}
    for evaluation in evaluate_lists(network, filterbank, trials, paths, mean, point, scores_to=scores):
        print(
            f"{evaluation.name}: EER {evaluation.eer:.2%} at {evaluation.eer_threshold:.4f}, "
            f"minDCF({evaluation.p_target}) {evaluation.min_dcf:.3f} at {evaluation.min_dcf_threshold:.4f}, "
            f"{evaluation.trials} trials"
        )


def load_network(path: Path) -> tuple[nn.Module, Array, OperatingPoint]:
    """A trained network, its mean embedding [E], and its run's operating point, from a network file."""
    state = checkpoint.load(path, checkpoint.NETWORK_KEYS)
    network: nn.Module = instantiate(state["config"]["model"], mel_bins=MEL_BINS)
    network.load_state_dict(state["model"])
    mean: torch.Tensor = state["mean"]
    return network.eval(), mean.numpy(), OperatingPoint(**state["config"]["scoring"])
