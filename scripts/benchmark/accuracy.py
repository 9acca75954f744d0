"""What making a trained network smaller costs in EER: rounded values, eight bits, dead channels cut out.

python scripts/benchmark/accuracy.py RUN [RUN ...] [--utterances 256]

RUN are folders of finished runs, judged by their own trial lists. All forms hear the same filterbanks; each has the
mean of its own embeddings of training utterances subtracted. Differences are to float32.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from interleaved import medians
from sv_sparse.runtime.compact import compact

from sv_sparse.commands.export import calibration_inputs, write_onnx
from sv_sparse.data.audio import read_utterance
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.prepared import Judged
from sv_sparse.evaluation.load import load_network
from sv_sparse.evaluation.trial_sets import run_trial_sets
from sv_sparse.export.package import write_package
from sv_sparse.models.features import MEL_BINS, Filterbank
from sv_sparse.runtime.engine.runtime import Runtime
from sv_sparse.runtime.package import read_package
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.metrics import eer, sort_scores

Array = np.ndarray
FEATURES = {"sample_rate": SAMPLE_RATE, "mel_bins": MEL_BINS}


def main() -> None:
    """Judge every form of every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--utterances", type=int, default=256, help="of training, behind the means")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for run in chosen.runs for row in judged(run, chosen.utterances)]
    print("| run | list | form | MB | EER | difference, points | mean cosine to fp32 |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print("| {run} | {list} | {form} | {MB:.2f} | {EER:.2%} | {difference:+.2f} | {cosine:.5f} |".format(**row))
    print(json.dumps(rows))
    for run in chosen.runs:
        network, _, settings = load_network(run / "checkpoints" / "model.pt")
        if settings["sparsity"]["controller"].get("whole", False):
            print(f"{run.name}: {cut(network)}")


@torch.inference_mode()
def cut(network: torch.nn.Module) -> str:
    """What dense torch gains by cutting out dead channels, in words."""
    smaller, x = compact(network), torch.randn(1, MEL_BINS, 300)
    times = medians({"whole": lambda: network(x), "compact": lambda: smaller(x)}, rounds=15)
    whole, less = (1e3 * times[name] for name in ("whole", "compact"))
    difference = float((network(x) - smaller(x)).abs().max() / network(x).abs().max())
    sizes = [sum(param.numel() for param in each.parameters()) for each in (network, smaller)]
    return (
        f"{whole:.1f} ms with dead channels, {less:.1f} ms without, {less / whole:.2f} of it, for 3 s by dense torch, "
        f"one thread; {sizes[0]:,} and {sizes[1]:,} parameters; equal to {difference:.0e} of the largest value"
    )


def judged(run: Path, utterances: int) -> list[dict[str, object]]:
    """A row for each list and form."""
    with tempfile.TemporaryDirectory() as folder:
        found = forms(run, Path(folder))
        lists = run_trial_sets(run)
        training = list(calibration_inputs(run, "none", utterances))
        rows: list[dict[str, object]] = []
        reference: dict[str, tuple[Array, float]] = {}
        for form, (size, engine) in found.items():
            mean = embedded(engine, training).mean(axis=0)
            for one in lists:
                embeddings = embedded(engine, filterbanks(one))
                rate = error_rate(one, embeddings, mean)
                first, least = reference.setdefault(one.trials.name, (embeddings, rate))
                cosines = (
                    (first * embeddings).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(embeddings, axis=1)
                )
                about = {"run": run.name, "list": one.trials.name, "form": form, "MB": size / 1e6, "EER": rate}
                rows.append(about | {"difference": 100 * (rate - least), "cosine": float(cosines.mean())})
        return rows


def forms(run: Path, folder: Path) -> dict[str, tuple[int, Callable[[torch.Tensor], Array]]]:
    """Bytes of each form, and what maps a filterbank [1, F, T] to an embedding [1, E]."""
    network, backend, settings = load_network(run / "checkpoints" / "model.pt")
    found = {}
    for values in ("fp32", "bf16", "fp16"):
        path = folder / f"{values}.safetensors"
        write_package(path, network, settings["model"], backend, {}, features=FEATURES, dtype=values)
        runtime = Runtime.load(read_package(path), threads=1)
        found[values] = path.stat().st_size, lambda x, runtime=runtime: runtime(x).numpy()
    if settings["sparsity"]["controller"].get("whole", False):
        smaller, path = compact(network), folder / "compact.safetensors"
        write_package(path, smaller, smaller.settings, backend, {}, features=FEATURES)
        dense = Runtime.load(read_package(path), threads=1)
        found["compact"] = path.stat().st_size, lambda x: dense(x).numpy()
    path = folder / "int8.onnx"
    write_onnx(path, network, {}, run, frontend="none", int8=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found["int8"] = path.stat().st_size, lambda x: session.run(None, {"filterbank": x.numpy()})[0]
    return found


def filterbanks(one: Judged) -> Iterable[torch.Tensor]:
    """Of a list's utterances, [1, F, T]."""
    filterbank = Filterbank(SAMPLE_RATE, MEL_BINS)
    for parts in one.recordings:
        yield filterbank(read_utterance(parts)[None])


def embedded(engine: Callable[[torch.Tensor], Array], several: Iterable[torch.Tensor | Array]) -> Array:
    """Embeddings [N, E]."""
    return np.concatenate([engine(torch.as_tensor(filterbank)) for filterbank in several])


def error_rate(one: Judged, embeddings: Array, mean: Array) -> float:
    """The EER of a list."""
    scores = Backend(mean).score(embeddings, one.trials.enrolment, one.trials.test)
    return eer(sort_scores(scores, one.trials.is_target, one.trials.describe))[0]


if __name__ == "__main__":
    main()
