"""Command ``sv-sparse export``: writes a trained network to one file, for use."""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from sv_sparse import __version__
from sv_sparse.commands.common import add_model_class_argument, check_output
from sv_sparse.config.schema import Config, PreparedDataConfig
from sv_sparse.data.audio import read_utterance
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.manifest import Manifest
from sv_sparse.evaluation.evaluate import read_json
from sv_sparse.evaluation.load import load_network
from sv_sparse.export.onnx import FRONTENDS, export_onnx
from sv_sparse.export.package import write_package
from sv_sparse.export.quantize import quantize_onnx
from sv_sparse.models.features import MEL_BINS, build_features, network_features
from sv_sparse.runtime.decision import LIMITS_OF_USE, SYNTHETIC
from sv_sparse.runtime.sparse_codec import DTYPES

# Of training speech, which tells int8 the range of activations.
_NUM_CALIBRATION_CLIPS = 32
_CALIBRATION_CLIP_SECONDS = 6.0
# Of results.json: what a card says about the run and each of its lists.
_METRIC_KEYS = ("target_sparsity", "sparsity_network", "parameters", "nonzero_parameters", "seed")
_EVALUATION_KEYS = ("name", "trials", "targets", "speakers", "enrollment", "score_norm", "eer", "eer_interval", "dcf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sv-sparse export``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or a network file in one")
    output_help = "file to write; its name ends in .safetensors (for sv-sparse) or .onnx"
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=output_help)
    package = parser.add_argument_group(".safetensors")
    dtype_help = "type that weights are rounded to (default: fp32, exact)"
    package.add_argument("--dtype", choices=list(DTYPES), help=dtype_help)
    onnx = parser.add_argument_group(".onnx")
    frontend_help = "included: the input is a waveform; none: a filterbank (default: included)"
    onnx.add_argument("--frontend", choices=FRONTENDS, help=frontend_help)
    onnx.add_argument("--int8", action="store_true", help="quantize to eight bits (default: fp32)")
    card = parser.add_argument_group("model card")
    license_help = "license of the network (default: not stated)"
    card.add_argument("--license", default="not stated", metavar="TEXT", help=license_help)
    trained_on_help = "training data in words (default: by the settings of RUN)"
    card.add_argument("--trained-on", metavar="TEXT", help=trained_on_help)
    add_model_class_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Run ``sv-sparse export``."""
    output: Path = args.output
    check_output(output, ".safetensors", ".onnx")
    is_package = output.suffix == ".safetensors"
    # An option of the other format would be ignored in silence.
    for name in ("frontend", "int8") if is_package else ("dtype",):
        if getattr(args, name):
            raise ValueError(f"--{name} is not for a {output.suffix}, which --output {output} asks for")
    # Network files lie in RUN/checkpoints.
    run_dir = args.run if args.run.is_dir() else args.run.parent.parent
    trusted = () if args.model_class is None else (args.model_class,)
    network, backend, config = load_network(args.run, trusted)
    card = make_card(run_dir, config, license_name=args.license, trained_on=args.trained_on)
    if is_package:
        features = {"sample_rate": SAMPLE_RATE, "mel_bins": MEL_BINS}
        dtype = args.dtype or "fp32"
        write_package(output, network, config.model_settings, backend, card, features=features, dtype=dtype)
    else:
        write_onnx(output, network, card, run_dir, frontend=args.frontend or "included", int8=args.int8)
    size = output.stat().st_size
    # Training stores four bytes a number.
    dense_size = sum(value.numel() * 4 for value in network.state_dict().values() if value.is_floating_point())
    ratio = f", {dense_size / size:.1f} times smaller" if size < dense_size else ""
    # Constants of the filterbank take 0.8 MB.
    parts = "" if is_package or args.frontend == "none" else " with the filterbank"
    print(f"{output}: {size / 1e6:.2f} MB{parts}{ratio}; the network as it was trained has {dense_size / 1e6:.1f} MB")


def write_onnx(
    path: Path, network: nn.Module, card: dict[str, Any], run_dir: Path, *, frontend: str, int8: bool
) -> None:
    """Write a network as an ONNX file.

    Args:
        path: The file.
        network: Network from filterbank [B, F, T] to embedding [B, E].
        card: Plain data for the file's metadata.
        run_dir: Folder of its run, whose training utterances int8 needs.
        frontend: ``included`` or ``none``, as of ``export_onnx``.
        int8: Compute products in eight bits.

    Raises:
        ValueError: The packages for ONNX are missing, or the run's recordings are gone.
    """
    metadata = {"card": json.dumps(card, allow_nan=False)}
    if not int8:
        export_onnx(network, path, frontend=frontend, metadata=metadata)
        return
    # onnxruntime quantizes a file, not a network.
    with TemporaryDirectory() as temporary:
        float32_path = Path(temporary) / "float32.onnx"
        export_onnx(network, float32_path, frontend=frontend, metadata=metadata)
        quantize_onnx(float32_path, path, calibration_inputs(run_dir, frontend, network_features(network)))


def calibration_inputs(
    run_dir: Path, frontend: str, features: str, num_utterances: int = _NUM_CALIBRATION_CLIPS
) -> Iterator[np.ndarray]:
    """Yield some of a run's training utterances, as an ONNX file takes them.

    Args:
        run_dir: Folder of the run.
        frontend: ``included``: waveforms [1, S]; ``none``: filterbanks [1, F, T].
        features: Name of the network's kind of features.
        num_utterances: Number of utterances. Default: 32.

    Raises:
        ValueError: The run has no manifest.
    """
    if not (run_dir / "manifest.parquet").is_file():
        raise ValueError(f"--int8: {run_dir} has no manifest.parquet, which lists the training recordings")
    manifest = Manifest(run_dir / "manifest.parquet")
    filterbank = build_features(features, SAMPLE_RATE, MEL_BINS)
    rows = manifest.split("train")
    # Spread over the manifest, since neighbors are of one speaker.
    for row in rows[:: max(1, len(rows) // num_utterances)][:num_utterances]:
        try:
            samples = read_utterance(manifest.segments(row))
        except ValueError as error:
            # The range of activations is as well known without one recording.
            print(f"left out: {error}", file=sys.stderr)
            continue
        waveform = samples[None, : round(_CALIBRATION_CLIP_SECONDS * SAMPLE_RATE)]
        if frontend == "none":
            with torch.no_grad():
                waveform = filterbank(waveform)
        yield waveform.numpy()


def make_card(run_dir: Path, config: Config, *, license_name: str, trained_on: str | None) -> dict[str, Any]:
    """Return the card of a trained network: plain data about its training and its results.

    Args:
        run_dir: Folder of its run; results.json and environment.json may be missing.
        config: Settings of its run.
        license_name: License in words.
        trained_on: Training data in words; None describes it by the settings.
    """
    results = read_json(run_dir / "results.json")
    evaluations = []
    for evaluation in results.get("evaluations", {}).values():
        evaluations.append({key: evaluation[key] for key in _EVALUATION_KEYS})
    return {
        "name": config.run_name,
        "license": license_name,
        "trained_on": trained_on or _describe_data(config),
        SYNTHETIC: config.is_synthetic,
        "limits_of_use": LIMITS_OF_USE,
        "training": results.get("training", {}),
        "scoring": results.get("scoring", {}),
        "metrics": {key: results[key] for key in _METRIC_KEYS if key in results},
        "evaluations": evaluations,
        "commit": read_json(run_dir / "environment.json").get("commit"),
        "sv_sparse": __version__,
        "exported": datetime.now(UTC).date().isoformat(),
    }


def _describe_data(config: Config) -> str:
    """Return the training data in words."""
    # The last part of paths alone: the rest is about somebody's machine.
    data = config.data
    if config.is_synthetic:
        return "the demo corpus: synthetic voices"
    if isinstance(data, PreparedDataConfig):
        return f"{', '.join(data.train_subsets)} of {Path(data.prepared_dir).name}"
    return f"recordings in {Path(data.root).name}"
