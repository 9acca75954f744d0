"""The end of a run: exact sparsity, new batch-norm statistics, the final evaluation."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from torch.optim.swa_utils import update_bn

from sv_sparse.data.dataset import Batch, CropDataset
from sv_sparse.data.loader import CropLoader, EpochBatchSampler
from sv_sparse.data.unreadable import UnreadableCounter, UnreadableLimit
from sv_sparse.distributed import broadcast_from_rank0, broadcast_module, rank
from sv_sparse.evaluation.embed import mean_embedding, progress_bar
from sv_sparse.evaluation.embedding_cache import EMBEDDINGS_DIR, EmbeddingCache
from sv_sparse.evaluation.evaluate import evaluate_trial_sets
from sv_sparse.evaluation.result import TrialSetResult
from sv_sparse.evaluation.validation import fit_scoring_backend
from sv_sparse.evaluation.validation import validate as validate_network
from sv_sparse.optim import count_zeros, sparsity
from sv_sparse.scoring.arrays import Float32Array
from sv_sparse.scoring.backend import Backend
from sv_sparse.training.setup import TrainingSetup

# Distance of the tracked sparsity from the target that is warned of: controllers leave less in ordinary runs.
_WARN_SPARSITY_ERROR = 0.005
# Fewer crops have no variance for batch normalization.
MIN_CROPS = 2

logger = logging.getLogger(__name__)


def finalize(setup: TrainingSetup, last_val_eer: float | None = None) -> dict[str, Any]:
    """Make the sparsity exact, renew the batch-norm statistics, and return what that changed.

    Args:
        setup: what was trained.
        last_val_eer: EER of the held-out speakers, where this very network has been validated.

    Returns:
        ``sparsity_tracked``, which the controller reached; ``sparsity``, the final one; ``lambda``; ``sparse_init``;
        and where speakers are held out, their EER before (``validation_eer_tracked``) and after (``validation_eer``).
    """
    params = setup.regularized_params()
    target = setup.controller.target_sparsity
    tracked = sparsity(params).item()
    if setup.controller.has_target and abs(tracked - target) > _WARN_SPARSITY_ERROR:
        logger.warning(
            "tracked sparsity %.2f %% is far from the target of %.2f %%: the run was too short for lambda to find it",
            100 * tracked,
            100 * target,
        )
    logger.info("finalizing: exact sparsity, new batch-norm statistics")
    if last_val_eer is None:
        validation = validate(setup)
        last_val_eer = validation[0] if validation is not None else None
    setup.controller.finalize()
    with setup.device.autocast():
        crops = _statistics_crops(setup, setup.dataset, "batch-norm statistics")
        update_bn((setup.extract_features(batch) for batch in crops), setup.network)
    # All processes go on with the network of the first.
    broadcast_module(setup.network)
    validation = validate(setup)
    for name, param in setup.sparse_params.items():
        if not param.any():
            logger.warning("all weights of %s are zero: its output is its bias", name)
    metrics: dict[str, Any] = {
        "sparsity_tracked": tracked,
        "sparsity": int(count_zeros(params)) / sum(param.numel() for param in params),
        "lambda": setup.controller.lambda_.item(),
        "sparse_init": setup.sparse_init,
    }
    logger.info(
        "tracked sparsity %.2f %%, final %.4f %%; lambda %.3g",
        100 * tracked,
        100 * metrics["sparsity"],
        metrics["lambda"],
    )
    if validation is not None:
        metrics["validation_eer_tracked"] = last_val_eer
        metrics["validation_eer"] = validation[0]
        before = "not measured" if last_val_eer is None else f"{100 * last_val_eer:.2f} %"
        logger.info("validation EER %s before finalize, %.2f %% after", before, 100 * validation[0])
    return metrics


def validate(setup: TrainingSetup) -> tuple[float, Float32Array] | None:
    """Return the EER of the held-out speakers and the mean embedding that scoring subtracts; None without speakers."""
    with setup.device.autocast():
        return validate_network(setup.network, setup.filterbank, setup.corpus.manifest, _unreadable_limit(setup))


def mean_training_embedding(setup: TrainingSetup) -> Float32Array:
    """Return the mean embedding [E] of training crops without augmentation, which scoring subtracts."""
    with setup.device.autocast():
        crops = _statistics_crops(setup, setup.dataset.without_augmentation(), "mean embedding")
        mean = mean_embedding(setup.network, (setup.extract_features(batch) for batch in crops))
    return broadcast_from_rank0(lambda: mean)


def evaluate_untrained(setup: TrainingSetup, mean: Float32Array) -> list[dict[str, Any]]:
    """Evaluate the untrained network on the trial lists, as plain data: what the end is compared with.

    Args:
        setup: what will be trained.
        mean: embedding [E] that scoring subtracts.
    """
    # A cohort of training speakers says nothing yet.
    scoring = replace(setup.config.scoring, score_norm="none")
    with setup.device.autocast():
        results = evaluate_trial_sets(
            setup.network,
            setup.filterbank,
            setup.corpus.trial_sets,
            Backend(mean),
            scoring,
            limit=_unreadable_limit(setup),
            output_dir=None,
            with_details=False,
        )
    return [result.to_dict() for result in results]


def fit_backend(setup: TrainingSetup) -> Backend:
    """Fit what scores the final network's embeddings, on training speech alone."""
    return fit_scoring_backend(
        setup.network,
        setup.filterbank,
        setup.corpus.manifest,
        mean_training_embedding(setup),
        setup.config.scoring,
        _unreadable_limit(setup),
        _embedding_cache(setup),
    )


