"""Which model the commands that use one take."""

import argparse
import os
from pathlib import Path

import torch

from sv_sparse.deploy.runtime import check_threads
from sv_sparse.deploy.verifier import Verifier

VARIABLE = "SV_SPARSE_MODEL"  # of the environment


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that name the model and what it is computed by."""
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help=f"model.safetensors, from sv-sparse export; the environment variable {VARIABLE} if not given",
    )
    parser.add_argument("--threads", type=int, help="that compute the network; all cores if not given")


def add_decision(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how is decided."""
    parser.add_argument(
        "--false-alarms",
        type=float,
        metavar="SHARE",
        help="of strangers that may be accepted, such as 0.01; the smallest with a known threshold if not given",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="to take instead: of the log-likelihood ratio, or of the score where the model is not calibrated",
    )
    parser.add_argument(
        "--prior",
        type=float,
        default=0.5,
        metavar="P",
        help="probability of one speaker before anything is heard (0.5)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def load_model(chosen: argparse.Namespace) -> Verifier:
    """The model that the command line or the environment names.

    Raises:
        ValueError: neither does, or it cannot be read.
    """
    if chosen.threads is not None:
        torch.set_num_threads(check_threads(chosen.threads))
    return Verifier.from_pretrained(model_path(chosen), threads=chosen.threads)


def model_path(chosen: argparse.Namespace) -> Path:
    """The model's file, as the command line or the environment names it.

    Raises:
        ValueError: neither does.
    """
    path = chosen.model or os.environ.get(VARIABLE)
    if not path:
        raise ValueError(f"name a model with --model FILE, or with the environment variable {VARIABLE}")
    return Path(path)
