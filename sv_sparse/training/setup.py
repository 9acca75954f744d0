"""Setup of a run: settings to network, head, optimizer, controller and data."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sv_sparse.config.schema import AugmentConfig, Config, NoHeadConfig, default_num_workers
from sv_sparse.data.augment import Augmentation
from sv_sparse.data.augment_ops import AugmentOnDevice, mask_filterbank
from sv_sparse.data.dataset import Batch, CropDataset
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.loader import CropLoader, EpochBatchSampler
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.shard_loader import ShardLoader
from sv_sparse.distributed import rank, world_size
from sv_sparse.evaluation.corpus import Corpus, corpus_summary
from sv_sparse.models.cpu_kernels import accelerate
from sv_sparse.models.features import MEL_BINS, Filterbank, build_features, crop_samples
from sv_sparse.models.heads import AAMSoftmax, NoHead
from sv_sparse.models.protocol import REQUIREMENTS, check_head, check_model, own_code
from sv_sparse.models.registry import build_model, features_of, import_class
from sv_sparse.optim import (
    AdaBreg,
    BregmanOptimizer,
    Controller,
    FeedbackController,
    FixedController,
    GradualMagnitudePruning,
    LinBreg,
    PaperController,
    ProxSGD,
    QuantileController,
    summary_table,
)
from sv_sparse.training.device import DeviceConfig, resolve_device_config
from sv_sparse.training.init_from import load_init_source
from sv_sparse.training.param_groups import (
    apply_sparse_init,
    build_param_groups,
    initial_lambda,
    learning_rates,
    network_param_groups,
    resolve_penalty,
    uses_sparse_init,
)
from sv_sparse.training.teacher import Teacher, build_teacher, check_teacher
from sv_sparse.training.transform import WaveformTransform

OPTIMIZERS: dict[str, type[BregmanOptimizer]] = {"adabreg": AdaBreg, "linbreg": LinBreg, "proxsgd": ProxSGD}
CONTROLLERS: dict[str, type[Controller]] = {
    "feedback": FeedbackController,
    "paper": PaperController,
    "quantile": QuantileController,
    "gradual_magnitude": GradualMagnitudePruning,
    "fixed": FixedController,
}

# A rule of thumb. Runs of a few hundred steps meet their target sparsity, but the network has hardly been trained.
_MIN_STEPS_FROM_SCRATCH = 3000
# Speakers with whom a loss is tried before data are read: it may take the nearest of the others.
_NUM_TRIED_SPEAKERS = 100

logger = logging.getLogger(__name__)


@dataclass
class TrainingSetup:
    """Everything that a run trains with."""

    config: Config
    run_dir: Path
    # Training data and trial lists.
    corpus: Corpus
    device: DeviceConfig
    # Augmentation on the device.
    mixer: AugmentOnDevice
    # Waveforms [B, S] to features [B, F, T].
    filterbank: Filterbank
    # Features [B, F, T] to embeddings [B, E].
    network: nn.Module
    # Embeddings and labels to loss and scores: AAMSoftmax, or a class of the user's own.
    head: Any
    # Optimizer of network and head.
    optimizer: BregmanOptimizer
    # Controller of lambda, or of masks.
    controller: Controller
    # Crops of the training recordings.
    dataset: CropDataset
    # Batches of an epoch.
    sampler: EpochBatchSampler
    # Batches of crops.
    loader: CropLoader | ShardLoader
    # True where the weights grow, or grew, from a sparse start.
    sparse_init: bool
    # Network whose embeddings are learned.
    teacher: Teacher | None = None

    def extract_features(self, batch: Batch) -> Tensor:
        """Return the augmented filterbank features [B, F, T] of a batch of crops, on the device."""
        features, _ = self._extract(batch, None)
        return features

    def extract_step_inputs(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the features as ``extract_features`` does, and the teacher's embeddings [B, E]; None without one."""
        return self._extract(batch, self.teacher)

    def _extract(self, batch: Batch, teacher: Teacher | None) -> tuple[Tensor, Tensor | None]:
        waveforms = batch.waveforms.to(self.device.device, non_blocking=True)
        augmentation = None if batch.augmentation is None else batch.augmentation.to(self.device.device)
        crops = self.mixer.perturb_speed(waveforms, augmentation)
        target = None
        is_clean = self.config.distill.input == "clean"
        # Now: rooms and noises are added in place.
        if teacher is not None and (is_clean or augmentation is None):
            target = teacher.embed(crops)
        if augmentation is None:
            return self.filterbank(crops), target
        crops = self.mixer.mix_(crops, augmentation)
        if teacher is not None and not is_clean:
            target = teacher.embed(crops, augmentation.mask)
        return mask_filterbank(self.filterbank(crops), augmentation.mask), target

    def train_mode(self) -> None:
        """Set the network to training mode, with its batch norms in evaluation mode where they are frozen."""
        self.network.train()
        if self.config.freezes_batch_norm:
            for module in self.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    @property
    def total_steps(self) -> int:
        """Length of the run in steps; 0 for a network that is only evaluated."""
        return 0 if self.config.trainer.max_steps == 0 else self.controller.total_steps

    @cached_property
    def sparse_params(self) -> dict[str, Tensor]:
        """The network's weights that may become zero, by name."""
        params: dict[str, Tensor] = {}
        for group in network_param_groups(self.network, self.config):
            if group["name"] == "sparse":
                params |= dict(group["params"])
        return params

    def regularized_params(self) -> list[Tensor]:
        """Return the weights that ``target_sparsity`` counts: those that lambda acts on; all sparse ones if dense."""
        return self.controller.params or list(self.sparse_params.values())


