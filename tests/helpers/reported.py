"""Made-up run folders as training leaves them, for tests of reports and comparisons."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COMMAND = "python train.py model=ecapa target_sparsity=0.9"
DEMO_CORPUS = {
    "name": "demo",
    "synthetic": True,
    "path": "/cache/wav",
    "train": None,
    "trials": ["/cache/veri_test.txt"],
}
FOLDER = {"root": "recordings", "trial_lists": "trials.txt"}
DEMO = {"synthesize": {"seed": 0}}


def evaluation(name: str, **changes: Any) -> dict[str, Any]:
    """Return the evaluation of a list, with everything known."""
    costs = []
    for p_target, cost in ((0.01, 0.738), (0.05, 0.512)):
        costs.append(
            {
                "p_target": p_target,
                "c_miss": 1.0,
                "c_fa": 1.0,
                "min_dcf": cost,
                "min_dcf_threshold": 0.6,
                "min_dcf_interval": [0.9 * cost, 1.1 * cost],
                "act_dcf": 1.1 * cost,
            }
        )
    complete = {
        "name": name,
        "id": name,
        "checksum": "0123456789abcdef",
        "trials": 400,
        "targets": 100,
        "speakers": 48,
        "enrollment": "one utterance",
        "score_norm": "AS-norm, top 300 of 5,994 training speakers",
        "dcf": costs,
        "calibration": "logistic regression on 1,234 trials of 12 held-out training speakers",
        "eer": 0.1128,
        "eer_threshold": 0.41,
        "eer_interval": [0.0981, 0.1302],
        "cllr": 0.41,
        "min_cllr": 0.37,
        "breakdown": {
            "genre": {
                "song": {"trials": 200, "targets": 50, "eer": 0.14},
                "vlog": {"trials": 200, "targets": 50, "eer": 0.14},
            },
            "seconds": {"2 to 4": {"trials": 150, "targets": 40, "eer": 0.16}},
            "sex": {"f": {"trials": 220, "targets": 55, "eer": 0.1}, "m": {"trials": 180, "targets": 45, "eer": 0.12}},
        },
        "thresholds": [{"target_far": 0.05, "threshold": 1.25, "p_fa": 0.0612, "p_miss": 0.1834}],
        "untrained_eer": 0.4322,
    }
    return complete | changes


def unknown(name: str) -> dict[str, Any]:
    """Return the evaluation of a list of which nothing is known but its scores."""
    result = evaluation(
        name, speakers=None, calibration=None, eer_interval=None, cllr=None, breakdown={}, thresholds=[]
    )
    result["dcf"] = [cost | {"min_dcf_interval": None, "act_dcf": None} for cost in result["dcf"]]
    result["score_norm"] = "none"
    del result["untrained_eer"]
    return result


def layer(parameters: int, zeros: int) -> dict[str, int]:
    nonzero = parameters - zeros
    return {
        "parameters": parameters,
        "zeros": zeros,
        "channels": 16,
        "dead_channels": 2,
        "inputs": 8,
        "dead_inputs": 0,
        "macs": 300 * parameters,
        "nonzero_macs": 300 * nonzero,
        "bytes": 4 * parameters,
        "compressed_bytes": 4 * nonzero + parameters // 8,
    }


def results(
    target: float = 0.9,
    lists: Sequence[Mapping[str, Any]] = (),
    layers: Sequence[str] = ("stem.conv.weight", "embedding.weight"),
    **changes: Any,
) -> dict[str, Any]:
    """Return the content of results.json."""
    evaluations = {entry["name"]: dict(entry) for entry in lists or [evaluation("trials")]}
    first = next(iter(evaluations.values()))
    nonzero = round(20_000 * (1 - target)) + 500
    complete = {
        "target_sparsity": target,
        "sparsity_tracked": target,
        "sparsity": target,
        "lambda": 0.1 * (target > 0),
        "sparsity_network": target,
        "sparsity_all": 1 - nonzero / 20_500,
        "parameters": 20_500,
        "nonzero_parameters": nonzero,
        "validation_eer": 0.2,
        "validation_eer_tracked": 0.21,
        "sparse_init": target > 0,
        "eer": first["eer"],
        "min_dcf": first["dcf"][0]["min_dcf"],
        "wall_time_s": 228.0,
        "seed": 0,
        "evaluations": evaluations,
        "scoring": {"score_norm": first["score_norm"], "mean_embedding": "mean embedding of 512 training crops"},
        "corpus": {
            "name": "voxceleb",
            "synthetic": False,
            "path": "/data/prepared",
            "train": ["vox2_dev"],
            "trials": ["vox1_O_cleaned"],
        },
        "training": {
            "model": "ecapa",
            "speakers": 108,
            "utterances": 1296,
            "hours": 1.26,
            "epochs": 6,
            "steps": 60,
            "lr": 0.01,
            "device": "cpu",
            "precision": "fp32",
            "processes": 1,
        },
        "layers": {name: layer(10_000, round(10_000 * target)) for name in layers},
        "size": {
            "parameters": 20_500,
            "nonzero_parameters": nonzero,
            "macs": 6_000_000,
            "nonzero_macs": 600_000,
            "bytes": 82_000,
            "compressed_bytes": 10_500,
            "seconds_of_speech": 3.0,
            "head_parameters": 1024,
            "latency": {"seconds": 0.0912, "device": "cpu", "threads": 1},
        },
    }
    return complete | changes


def rows(target: float, steps: int) -> list[dict[str, Any]]:
    """Return rows of metrics.jsonl."""
    metrics = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "epoch": 0,
            "loss": 8 / step,
            "accuracy": 0.1,
            "lambda": (0.1 + 0.01 / step) * (target > 0),
            "sparsity/regularized": target * (1 - 0.1 / step),
            "target_sparsity": target,
            "lr": 0.01,
        }
        if target:
            row |= {"support/activated": 0.01 / step, "support/deactivated": 0.02 / step}
        metrics.append(row)
    return [*metrics, {"epoch": 1, "step": steps, "sparsity": target, "validation_eer": 0.21, "layers": {}}]


def write_scores(path: Path, trials: int, seed: int = 0) -> None:
    """Write scores of targets, a quarter, and of nontargets: two normal distributions."""
    generator = np.random.default_rng(seed)
    is_target = np.arange(trials) % 4 == 0
    scores = generator.normal(0.5 * is_target, 0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    labeled = zip(scores, is_target.astype(int), strict=True)
    path.write_text("".join(f"a b {score:.6f} {label}\n" for score, label in labeled))


def run_folder(
    folder: Path,
    content: dict[str, Any],
    *,
    steps: int = 20,
    controller: str = "feedback",
    optimizer: str = "adabreg",
    trials: int = 400,
    data: Mapping[str, Any] = FOLDER,
) -> Path:
    """Make the folder of a finished run with this content of results.json."""
    folder.mkdir(parents=True)
    config = {
        "target_sparsity": content["target_sparsity"],
        "model": {"name": "ecapa"},
        "optim": {"name": optimizer},
        "sparsity": {"controller": {"name": controller}},
        "data": data,
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML too
    environment = {"command": COMMAND, "commit": None, "cores": 2, "packages": {"torch": "2.13"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = [json.dumps(row) + "\n" for row in rows(content["target_sparsity"], steps)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "results.json").write_text(json.dumps(content))
    for name in content["evaluations"]:
        write_scores(folder / "scores" / f"{name}.txt", trials)
    return folder
