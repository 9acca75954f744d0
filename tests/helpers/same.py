"""Comparison of two runs that must end the same, to the last bit."""

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sv_sparse import checkpoint
from sv_sparse.training.logging import Row, read_rows

TIMES = {"elapsed_seconds", "wall_time_s", "seconds"}  # of checkpoints and results
TIMING_METRICS = {"utterances_per_second", "data_wait_fraction"}
LOCATION_SETTINGS = {"runs_dir", "run_dir"}
KEYS = {
    "model.pt": checkpoint.NETWORK_KEYS,
    "best.pt": checkpoint.NETWORK_KEYS,
    "teacher.pt": checkpoint.TEACHER_KEYS,
}
TRAINER_SETTINGS = {"num_workers", "checkpoint_interval_minutes"}  # which do not change what a run computes


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Compare tensors and plain data, but for times."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left.keys() - TIMES:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (left_value, right_value) in enumerate(zip(left, right, strict=True)):
            assert_same(left_value, right_value, f"{where}/{index}")
    else:
        assert left == right, where


def rows(folder: Path) -> list[Row]:
    """Return the rows of metrics.jsonl without times."""
    return [
        {key: value for key, value in row.items() if key not in TIMING_METRICS}
        for row in read_rows(folder / "metrics.jsonl")
    ]


def assert_same_run(left: Path, right: Path) -> None:
    """Compare checkpoints, the final network, the rows of metrics.jsonl, results and scores."""
    names = _checkpoint_names(right)
    assert _checkpoint_names(left) - {"last_before_rollback.pt"} == names
    for name in names:
        keys = KEYS.get(name, checkpoint.TRAINING_KEYS)
        left_state = checkpoint.load(left / "checkpoints" / name, keys)
        right_state = checkpoint.load(right / "checkpoints" / name, keys)
        for state in (left_state, right_state):
            state["config"] = _compared_settings(state["config"])
        assert_same(left_state, right_state, where=name)
    assert rows(left) == rows(right)
    left_results, right_results = (json.loads((folder / "results.json").read_text()) for folder in (left, right))
    assert_same(left_results, right_results, where="results")
    left_scores, right_scores = (
        {path.name: path.read_text() for path in (folder / "scores").iterdir()} for folder in (left, right)
    )
    assert left_scores == right_scores


def _checkpoint_names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("*.pt")}


def _compared_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without those that may differ between runs that end the same."""
    trainer = {name: value for name, value in config["trainer"].items() if name not in TRAINER_SETTINGS}
    return {name: value for name, value in config.items() if name not in LOCATION_SETTINGS} | {"trainer": trainer}


def curves(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return what tensorboard shows of a run, step by step, without times."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    by_tag = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    by_tag |= {tag: [(e.step, e.histogram_value) for e in events.Histograms(tag)] for tag in tags["histograms"]}
    return {tag: values for tag, values in by_tag.items() if tag not in TIMING_METRICS | {"final/wall_time_s"}}