def build_setup(config: Config, run_dir: Path, corpus: Corpus, trusted_classes: Sequence[str] = ()) -> TrainingSetup:
    """Build everything that a run trains with; the same settings give the same weights and the same random draws.

    Args:
        config: settings of the run.
        run_dir: its folder; a checkpoint there says that the run is resumed.
        corpus: training data and trial lists.
        trusted_classes: import paths of network classes that the user named.

    Raises:
        ValueError: a setting is not allowed or does not fit the data.
        OSError: kernels that settings require cannot be compiled.
    """
    trainer = config.trainer
    torch.manual_seed(config.seed)
    device = resolve_device_config(trainer.device, trainer.precision, trainer.compile)
    _check_cohort_size(config, corpus.manifest)
    network = _build_network(config, device.device, trusted_classes)
    augmentation = _build_augmentation(config.augment)
    dataset = _build_dataset(config, corpus.manifest, augmentation if augmentation.active else None)
    head = _build_head(config, network.embedding_dim, dataset.num_speakers, trusted_classes)
    sampler = _build_sampler(config, len(dataset))
    loader = _build_loader(config, dataset, sampler, device.device)

    # The checkpoint has all that a source gives.
    resumes = (run_dir / "checkpoints" / "last.pt").is_file()
    source = None if resumes else load_init_source(config, network)
    sparse_init = uses_sparse_init(config) if source is None else source.sparse_init
    config = resolve_penalty(config, sparse_init=sparse_init)
    rates = learning_rates(config, sparse_init=sparse_init)
    if source is not None:
        source.apply_to(network, config.model_settings, head, corpus.manifest)
    teacher = build_teacher(config, run_dir, network, device, trusted_classes)
    groups = build_param_groups(network, head, config, rates)
    if source is None and sparse_init:
        apply_sparse_init(groups, config)
    nn.ModuleList([network, head]).to(device.device)
    if not device.compiled:
        # Compiled now: an error of the compiler must not come after an hour of evaluation.
        accelerate(network, trainer.cpu_kernels)

    start = {"lr": rates["others"]}
    if not resumes:
        start |= initial_lambda(config, source, groups)
    total_steps = trainer.max_steps or sum(loader.num_steps(epoch) for epoch in range(trainer.epochs))
    optimizer, controller = _build_optimizer(config, groups, start, total_steps, trusted_classes)
    if source is not None:
        controller.start_from_current_sparsity()
    _log_summary(groups, corpus, corpus_summary(config)["trials"], optimizer)
    logger.info("device: %s", device)
    logger.info("%s", batch_summary(sampler, config.trainer.crop_seconds))
    if augmentation.counts:
        counts = ", ".join(f"{count} {kind}" for kind, count in augmentation.counts.items())
        logger.info("recordings of augment.noise_dir: %s", counts)
    logger.info("peak lr: sparse weights %g, other parameters %g", rates["weights"], rates["others"])
    _log_training_length(config, corpus, total_steps, from_scratch=source is None and not resumes)
    return TrainingSetup(
        config=config,
        run_dir=run_dir,
        corpus=corpus,
        device=device,
        mixer=AugmentOnDevice(
            dataset.crop_samples,
            augmentation.speeds,
            _build_transform(config, device.device, trusted_classes),
        ),
        filterbank=build_features(network.features, SAMPLE_RATE, MEL_BINS).to(device.device),
        network=network,
        head=head,
        optimizer=optimizer,
        controller=controller,
        dataset=dataset,
        sampler=sampler,
        loader=loader,
        sparse_init=sparse_init,
        teacher=teacher,
    )


