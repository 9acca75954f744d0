"""Settings to objects: corpus, network, head, optimizer, controller, loader."""

import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sv_sparse.data.dataset import Crops, EpochBatches, make_loader
from sv_sparse.data.folder import scan_folder
from sv_sparse.data.manifest import Manifest
from sv_sparse.data.trials import Trials, read_trials
from sv_sparse.features import Filterbank, crop_samples
from sv_sparse.head import AAMSoftmax
from sv_sparse.optim import (
    DENSE_TYPES,
    SPARSE_TYPES,
    BregmanOptimizer,
    Controller,
    describe,
    partition,
    sparse_init_,
)
from sv_sparse.scoring.metrics import OperatingPoint
from sv_sparse.settings import Settings

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000
MEL_BINS = 80


@dataclass
class Corpus:
    """What a run listens to: the manifest, and the trial lists it is judged by."""

    manifest: Manifest
    trials: list[Trials]


@dataclass
class Compute:
    """Where and how numbers are computed."""

    device: torch.device
    bf16: bool

    @property
    def precision(self) -> str:
        """In words."""
        return "bf16 autocast" if self.bf16 else "float32"

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision where it is on; weights, losses and the optimizer stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


@dataclass
class Experiment:
    """Everything that one run trains with."""

    settings: Settings
    folder: Path
    corpus: Corpus
    compute: Compute
    filterbank: Filterbank
    network: nn.Module
    head: AAMSoftmax
    optimizer: BregmanOptimizer
    controller: Controller
    dataset: Crops
    batches: EpochBatches
    loader: DataLoader[Any]

    @property
    def total_steps(self) -> int:
        """Length of the run in steps."""
        return self.controller.total_steps

    @property
    def point(self) -> OperatingPoint:
        """Operating point of minDCF."""
        return OperatingPoint(**self.settings["scoring"])

    @cached_property
    def sparse_params(self) -> dict[str, Tensor]:
        """The network's convolution and linear weights by name."""
        return {
            name: p for group in partition(self.network) if group["name"] == "sparse" for name, p in group["params"]
        }

    def target_params(self) -> list[Tensor]:
        """What ``target_sparsity`` speaks of: the weights that lambda acts on; the network's in a dense run."""
        return self.controller.params or list(self.sparse_params.values())


def prepare_corpus(settings: Settings, folder: Path) -> Corpus:
    """Make the corpus if it is made up, scan it (a resumed run reads its manifest), and read the trial lists.

    Raises:
        ValueError: a folder or list is not as expected; names the setting.
        OSError: something cannot be read or written.
    """
    data = settings["data"]
    lists = [data["trials"]] if isinstance(data["trials"], str) else list(data["trials"])
    names = [Path(path).stem for path in lists]
    if not lists or len(set(names)) < len(names):
        raise ValueError(f"data.trials={data['trials']}: expected one list or several of different file names")
    manifest = folder / "manifest.parquet"
    if manifest.is_file():
        return Corpus(Manifest(manifest), [read_trials(path) for path in lists])
    if "make" in data:
        instantiate(data["make"])
    scanned = scan_folder(
        data["root"],
        trials=lists,
        train_list=data["train_list"],
        validation_share=data["validation_share"],
        seed=settings["seed"],
        max_unreadable=data["max_unreadable"],
        out=manifest,
    )
    return Corpus(scanned, [read_trials(path) for path in lists])


