"""What delivered networks take: parameters, file, and milliseconds in several engines."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from sv_sparse.runtime.compact import compact
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from tqdm import tqdm

from sv_sparse.commands.export import make_card
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.evaluation.load import load_network
from sv_sparse.export.onnx import export_onnx
from sv_sparse.export.package import write_package
from sv_sparse.io import write_json
from sv_sparse.models.features import MEL_BINS
from sv_sparse.runtime.engine.runtime import Runtime, machine_name
from sv_sparse.runtime.package import read_package

FRAMES = 300  # 3 s of speech
FILE = "measured.json"


def measure(runs: Sequence[Path], out: Path) -> None:
    """Measure every network that has not been, on one thread, and keep it in ``out/measured.json``."""
    path = out / FILE
    known = read_measured(out)
    for run in tqdm(runs, desc="measuring", unit="network"):
        digest = hashlib.blake2b((run / "checkpoints" / "model.pt").read_bytes(), digest_size=8).hexdigest()
        if known.get(run.name, {}).get("network") != digest:
            known[run.name] = {"network": digest} | _measured(run)
            write_json(path, known)


def read_measured(out: Path) -> dict[str, Any]:
    """What is known by run: digest of the network, parameters, those kept, bytes of the package, milliseconds."""
    path = out / FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


@torch.inference_mode()
def _measured(run: Path) -> dict[str, Any]:
    network, backend, settings = load_network(run / "checkpoints" / "model.pt")
    cut = settings["target_sparsity"] > 0 and settings["sparsity"]["controller"].get("whole", False)
    delivered = compact(network) if cut else network
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "network.safetensors")
        card = make_card(run, settings, license_name="", trained_on=None)
        features = {"sample_rate": SAMPLE_RATE, "mel_bins": MEL_BINS}
        write_package(package, network, settings["model"], backend, card, features=features, dtype="fp32")
        export_onnx(delivered, Path(folder, "network.onnx"), frontend="none", metadata={})
        engines: dict[str, Callable[[Tensor], Any]] = {
            "torch": delivered,
            "onnxruntime": _onnxruntime(Path(folder, "network.onnx")),
            "sparse": Runtime.load(read_package(package), threads=1),
        }
        milliseconds = {name: _milliseconds(engine) for name, engine in engines.items()}
        size = package.stat().st_size
    return {
        "parameters": _count(delivered, nonzero=False),
        "kept": _count(delivered, nonzero=True),
        "bytes": size,
        "milliseconds": milliseconds,
        "machine": machine_name(),
    }


def _count(network: nn.Module, *, nonzero: bool) -> int:
    return sum(int(param.count_nonzero()) if nonzero else param.numel() for param in network.parameters())


def _onnxruntime(path: Path) -> Callable[[Tensor], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda filterbank: session.run(None, {"filterbank": filterbank.numpy()})


def _milliseconds(engine: Callable[[Tensor], Any]) -> float:
    """Median of a batch of one, on one thread."""
    timer = Timer("engine(filterbank)", globals={"engine": engine, "filterbank": torch.randn(1, MEL_BINS, FRAMES)})
    return 1e3 * float(timer.blocked_autorange(min_run_time=1.0).median)