def check_buildable(config: Config, trusted_classes: Sequence[str] = ()) -> None:
    """Build what needs no data, and drop it: what cannot be built is refused before data are read.

    Args:
        config: settings of the run.
        trusted_classes: import paths of network classes that the user named.

    Raises:
        ValueError: a setting is not allowed, or settings do not go together; names them.
    """
    trainer = config.trainer
    device = resolve_device_config(trainer.device, trainer.precision, trainer.compile)
    network = _build_network(config, device.device, trusted_classes)
    check_teacher(config, network, trusted_classes)
    _build_augmentation(config.augment)
    transform = _build_transform(config, device.device, trusted_classes)
    if transform is not None:
        transform.check(crop_samples(trainer.crop_seconds, SAMPLE_RATE))
    head = _build_head(config, network.embedding_dim, _NUM_TRIED_SPEAKERS, trusted_classes)
    if "head" in config.classes:
        check_head(head, network.embedding_dim, _NUM_TRIED_SPEAKERS, device.device)
    config = resolve_penalty(config, sparse_init=uses_sparse_init(config))
    rates = learning_rates(config, sparse_init=uses_sparse_init(config))
    groups = build_param_groups(network, head, config, rates)
    nn.ModuleList([network, head]).to(device.device)
    total_steps = trainer.max_steps or trainer.epochs
    optimizer, controller = _build_optimizer(config, groups, {"lr": rates["others"]}, total_steps, trusted_classes)
    if "sparsity.controller" in config.classes:
        with own_code("sparsity.controller", config.classes["sparsity.controller"]):
            controller.step()
            controller.load_state_dict(controller.state_dict())
    if trainer.num_avg > 1 and isinstance(optimizer, ProxSGD):
        raise ValueError(
            f"trainer.num_avg={trainer.num_avg} averages dual variables, and optim=proxsgd has none; "
            f"choose trainer.num_avg=1, or optim=adabreg, linbreg or sgd"
        )


def _build_network(config: Config, device: torch.device, trusted_classes: Sequence[str]) -> Any:
    """Return the network on the CPU, where weights are drawn, so that they do not depend on the device."""
    with _named_settings("model", config):
        network = build_model(config.model_settings, MEL_BINS, trusted=trusted_classes)
    if "_target_" in config.model_settings:
        # A class of the user's own.
        check_model(network, device)
    return network.cpu()


def _build_augmentation(config: AugmentConfig) -> Augmentation:
    return Augmentation(
        noise_dir=config.noise_dir,
        aug_prob=config.aug_prob,
        speed_perturb=config.speed_perturb,
        spec_augment_prob=config.spec_augment_prob,
        has_transform=config.transform["_target_"] is not None,
    )


