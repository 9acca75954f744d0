"""A run folder as its report reads it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sv_sparse.config.schema import Config, read_config
from sv_sparse.report.results import Results
from sv_sparse.training.logging import Row, read_rows


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        folder: the run folder.
        results: as in results.json.
        config: its settings.
        environment: as in environment.json.
        rows: those of metrics.jsonl that have a loss, one for each logged step.
        validations: those that have a validation EER.
    """

    folder: Path
    results: Results
    config: Config
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
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    rows = read_rows(folder / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    epochs = [row for row in rows if "validation_eer" in row]
    return Record(folder, results, read_config(folder), environment, steps, epochs)


def judged_lists(folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was judged by: its own lists, and those it has been judged by since.

    An own list whose trials are not the same any more, as after a recording was mended, is shown as it was judged last:
    its scores are those of then.
    """
    path = folder / "evaluations.json"
    later = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lists = dict(results["evaluations"])
    for key, one in later.items():
        if key not in lists or lists[key]["checksum"] != one["checksum"]:
            lists[key] = one
    return lists
