"""Measure the EER of trained networks with rounded values, beside the EER in float32.

python scripts/benchmark/accuracy.py RUN [RUN ...] [--utterances 256]

RUN are folders of finished runs, evaluated on their own trial lists. All forms get the same filterbanks; from each, the
mean of its own embeddings of training utterances is subtracted. Differences are to float32.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from sv_sparse.commands.export import calibration_inputs, write_onnx
from sv_sparse.config.schema import read_config
from sv_sparse.data.audio import read_utterance
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.trial_set import TrialSet
from sv_sparse.evaluation.load import load_network
from sv_sparse.evaluation.trial_sets import run_trial_sets
from sv_sparse.export.package import write_package
from sv_sparse.models.features import MEL_BINS, build_features
from sv_sparse.models.registry import features_of
from sv_sparse.runtime.engine.runtime import Runtime
from sv_sparse.runtime.package import read_package
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.metrics import eer, sort_scores

Array = np.ndarray
FEATURES = {"sample_rate": SAMPLE_RATE, "mel_bins": MEL_BINS}


def main() -> None:
    """Evaluate every form of every run and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--utterances", type=int, default=256, help="training utterances behind the means")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for run in args.runs:
        rows += evaluations(run, args.utterances)
    print("| run | list | form | MB | EER | difference, points | mean cosine to fp32 |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print("| {run} | {list} | {form} | {MB:.2f} | {EER:.2%} | {difference:+.2f} | {cosine:.5f} |".format(**row))
    print(json.dumps(rows))


@torch.inference_mode()
def evaluations(run: Path, utterances: int) -> Iterator[dict[str, Any]]:
    """Yield a row of the table for each form and trial list of a run.

    Args:
        run: run folder.
        utterances: number of training utterances behind the mean embedding.
    """
    with tempfile.TemporaryDirectory() as folder:
        engines = forms(run, Path(folder))
        trial_sets = run_trial_sets(run)
        features = features_of(read_config(run).model_settings)
        training = list(calibration_inputs(run, "none", features, utterances))
        reference: dict[str, tuple[Array, float]] = {}
        for form, (num_bytes, engine) in engines.items():
            mean = embed(engine, training).mean(axis=0)
            for trial_set in trial_sets:
                embeddings = embed(engine, filterbanks(trial_set, features))
                rate = error_rate(trial_set, embeddings, mean)
                # The first form is float32, which the others are compared with.
                expected, expected_rate = reference.setdefault(trial_set.trials.name, (embeddings, rate))
                norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(embeddings, axis=1)
                cosines = (expected * embeddings).sum(axis=1) / norms
                yield {
                    "run": run.name,
                    "list": trial_set.trials.name,
                    "form": form,
                    "MB": num_bytes / 1e6,
                    "EER": rate,
                    "difference": 100 * (rate - expected_rate),
                    "cosine": float(cosines.mean()),
                }


def forms(run: Path, folder: Path) -> dict[str, tuple[int, Callable[[torch.Tensor], Array]]]:
    """Write each form of a run's network; return its bytes, and the function from filterbank [1, F, T] to embedding.

    Args:
        run: run folder.
        folder: folder that the files are written to.
    """
    network, backend, config = load_network(run / "checkpoints" / "model.pt")
    engines: dict[str, tuple[int, Callable[[torch.Tensor], Array]]] = {}
    for values in ("fp32", "bf16", "fp16"):
        path = folder / f"{values}.safetensors"
        write_package(path, network, config.model_settings, backend, {}, features=FEATURES, dtype=values)
        runtime = Runtime.load(read_package(path), threads=1)
        engines[values] = path.stat().st_size, partial(run_engine, runtime)
    path = folder / "int8.onnx"
    write_onnx(path, network, {}, run, frontend="none", int8=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    engines["int8"] = path.stat().st_size, lambda x: session.run(None, {"filterbank": x.numpy()})[0]
    return engines


def filterbanks(trial_set: TrialSet, features: str) -> Iterator[torch.Tensor]:
    """Yield the filterbank [1, F, T] of each utterance of a trial list, of a kind of features."""
    filterbank = build_features(features, SAMPLE_RATE, MEL_BINS)
    for segments in trial_set.audio:
        yield filterbank(read_utterance(segments)[None])


def run_engine(runtime: Runtime, filterbank: torch.Tensor) -> Array:
    """Compute the embedding [1, E] of a filterbank [1, F, T]."""
    return runtime(filterbank).numpy()


def embed(engine: Callable[[torch.Tensor], Array], inputs: Iterable[torch.Tensor | Array]) -> Array:
    """Compute the embeddings [N, E] of N filterbanks."""
    return np.concatenate([engine(torch.as_tensor(filterbank)) for filterbank in inputs])


def error_rate(trial_set: TrialSet, embeddings: Array, mean: Array) -> float:
    """Compute the EER of a trial list by cosines after subtracting a mean [E] from the embeddings [N, E]."""
    trials = trial_set.trials
    scores = Backend(mean).score(embeddings, trials.enrollment, trials.test)
    return eer(sort_scores(scores, trials.is_target, trials.describe))[0]


if __name__ == "__main__":
    main()