def _build_transform(config: Config, device: torch.device, trusted_classes: Sequence[str]) -> WaveformTransform | None:
    """Return the transform of the user's own on the training device; None where the settings name none."""
    settings = config.augment.transform
    if settings["_target_"] is None:
        return None
    transform_class, own_settings = _own_class("augment.transform", "transform", settings, trusted_classes)
    name = config.classes["augment.transform"]
    with own_code("augment.transform", name):
        transform = transform_class(**own_settings)
    return WaveformTransform(transform, name, device)


def _build_head(config: Config, embedding_dim: int, num_speakers: int, trusted_classes: Sequence[str]) -> Any:
    if "head" in config.classes:
        head_class, settings = _own_class("head", "loss", config.head, trusted_classes)
        with own_code("head", config.classes["head"]):
            return head_class(embedding_dim=embedding_dim, num_speakers=num_speakers, **settings)
    if isinstance(config.head, NoHeadConfig):
        return NoHead()
    head = config.head
    return AAMSoftmax(
        embedding_dim,
        num_speakers,
        scale=head.scale,
        margin=head.margin,
        sub_centers=head.sub_centers,
        topk=head.topk,
        topk_margin=head.topk_margin,
    )


def _build_optimizer(
    config: Config,
    groups: list[dict[str, Any]],
    start: dict[str, float],
    total_steps: int,
    trusted_classes: Sequence[str],
) -> tuple[BregmanOptimizer, Controller]:
    """Return the optimizer and the controller.

    Args:
        config: settings of the run.
        groups: as ``build_param_groups`` returns them.
        start: learning rate and lambda at the start, where they are not the settings'.
        total_steps: length of the run.
        trusted_classes: import paths of classes that the user named.
    """
    with _named_settings("optim", config):
        optimizer = OPTIMIZERS[config.optim.name](groups, **config.optim.arguments() | start)
    settings = config.sparsity.controller
    arguments = (optimizer, config.target_sparsity, total_steps)
    # A class of the user's own need not know of it.
    allocation: dict[str, Any] = {}
    if config.sparsity.allocation != "global":
        allocation["allocation"] = config.sparsity.allocation
    controller: Any
    if "sparsity.controller" in config.classes:
        controller_class, own_settings = _own_class("sparsity.controller", "controller", settings, trusted_classes)
        with own_code("sparsity.controller", config.classes["sparsity.controller"]):
            controller = controller_class(*arguments, **own_settings, **allocation)
        if not isinstance(controller, Controller):
            name = type(controller).__name__
            raise ValueError(f"sparsity.controller: expected a subclass of sv_sparse.optim.Controller, got {name}")
    else:
        with _named_settings("sparsity.controller", config):
            controller = CONTROLLERS[settings.name](*arguments, **(settings.arguments() | allocation))
    # The trainer calls step() and finalize(), and has its own warnings.
    controller.reminders.active = False
    return optimizer, controller


def _own_class(
    setting: str, kind: str, settings: dict[str, Any], trusted_classes: Sequence[str]
) -> tuple[Any, dict[str, Any]]:
    """Import a class of the user's own, and return it with its settings."""
    own_settings = {name: value for name, value in settings.items() if name != "_target_"}
    return import_class(settings["_target_"], trusted_classes, kind, setting), own_settings


