"""A finished run as plain data: what results.json holds."""

from collections.abc import Sequence
from typing import Any

from sv_sparse.distributed import ranks
from sv_sparse.evaluation.complexity import measure_complexity
from sv_sparse.evaluation.corpus import corpus_summary
from sv_sparse.evaluation.result import TrialSetResult
from sv_sparse.optim import sparsity
from sv_sparse.training.setup import Experiment, split_size

Results = dict[str, Any]


def collect(
    experiment: Experiment,
    landing: dict[str, Any],
    evaluations: Sequence[TrialSetResult],
    at_start: Sequence[dict[str, Any]],
    seconds: float,
) -> Results:
    """All figures of a finished run as plain data.

    Args:
        experiment: the run, landed.
        landing: what ``land`` returned.
        evaluations: of the delivered network, one per trial list.
        at_start: the same lists before training, as plain data.
        seconds: the whole run's time, interruptions left out.

    Returns:
        Figures of the run; ``eer``, ``min_dcf`` and ``untrained_eer`` at the top are the first list's, and
        ``evaluations`` holds every list's. ``corpus`` is what ``corpus_summary`` returns. Rates and sparsities are
        fractions.
    """
    settings = experiment.settings
    before = {evaluation["id"]: evaluation["eer"] for evaluation in at_start}  # other where they are scored otherwise
    lists = {e.id: e.to_dict() | {"untrained_eer": before.get(e.id)} for e in evaluations}
    first = lists[evaluations[0].id]
    sized = measure_complexity(experiment.network, experiment.sparse_params, experiment.head)
    total, kept = sized["size"]["parameters"], sized["size"]["nonzero_parameters"]
    return {
        "target_sparsity": settings["target_sparsity"],
        **landing,
        "sparsity_network": float(sparsity(list(experiment.sparse_params.values()))),
        "sparsity_all": (total - kept) / total,
        "parameters": total,
        "nonzero_parameters": kept,
        "eer": first["eer"],
        "min_dcf": first["dcf"][0]["min_dcf"],
        "untrained_eer": first["untrained_eer"],
        "seconds": seconds,
        "seed": settings["seed"],
        "corpus": corpus_summary(settings),
        "training": _training(experiment),
        "scoring": {
            "mean_embedding": f"mean embedding of {settings['trainer']['statistics_crops']} training crops",
            "score_norm": evaluations[0].score_norm,
        },
        "evaluations": lists,
        **sized,
    }


def _training(experiment: Experiment) -> dict[str, Any]:
    """What was trained, on what, how long."""
    speakers, utterances, hours = split_size(experiment.corpus.manifest, "train")
    return {
        "model": type(experiment.network).__name__,
        "speakers": speakers,
        "utterances": utterances,
        "hours": hours,
        "epochs": experiment.settings["trainer"]["epochs"],
        "steps": experiment.total_steps,
        "lr": experiment.optimizer.param_groups[0]["initial_lr"],
        "device": str(experiment.compute.device),
        "precision": experiment.compute.precision,
        "processes": ranks(),
    }
