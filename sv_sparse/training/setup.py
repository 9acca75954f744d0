"""Settings to objects: network, head, optimizer, controller, loader."""

import logging
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn

from sv_sparse.config.settings import Settings, automatic_workers
from sv_sparse.data.augment import Augmentation
from sv_sparse.data.augment_ops import Mixer, mask_filterbank
from sv_sparse.data.dataset import Batch, Crops
from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.data.loader import CropLoader, EpochBatches
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.shard_loader import ShardLoader
from sv_sparse.distributed import rank, ranks
from sv_sparse.evaluation.corpus import Corpus, corpus_summary
from sv_sparse.models.contract import CONTRACT, check_network
from sv_sparse.models.cpu_kernels.fused import prepare
from sv_sparse.models.features import MEL_BINS, Filterbank, crop_samples
from sv_sparse.models.heads import AAMSoftmax
from sv_sparse.optim import BregmanOptimizer, Controller, ProxSGD, describe
from sv_sparse.scoring.config import ScoringConfig
from sv_sparse.training.device import Compute, choose_compute
from sv_sparse.training.init_from import read_origin
from sv_sparse.training.param_groups import (
    first_lambda,
    learning_rates,
    network_groups,
    parameter_groups,
    start_sparse,
    starts_sparse,
)

logger = logging.getLogger(__name__)


@dataclass
class Experiment:
    """Everything that one run trains with."""

    settings: Settings
    folder: Path
    corpus: Corpus
    compute: Compute
    mixer: Mixer
    filterbank: Filterbank
    network: nn.Module
    head: AAMSoftmax
    optimizer: BregmanOptimizer
    controller: Controller
    dataset: Crops
    batches: EpochBatches
    loader: CropLoader | ShardLoader
    started_sparse: bool

    def features(self, batch: Batch) -> Tensor:
        """A batch of crops as the network hears it: filterbank [B, F, T] on the device."""
        device = self.compute.device
        waveforms, extras = batch.waveforms.to(device, non_blocking=True), batch.extras
        if extras is None:
            return self.filterbank(self.mixer(waveforms, None))
        extras = extras.to(device)
        return mask_filterbank(self.filterbank(self.mixer(waveforms, extras)), extras.mask)

    @property
    def total_steps(self) -> int:
        """Length of the run in steps."""
        return self.controller.total_steps

    @property
    def scoring(self) -> ScoringConfig:
        """How trials are scored and judged."""
        return ScoringConfig(**self.settings["scoring"])

    @cached_property
    def sparse_params(self) -> dict[str, Tensor]:
        """Return the network's weights that may become zero, by name."""
        groups = network_groups(self.network, self.settings)
        return {name: param for group in groups if group["name"] == "sparse" for name, param in group["params"]}

    def target_params(self) -> list[Tensor]:
        """What ``target_sparsity`` speaks of: the weights that lambda acts on; the network's in a dense run."""
        return self.controller.params or list(self.sparse_params.values())


