"""The end of a run: exact sparsity, new batch-norm statistics, the final evaluation."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from sv_sparse.data.dataset import Batch, CropDataset
from sv_sparse.data.loader import CropLoader, EpochBatchSampler
from sv_sparse.data.unreadable import UnreadableCounter, UnreadableLimit
from sv_sparse.distributed import broadcast_from_rank0, broadcast_module, rank
from sv_sparse.evaluation.embed import embed, mean_embedding, progress_bar
from sv_sparse.evaluation.embedding_cache import EMBEDDINGS_DIR, EmbeddingCache
from sv_sparse.evaluation.evaluate import evaluate_trial_sets, used_recordings
from sv_sparse.evaluation.result import TrialSetResult
from sv_sparse.evaluation.validation import fit_scoring_backend
from sv_sparse.evaluation.validation import validate as validate_network
from sv_sparse.models.heads import mean_cosine
from sv_sparse.optim import count_zeros, sparsity
from sv_sparse.scoring.arrays import Float32Array
from sv_sparse.scoring.backend import Backend
from sv_sparse.training.setup import TrainingSetup

# Distance of the tracked sparsity from the target that is warned of: controllers leave less in ordinary runs.
_WARN_SPARSITY_ERROR = 0.005
# Fewer crops have no variance for batch normalization.
MIN_CROPS = 2
# As many as the original list of VoxCeleb1 has, which take as long as its evaluation.
_MAX_TEACHER_RECORDINGS = 5000

logger = logging.getLogger(__name__)


class Validation(NamedTuple):
    """Figures of the network on held-out data.

    Attributes:
        eer: EER of the held-out speakers, in [0, 1]; None without any.
        mean: mean embedding [E] of those speakers, which scoring subtracts.
        teacher_cosine: mean cosine of the network's and the teacher's embeddings of held-out crops, or of training
            crops where nothing is held out; None without a teacher.
    """

    eer: float | None
    mean: Float32Array | None
    teacher_cosine: float | None

    def metrics(self, suffix: str = "") -> dict[str, float]:
        """Return ``validation_eer`` and ``validation_teacher_cosine``, where they were measured.

        Args:
            suffix: ends the names. Default: none.
        """
        metrics = {"validation_eer": self.eer, "validation_teacher_cosine": self.teacher_cosine}
        return {f"{name}{suffix}": value for name, value in metrics.items() if value is not None}


def finalize(setup: TrainingSetup, last_validation: Validation | None = None) -> dict[str, Any]:
    """Make the sparsity exact, renew batch-norm statistics that are not frozen, and return what that changed.

    Args:
        setup: what was trained.
        last_validation: of this very network, where it was validated.

    Returns:
        ``sparsity_tracked``, which the controller reached; ``sparsity``, the final one; ``lambda``; ``sparse_init``;
        where speakers are held out, their EER before (``validation_eer_tracked``) and after (``validation_eer``); and
        likewise with a teacher ``validation_teacher_cosine_tracked`` and ``validation_teacher_cosine``.
    """
    params = setup.regularized_params()
    target = setup.controller.target_sparsity
    tracked = sparsity(params).item()
    # Without a step, lambda has had no time to find it.
    if setup.total_steps and setup.controller.has_target and abs(tracked - target) > _WARN_SPARSITY_ERROR:
        logger.warning(
            "tracked sparsity %.2f %% is far from the target of %.2f %%: the run was too short for lambda to find it",
            100 * tracked,
            100 * target,
        )
    renews_statistics = not setup.config.freezes_batch_norm
    logger.info("finalizing: exact sparsity%s", ", new batch-norm statistics" if renews_statistics else "")
    if last_validation is None:
        last_validation = validate(setup)
    setup.controller.finalize()
    if renews_statistics:
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
    metrics |= last_validation.metrics("_tracked")
    metrics |= validation.metrics()
    if validation.eer is not None:
        before = "not measured" if last_validation.eer is None else f"{100 * last_validation.eer:.2f} %"
        logger.info("validation EER %s before finalize, %.2f %% after", before, 100 * validation.eer)
    if validation.teacher_cosine is not None and last_validation.teacher_cosine is not None:
        logger.info(
            "mean cosine to the teacher %.4f before finalize, %.4f after",
            last_validation.teacher_cosine,
            validation.teacher_cosine,
        )
    return metrics


def validate(setup: TrainingSetup) -> Validation:
    """Validate the network on held-out speakers, and beside its teacher."""
    with setup.device.autocast():
        speakers = validate_network(setup.network, setup.filterbank, setup.corpus.manifest, _unreadable_limit(setup))
        eer, mean = (None, None) if speakers is None else speakers
        return Validation(eer, mean, _validation_teacher_cosine(setup))


@torch.no_grad()
def _validation_teacher_cosine(setup: TrainingSetup) -> float | None:
    """Return the mean cosine of the network's and the teacher's embeddings of held-out crops; None without a teacher.

    Crops, not recordings, which may be hours long; the same ones each time.
    """
    if setup.teacher is None:
        return None
    dataset = setup.dataset.without_augmentation()
    rows = setup.corpus.manifest.split("validation")
    if len(rows):
        dataset = dataset.with_rows(rows)
    setup.network.eval()
    total = 0.0
    num_crops = 0
    for batch in _statistics_crops(setup, dataset, "teacher"):
        features, target = setup.extract_step_inputs(batch)
        assert target is not None
        total += mean_cosine(setup.network(features), target).item() * len(target)
        num_crops += len(target)
    return total / num_crops if num_crops else None


def compare_with_teacher(setup: TrainingSetup) -> dict[str, Any]:
    """Compare the final network's embeddings of the trial recordings with the teacher's, in float32.

    They say whether voiceprints that were enrolled with the teacher can be used with the network.

    Returns:
        ``teacher_cosine``, the mean cosine; ``min_teacher_cosine``, the lowest; ``teacher_recordings``, how many
        recordings were compared, at most 5,000. Nothing without a teacher or without trials.
    """
    teacher = setup.teacher
    if teacher is None:
        return {}
    recordings = used_recordings(setup.corpus.trial_sets, setup.config.scoring)
    if not recordings:
        return {}
    # From the first to the last, so that each list has its part.
    count = min(len(recordings), _MAX_TEACHER_RECORDINGS)
    selected = [recordings[index] for index in np.linspace(0, len(recordings) - 1, count).astype(int)]
    # The evaluation has refused too many of all recordings; any number of these may be bad.
    limit = UnreadableLimit(1.0)
    # The evaluation has left them in the cache.
    embeddings = embed(
        setup.network, setup.filterbank, selected, title="trial lists", limit=limit, cache=_embedding_cache(setup)
    )
    cache = EmbeddingCache(setup.run_dir / EMBEDDINGS_DIR, teacher.network, teacher.model)
    targets = embed(
        teacher.network,
        teacher.filterbank,
        selected,
        title="teacher",
        limit=limit,
        cache=cache,
        unusable=embeddings.unusable,
    )
    if not targets.usable.any():
        return {}
    students, teachers = (torch.from_numpy(side.values[targets.usable]).double() for side in (embeddings, targets))
    cosines = nn.functional.cosine_similarity(students, teachers)
    metrics = {
        "teacher_cosine": float(cosines.mean()),
        "min_teacher_cosine": float(cosines.min()),
        "teacher_recordings": len(cosines),
    }
    logger.info(
        "cosine to the teacher: mean %.4f, lowest %.4f, of %d trial recordings",
        metrics["teacher_cosine"],
        metrics["min_teacher_cosine"],
        metrics["teacher_recordings"],
    )
    return metrics


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
    # Fewer may be held out.
    batch_size = min(config.trainer.batch_size, len(dataset))
    sampler = EpochBatchSampler(len(dataset), batch_size, config.seed)
    sampler.epoch = config.trainer.epochs
    loader = CropLoader(dataset, sampler, 0, setup.device.device)
    unreadable = UnreadableCounter(config.data.max_unreadable_fraction)
    num_batches = -(-config.trainer.num_bn_crops // batch_size)
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