@contextmanager
def _named_settings(group: str, config: Config) -> Iterator[None]:
    """Name a setting as typed in what a constructor refuses.

    Raises:
        ValueError: begins with the setting.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        message = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        # The class does not take it.
        if group == "model" and "mel_bins" in message:
            message += f"\n{REQUIREMENTS}"
        (first_word,) = re.findall(r"^[\w.]*", message)
        all_settings: Any = config.to_dict()
        settings = all_settings
        for name in group.split("."):
            settings = settings[name]
        if first_word in settings:
            raise ValueError(f"{group}.{message}") from error
        # The optimizer's groups are made by these settings.
        if first_word in all_settings["sparsity"]:
            raise ValueError(f"sparsity.{message}") from error
        is_named = first_word.partition(".")[0] in {group.partition(".")[0], "target_sparsity"}
        raise ValueError(message if is_named else f"{group}: {message}") from error


def _check_cohort_size(config: Config, manifest: Manifest) -> None:
    """Raise a ValueError if AS-norm would look at more training speakers than there are, before training."""
    scoring, num_speakers = config.scoring, len(manifest.speakers("train"))
    if scoring.score_norm == "as_norm" and scoring.top_n > num_speakers:
        raise ValueError(f"scoring.top_n={scoring.top_n}: expected at most {num_speakers}, which are trained on")


def _build_dataset(config: Config, manifest: Manifest, augmentation: Augmentation | None) -> CropDataset:
    rows = manifest.split("train")
    return CropDataset(
        manifest,
        rows,
        manifest.labels(rows),
        crop_samples=crop_samples(config.trainer.crop_seconds, SAMPLE_RATE, features_of(config.model_settings)),
        sample_rate=SAMPLE_RATE,
        seed=config.seed,
        augmentation=augmentation,
    )


def _build_sampler(config: Config, size: int) -> EpochBatchSampler:
    return EpochBatchSampler(
        size,
        config.trainer.batch_size,
        config.seed,
        grad_accum_steps=config.trainer.grad_accum_steps,
        rank=rank(),
        world_size=world_size(),
    )


def _build_loader(
    config: Config, dataset: CropDataset, sampler: EpochBatchSampler, device: torch.device
) -> CropLoader | ShardLoader:
    num_workers = config.trainer.num_workers
    if num_workers == "auto":
        num_workers = default_num_workers()
    loader = ShardLoader if config.data.reads_shards else CropLoader
    return loader(dataset, sampler, int(num_workers), device)


def batch_summary(sampler: EpochBatchSampler, crop_seconds: float) -> str:
    """Return in words what the batch of a step consists of."""
    parts = f"processes {sampler.world_size} x accumulated {sampler.grad_accum_steps} x {sampler.micro_batch_size}"
    return f"batch: {sampler.batch_size} crops of {crop_seconds:g} s ({parts})"


def _log_training_length(config: Config, corpus: Corpus, total_steps: int, *, from_scratch: bool) -> None:
    """Log hours of speech, epochs and steps, and advise more epochs where the steps of a new network are few."""
    *_, hours = corpus.manifest.summary("train")
    epochs = config.trainer.epochs
    max_steps = config.trainer.max_steps
    if max_steps is not None:
        logger.info("training length: %d steps (trainer.max_steps), schedules scaled to them", max_steps)
        return
    logger.info("training length: %.2f hours of speech x %d epochs, %d steps", hours, epochs, total_steps)
    # Early epochs of synthetic voices are enough for a demo.
    if from_scratch and not config.is_synthetic and total_steps < _MIN_STEPS_FROM_SCRATCH:
        logger.warning(
            "%d steps are few for a network from scratch: plan %d or more; trainer.epochs=%d gives as many",
            total_steps,
            _MIN_STEPS_FROM_SCRATCH,
            -(-_MIN_STEPS_FROM_SCRATCH * epochs // total_steps),
        )


def _log_summary(groups: list[dict[str, Any]], corpus: Corpus, paths: list[str], optimizer: BregmanOptimizer) -> None:
    for trial_set, path in zip(corpus.trial_sets, paths, strict=True):
        trials = trial_set.trials
        num_targets = int(trials.is_target.sum())
        logger.info("trial list %s: %d trials, %d targets (%s)", trials.name, len(trials), num_targets, path)
    has_labels = bool(corpus.manifest.speakers("train"))
    for split in ("train", "validation", "test"):
        speakers, utterances, hours = corpus.manifest.summary(split)
        if has_labels:
            logger.info("%-10s %5d speakers %8d utterances %8.2f hours", split, speakers, utterances, hours)
        elif utterances:
            logger.info("%-10s %8d recordings %8.2f hours", split, utterances, hours)
    logger.info("%s", summary_table(groups))
    logger.info("optimizer: %s, backend %s", type(optimizer).__name__, optimizer.defaults["backend"])
