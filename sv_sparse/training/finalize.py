"""The end of a run: exact sparsity, refreshed statistics, the final judgement."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from torch.optim.swa_utils import update_bn

from sv_sparse.data.dataset import Batch, Crops
from sv_sparse.data.loader import CropLoader, EpochBatches, UnreadableMeter
from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.distributed import from_first, rank, share_first
from sv_sparse.evaluation.embed import mean_embedding
from sv_sparse.evaluation.embedding_cache import EMBEDDINGS_DIR, EmbeddingCache
from sv_sparse.evaluation.evaluate import evaluate_trial_sets
from sv_sparse.evaluation.result import TrialSetResult
from sv_sparse.evaluation.validation import fit_backend, validate
from sv_sparse.optim import count_zeros, sparsity
from sv_sparse.scoring.arrays import Float32Array
from sv_sparse.scoring.backend import Backend
from sv_sparse.training.logging import as_words
from sv_sparse.training.setup import Experiment

_FAR = 0.005  # of the sparsity before landing from the target

logger = logging.getLogger(__name__)


def land(experiment: Experiment, judged: float | None = None) -> dict[str, Any]:
    """Make the sparsity exact, refresh the batch-norm statistics, and say what that changed.

    Args:
        experiment: what was trained.
        judged: the EER of held-out speakers, where this very network has been validated.

    Returns:
        ``sparsity_before_landing``, ``sparsity``, ``lambda``, ``started_sparse``; where speakers are held out, their
        EER before and after.
    """
    params, target = experiment.target_params(), experiment.controller.target_sparsity
    figures: dict[str, Any] = {"sparsity_before_landing": sparsity(params).item()}
    if experiment.controller.lands and abs(figures["sparsity_before_landing"] - target) > _FAR:
        logger.warning(
            "landing from %.2f %% to the target of %.2f %%: the run was too short for lambda to find it",
            *(100 * figures["sparsity_before_landing"], 100 * target),
        )
    if judged is None:
        before = validate_held_out(experiment)
        judged = before[0] if before is not None else None
    experiment.controller.land()
    with experiment.compute.autocast():
        crops = _crops(experiment, experiment.dataset)
        update_bn((experiment.features(batch) for batch in crops), experiment.network)
    share_first(experiment.network)
    after = validate_held_out(experiment)
    for name, param in experiment.sparse_params.items():
        if not param.any():
            logger.warning("%s is zero as a whole: nothing passes this layer but its bias", name)
    zeros, size = int(count_zeros(params)), sum(param.numel() for param in params)
    figures |= {"sparsity": zeros / size, "lambda": experiment.controller.lambda_.item()}
    figures["started_sparse"] = experiment.started_sparse
    if after is not None:
        figures |= {"validation_eer_before_landing": judged, "validation_eer": after[0]}
    logger.info("landed: %s", as_words({name: value for name, value in figures.items() if value is not None}))
    return figures


def validate_held_out(experiment: Experiment) -> tuple[float, Float32Array] | None:
    """Judge the network on held-out training speakers in the run's precision, as ``validate`` does."""
    with experiment.compute.autocast():
        return validate(experiment.network, experiment.filterbank, experiment.corpus.manifest, _limit(experiment))


def _limit(experiment: Experiment) -> UnreadableLimit:
    """Return the limit on recordings that are left out wherever whole utterances are embedded."""
    return UnreadableLimit(experiment.settings["data"]["max_unreadable"])


def training_mean(experiment: Experiment) -> Float32Array:
    """Mean embedding [E] of training crops without augmentation, which scoring subtracts."""
    with experiment.compute.autocast():
        crops = _crops(experiment, experiment.dataset.plain())
        mean = mean_embedding(experiment.network, (experiment.features(batch) for batch in crops))
    return from_first(lambda: mean)


def _crops(experiment: Experiment, dataset: Crops) -> Iterator[Batch]:
    """Training crops of the epoch after the last, the same at every call and in every process."""
    trainer, device = experiment.settings["trainer"], experiment.compute.device
    batches = EpochBatches(len(dataset), trainer["batch_size"], experiment.settings["seed"])
    batches.epoch = trainer["epochs"]
    loader = CropLoader(dataset, batches, 0, device)
    meter = UnreadableMeter(experiment.settings["data"]["max_unreadable"])
    for batch in islice(loader, -(-trainer["statistics_crops"] // trainer["batch_size"])):
        if rank() == 0:  # all processes read the same crops
            meter.report(batch)
        meter.count(len(batch.labels) + len(batch.unreadable), len(batch.unreadable))
        if len(batch.labels) >= 2:
            yield batch


def evaluate_at_start(experiment: Experiment, mean: Float32Array) -> list[dict[str, Any]]:
    """Judge the untrained network on the run's trial lists, as plain data: what the end is compared with."""
    plain = replace(experiment.scoring, score_norm="none")
    with experiment.compute.autocast():
        found = evaluate_trial_sets(
            *(experiment.network, experiment.filterbank, experiment.corpus.trial_sets, Backend(mean), plain),
            limit=_limit(experiment),
            output_dir=None,
            with_details=False,
        )
    return [evaluation.to_dict() for evaluation in found]


def finish_backend(experiment: Experiment) -> Backend:
    """What the delivered network's embeddings are scored by, from training speech alone."""
    mean, cache = training_mean(experiment), _cache(experiment)
    manifest = experiment.corpus.manifest
    return fit_backend(
        experiment.network,
        experiment.filterbank,
        manifest,
        mean,
        experiment.scoring,
        _limit(experiment),
        cache,
    )


def evaluate(experiment: Experiment, backend: Backend) -> list[TrialSetResult]:
    """Judge the delivered network on the run's trial lists, in float32, and write their scores."""
    return evaluate_trial_sets(
        *(experiment.network, experiment.filterbank, experiment.corpus.trial_sets, backend, experiment.scoring),
        limit=_limit(experiment),
        output_dir=experiment.folder / "scores",
        cache=_cache(experiment),
    )


def _cache(experiment: Experiment) -> EmbeddingCache:
    """Where embeddings are kept, for evaluating again and elsewhere."""
    model = experiment.settings["model"]
    return EmbeddingCache(experiment.folder / EMBEDDINGS_DIR, experiment.network, model)