def choose_compute(trainer: Settings) -> Compute:
    """The device and precision that ``auto`` means here.

    Raises:
        ValueError: CUDA is asked for and not available.
    """
    name = trainer["device"]
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.device=cuda: no CUDA device is available; use auto or cpu")
    device = torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)
    precision = trainer["precision"]
    return Compute(device, precision == "bf16" or (precision == "auto" and _has_bf16(device)))


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def build(settings: Settings, folder: Path, corpus: Corpus) -> Experiment:
    """Build everything a run trains with; the same settings give the same weights and the same draws.

    Raises:
        ValueError: a setting is not allowed or does not fit the data.
    """
    trainer, seed = settings["trainer"], settings["seed"]
    torch.manual_seed(seed)
    compute = choose_compute(trainer)
    rows = corpus.manifest.split("train")
    labels = corpus.manifest.labels(rows)
    network: nn.Module = instantiate(settings["model"], mel_bins=MEL_BINS)
    head: AAMSoftmax = instantiate(settings["head"])(network.embedding_dim, int(labels.max()) + 1)
    samples = crop_samples(trainer["crop_seconds"], SAMPLE_RATE)
    dataset = Crops(corpus.manifest, rows, labels, crop_samples=samples, sample_rate=SAMPLE_RATE, seed=seed)
    batches = EpochBatches(len(rows), trainer["batch_size"], seed)
    groups = parameter_groups(network, head, settings)
    if starts_sparse(settings):
        chosen = [p for group in groups if group["regularizer"] != "none" for _, p in group["params"]]
        _start_sparse(chosen, settings)
    network.to(compute.device)
    head.to(compute.device)
    optimizer = instantiate(settings["optim"] | {"lr": learning_rates(settings)["others"]})(groups)
    steps = trainer["epochs"] * len(batches)
    controller = instantiate(settings["sparsity"]["controller"])(optimizer, settings["target_sparsity"], steps)
    _say(groups, corpus, compute, steps)
    logger.info("%s, implementation %s", type(optimizer).__name__, optimizer.defaults["implementation"])
    return Experiment(
        settings=settings,
        folder=folder,
        corpus=corpus,
        compute=compute,
        filterbank=Filterbank(SAMPLE_RATE, MEL_BINS).to(compute.device),
        network=network,
        head=head,
        optimizer=optimizer,
        controller=controller,
        dataset=dataset,
        batches=batches,
        loader=make_loader(dataset, batches, _workers(trainer["workers"]), compute.device),
    )


def learning_rates(settings: Settings) -> dict[str, float]:
    """Peak learning rates: of weights that may become zero (``weights``), and of ``others``.

    Raises:
        ValueError: ``optim.lr`` is neither one number above 0 nor one for each of its names.
    """
    lr = settings["optim"]["lr"]
    names = ("sparse", "others", "dense")
    rates = lr if isinstance(lr, dict) else dict.fromkeys(names, lr)
    if set(rates) != set(names) or not all(isinstance(rate, (int, float)) and rate > 0 for rate in rates.values()):
        listed = ", ".join(f"{name}: number" for name in names)
        raise ValueError(f"optim.lr must be above 0, one number or {{{listed}}}, got {lr!r}")
    if starts_sparse(settings):
        return {"weights": rates["sparse"], "others": rates["others"]}
    return {"weights": rates["dense"], "others": rates["dense"]}


def starts_sparse(settings: Settings) -> bool:
    """Whether a run starts with most weights zero."""
    return settings["target_sparsity"] > 0 and settings["sparsity"]["density"] < 1


def _start_sparse(params: Sequence[Tensor], settings: Settings) -> None:
    generator = torch.Generator().manual_seed(settings["seed"])
    chosen = settings["sparsity"]
    sparse_init_(params, density=chosen["density"], rescale=chosen["rescale"], generator=generator)


def parameter_groups(network: nn.Module, head: AAMSoftmax, settings: Settings) -> list[dict[str, Any]]:
    """The network's sparse and dense groups, and the head's group, which is dense unless ``include_head``.

    Each has its peak learning rate under the name that torch's schedulers use, ``initial_lr``.
    """
    chosen, rates = settings["sparsity"], learning_rates(settings)
    regularizer = chosen["regularizer"] if settings["target_sparsity"] > 0 else "none"
    groups = partition(network, regularizer=regularizer)
    if chosen["include_head"]:
        own = partition(head, sparse_types=(*SPARSE_TYPES, AAMSoftmax), regularizer=regularizer)
    else:
        own = partition(head, dense_types=(*DENSE_TYPES, AAMSoftmax))
    groups += [group | {"name": "head"} for group in own]
    for group in groups:
        group["grouping"] = chosen["grouping"]
        group["initial_lr"] = rates["others" if group["regularizer"] == "none" else "weights"]
    return groups


def _workers(setting: int | str) -> int:
    return min(8, (os.cpu_count() or 1) - 1) if setting == "auto" else int(setting)


def split_size(manifest: Manifest, split: str) -> tuple[int, int, float]:
    """Speakers, utterances and hours of a split."""
    rows = manifest.split(split)
    hours = float(np.sum(manifest.samples[rows] / manifest.sample_rate[rows])) / 3600
    return len(manifest.speakers(split)), len(rows), hours


def _say(groups: list[dict[str, Any]], corpus: Corpus, compute: Compute, steps: int) -> None:
    for split in ("train", "validation", "test"):
        speakers, utterances, hours = split_size(corpus.manifest, split)
        logger.info("%-10s %5d speakers %8d utterances %8.2f hours", split, speakers, utterances, hours)
    logger.info("%d steps on %s in %s", steps, compute.device, compute.precision)
    logger.info("%s", describe(groups))
