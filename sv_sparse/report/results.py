"""A finished run as plain data: what results.json holds."""

from collections.abc import Sequence
from typing import Any

from sv_sparse.distributed import ranks
from sv_sparse.evaluation.complexity import measure_complexity
from sv_sparse.evaluation.corpus import corpus_summary
from sv_sparse.evaluation.result import TrialSetResult
from sv_sparse.optim import sparsity
from sv_sparse.training.setup import TrainingSetup

Results = dict[str, Any]


def collect(
    setup: TrainingSetup,
    landing: dict[str, Any],
    evaluations: Sequence[TrialSetResult],
    at_start: Sequence[dict[str, Any]],
    seconds: float,
) -> Results:
    """All figures of a finished run as plain data.

    Args:
        setup: the run, landed.
        landing: what ``land`` returned.
        evaluations: of the delivered network, one per trial list.
        at_start: the same lists before training, as plain data.
        seconds: the whole run's time, interruptions left out.

    Returns:
        Figures of the run; ``eer``, ``min_dcf`` and ``untrained_eer`` at the top are the first list's, and
        ``evaluations`` holds every list's. ``corpus`` is what ``corpus_summary`` returns. Rates and sparsities are
        fractions.
    """
    config = setup.config
    before = {evaluation["id"]: evaluation["eer"] for evaluation in at_start}  # other where they are scored otherwise
    lists = {e.id: e.to_dict() | {"untrained_eer": before.get(e.id)} for e in evaluations}
    first = lists[evaluations[0].id]
    sized = measure_complexity(setup.network, setup.sparse_params, setup.head)
    total, kept = sized["size"]["parameters"], sized["size"]["nonzero_parameters"]
    return {
        "target_sparsity": config.target_sparsity,
        **landing,
        "sparsity_network": float(sparsity(list(setup.sparse_params.values()))),
        "sparsity_all": (total - kept) / total,
        "parameters": total,
        "nonzero_parameters": kept,
        "eer": first["eer"],
        "min_dcf": first["dcf"][0]["min_dcf"],
        "untrained_eer": first["untrained_eer"],
        "seconds": seconds,
        "seed": config.seed,
        "corpus": corpus_summary(config),
        "training": _training(setup),
        "scoring": {
            "mean_embedding": f"mean embedding of {config.trainer.num_bn_crops} training crops",
            "score_norm": evaluations[0].score_norm,
        },
        "evaluations": lists,
        **sized,
    }


def _training(setup: TrainingSetup) -> dict[str, Any]:
    """What was trained, on what, how long."""
    speakers, utterances, hours = setup.corpus.manifest.summary("train")
    return {
        "model": type(setup.network).__name__,
        "speakers": speakers,
        "utterances": utterances,
        "hours": hours,
        "epochs": setup.config.trainer.epochs,
        "steps": setup.total_steps,
        "lr": setup.optimizer.param_groups[0]["initial_lr"],
        "device": str(setup.device.device),
        "precision": setup.device.precision,
        "processes": ranks(),
    }