def evaluate(setup: TrainingSetup, backend: Backend) -> list[TrialSetResult]:
    """Evaluate the final network on the run's trial lists, in float32, and write its scores."""
    if not setup.corpus.trial_sets:
        logger.info("no trial lists: the network is not evaluated")
        return []
    logger.info("evaluating %s", ", ".join(trial_set.trials.name for trial_set in setup.corpus.trial_sets))
    return evaluate_trial_sets(
        setup.network,
        setup.filterbank,
        setup.corpus.trial_sets,
        backend,
        setup.config.scoring,
        limit=_unreadable_limit(setup),
        output_dir=setup.run_dir / "scores",
        cache=_embedding_cache(setup),
    )


def _statistics_crops(setup: TrainingSetup, dataset: CropDataset, title: str) -> Iterator[Batch]:
    """Yield training crops of the epoch after the last, the same at every call and in every process.

    Args:
        setup: what is trained.
        dataset: training crops.
        title: purpose of the crops, for the progress bar.
    """
    config = setup.config
    sampler = EpochBatchSampler(len(dataset), config.trainer.batch_size, config.seed)
    sampler.epoch = config.trainer.epochs
    loader = CropLoader(dataset, sampler, 0, setup.device.device)
    unreadable = UnreadableCounter(config.data.max_unreadable_fraction)
    num_batches = -(-config.trainer.num_bn_crops // config.trainer.batch_size)
    with progress_bar(min(num_batches, len(sampler)), title, "batch") as progress:
        for batch in islice(loader, num_batches):
            # All processes read the same crops.
            if rank() == 0:
                unreadable.warn(batch.unreadable)
            unreadable.add(len(batch.labels) + len(batch.unreadable), len(batch.unreadable))
            if len(batch.labels) >= MIN_CROPS:
                yield batch
            progress.update()


def _unreadable_limit(setup: TrainingSetup) -> UnreadableLimit:
    """Return the limit on recordings that are left out wherever whole utterances are embedded."""
    return UnreadableLimit(setup.config.data.max_unreadable_fraction)


def _embedding_cache(setup: TrainingSetup) -> EmbeddingCache:
    """Return the run's embeddings on disk, for evaluating it again."""
    return EmbeddingCache(setup.run_dir / EMBEDDINGS_DIR, setup.network, setup.config.model_settings)
