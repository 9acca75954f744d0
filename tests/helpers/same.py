"""Whether two runs ended the same."""

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sv_sparse import checkpoint
from sv_sparse.training.logging import Row, read_rows

TIMING = {"utterances_per_second", "data_wait"}
ELSEWHERE = {"runs", "folder", "workers", "checkpoint_minutes"}  # settings of where, by how many, how safely


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """To the last bit; but for ``seconds``."""
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            if key != "seconds":
                assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    else:
        assert left == right, where


def rows(folder: Path) -> list[Row]:
    """Rows of metrics.jsonl, but for what tells the time."""
    found = read_rows(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMING} for row in found]


def assert_same_run(left: Path, right: Path) -> None:
    """Checkpoints, the delivered network, the rows of metrics.jsonl, results and scores."""
    names = sorted(path.name for path in (right / "checkpoints").glob("*.pt"))
    assert sorted(path.name for path in (left / "checkpoints").glob("*.pt") if path.name != "replaced.pt") == names
    for name in names:
        keys = checkpoint.NETWORK_KEYS if name in {"model.pt", "best.pt"} else checkpoint.TRAINING_KEYS
        states = [checkpoint.load(folder / "checkpoints" / name, keys) for folder in (left, right)]
        for state in states:
            state["config"] = _without_names(state["config"])
        assert_same(*states, where=name)
    assert rows(left) == rows(right)
    assert_same(*[json.loads((folder / "results.json").read_text()) for folder in (left, right)], where="results")
    scores = [{path.name: path.read_text() for path in (folder / "scores").iterdir()} for folder in (left, right)]
    assert scores[0] == scores[1]


def _without_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings, but for those that may differ between runs that end the same."""
    trainer = {name: value for name, value in settings["trainer"].items() if name not in ELSEWHERE}
    return {name: value for name, value in settings.items() if name not in ELSEWHERE} | {"trainer": trainer}


def curves(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What tensorboard shows of a run, step by step, but for what tells the time."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    found |= {tag: [(e.step, e.histogram_value) for e in events.Histograms(tag)] for tag in tags["histograms"]}
    return {tag: values for tag, values in found.items() if tag not in TIMING | {"final/seconds"}}
