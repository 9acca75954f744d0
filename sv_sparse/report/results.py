"""Results of a finished run: results.json, and everything else that a report reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sv_sparse.config.schema import Config, read_config
from sv_sparse.distributed import world_size
from sv_sparse.evaluation.complexity import measure_complexity
from sv_sparse.evaluation.corpus import corpus_summary
from sv_sparse.evaluation.evaluate import read_json
from sv_sparse.evaluation.result import TrialSetResult
from sv_sparse.optim import sparsity
from sv_sparse.scoring.config import ScoringConfig
from sv_sparse.training.logging import Row, read_rows
from sv_sparse.training.setup import TrainingSetup

Results = dict[str, Any]

# Name and evaluation, in tables, of a run without trial lists: it has no error rates.
NO_TRIAL_LIST = "no trial list"
NO_EVALUATION: dict[str, Any] = {
    **dict.fromkeys(field.name for field in fields(TrialSetResult)),
    "score_norm": "none",
    "dcf": [
        asdict(ScoringConfig().points[0])
        | dict.fromkeys(("min_dcf", "min_dcf_threshold", "min_dcf_interval", "act_dcf"))
    ],
    "thresholds": [],
    "breakdown": {},
}


def build_results(
    setup: TrainingSetup,
    final_metrics: Mapping[str, Any],
    evaluations: Sequence[TrialSetResult],
    untrained: Sequence[Mapping[str, Any]],
    wall_time_s: float,
) -> Results:
    """Build the content of results.json: plain data, with rates and sparsities as fractions.

    Args:
        setup: the run, finalized.
        final_metrics: metrics that ``finalize`` returned.
        evaluations: of the final network, one for each trial list.
        untrained: evaluations of the untrained network as plain data; empty if it was not evaluated.
        wall_time_s: seconds of the run, without interruptions.

    Returns:
        ``evaluations`` holds all lists by id; ``eer``, ``min_dcf`` and ``untrained_eer`` are the first list's. The
        first two are None without trial lists, and ``training.speakers`` without labels.
    """
    config = setup.config
    by_id = {evaluation.id: evaluation.to_dict() for evaluation in evaluations}
    for evaluation in untrained:
        # The untrained network is scored without score normalization, which has another id.
        if evaluation["id"] in by_id:
            by_id[evaluation["id"]]["untrained_eer"] = evaluation["eer"]
    # The first list of the settings is the one that a run is known by.
    first = next(iter(by_id.values()), NO_EVALUATION)
    complexity = measure_complexity(setup.network, setup.sparse_params, setup.head)
    num_params = complexity["size"]["parameters"]
    nnz = complexity["size"]["nonzero_parameters"]
    speakers, utterances, hours = setup.corpus.manifest.summary("train")
    results = {
        "target_sparsity": config.target_sparsity,
        **final_metrics,
        "sparsity_network": float(sparsity(list(setup.sparse_params.values()))),
        "sparsity_all": (num_params - nnz) / num_params,
        "parameters": num_params,
        "nonzero_parameters": nnz,
        "eer": first["eer"],
        "min_dcf": first["dcf"][0]["min_dcf"],
        "wall_time_s": wall_time_s,
        "seed": config.seed,
        "corpus": corpus_summary(config),
        "training": {
            "model": config.model_name,
            "speakers": speakers or None,
            "utterances": utterances,
            "hours": hours,
            "epochs": config.trainer.epochs,
            "steps": setup.total_steps,
            "lr": setup.optimizer.param_groups[0]["initial_lr"],
            "device": str(setup.device.device),
            "precision": setup.device.precision,
            "processes": world_size(),
        },
        # Conditions that all lists have in common.
        "scoring": {
            "mean_embedding": f"mean embedding of {config.trainer.num_bn_crops} training crops",
            "score_norm": first["score_norm"],
        },
        "evaluations": by_id,
        **complexity,
    }
    if "untrained_eer" in first:
        results["untrained_eer"] = first["untrained_eer"]
    return results


@dataclass(frozen=True)
class RunReport:
    """Content of a finished run's folder.

    Attributes:
        run_dir: the folder.
        results: content of results.json.
        config: settings of the run.
        environment: content of environment.json.
        steps: rows of metrics.jsonl with a loss, one for each logged step.
        validations: rows of metrics.jsonl with a validation EER.
    """

    run_dir: Path
    results: Results
    config: Config
    environment: dict[str, Any]
    steps: list[Row]
    validations: list[Row]

    @property
    def is_dense(self) -> bool:
        """True if the run had no target sparsity."""
        return not self.results["target_sparsity"]


def read_run_report(run_dir: Path, results: Results) -> RunReport:
    """Read the folder of a finished run, with the content of results.json and the evaluations to show."""
    rows = read_rows(run_dir / "metrics.jsonl")
    return RunReport(
        run_dir,
        results,
        read_config(run_dir),
        json.loads((run_dir / "environment.json").read_text(encoding="utf-8")),
        [row for row in rows if "loss" in row],
        [row for row in rows if "validation_eer" in row],
    )


def all_evaluations(run_dir: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return all evaluations of a run by id: those of results.json, and later ones of ``sv-sparse evaluate``."""
    evaluations = dict(results["evaluations"])
    for result_id, evaluation in read_json(run_dir / "evaluations.json").items():
        # The run's own evaluation stays, unless other trials were scored since, as after a
        # recording was mended: the score file is of those (DECISIONS 71).
        previous = evaluations.get(result_id)
        if previous is None or previous["checksum"] != evaluation["checksum"]:
            evaluations[result_id] = evaluation
    return evaluations