def build(settings: Settings, folder: Path, corpus: Corpus) -> Experiment:
    """Build everything a run trains with; the same settings give the same weights and the same draws.

    Raises:
        ValueError: a setting is not allowed or does not fit the data.
        OSError: ``model.implementation=fused`` asks for kernels that cannot be compiled.
    """
    trainer = settings["trainer"]
    torch.manual_seed(settings["seed"])
    compute = choose_compute(trainer["device"], trainer["precision"], trainer["compile"])
    _refuse_small_cohort(ScoringConfig(**settings["scoring"]), corpus.manifest)
    network, embedding_dim = _network(settings, compute.device)
    augmentation: Augmentation = _constructed("augment", settings)
    dataset = _crops(settings, corpus.manifest, augmentation if augmentation.active else None)
    head: AAMSoftmax = _constructed("head", settings, embedding_dim, dataset.speakers)
    batches = _batches(settings, len(dataset))
    loader = _loader(settings, dataset, batches, compute.device)
    begun = (folder / "checkpoints" / "last.pt").is_file()  # which has all that an origin gives
    origin = None if begun else read_origin(settings)
    started_sparse = origin.started_sparse if origin is not None else starts_sparse(settings)
    rates = learning_rates(settings, started_sparse=started_sparse)
    if origin is not None:
        origin.put_into(network, settings["model"], head, corpus.manifest)
    groups = parameter_groups(network, head, settings, rates)
    if origin is None and started_sparse:
        start_sparse(groups, settings)
    nn.ModuleList([network, head]).to(compute.device)
    if not compute.compiled:
        prepare(network)  # before the evaluation of the untrained network, which may take an hour
    first = {"lr": rates["others"]} | ({} if begun else first_lambda(settings, origin, groups))
    steps = trainer["steps"] or sum(loader.steps(epoch) for epoch in range(trainer["epochs"]))
    optimizer, controller = _method(settings, groups, first, steps)
    if origin is not None:
        controller.take_over()
    _say(groups, corpus, corpus_summary(settings)["trials"], optimizer)
    logger.info("%d steps on %s, %s", steps, compute, describe_batch(batches, None if begun else rates))
    return Experiment(
        settings=settings,
        folder=folder,
        corpus=corpus,
        compute=compute,
        mixer=Mixer(dataset.crop_samples, augmentation.speeds),
        filterbank=Filterbank(SAMPLE_RATE, MEL_BINS).to(compute.device),
        network=network,
        head=head,
        optimizer=optimizer,
        controller=controller,
        dataset=dataset,
        batches=batches,
        loader=loader,
        started_sparse=started_sparse,
    )


def check_buildable(settings: Settings) -> None:
    """Build what needs no data, and let it go: what cannot be built is refused before data are read.

    Raises:
        ValueError: a setting is not allowed, or settings do not go together; names them.
    """
    trainer = settings["trainer"]
    compute = choose_compute(trainer["device"], trainer["precision"], trainer["compile"])
    network, embedding_dim = _network(settings, compute.device)
    _constructed("augment", settings)
    head: AAMSoftmax = _constructed("head", settings, embedding_dim, 2)
    rates = learning_rates(settings, started_sparse=starts_sparse(settings))
    groups = parameter_groups(network, head, settings, rates)
    nn.ModuleList([network, head]).to(compute.device)
    optimizer, _ = _method(settings, groups, {"lr": rates["others"]}, trainer["steps"] or trainer["epochs"])
    if trainer["average"] > 1 and isinstance(optimizer, ProxSGD):
        raise ValueError(
            f"trainer.average={trainer['average']} averages dual variables, and optim=proxsgd has none; "
            f"choose trainer.average=1, or optim=adabreg, linbreg or sgd"
        )


def _network(settings: Settings, device: torch.device) -> tuple[nn.Module, int]:
    """Build the network on the CPU, and return it with the size of its embeddings; a class of the user's is checked.

    Raises:
        ValueError: it cannot be built, or does not do what ``contract.CONTRACT`` says.
    """
    network: Any = _constructed("model", settings, mel_bins=MEL_BINS)
    if settings["model"]["_target_"].startswith("sv_sparse.models."):
        return network, network.embedding_dim
    size = check_network(network, device)
    return network.cpu(), size  # where weights are drawn, so that they do not depend on the device


def _method(
    settings: Settings, groups: list[dict[str, Any]], first: dict[str, float], steps: int
) -> tuple[BregmanOptimizer, Controller]:
    """Build the optimizer, where lambda or the learning rate is another one at first, and the controller."""
    optimizer: BregmanOptimizer = _constructed("optim", settings | {"optim": settings["optim"] | first}, groups)
    target = settings["target_sparsity"]
    controller: Controller = _constructed("sparsity.controller", settings, optimizer, target, steps)
    controller.reminders.active = False  # the trainer steps and lands, and has its own warnings
    return optimizer, controller


