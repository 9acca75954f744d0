"""Trained networks on a CPU: size, load time, memory, latency; ours beside dense torch, onnxruntime and OpenVINO.

python scripts/benchmark/deploy.py RUN [RUN ...] [--threads 1,2] [--seconds 3] [--rounds 15] [--out FILE.md]

RUN are folders of finished runs. Each engine gets the same filterbank, one utterance at a time; engines take turns, and
each has one call that is not counted in its turn, so that none pays for the caches or threads of another. Load time
and memory are those of a process of its own, from the file to the first embedding, imports not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch

from sv_sparse.commands.export import make_card
from sv_sparse.evaluation.load import load_network
from sv_sparse.export.onnx import export_onnx
from sv_sparse.export.package import write_package
from sv_sparse.runtime.engine.autotune import autotune, torch_threads
from sv_sparse.runtime.engine.lowering import lower
from sv_sparse.runtime.engine.runtime import Runtime, machine_name
from sv_sparse.runtime.package import read_package

FEATURES = {"sample_rate": 16000, "mel_bins": 80}
TARGETS = {"ECAPA": {0.9: (3.4, 1.5), 0.95: (5.5, 2.4), 0.99: (10, 4.5)}, "ResNet34": {0.9: (3.3, None)}}
TARGETS["ResNet34"] |= {0.95: (4.2, None), 0.99: (7.5, None)}
SIZES = {0.9: 9, 0.95: 16, 0.99: 60}
TURN = 3  # calls that are counted in each turn

Calls = Mapping[str, Callable[[], Any]]


def main() -> None:
    """Measure all runs and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--seconds", type=float, default=3.0, help="of speech")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="Markdown file for the tables")
    chosen = parser.parse_args()
    threads = [int(word) for word in chosen.threads.split(",")]
    latencies, files = [], []
    for run in chosen.runs:
        with tempfile.TemporaryDirectory() as folder:
            about = exported(run, Path(folder))
            files.append(about | loads(about))
            for count in threads:
                latencies.append(about | {"threads": count} | latency(about, count, chosen.seconds, chosen.rounds))
                print(json.dumps(shown(latencies[-1])), flush=True)
    text = report(latencies, files, chosen.seconds)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text, encoding="utf-8")
    print(json.dumps({"latency": [shown(row) for row in latencies], "files": [shown(row) for row in files]}))


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what is only on this machine."""
    return {name: value for name, value in row.items() if name != "folder"}


def exported(run: Path, folder: Path) -> dict[str, Any]:
    """A run's network in all forms, and their sizes in bytes."""
    network, backend, settings = load_network(run / "checkpoints" / "model.pt")
    card = make_card(run, settings, license_name="", trained_on=None)
    for values in ("fp32", "bf16"):
        write_package(
            folder / f"{values}.safetensors",
            network,
            settings["model"],
            backend,
            card,
            features=FEATURES,
            dtype=values,
        )
    export_onnx(network, folder / "model.onnx", frontend="none", metadata={})
    torch.save(network.state_dict(), folder / "dense.pt")
    weights = [param for param in network.parameters() if param.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    return {
        "network": type(network).__name__,
        "run": run.name,
        "sparsity": round(zeros, 4),
        "dense_bytes": sum(each.numel() * 4 for each in network.state_dict().values() if each.is_floating_point()),
        **{f"{values}_bytes": (folder / f"{values}.safetensors").stat().st_size for values in ("fp32", "bf16")},
        "folder": folder,
    }


def engines(folder: Path, threads: int) -> dict[str, Callable[[torch.Tensor], Any]]:
    """What maps a filterbank [B, F, T] to embeddings."""
    package = read_package(folder / "fp32.safetensors")
    dense = package.network()
    plan = autotune(lower(package.network()), machine_name(), threads=threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def vino(precision: str) -> Callable[[torch.Tensor], Any]:
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", settings)
        return lambda x: compiled(x.numpy())[0]

    return {
        "ours": Runtime.load(package, threads=threads, plan=plan),
        "ours, not measured": Runtime.load(package, threads=threads),
        "torch": dense,
        "onnxruntime": lambda x: session.run(None, {"filterbank": x.numpy()})[0],
        "OpenVINO": vino("f32"),
        "OpenVINO bf16": vino("bf16"),
    }


@torch.inference_mode()
def latency(about: Mapping[str, Any], threads: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Milliseconds of each engine, medians, and the largest difference of ours to torch."""
    x = torch.randn(1, FEATURES["mel_bins"], round(100 * seconds))
    with torch_threads(threads):
        found = engines(about["folder"], threads)
        difference = np.abs(np.asarray(found["ours"](x)) - np.asarray(found["torch"](x))).max()
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds):
            for name, engine in found.items():
                engine(x)
                for _ in range(TURN):
                    began = time.perf_counter()
                    engine(x)
                    times[name].append(time.perf_counter() - began)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {"ms": {name: round(value, 2) for name, value in medians.items()}, "difference": float(difference)}


LOADERS = {
    "ours": """
from sv_sparse.runtime.package import read_package
from sv_sparse.runtime.engine.runtime import Runtime
def load():
    runtime = Runtime.load(read_package(folder / "fp32.safetensors"), threads=1)
    return lambda x: runtime(torch.from_numpy(x))
""",
    "torch": """
from sv_sparse.models.registry import build_model
def load():
    network = build_model(model, 80).eval()
    network.load_state_dict(torch.load(folder / "dense.pt", weights_only=True))
    return lambda x: network(torch.from_numpy(x))
""",
    "onnxruntime": """
import onnxruntime
def load():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"filterbank": x})[0]
""",
    "OpenVINO bf16": """
import openvino
def load():
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
    compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", settings)
    return lambda x: compiled(x)[0]
""",
}

LOADED = """
import json, sys, time
from pathlib import Path
import numpy as np
import torch
folder, model = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.set_num_threads(1)
{loader}
def memory(name):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(name)]
    return int(line.split()[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before, began = memory("VmRSS"), time.perf_counter()
with torch.inference_mode():
    load()(np.zeros((1, 80, 300), np.float32))
print(json.dumps([time.perf_counter() - began, memory("VmHWM") - before]))
"""


def loads(about: Mapping[str, Any], repeats: int = 3) -> dict[str, Any]:
    """Seconds and MiB from the file to the first embedding, by engine, medians of processes of their own."""
    model = json.dumps(read_package(about["folder"] / "fp32.safetensors").model)
    found: dict[str, Any] = {}
    for name, loader in LOADERS.items():
        command = [sys.executable, "-c", LOADED.format(loader=loader), str(about["folder"]), model]
        several = []
        for _ in range(repeats):
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            several.append(json.loads(done.stdout.splitlines()[-1]))
        seconds, mebibytes = (statistics.median(column) for column in zip(*several, strict=True))
        found[name] = {"seconds": round(seconds, 3), "MiB": round(mebibytes)}
    return {"load": found}


def report(latencies: list[dict[str, Any]], files: list[dict[str, Any]], seconds: float) -> str:
    """Both tables as Markdown."""
    names = list(latencies[0]["ms"])
    head = ["network", "zeros", "threads", *names, "times onnxruntime", "times OpenVINO bf16", "target", "difference"]
    lines = [f"Milliseconds for {seconds:g} s of speech, batch 1, on {machine_name()}", "", *heading(head)]
    for row in latencies:
        times = row["ms"]
        ratios = [times[peer] / times["ours"] for peer in ("onnxruntime", "OpenVINO bf16")]
        wanted = [f"{value:g}" for value in target(row) if value is not None] if row["threads"] == 1 else []
        cells = [
            row["network"],
            f"{row['sparsity']:.2%}",
            str(row["threads"]),
            *(f"{times[name]:.1f}" for name in names),
        ]
        cells += [*(f"{ratio:.2f}" for ratio in ratios), " / ".join(wanted) or "-", f"{row['difference']:.0e}"]
        lines.append(line(cells))
    head = ["network", "zeros", "dense MB", "fp32 MB", "times smaller", "target", "bf16 MB", "times smaller"]
    lines += ["", "Size of the file", "", *heading(head)]
    for row in files:
        sizes = [row[f"{name}_bytes"] for name in ("dense", "fp32", "bf16")]
        times = [f"{sizes[0] / size:.1f}" for size in sizes[1:]]
        wanted = str(SIZES.get(round(row["sparsity"], 3), "-"))
        cells = [row["network"], f"{row['sparsity']:.2%}", f"{sizes[0] / 1e6:.1f}", f"{sizes[1] / 1e6:.2f}", times[0]]
        lines.append(line([*cells, wanted, f"{sizes[2] / 1e6:.2f}", times[1]]))
    head = ["network", "zeros", *(f"{name}, s and MiB" for name in LOADERS)]
    lines += [
        "",
        "From the file to the first embedding, one thread: seconds, and memory at the peak",
        "",
        *heading(head),
    ]
    for row in files:
        cells = [f"{each['seconds']:.2f}, {each['MiB']}" for each in row["load"].values()]
        lines.append(line([row["network"], f"{row['sparsity']:.2%}", *cells]))
    return "\n".join(lines) + "\n"


def target(row: Mapping[str, Any]) -> tuple[float | None, ...]:
    """Times as fast as onnxruntime, and as OpenVINO in bf16, that a row should be."""
    return TARGETS.get(row["network"], {}).get(round(row["sparsity"], 3), (None, None))


def heading(cells: list[str]) -> list[str]:
    """A table's first two lines."""
    return [line(cells), line(["---"] * len(cells))]


def line(cells: list[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
