"""Measure trained networks on a CPU: size, load time, memory, latency, beside torch, onnxruntime and OpenVINO.

python scripts/benchmark/runtime.py RUN [RUN ...] [--threads 1,2] [--seconds 3] [--rounds 15] [--out FILE.md]

RUN are folders of finished runs. Each engine gets the same filterbank, one utterance at a time; engines take turns, and
each has one call that does not count in its turn, so that none pays for the caches or threads of another. Load time
and memory are those of a process of its own, from the file to the first embedding, imports not counted.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from sv_sparse.commands.export import make_card
from sv_sparse.evaluation.load import load_network
from sv_sparse.export.onnx import export_onnx
from sv_sparse.export.package import write_package
from sv_sparse.models.registry import build_model
from sv_sparse.runtime.engine.autotune import autotune, torch_threads
from sv_sparse.runtime.engine.runtime import Runtime, machine_name
from sv_sparse.runtime.package import read_package

FEATURES = {"sample_rate": 16000, "mel_bins": 80}
TARGETS: dict[str, dict[float, tuple[float, float | None]]] = {
    "ECAPA": {0.9: (3.4, 1.5), 0.95: (5.5, 2.4), 0.99: (10, 4.5)},
    "ResNet34": {0.9: (3.3, None), 0.95: (4.2, None), 0.99: (7.5, None)},
}
SIZES = {0.9: 9, 0.95: 16, 0.99: 60}
CALLS_PER_TURN = 3
ENGINES = ("ours", "ours, not measured", "torch", "onnxruntime", "OpenVINO", "OpenVINO bf16")
PEERS = ("onnxruntime", "OpenVINO bf16")  # whose times are divided by ours


def main() -> None:
    """Measure all runs and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--seconds", type=float, default=3.0, help="of speech")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="Markdown file for the tables")
    parser.add_argument("--json", type=Path, help="file for the figures as JSON")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES, help="OpenVINO is in .[benchmark]")
    args = parser.parse_args()
    threads = [int(word) for word in args.threads.split(",")]
    latencies, files = [], []
    for run in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            about = exported(run, Path(folder))
            files.append(about | loads(about, args.engines))
            for count in threads:
                latencies.append(about | {"threads": count} | latency(about, count, args))
                print(json.dumps(shown(latencies[-1])), flush=True)
    text = report(latencies, files, args.seconds)
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")
    figures = json.dumps({"latency": [shown(row) for row in latencies], "files": [shown(row) for row in files]})
    if args.json is not None:
        args.json.write_text(figures, encoding="utf-8")
    print(figures)


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without its folder on this machine."""
    return {name: value for name, value in row.items() if name != "folder"}


def exported(run: Path, folder: Path) -> dict[str, Any]:
    """Write a run's network in all forms into a folder; return their sizes in bytes."""
    network, backend, config = load_network(run / "checkpoints" / "model.pt")
    card = make_card(run, config, license_name="", trained_on=None)
    for values in ("fp32", "bf16"):
        write_package(
            folder / f"{values}.safetensors",
            network,
            config.model_settings,
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


def make_engine(name: str, folder: Path, threads: int) -> Callable[[torch.Tensor], Any]:
    """Return the function of an engine from filterbank [B, F, T] to embeddings."""
    package = read_package(folder / "fp32.safetensors")
    if name == "ours":
        plan = autotune(package.program, machine_name(), threads=threads)
        return Runtime.load(package, threads=threads, plan=plan)
    if name == "ours, not measured":
        return Runtime.load(package, threads=threads)
    if name == "torch":
        network = build_model(package.model, package.features["mel_bins"]).eval()
        network.load_state_dict(torch.load(folder / "dense.pt", weights_only=True))
        return network
    if name == "onnxruntime":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"filterbank": x.numpy()})[0]
    import openvino  # noqa: PLC0415  # an extra of its own

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if name == "OpenVINO bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", settings)
    return lambda x: compiled(x.numpy())[0]