def _constructed(setting: str, settings: Settings, *arguments: Any, **named: Any) -> Any:
    """Build what a group of settings describes.

    Raises:
        ValueError: it cannot be built; begins with the setting, as typed.
        OSError: a file cannot be read.
    """
    node: Any = settings
    for part in setting.split("."):
        node = node[part]
    try:
        built = instantiate(node, **named)
        return built(*arguments) if node.get("_partial_") else built
    except (InstantiationException, ValueError, TypeError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if isinstance(cause, OSError):
            raise cause from error
        words = str(cause) if isinstance(cause, ValueError) else f"{type(cause).__name__}: {cause}"
        if "mel_bins" in words and setting == "model":
            words += f"\n{CONTRACT}"
        (first,) = re.findall(r"^[\w.]*", words)
        if first in node:
            raise ValueError(f"{setting}.{words}") from error
        if first in settings["sparsity"]:  # by which the optimizer's groups are made
            raise ValueError(f"sparsity.{words}") from error
        named_already = first in settings or first.startswith(f"{setting.partition('.')[0]}.")
        raise ValueError(words if named_already else f"{setting}: {words}") from error


def _refuse_small_cohort(scoring: ScoringConfig, manifest: Manifest) -> None:
    """Raise a ValueError if AS-norm would look at more training speakers than there are, before training."""
    speakers = len(manifest.speakers("train"))
    if scoring.score_norm == "as_norm" and scoring.top_n > speakers:
        raise ValueError(f"scoring.top_n={scoring.top_n}: expected at most {speakers}, which are trained on")


def _crops(settings: Settings, manifest: Manifest, augmentation: Augmentation | None) -> Crops:
    rows = manifest.split("train")
    return Crops(
        manifest,
        rows,
        manifest.labels(rows),
        crop_samples=crop_samples(settings["trainer"]["crop_seconds"], SAMPLE_RATE),
        sample_rate=SAMPLE_RATE,
        seed=settings["seed"],
        augmentation=augmentation,
    )


def _batches(settings: Settings, size: int) -> EpochBatches:
    trainer = settings["trainer"]
    return EpochBatches(
        size,
        trainer["batch_size"],
        settings["seed"],
        accumulate=trainer["accumulate"],
        rank=rank(),
        ranks=ranks(),
    )


def _loader(
    settings: Settings, dataset: Crops, batches: EpochBatches, device: torch.device
) -> CropLoader | ShardLoader:
    storage, workers = settings["data"].get("storage", "files"), _workers(settings["trainer"]["workers"])
    load = ShardLoader if storage == "shards" else CropLoader
    return load(dataset, batches, workers, device)


def _workers(setting: int | str) -> int:
    return automatic_workers() if setting == "auto" else int(setting)


def split_size(manifest: Manifest, split: str) -> tuple[int, int, float]:
    """Speakers, utterances and hours of a split."""
    rows = manifest.split(split)
    hours = float(np.sum(manifest.samples[rows] / manifest.sample_rate[rows])) / 3600
    return len(manifest.speakers(split)), len(rows), hours


def describe_batch(batches: EpochBatches, rates: dict[str, float] | None) -> str:
    """What one step consists of, in words; and the rates, if they are not what a checkpoint has."""
    parts = f"processes {batches.ranks} x accumulated {batches.accumulate} x {batches.part_size}"
    crops = f"a batch of {batches.batch_size} crops ({parts})"
    if rates is None:
        return f"{crops}, learning rates as they were"
    return (
        f"{crops}; however many processes, the peak learning rates are {rates['weights']:g} of weights that may become "
        f"zero and {rates['others']:g} of the others"
    )


def _say(groups: list[dict[str, Any]], corpus: Corpus, paths: list[str], optimizer: BregmanOptimizer) -> None:
    for one, path in zip(corpus.trial_sets, paths, strict=True):
        count, targets = len(one.trials), int(one.trials.is_target.sum())
        logger.info("trial list %s: %d trials, %d targets (%s)", one.trials.name, count, targets, path)
    for split in ("train", "validation", "test"):
        speakers, utterances, hours = split_size(corpus.manifest, split)
        logger.info("%-10s %5d speakers %8d utterances %8.2f hours", split, speakers, utterances, hours)
    logger.info("%s", describe(groups))
    logger.info("%s, implementation %s", type(optimizer).__name__, optimizer.defaults["implementation"])
