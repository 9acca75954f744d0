"""sv-sparse export: a trained network as one file, for use."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sv_sparse import __version__
from sv_sparse.deploy.package import write_package
from sv_sparse.deploy.packing import VALUES
from sv_sparse.deploy.trained import load_network
from sv_sparse.features import MEL_BINS

SAMPLE_RATE = 16000
_FIGURES = ("target_sparsity", "sparsity_network", "parameters", "kept_parameters", "seed")
_JUDGED = ("name", "trials", "targets", "speakers", "enrolment", "normalization", "eer", "eer_interval", "costs")


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``sv-sparse export``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a network file of one")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="model.safetensors or model.onnx")
    parser.add_argument(
        "--values",
        choices=list(VALUES),
        default="fp32",
        help="what weights are rounded to in a .safetensors; fp32 keeps every bit",
    )
    parser.add_argument("--licence", default="not stated", help="of the network, for its card")
    parser.add_argument("--trained-on", help="the training data in words, for its card; the run's setting if not given")


def run(chosen: argparse.Namespace) -> None:
    """Run ``sv-sparse export``.

    Raises:
        ValueError: something is not as expected; names it.
        OSError: something cannot be read or written.
    """
    folder, path = _places(chosen.run)
    network, backend, settings = load_network(path)
    card = make_card(folder, settings, licence=chosen.licence, trained_on=chosen.trained_on)
    if chosen.to.suffix == ".safetensors":
        features = {"sample_rate": SAMPLE_RATE, "mel_bins": MEL_BINS}
        write_package(chosen.to, network, settings["model"], backend, card, features=features, values=chosen.values)
        dense = sum(value.numel() * 4 for value in network.state_dict().values() if value.is_floating_point())
    else:
        raise ValueError(f"--to {chosen.to}: expected a name that ends in .safetensors or .onnx")
    size = chosen.to.stat().st_size
    print(
        f"{chosen.to}: {size / 1e6:.2f} MB, {dense / size:.1f} times smaller than its {dense / 1e6:.1f} MB with zeros"
    )


def _places(given: Path) -> tuple[Path, Path]:
    """The run's folder, and its network file."""
    if given.is_dir():
        return given, given / "checkpoints" / "model.pt"
    return given.parent.parent, given


def make_card(folder: Path, settings: dict[str, Any], *, licence: str, trained_on: str | None) -> dict[str, Any]:
    """What is known of a trained network, as plain data.

    Args:
        folder: its run's; what it holds of results and environment is taken in.
        settings: its run's.
        licence: in words.
        trained_on: in words; made from the settings if not given.
    """
    results, environment = (_json(folder / name) for name in ("results.json", "environment.json"))
    judged = results.get("evaluations", {})
    return {
        "name": settings["name"],
        "licence": licence,
        "trained_on": trained_on or _data(settings["data"]),
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


def _data(data: dict[str, Any]) -> str:
    """The training data in words, without the folders of whoever trained."""
    if "make" in data:
        return "the demo corpus: made-up speech"
    if "prepared" in data:
        return f"{', '.join(data['train'])} of {Path(data['prepared']).name}"
    return f"recordings in {Path(data['root']).name}"
