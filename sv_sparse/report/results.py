"""A finished run as plain data: what results.json holds."""

from collections.abc import Sequence
from typing import Any

from sv_sparse.distributed import ranks
from sv_sparse.evaluation.complexity import size_of
from sv_sparse.evaluation.corpus import describe_corpus
from sv_sparse.evaluation.result import Evaluation
from sv_sparse.optim import sparsity
from sv_sparse.training.setup import TrainingSetup

Results = dict[str, Any]


def collect(
    setup: TrainingSetup,
    landing: dict[str, Any],
    evaluations: Sequence[Evaluation],
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
        Figures of the run; ``eer``, ``min_dcf`` and ``start_eer`` at the top are the first list's, and
        ``evaluations`` holds every list's. ``corpus`` is what ``describe_corpus`` returns. Rates and sparsities are
        fractions.
    """
    config = setup.config
    before = {evaluation["key"]: evaluation["eer"] for evaluation in at_start}  # other where they are scored otherwise
    lists = {e.key: e.as_dict() | {"start_eer": before.get(e.key)} for e in evaluations}
    first = lists[evaluations[0].key]
    sized = size_of(setup.network, setup.sparse_params, setup.head)
    total, kept = sized["size"]["parameters"], sized["size"]["kept_parameters"]
    return {
        "target_sparsity": config.target_sparsity,
        **landing,
        "sparsity_network": float(sparsity(list(setup.sparse_params.values()))),
        "sparsity_all": (total - kept) / total,
        "parameters": total,
        "kept_parameters": kept,
        "eer": first["eer"],
        "min_dcf": first["costs"][0]["min_dcf"],
        "start_eer": first["start_eer"],
        "seconds": seconds,
        "seed": config.seed,
        "corpus": describe_corpus(config),
        "training": _training(setup),
        "scoring": {
            "subtracted": f"mean embedding of {config.trainer.num_bn_crops} training crops",
            "normalization": evaluations[0].normalization,
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