@torch.inference_mode()
def latency(about: Mapping[str, Any], threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the median milliseconds of each engine, and the largest difference of ours to torch.

    Args:
        about: row of the run, with the folder of its files.
        threads: number of threads of each engine.
        args: command line.
    """
    x = torch.randn(1, FEATURES["mel_bins"], round(100 * args.seconds))
    with torch_threads(threads):
        engines = {name: make_engine(name, about["folder"], threads) for name in args.engines}
        expected = make_engine("torch", about["folder"], threads)(x)
        output = make_engine("ours, not measured", about["folder"], threads)(x)
        times: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(args.rounds):
            for name, engine in engines.items():
                engine(x)
                for _ in range(CALLS_PER_TURN):
                    start_time = time.perf_counter()
                    engine(x)
                    times[name].append(time.perf_counter() - start_time)
    difference = np.abs(np.asarray(output) - np.asarray(expected)).max()
    milliseconds = {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()}
    return {"ms": milliseconds, "difference": float(difference)}


LOADERS = {
    "ours": """
from sv_sparse.runtime.package import read_package
from sv_sparse.runtime.engine.runtime import Runtime, machine_name
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
open("/proc/self/clear_refs", "w").write("5")  # reset the peak
before, start_time = memory("VmRSS"), time.perf_counter()
with torch.inference_mode():
    load()(np.zeros((1, 80, 300), np.float32))
print(json.dumps([time.perf_counter() - start_time, memory("VmHWM") - before]))
"""


def loads(about: Mapping[str, Any], engines: Sequence[str], repeats: int = 3) -> dict[str, Any]:
    """Measure seconds and MiB from the file to the first embedding by engine, medians of separate processes."""
    model = json.dumps(read_package(about["folder"] / "fp32.safetensors").model)
    figures: dict[str, Any] = {}
    for name, loader in LOADERS.items():
        if name not in engines:
            continue
        command = [sys.executable, "-c", LOADED.format(loader=loader), str(about["folder"]), model]
        measurements = []
        for _ in range(repeats):
            process = subprocess.run(command, capture_output=True, text=True, check=True)
            measurements.append(json.loads(process.stdout.splitlines()[-1]))
        seconds, mebibytes = (statistics.median(column) for column in zip(*measurements, strict=True))
        figures[name] = {"seconds": round(seconds, 3), "MiB": round(mebibytes)}
    return {"load": figures}


def report(latencies: list[dict[str, Any]], files: list[dict[str, Any]], seconds: float) -> str:
    """Format the tables as Markdown."""
    names = list(latencies[0]["ms"])
    peers = [peer for peer in PEERS if peer in names and "ours" in names]
    head = ["network", "zeros", "threads", *names, *(f"times {peer}" for peer in peers), "target", "difference"]
    lines = [f"Milliseconds for {seconds:g} s of speech, batch 1, on {machine_name()}", "", *heading(head)]
    for row in latencies:
        times = row["ms"]
        cells = [row["network"], f"{row['sparsity']:.2%}", str(row["threads"])]
        cells += [f"{times[name]:.1f}" for name in names]
        cells += [f"{times[peer] / times['ours']:.2f}" for peer in peers]
        # Targets are of one thread.
        targets = [f"{value:g}" for value in target(row) if value is not None and row["threads"] == 1]
        lines.append(line([*cells, " / ".join(targets) or "-", f"{row['difference']:.0e}"]))
    head = ["network", "zeros", "dense MB", "fp32 MB", "times smaller", "target", "bf16 MB", "times smaller"]
    lines += ["", "Size of the file", "", *heading(head)]
    for row in files:
        dense, fp32, bf16 = (row[f"{name}_bytes"] / 1e6 for name in ("dense", "fp32", "bf16"))
        cells = [row["network"], f"{row['sparsity']:.2%}", f"{dense:.1f}", f"{fp32:.2f}", f"{dense / fp32:.1f}"]
        cells += [str(SIZES.get(round(row["sparsity"], 3), "-")), f"{bf16:.2f}", f"{dense / bf16:.1f}"]
        lines.append(line(cells))
    head = ["network", "zeros", *(f"{name}, s and MiB" for name in files[0]["load"])]
    lines += ["", "From the file to the first embedding, one thread: seconds, and memory at the peak", ""]
    lines += heading(head)
    for row in files:
        cells = [f"{load['seconds']:.2f}, {load['MiB']}" for load in row["load"].values()]
        lines.append(line([row["network"], f"{row['sparsity']:.2%}", *cells]))
    return "\n".join(lines) + "\n"


def target(row: Mapping[str, Any]) -> tuple[float | None, ...]:
    """Return how many times as fast as onnxruntime, and as OpenVINO in bf16, a row should be."""
    return TARGETS.get(row["network"], {}).get(round(row["sparsity"], 3), (None, None))


def heading(cells: list[str]) -> list[str]:
    """Format a table's first two lines."""
    return [line(cells), line(["---"] * len(cells))]


def line(cells: list[str]) -> str:
    """Format a row of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
