"""A run folder as its report reads it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sv_sparse.monitor import Row, read_rows
from sv_sparse.report.results import Results


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        folder: the run folder.
        results: as in results.json.
        settings: resolved, as in config.yaml.
        environment: as in environment.json.
        rows: those of metrics.jsonl that have a loss, one for each logged step.
        validations: those that have a validation EER.
    """

    folder: Path
    results: Results
    settings: dict[str, Any]
    environment: dict[str, Any]
    rows: list[Row]
    validations: list[Row]

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.resolve().name

    @property
    def dense(self) -> bool:
        """Whether nothing was to be sparse."""
        return not self.results["target_sparsity"]


def read_record(folder: Path, results: Results) -> Record:
    """What a run folder tells beside its results.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    settings: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    rows = read_rows(folder / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    return Record(folder, results, settings, environment, steps, [row for row in rows if "validation_eer" in row])
