"""sv-sparse export: a trained network as one file, for use."""

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
from sv_sparse.config.schema import Config, PreparedDataConfig
from sv_sparse.data.audio import read_utterance
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.manifest import Manifest
from sv_sparse.evaluation.load import load_network
from sv_sparse.export.onnx import FEATURES, export_onnx
from sv_sparse.export.quantize import quantize_onnx
from sv_sparse.models.features import MEL_BINS, Filterbank
from sv_sparse.runtime.decision import LIMITS_OF_USE, SYNTHETIC
from sv_sparse.runtime.package import write_package
from sv_sparse.runtime.sparse_codec import VALUES

_UTTERANCES, _SECONDS = 32, 6.0  # that tell int8 the range of values: so many, and at most so long
_FIGURES = ("target_sparsity", "sparsity_network", "parameters", "nonzero_parameters", "seed")
_JUDGED = ("name", "trials", "targets", "speakers", "enrollment", "score_norm", "eer", "eer_interval", "dcf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse export``."""
    parser.add_argument("trained", type=Path, metavar="RUN", help="a run folder, or a network file of one")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="model.safetensors or model.onnx")
    parser.add_argument(
        "--values",
        choices=list(VALUES),
        help="what weights of a .safetensors are rounded to; fp32, which keeps every bit",
    )
    parser.add_argument(
        "--features", choices=FEATURES, help="of an .onnx: inside (a waveform goes in, the default) or outside"
    )
    parser.add_argument("--int8", action="store_true", help="an .onnx with products in eight bits")
    parser.add_argument("--licence", default="not stated", help="of the network, for its card")
    parser.add_argument("--trained-on", help="the training data in words, for its card; the run's setting if not given")


def main(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse export``.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    kind = _kind(chosen)
    folder, path = _places(chosen.trained)
    network, backend, config = load_network(path)
    dense = _bytes(network)
    card = make_card(folder, config, licence=chosen.licence, trained_on=chosen.trained_on)
    model = config.model_settings
    if kind == ".safetensors":
        features = {"sample_rate": SAMPLE_RATE, "mel_bins": MEL_BINS}
        write_package(chosen.to, network, model, backend, card, features=features, values=chosen.values or "fp32")
    else:
        write_onnx(chosen.to, network, card, folder, features=chosen.features or "inside", int8=chosen.int8)
    size = chosen.to.stat().st_size
    share = f", {dense / size:.1f} times smaller" if size < dense else ""
    print(f"{chosen.to}: {size / 1e6:.2f} MB{share}; the network as it was trained has {dense / 1e6:.1f} MB")


def _kind(chosen: argparse.Namespace) -> str:
    """The ending of the file that is asked for, once all that is asked for fits it."""
    kind: str = chosen.to.suffix
    if kind not in {".safetensors", ".onnx"}:
        raise ValueError(f"--to {chosen.to}: expected a name that ends in .safetensors or .onnx")
    if not chosen.to.parent.is_dir():
        raise ValueError(f"--to {chosen.to}: there is no folder {chosen.to.parent}")
    foreign = {".safetensors": ("features", "int8"), ".onnx": ("values",)}[kind]
    for name in foreign:
        if getattr(chosen, name):
            raise ValueError(f"--{name} is not for a {kind}, which --to {chosen.to} asks for")
    return kind


def write_onnx(
    path: Path, network: nn.Module, card: dict[str, Any], folder: Path, *, features: str = "inside", int8: bool = False
) -> None:
    """Write a network as an ONNX file.

    Args:
        path: the file.
        network: filterbank [B, F, T] to embedding [B, E].
        card: goes into the file's metadata.
        folder: of its run, whose training utterances tell int8 the range of values.
        features: ``inside`` or ``outside``.
        int8: products in eight bits.

    Raises:
        ValueError: the packages for ONNX are missing, or the run's recordings are gone.
        OSError: a file cannot be read or written.
    """
    metadata = {"card": json.dumps(card, allow_nan=False)}
    if not int8:
        export_onnx(network, path, features=features, metadata=metadata)
        return
    with TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole.onnx"
        export_onnx(network, whole, features=features, metadata=metadata)
        quantize_onnx(whole, path, heard(folder, features))


def heard(folder: Path, features: str, count: int = _UTTERANCES) -> Iterator[np.ndarray]:
    """Some of a run's training utterances, as an ONNX file of these features takes them.

    Args:
        folder: of the run.
        features: ``inside``: waveforms [1, S]; ``outside``: filterbanks [1, F, T].
        count: how many.

    Raises:
        ValueError: the run does not say what it was trained on, or a recording cannot be read.
    """
    if not (folder / "manifest.parquet").is_file():
        raise ValueError(f"--int8: {folder} has no manifest.parquet, which says what it was trained on")
    manifest, filterbank = Manifest(folder / "manifest.parquet"), Filterbank(SAMPLE_RATE, MEL_BINS)
    rows = manifest.split("train")
    for row in rows[:: max(1, len(rows) // count)][:count]:
        try:
            waveform = read_utterance(manifest.parts(row))[None, : round(_SECONDS * SAMPLE_RATE)]
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        with torch.no_grad():
            yield (waveform if features == "inside" else filterbank(waveform)).numpy()


def _bytes(network: nn.Module) -> int:
    """Of a network with its zeros, in float32."""
    return sum(value.numel() * 4 for value in network.state_dict().values() if value.is_floating_point())


def _places(given: Path) -> tuple[Path, Path]:
    """The run's folder, and its network file."""
    if given.is_dir():
        return given, given / "checkpoints" / "model.pt"
    return given.parent.parent, given


def make_card(folder: Path, config: Config, *, licence: str, trained_on: str | None) -> dict[str, Any]:
    """What is known of a trained network, as plain data.

    Args:
        folder: its run's; what it holds of results and environment is taken in.
        config: its run's.
        licence: in words.
        trained_on: in words; made from the settings if not given.
    """
    results, environment = (_json(folder / name) for name in ("results.json", "environment.json"))
    judged = results.get("evaluations", {})
    return {
        "name": config.run_name,
        "licence": licence,
        "trained_on": trained_on or _data(config),
        SYNTHETIC: config.is_synthetic,
        "limits_of_use": LIMITS_OF_USE,
        "training": results.get("training", {}),
        "scoring": results.get("scoring", {}),
        "figures": {name: results[name] for name in _FIGURES if name in results},
        "evaluations": [{name: one[name] for name in _JUDGED if name in one} for one in judged.values()],
        "commit": environment.get("commit"),
        "sv_sparse": __version__,
        "exported": datetime.now(UTC).date().isoformat(),
    }


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _data(config: Config) -> str:
    """The training data in words, without the folders of whoever trained."""
    data = config.data
    if config.is_synthetic:
        return "the demo corpus: synthetic voices"
    if isinstance(data, PreparedDataConfig):
        return f"{', '.join(data.train_subsets)} of {Path(data.prepared_dir).name}"
    return f"recordings in {Path(data.root).name}"
