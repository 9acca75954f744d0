"""Settings of a run: one frozen dataclass for each group, with type, default and one sentence for each setting.

Hydra checks names and types against these classes (``register_schema``). What a type cannot say, such as a range, a
class checks when it is built. Files in conf/ hold only what differs from the defaults here.
"""

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from joblib import cpu_count
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.models.features import DEFAULT_FEATURES
from sv_sparse.optim.allocation import ALLOCATIONS
from sv_sparse.optim.lr_scheduler import DECAYS
from sv_sparse.scoring.config import ScoringConfig


def setting(default: Any, help_text: str) -> Any:
    """Return a dataclass field with a default and the sentence that ``python train.py --help`` prints."""
    if isinstance(default, (list, dict)) or is_dataclass(default):
        return field(default_factory=lambda: copy.deepcopy(default), metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


def require(name: str, value: Any, condition: bool, allowed: str) -> None:
    """Raise a ValueError that names a setting, what is allowed and what came, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name} must be {allowed}, got {show_value(value)}")


def show_value(value: Any) -> str:
    """Return a value as messages show it, with the command line's word for None."""
    return "null" if value is None else repr(value)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_fraction(value: Any) -> bool:
    """Return whether a value is a number of at least 0 and below 1."""
    return is_number(value) and 0 <= value < 1


def _at_least(value: Any, minimum: float) -> bool:
    return is_number(value) and value >= minimum


def _require_choice(name: str, value: Any, *allowed: str) -> None:
    require(name, value, value in allowed, "one of " + ", ".join(allowed))


def _require_seed(name: str, value: int | None, nullable: bool = False) -> None:
    allowed = ("null or " if nullable else "") + "a whole number, 0 or more and below 2**63"
    require(name, value, (value is None and nullable) or (value is not None and 0 <= value < 2**63), allowed)


def _require_names(name: str, value: Any) -> None:
    """Raise a ValueError unless a setting is text or a list of texts."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    texts = bool(items) and all(isinstance(item, str) and item != "" for item in items)
    require(name, value, texts, "text, or a list of texts")


_FRACTION = "a number, at least 0 and below 1"
# Value of ``teacher``: the network as it is at the start of the run.
SELF_TEACHER = "self"
FEATURES_HELP = "Features that the network reads: 3dspeaker, wespeaker, speechbrain or sv_sparse."


@dataclass(frozen=True)
class TrainerConfig:
    """Length of a run, its schedules, its checkpoints, and where it computes."""

    epochs: int = setting(6, "Passes over the training data.")
    max_steps: int | None = setting(
        None,
        "Optimizer steps after which the run ends, with its schedules; null: by epochs; 0: none, the network is made "
        "as sparse as target_sparsity at once, and evaluated.",
    )
    batch_size: int = setting(32, "Crops of one optimizer step, of all processes together.")
    grad_accum_steps: int = setting(1, "Parts of a batch that are computed one after the other, for less memory.")
    crop_seconds: float = setting(2.0, "Length of a training crop in seconds.")
    device: str = setting("auto", "auto, cpu or cuda.")
    precision: str = setting("auto", "fp32, bf16, fp16, or auto: bf16 where a measurement finds it faster.")
    compile: bool | str = setting("auto", "torch.compile of the training step: true, false, or auto: on a GPU.")
    cpu_kernels: bool | str = setting("auto", "Kernels of our own on a CPU: true, false, or auto: if g++ is there.")
    num_workers: int | str = setting("auto", "Processes that read crops, or auto.")
    lr_scale: float = setting(1.0, "Factor on every rate of optim.lr.")
    warmup_fraction: float = setting(0.04, "Fraction of the run in which the learning rate rises.")
    lr_decay: str = setting(
        "auto",
        "How the learning rate falls: exponential, linear, cosine, or auto: linear with init_from and a teacher, else "
        "exponential.",
    )
    final_lr_fraction: float = setting(0.01, "Learning rate at the end, as a fraction of its peak.")
    max_grad_norm: float | None = setting(1.0, "Largest gradient norm; null: no clipping.")
    clip_scope: str = setting("support", "Gradients that the norm counts: support (of nonzero weights) or all.")
    early_stop_patience: int | None = setting(
        None, "Epochs without a lower validation EER before the run ends with its best epoch; null: never."
    )
    num_avg: int = setting(1, "Epochs at the end whose dual variables are averaged into the final network.")
    keep_last: int = setting(2, "Epochs at the end whose checkpoints stay.")
    checkpoint_interval_minutes: float | None = setting(15, "Minutes between checkpoints inside an epoch; null: none.")
    best_sparsity_tolerance: float = setting(
        0.005, "An epoch can be the best only if its sparsity is this near to the target."
    )
    batch_norm: str = setting(
        "auto",
        "Statistics of batch normalization in training: batch; frozen, those at the start, which the end keeps; or "
        "auto: frozen with init_from and a teacher.",
    )
    num_bn_crops: int = setting(512, "Training crops behind the final batch-norm statistics and the mean embedding.")
    log_interval: int = setting(5, "Steps between logged metrics.")
    profile: bool = setting(False, "Leave a trace of some steps for tensorboard or Perfetto.")

    def __post_init__(self) -> None:
        for name in ("epochs", "grad_accum_steps", "num_avg", "num_bn_crops", "log_interval"):
            value = getattr(self, name)
            require(f"trainer.{name}", value, value >= 1, "a whole number, 1 or more")
        for name, minimum in (("max_steps", 0), ("early_stop_patience", 1)):
            value = getattr(self, name)
            is_allowed = value is None or value >= minimum
            require(f"trainer.{name}", value, is_allowed, f"null or a whole number, {minimum} or more")
        for name in ("max_grad_norm", "checkpoint_interval_minutes"):
            value = getattr(self, name)
            require(
                f"trainer.{name}",
                value,
                value is None or (is_number(value) and value > 0),
                "null or a number above 0",
            )
        require("trainer.batch_size", self.batch_size, self.batch_size >= 2, "a whole number, 2 or more")
        require("trainer.crop_seconds", self.crop_seconds, _at_least(self.crop_seconds, 0.2), "a number, 0.2 or more")
        _require_choice("trainer.device", self.device, "auto", "cpu", "cuda")
        _require_choice("trainer.precision", self.precision, "auto", "bf16", "fp16", "fp32")
        _require_choice("trainer.clip_scope", self.clip_scope, "support", "all")
        _require_choice("trainer.lr_decay", self.lr_decay, "auto", *DECAYS)
        _require_choice("trainer.batch_norm", self.batch_norm, "auto", "batch", "frozen")
        for name in ("compile", "cpu_kernels"):
            value = getattr(self, name)
            require(f"trainer.{name}", value, isinstance(value, bool) or value == "auto", "auto, true or false")
        num_workers = self.num_workers
        counted = isinstance(num_workers, int) and not isinstance(num_workers, bool) and num_workers >= 0
        require(
            "trainer.num_workers", num_workers, counted or num_workers == "auto", "auto or a whole number, 0 or more"
        )
        require("trainer.lr_scale", self.lr_scale, is_number(self.lr_scale) and self.lr_scale > 0, "a number above 0")
        require("trainer.warmup_fraction", self.warmup_fraction, is_fraction(self.warmup_fraction), _FRACTION)
        final = self.final_lr_fraction
        require(
            "trainer.final_lr_fraction",
            final,
            is_number(final) and 0 < final <= 1,
            "a number above 0 and at most 1",
        )
        tolerance = self.best_sparsity_tolerance
        require("trainer.best_sparsity_tolerance", tolerance, _at_least(tolerance, 0), "a number, 0 or more")
        require("trainer.keep_last", self.keep_last, self.keep_last >= 0, "a whole number, 0 or more")
        needed = self.num_avg if self.num_avg > 1 else 0
        if self.early_stop_patience is not None:
            needed = max(needed, 1)
        if self.keep_last < needed:
            raise ValueError(
                f"trainer.keep_last must be at least {needed}, the epochs that are needed, got {self.keep_last}"
            )
        if self.early_stop_patience is not None and self.num_avg > 1:
            raise ValueError(
                "trainer.early_stop_patience delivers the best epoch, trainer.num_avg the last ones: choose one of them"
            )


@dataclass(frozen=True)
class HeadConfig:
    """Additive angular margin softmax (AAM-softmax), the training loss."""

    name: str = setting("aam_softmax", "The head.")
    scale: float = setting(32.0, "Factor on cosines before the softmax.")
    margin: float = setting(0.2, "Angular margin at the end of its schedule, in radians.")
    margin_warmup_start: float = setting(0.13, "Fraction of the run at which the margin begins to rise from 0.")
    margin_warmup_end: float = setting(0.27, "Fraction of the run at which the margin has risen.")
    sub_centers: int = setting(1, "Weight vectors of each speaker, of which the nearest counts (sub-center ArcFace).")
    topk: int = setting(0, "Nearest other speakers that are penalized (inter-top-k), 5 in WeSpeaker; 0: none.")
    topk_margin: float = setting(0.06, "Their angular margin in radians; it rises as margin does.")

    def __post_init__(self) -> None:
        start, end = self.margin_warmup_start, self.margin_warmup_end
        require("head.margin_warmup_start", start, is_fraction(start), _FRACTION)
        require("head.margin_warmup_end", end, is_number(end) and 0 <= end <= 1, "a number from 0 to 1")
        if start > end:
            raise ValueError(f"head.margin_warmup_start must be at most head.margin_warmup_end, got {start} and {end}")


@dataclass(frozen=True)
class NoHeadConfig:
    """No head and no labels: the teacher alone trains the network."""

    name: str = setting("none", "The head.")


@dataclass(frozen=True)
class DistillConfig:
    """The loss by a teacher: the cosine distance between the embeddings of the network and those of the teacher."""

    weight: float = setting(1.0, "Factor on the mean cosine distance, which is added to the loss of the head.")
    input: str = setting(
        "clean",
        "Crops that the teacher gets: clean, before noise, rooms and masks, but at the same speed; or same as the "
        "network's.",
    )

    def __post_init__(self) -> None:
        require("distill.weight", self.weight, is_number(self.weight) and self.weight > 0, "a number above 0")
        _require_choice("distill.input", self.input, "clean", "same")


@dataclass(frozen=True)
class AugmentConfig:
    """Noise, rooms and speeds that training crops get."""

    noise_dir: str | None = setting(None, "Folder made by: sv-sparse prepare noise.")
    aug_prob: float = setting(0.0, "Probability that an utterance gets a room or a noise.")
    speed_perturb: list[float] = setting([1.0], "Speeds; every one but the first makes a new speaker of each speaker.")
    spec_augment_prob: float = setting(0.0, "Probability that frames and bins are masked (SpecAugment).")
    transform: Any = setting({"_target_": None}, "Class of your own, that changes waveforms on the training device.")

    def __post_init__(self) -> None:
        transform = self.transform
        is_named = isinstance(transform, dict) and (transform.get("_target_") is not None or len(transform) == 1)
        require("augment.transform", transform, is_named, "a class, augment.transform._target_=..., and its arguments")
        for name in ("aug_prob", "spec_augment_prob"):
            value = getattr(self, name)
            require(f"augment.{name}", value, is_number(value) and 0 <= value <= 1, "from 0 to 1")
        speeds = self.speed_perturb
        # NaN is not in the range either.
        in_range = all(0.5 <= speed <= 2 for speed in speeds)
        distinct = len(set(speeds)) == len(speeds)
        require(
            "augment.speed_perturb",
            list(speeds),
            bool(speeds) and speeds[0] == 1 and distinct and in_range,
            "different, from 0.5 to 2, the first 1.0",
        )
        if self.aug_prob and self.noise_dir is None:
            raise ValueError(f"augment.aug_prob={self.aug_prob} needs augment.noise_dir, a folder of noise and rooms")


@dataclass(frozen=True)
class DataConfig:
    """Settings of every corpus: its name, its held-out speakers, its limit on unusable recordings."""

    corpus: str = setting(MISSING, "Name of the corpus in logs and reports.")
    val_fraction: float = setting(0.1, "Fraction of the training speakers that is held out for the validation EER.")
    val_seed: int | None = setting(None, "Seed that chooses what is held out; null: the run's seed.")
    max_unreadable_fraction: float = setting(
        0.01, "Largest fraction of recordings that cannot be used and are left out; 0: none."
    )
    evaluate_untrained: bool = setting(
        False, "Evaluate the untrained network on the trial lists first, which takes as long as at the end."
    )

    def __post_init__(self) -> None:
        require("data.val_fraction", self.val_fraction, is_fraction(self.val_fraction), _FRACTION)
        _require_seed("data.val_seed", self.val_seed, nullable=True)
        # Checks itself.
        UnreadableLimit(self.max_unreadable_fraction)

    @property
    def reads_shards(self) -> bool:
        """True where crops are read from tar files in order, which depends on the number of processes and workers."""
        return False

    @property
    def has_labels(self) -> bool:
        """True where the speakers of the recordings are known."""
        return True


@dataclass(frozen=True)
class FolderDataConfig(DataConfig):
    """Recordings in a tree <speaker>/<session>/<utterance>, of every format that libsndfile reads."""

    corpus: str = setting("folder", "Name of the corpus in logs and reports.")
    root: str = setting(MISSING, "Folder of the recordings.")
    trial_lists: Any = setting(
        MISSING, "Trial list in VoxCeleb's format (label enrollment test), or several: [a.txt,b.txt]."
    )
    train_utterances: str | None = setting(
        None, 'File with lines "speaker path"; null: every speaker that no trial names.'
    )
    speaker_metadata: str | None = setting(None, "Table with columns speaker and sex, for the EER by sex.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_names("data.trial_lists", self.trial_lists)


@dataclass(frozen=True)
class AudioDataConfig(DataConfig):
    """Recordings without labels at any depth, of every format that libsndfile reads; they need head=none."""

    corpus: str = setting("audio", "Name of the corpus in logs and reports.")
    root: str = setting(MISSING, "Folder of the recordings.")
    trial_lists: Any = setting(
        None, "Trial list in VoxCeleb's format (label enrollment test), or several: [a.txt,b.txt]; null: no trials."
    )
    trial_root: str | None = setting(None, "Folder that the paths in the trial lists are relative to; null: data.root.")
    val_fraction: float = setting(0.01, "Fraction of the recordings that is held out for the cosine with the teacher.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trial_lists is not None:
            _require_names("data.trial_lists", self.trial_lists)
        elif self.trial_root is not None:
            raise ValueError(f"data.trial_root={self.trial_root} is for data.trial_lists, which is null")

    @property
    def has_labels(self) -> bool:
        """True where the speakers of the recordings are known."""
        return False


@dataclass(frozen=True)
class PreparedDataConfig(DataConfig):
    """A folder made by: sv-sparse prepare voxceleb, prepare cnceleb or shard."""

    prepared_dir: str = setting(MISSING, "The prepared folder.")
    format: str = setting("files", "files: read at random; shards: tar files, each from beginning to end.")
    train_subsets: Any = setting(MISSING, "Subsets of the corpus that are trained on.")
    trial_lists: Any = setting(
        MISSING, "Trial lists of the prepared folder; FOLDER:list is one of another prepared folder."
    )
    val_fraction: float = setting(0.01, "Fraction of the training speakers that is held out for the validation EER.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_choice("data.format", self.format, "files", "shards")
        _require_names("data.train_subsets", self.train_subsets)
        _require_names("data.trial_lists", self.trial_lists)

    @property
    def reads_shards(self) -> bool:
        """True where crops are read from tar files in order, which depends on the number of processes and workers."""
        return self.format == "shards"


@dataclass(frozen=True)
class SynthesisConfig:
    """The synthetic corpus of the demo."""

    train_speakers: int = setting(120, "Training speakers.")
    test_speakers: int = setting(48, "Speakers of the trials.")
    sessions: int = setting(4, "Sessions of each speaker.")
    utterances: int = setting(3, "Utterances of each session.")
    trials: int = setting(5000, "Trials, half of them targets.")
    seed: int = setting(0, "Seed of the corpus.")


@dataclass(frozen=True)
class DemoDataConfig(DataConfig):
    """Synthetic speech by eSpeak NG, made once: it shows that everything works and says nothing about people."""

    corpus: str = setting("demo", "Name of the corpus in logs and reports.")
    evaluate_untrained: bool = setting(True, "Evaluate the untrained network on the trial lists first.")
    cache_dir: str = setting("~/.cache/sv-sparse/demo", "Folder of the corpus.")
    synthesize: SynthesisConfig = setting(SynthesisConfig(), "Size of the corpus.")

    @property
    def root(self) -> str:
        """Folder of the recordings."""
        return f"{self.cache_dir}/wav"

    @property
    def trial_lists(self) -> str:
        """The trial list."""
        return f"{self.cache_dir}/veri_test.txt"

    @property
    def train_utterances(self) -> str:
        """File with lines ``speaker path``."""
        return f"{self.cache_dir}/train_list.txt"

    @property
    def speaker_metadata(self) -> str:
        """Table of the speakers."""
        return f"{self.cache_dir}/speakers.csv"


@dataclass(frozen=True)
class ModelConfig:
    """Settings of every built-in network."""

    name: str = setting(MISSING, "Name of the network.")
    # Runs from before the setting have no value, and these features.
    features: str = setting(DEFAULT_FEATURES, FEATURES_HELP)


@dataclass(frozen=True)
class ECAPAConfig(ModelConfig):
    """ECAPA-TDNN."""

    name: str = setting("ecapa", "The network.")
    channels: int = setting(1024, "Channels of the SE-Res2Blocks.")
    mfa_channels: int = setting(1536, "Channels of the multi-layer feature aggregation.")
    attention_channels: int = setting(128, "Channels of the attention in the pooling.")
    se_channels: int = setting(128, "Channels of the squeeze-excitation bottlenecks.")
    res2net_scale: int = setting(8, "Parts of a Res2Net convolution.")
    kernel_sizes: list[int] = setting([5, 3, 3, 3], "Kernel sizes of the first convolution and of the blocks.")
    dilations: list[int] = setting([1, 2, 3, 4], "Dilations of the first convolution and of the blocks.")
    embedding_dim: int = setting(192, "Size of the embedding.")
    layout: str = setting("wespeaker", "Padding, norms and other details as in wespeaker or speechbrain.")


@dataclass(frozen=True)
class CAMPlusPlusConfig(ModelConfig):
    """CAM++, as 3D-Speaker and WeSpeaker have it."""

    name: str = setting("campplus", "The network.")
    features: str = setting("3dspeaker", FEATURES_HELP)
    front_channels: int = setting(32, "Channels of the two-dimensional convolutions.")
    channels: int = setting(128, "Channels that enter the first dense block.")
    growth_rate: int = setting(32, "Channels that each layer of a dense block adds.")
    bottleneck_channels: int = setting(128, "Channels inside a layer of a dense block.")
    block_layers: list[int] = setting([12, 24, 16], "Layers of the three dense blocks.")
    embedding_dim: int = setting(192, "Size of the embedding.")


@dataclass(frozen=True)
class ResNetConfig(ModelConfig):
    """ResNet with mean and standard deviation pooling."""

    base_channels: int = setting(32, "Channels of the first stage; each later stage has twice as many.")
    embedding_dim: int = setting(256, "Size of the embedding.")
    statistics_norm: bool = setting(True, "Normalize the pooled statistics before the embedding.")


@dataclass(frozen=True)
class SEResNetConfig(ModelConfig):
    """ResNet with squeeze-excitation as in SpeechBrain's spkrec-resnet-voxceleb."""

    name: str = setting("se_resnet", "The network.")
    channels: list[int] = setting([128, 128, 256, 256], "Channels of the four stages.")
    attention_channels: int = setting(128, "Channels of the attention in the pooling.")
    embedding_dim: int = setting(256, "Size of the embedding.")


@dataclass(frozen=True)
class XVectorConfig(ModelConfig):
    """X-vector TDNN, as WeSpeaker has it."""

    name: str = setting("xvector", "The network.")
    features: str = setting("wespeaker", FEATURES_HELP)
    channels: int = setting(512, "Channels of the first four layers.")
    statistics_channels: int = setting(1500, "Channels of the fifth layer, which are pooled.")
    embedding_dim: int = setting(512, "Size of the embedding.")


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates; one number in place of them serves all."""

    sparse_start: float = setting(0.01, "Of weights that start sparse, in runs from scratch.")
    dense_params: float = setting(0.01, "Of what is dense beside them in those runs: biases, normalization, head.")
    dense_start: float = setting(
        0.003, "Of all parameters in runs that start dense (target_sparsity=0, init_from), but for pretrained."
    )
    pretrained: float = setting(0.001, "Of weights that start dense and become sparse (init_from).")


@dataclass(frozen=True)
class OptimConfig:
    """Settings of every optimizer."""

    name: str = setting(MISSING, "adabreg, linbreg or proxsgd.")
    lr: Any = setting(LearningRates(), "Peak learning rate, or one for each kind of parameters.")
    lambda_init: float = setting(
        0.1, "Where lambda, the strength of the penalty, starts, or lower beside smaller weights."
    )

    def __post_init__(self) -> None:
        names = [rate.name for rate in fields(LearningRates)]
        rates = [self.lr]
        if isinstance(self.lr, LearningRates):
            rates = [getattr(self.lr, name) for name in names]
        positive = all(is_number(rate) and rate > 0 for rate in rates)
        listed = ", ".join(f"{name}: number" for name in names)
        require("optim.lr", self.lr, positive, f"above 0, one number or {{{listed}}}")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the optimizer's constructor beside parameters and learning rate."""
        return {name: value for name, value in vars(self).items() if name not in {"name", "lr"}}


@dataclass(frozen=True)
class AdaBregConfig(OptimConfig):
    """AdaBreg: Adam's step on dual variables."""

    name: str = setting("adabreg", "The optimizer.")
    betas: list[float] = setting([0.9, 0.999], "Decay of the averages of gradients and of their squares.")
    eps: float = setting(1e-8, "Added to the denominator.")
    delta: float = setting(1.0, "Elastic-net parameter: a weight is delta times its shrunk dual variable.")
    weight_decay: float = setting(0.0, "Decoupled decay of nonzero weights.")
    backend: str = setting("auto", "auto (C++ kernels on a CPU if g++ is there, else foreach), cpp, foreach.")


@dataclass(frozen=True)
class LinBregConfig(OptimConfig):
    """LinBreg: SGD's step, with or without momentum, on dual variables."""

    name: str = setting("linbreg", "The optimizer.")
    lr: Any = setting(
        LearningRates(sparse_start=10.0, dense_params=0.1, dense_start=0.1, pretrained=0.1),
        "Peak learning rate, or one for each kind of parameters.",
    )
    momentum: float = setting(0.0, "Momentum.")
    dampening: float = setting(0.0, "Dampening of the momentum.")
    nesterov: bool = setting(False, "Nesterov's momentum.")
    delta: float = setting(1.0, "Elastic-net parameter: a weight is delta times its shrunk dual variable.")
    weight_decay: float = setting(0.0, "Decay of weights.")
    backend: str = setting("auto", "auto (C++ kernels on a CPU if g++ is there, else foreach), cpp, foreach.")


@dataclass(frozen=True)
class ProxSGDConfig(OptimConfig):
    """Proximal SGD, the baseline without a dual variable."""

    name: str = setting("proxsgd", "The optimizer.")
    lr: Any = setting(
        LearningRates(sparse_start=0.1, dense_params=0.1, dense_start=0.1, pretrained=0.1),
        "Peak learning rate, or one for each kind of parameters.",
    )


@dataclass(frozen=True)
class ControllerConfig:
    """Settings of every controller."""

    name: str = setting(MISSING, "feedback, paper, quantile, gradual_magnitude or fixed.")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the controller's constructor beside optimizer, target and length."""
        return {name: value for name, value in vars(self).items() if name != "name"}


@dataclass(frozen=True)
class FixedConfig(ControllerConfig):
    """lambda stays at optim.lambda_init, whatever sparsity that makes."""

    name: str = setting("fixed", "The controller.")


@dataclass(frozen=True)
class ScheduledConfig(ControllerConfig):
    """Settings of every controller that has a schedule of targets."""

    # Another default than that of the classes: here the learning rate falls, so that a frozen end keeps the target
    # (DECISIONS 84).
    freeze_fraction: float = setting(0.01, "Fraction of the run, at its end, with lambda left alone.")
    ramp_start: int | float | str | None = setting(
        "auto",
        "Fraction of the run at which the target leaves initial_sparsity; null: no ramp; auto: from 0 to 0.5 where "
        "weights start dense, else none.",
    )
    ramp_end: int | float | str | None = setting(
        "auto", "Fraction of the run at which the target is reached; null; auto."
    )
    initial_sparsity: float | None = setting(
        None, "Target before the ramp; null: the sparsity of the network at the start."
    )

    def __post_init__(self) -> None:
        bounds = [self.ramp_start, self.ramp_end]
        same_kind = bounds in ([None, None], ["auto", "auto"]) or all(is_number(bound) for bound in bounds)
        if not same_kind:
            raise ValueError(
                f"sparsity.controller.ramp_start and sparsity.controller.ramp_end go together: two numbers, both null "
                f"or both auto, got {show_value(self.ramp_start)} and {show_value(self.ramp_end)}"
            )


@dataclass(frozen=True)
class FeedbackConfig(ScheduledConfig):
    """lambda follows the gap between the measured and the target sparsity."""

    name: str = setting("feedback", "The controller.")
    alpha: float = setting(1.0, "Gain before any crossing of the target.")
    gamma: float = setting(0.95, "Factor on the gain for each crossing after the first.")
    min_gain: float = setting(0.05, "Smallest gain.")
    deadband: float = setting(0.001, "A crossing counts once the gap has left this band.")
    drift_gain: float = setting(0.05, "How fast a steady drift of lambda is learned; 0: not at all.")


@dataclass(frozen=True)
class PaperConfig(ScheduledConfig):
    """The authors' rule: the gain falls with each crossing of the target."""

    name: str = setting("paper", "The controller.")
    alpha: float = setting(1.0, "Gain before any crossing of the target.")
    gamma: float = setting(0.95, "Factor on the gain for each crossing after the first.")
    update_interval: int = setting(50, "Updates from one change of lambda to the next.")


@dataclass(frozen=True)
class QuantileConfig(ScheduledConfig):
    """lambda is the quantile of the dual variables: the sparsity is exact after every update."""

    name: str = setting("quantile", "The controller.")
    freeze_fraction: float = setting(0.0, "Fraction of the run, at its end, with lambda left alone.")
    update_interval: int = setting(1, "Updates from one exact lambda to the next.")


@dataclass(frozen=True)
class GradualMagnitudeConfig(ScheduledConfig):
    """Gradual magnitude pruning: the smallest weights become zero, for good."""

    name: str = setting("gradual_magnitude", "The controller.")
    freeze_fraction: float = setting(0.01, "Fraction of the run, at its end, with the masks left alone.")
    ramp_start: int | float | str | None = setting(0.1, "Fraction of the run at which pruning begins.")
    ramp_end: int | float | str | None = setting(0.6, "Fraction of the run at which the target is reached.")
    initial_sparsity: float | None = setting(0.0, "Target before the ramp.")
    num_mask_updates: int = setting(100, "How often the masks grow in the ramp, at most at every step.")


@dataclass(frozen=True)
class SparsityConfig:
    """Weights that may become zero, their start, and the controller that leads them to the target."""

    controller: Any = setting(MISSING, "What moves lambda, or prunes.")
    penalty: str = setting(
        "auto",
        "l1 or l0: single weights; auto: l1 where a run starts sparse, l0 where its weights start dense; group: whole "
        "channels or kernels, needs init_density=1; none: dense or masks.",
    )
    granularity: str = setting("out_channel", "Groups of penalty=group: out_channel, in_channel or kernel.")
    allocation: str = setting(
        "global",
        "How the target is divided among the layers: global (one lambda, or magnitude, decides), uniform (the same "
        "sparsity of each), erk (small layers keep more).",
    )
    init_density: float = setting(0.01, "Fraction of the weights that a run starts with.")
    rescale_init: bool = setting(True, "Keep the variance of the forward signal at a sparse start.")
    sparsify_head: bool = setting(False, "Regularize and count the head too.")
    dense: list[str] = setting([], "Names of parameters or modules that stay dense.")
    sparse: list[str] = setting([], "Names of parameters or modules that may become zero, whatever their type.")

    def __post_init__(self) -> None:
        controller = self.controller
        is_named = controller == MISSING or isinstance(controller, (ControllerConfig, dict))
        require("sparsity.controller", controller, is_named, "settings by their names")
        _require_choice("sparsity.penalty", self.penalty, "auto", "l1", "l0", "group", "none")
        _require_choice("sparsity.granularity", self.granularity, "out_channel", "in_channel", "kernel")
        _require_choice("sparsity.allocation", self.allocation, *ALLOCATIONS)
        density = self.init_density
        require(
            "sparsity.init_density",
            density,
            is_number(density) and 0 < density <= 1,
            "a number above 0 and at most 1",
        )
        if self.penalty == "group" and density < 1:
            raise ValueError(
                f"sparsity.penalty=group makes whole groups zero, so its runs start dense: "
                f"sparsity.init_density must be 1, got {density}"
            )

    @property
    def controller_name(self) -> str:
        """The controller's name, or the name of its class."""
        return _name_of(self.controller)


def _name_of(settings: Any) -> str:
    """Return the name of a model's or controller's settings, or of the class that they name."""
    if isinstance(settings, (ModelConfig, ControllerConfig)):
        return settings.name
    # An argument of a class of the user's own may be called name.
    if "_target_" in settings:
        return str(settings["_target_"]).rpartition(".")[2]
    return str(settings.get("name", ""))


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    target_sparsity: float = setting(
        0.9, "Fraction of exact zeros in the network's convolution and linear weights; 0 trains dense."
    )
    seed: int = setting(0, "Seed of everything that is random.")
    run_name: str | None = setting(
        None, "Name of the run; null: model, sparsity and target. Results go to <runs_dir>/<time>_<run_name>."
    )
    runs_dir: str = setting("runs", "Folder of run folders.")
    run_dir: str | None = setting(None, "Folder of the results, if not below runs_dir.")
    resume_from: str | None = setting(None, "Run folder or checkpoint that is continued with its own settings.")
    init_from: str | None = setting(
        None,
        "Finished run, whose network, head and lambda the run starts from, and whose model, data, optim, sparsity and "
        "target_sparsity hold unless others are given; or a file of weights.",
    )
    teacher: str | None = setting(
        None,
        "Frozen network whose embeddings are learned: a finished run, a file of weights, or self, the network that "
        "init_from names; null: none.",
    )
    model: Any = setting(MISSING, "The network: its name and settings, or a class of your own as _target_.")
    data: Any = setting(MISSING, "The corpus.")
    augment: AugmentConfig = setting(AugmentConfig(), "Augmentation.")
    head: Any = setting(MISSING, "The training loss: its settings, or a class of your own as _target_.")
    distill: DistillConfig = setting(DistillConfig(), "The loss by a teacher.")
    optim: Any = setting(MISSING, "The optimizer.")
    sparsity: SparsityConfig = setting(SparsityConfig(), "What becomes zero.")
    trainer: TrainerConfig = setting(TrainerConfig(), "The training loop.")
    scoring: ScoringConfig = setting(ScoringConfig(), "Scoring of trials.")

    def __post_init__(self) -> None:
        for name in ROOT_CHECKS:
            check_root_setting(name, getattr(self, name))
        kinds = {
            "model": (ModelConfig, dict),
            "data": (DataConfig,),
            "head": (HeadConfig, NoHeadConfig, dict),
            "optim": (OptimConfig,),
        }
        for name, classes in kinds.items():
            require(name, getattr(self, name), isinstance(getattr(self, name), classes), "settings by their names")
        for name, value in flatten(self.to_dict()).items():
            check_plain(name, value)
        check_dense_target(self.target_sparsity, self.sparsity)
        if self.teacher is None and isinstance(self.head, NoHeadConfig):
            raise ValueError("head=none has a loss only with a teacher; add teacher=RUN, or choose head=aam_softmax")
        if self.sparsity.sparsify_head and isinstance(self.head, NoHeadConfig):
            raise ValueError("sparsity.sparsify_head=true needs a head with weights, head=none has none")
        if self.teacher == SELF_TEACHER and self.init_from is None:
            raise ValueError(
                "teacher=self is the network that a run starts from, which is untrained without init_from; add "
                "init_from=RUN, or name another teacher"
            )
        if self.init_from is None and self.trainer.batch_norm == "frozen":
            raise ValueError(
                "trainer.batch_norm=frozen keeps the statistics of a trained network, and without init_from there are "
                "none; it must be auto or batch"
            )
        if not self.data.has_labels:
            self._check_needs_no_labels()
        patience = self.trainer.early_stop_patience
        if patience is not None and self.data.val_fraction == 0:
            raise ValueError(
                f"trainer.early_stop_patience={patience} needs speakers to validate on; "
                f"choose data.val_fraction above 0"
            )

    def _check_needs_no_labels(self) -> None:
        """Raise a ValueError if settings need the speakers of the recordings."""
        if isinstance(self.head, (HeadConfig, dict)):
            raise ValueError(
                "data=audio has no labels, and a loss of speakers needs them; choose head=none with a teacher "
                "(teacher=...), or data=folder, where folders say who speaks"
            )
        if self.scoring.score_norm == "as_norm":
            raise ValueError("scoring.score_norm=as_norm needs training speakers, and data=audio has no labels")
        patience = self.trainer.early_stop_patience
        if patience is not None:
            raise ValueError(
                f"trainer.early_stop_patience={patience} needs a validation EER, and data=audio has no labels"
            )

    @property
    def classes(self) -> dict[str, str]:
        """Import paths of the user's own classes, by the setting that names each, such as ``head``."""
        settings = {
            "model": self.model,
            "head": self.head,
            "sparsity.controller": self.sparsity.controller,
            "augment.transform": self.augment.transform,
        }
        own = {name: value["_target_"] for name, value in settings.items() if isinstance(value, dict)}
        return {name: str(path) for name, path in own.items() if path is not None}

    @property
    def model_settings(self) -> dict[str, Any]:
        """The network's name, or class, and settings, as plain data."""
        return dict(self.model) if isinstance(self.model, dict) else asdict(self.model)

    @property
    def imitates_from_trained_weights(self) -> bool:
        """True where trained weights learn the embeddings of a teacher, as of a published network."""
        return self.init_from is not None and self.teacher is not None

    @property
    def freezes_batch_norm(self) -> bool:
        """True where batch normalization keeps the statistics of the start: DECISIONS 122."""
        if self.trainer.batch_norm == "auto":
            return self.imitates_from_trained_weights
        return self.trainer.batch_norm == "frozen"

    @property
    def lr_decay(self) -> str:
        """Fall of the learning rate, an argument of ``warmup_decay``: DECISIONS 123."""
        if self.trainer.lr_decay == "auto":
            return "linear" if self.imitates_from_trained_weights else "exponential"
        return self.trainer.lr_decay

    @property
    def model_name(self) -> str:
        """The network's name, or the name of its class."""
        return _name_of(self.model)

    @property
    def model_text(self) -> str:
        """The network's name and, in brackets, the settings that are not its defaults, for people."""
        settings = {key: value for key, value in self.model_settings.items() if key not in {"name", "_target_"}}
        if isinstance(self.model, ModelConfig):
            defaults = asdict(MODEL_SETTINGS[self.model.name])
            settings = {key: value for key, value in settings.items() if value != defaults[key]}
        words = ", ".join(f"{key}={value}" for key, value in settings.items())
        return f"{self.model_name} ({words})" if words else self.model_name

    @property
    def is_synthetic(self) -> bool:
        """True for a corpus of synthetic voices; what ``init_from`` brought does not count."""
        return isinstance(self.data, DemoDataConfig)

    @property
    def val_seed(self) -> int:
        """Seed that chooses the held-out speakers."""
        return self.seed if self.data.val_seed is None else int(self.data.val_seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data, as config.yaml and checkpoints hold them."""
        return asdict(self)

    @staticmethod
    def from_dict(settings: Mapping[str, Any], source: str = "config.yaml") -> "Config":
        """Build the settings from plain data; what is missing has its default.

        Args:
            settings: as ``to_dict`` returns them.
            source: where they come from, for messages.

        Raises:
            ValueError: a setting is unknown or not allowed; names it.
        """
        try:
            settings = _of_this_version(settings)
            node = writable(OmegaConf.structured(Config))
            for group, choices in (("data", DATA_SETTINGS), ("optim", OPTIMIZER_SETTINGS)):
                node[group] = _schema_of(settings[group], choices)
            node.model = {} if "_target_" in settings["model"] else _schema_of(settings["model"], MODEL_SETTINGS)
            lr = settings["optim"].get("lr")
            if lr is not None and not isinstance(lr, Mapping):
                # One number in place of a node.
                node.optim.lr = lr
            head = settings["head"]
            node.head = {} if "_target_" in head else _schema_of(head, HEAD_SETTINGS)
            controller = settings["sparsity"]["controller"]
            node.sparsity.controller = {} if "_target_" in controller else _schema_of(controller, CONTROLLER_SETTINGS)
            return to_config(cast(DictConfig, OmegaConf.merge(node, dict(settings))))
        except (KeyError, TypeError, OmegaConfBaseException) as error:
            first_line = str(error).partition("\n")[0]
            raise ValueError(
                f"{source}: its settings are not those of this version of sv-sparse ({first_line})"
            ) from error


def _of_this_version(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of version 0.2, or of this one, with the names of this one."""
    # There was one head, without a name.
    head = dict(settings.get("head", {}))
    if "_target_" not in head:
        head = {"name": "aam_softmax"} | head
    controller = dict(settings["sparsity"]["controller"])
    sparsity = dict(settings["sparsity"]) | {"controller": controller}
    # A class of the user's own may have an argument of this name.
    if "_target_" not in controller and "per_layer" in controller:
        sparsity["allocation"] = "uniform" if controller.pop("per_layer") else "global"
    return dict(settings) | {"head": head, "sparsity": sparsity}


MODEL_SETTINGS = {
    "ecapa": ECAPAConfig(),
    "campplus": CAMPlusPlusConfig(),
    "resnet34": ResNetConfig("resnet34"),
    "resnet50": ResNetConfig("resnet50", "wespeaker"),
    "resnet101": ResNetConfig("resnet101", "wespeaker"),
    "resnet152": ResNetConfig("resnet152", "wespeaker"),
    "resnet221": ResNetConfig("resnet221", "wespeaker"),
    "resnet293": ResNetConfig("resnet293", "wespeaker"),
    "se_resnet": SEResNetConfig(),
    "xvector": XVectorConfig(),
}
HEAD_SETTINGS = {"aam_softmax": HeadConfig(), "none": NoHeadConfig()}
DATA_SETTINGS = {
    "demo": DemoDataConfig(),
    "folder": FolderDataConfig(),
    "audio": AudioDataConfig(),
    "prepared": PreparedDataConfig(),
}
OPTIMIZER_SETTINGS = {"adabreg": AdaBregConfig(), "linbreg": LinBregConfig(), "proxsgd": ProxSGDConfig()}
CONTROLLER_SETTINGS = {
    "feedback": FeedbackConfig(),
    "paper": PaperConfig(),
    "quantile": QuantileConfig(),
    "gradual_magnitude": GradualMagnitudeConfig(),
    "fixed": FixedConfig(),
}
DENSE = SparsityConfig(controller=FixedConfig(), penalty="none", init_density=1.0)


ROOT_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "target_sparsity": (is_fraction, _FRACTION),
    "seed": (lambda seed: 0 <= seed < 2**63, "a whole number, 0 or more and below 2**63"),
    "run_name": (lambda name: name is None or (name != "" and "/" not in name), "a word without /, or null"),
    "runs_dir": (lambda path: path != "", "a folder"),
    "run_dir": (lambda path: path != "", "a folder, or null"),
    "resume_from": (lambda path: path != "", "a run's folder or one of its checkpoints, or null"),
    "init_from": (lambda path: path != "", "a run's folder or a file of weights, or null"),
    "teacher": (lambda path: path != "", "a run's folder or a file of weights, self, or null"),
}


def check_plain(name: str, value: Any) -> None:
    """Raise a ValueError if a number is not finite, or a text is empty; of a list, each element is checked.

    Args:
        name: of the setting, as typed.
        value: plain data.
    """
    if isinstance(value, (list, tuple)):
        for element in value:
            check_plain(name, element)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_plain(f"{name}.{key}", inner)
    if isinstance(value, float):
        require(name, value, math.isfinite(value), "a finite number")
    if isinstance(value, str):
        require(name, value, value != "", "a text that is not empty")


def check_root_setting(name: str, value: Any) -> None:
    """Raise a ValueError if a setting that belongs to no group has a value that is not allowed."""
    is_allowed, allowed = ROOT_CHECKS[name]
    require(name, value, is_allowed(value), allowed)


def trains_dense(sparsity: Any) -> bool:
    """Return whether there is neither a penalty nor a controller that makes masks.

    Args:
        sparsity: a ``SparsityConfig``, or the node that Hydra composes for one.
    """
    return bool(sparsity.penalty == "none" and _name_of(sparsity.controller) == "fixed")


def check_dense_target(target: float, sparsity: Any) -> None:
    """Raise a ValueError if a run without a penalty or masks is asked for a sparsity.

    Args:
        target: ``target_sparsity``.
        sparsity: a ``SparsityConfig``, or the node that Hydra composes for one.
    """
    if trains_dense(sparsity) and target != 0:
        raise ValueError(f"target_sparsity={target}: sparsity=dense trains dense; leave target_sparsity out")


def register_schema() -> None:
    """Tell Hydra the settings: the root as ``schema``, and the choices of each group that no file in conf/ has."""
    store = ConfigStore.instance()
    store.store(name="schema", node=writable(Config))
    choices: dict[str, Mapping[str, Any]] = {
        "model": MODEL_SETTINGS,
        "data": DATA_SETTINGS,
        "optim": OPTIMIZER_SETTINGS,
        "augment": {"none": AugmentConfig()},
        "head": HEAD_SETTINGS,
        "distill": {"default": DistillConfig()},
        "trainer": {"default": TrainerConfig()},
        "scoring": {"cosine": ScoringConfig()},
    }
    for group, nodes in choices.items():
        for name, node in nodes.items():
            store.store(group=group, name=name, node=writable(node))
    for name, controller in CONTROLLER_SETTINGS.items():
        sparsity = SparsityConfig(controller=controller)
        # Its masks make zeros, not a penalty.
        if name == "gradual_magnitude":
            sparsity = SparsityConfig(controller=controller, penalty="none", init_density=1.0)
        store.store(group="sparsity", name=name, node=writable(sparsity))
    # Classes of the user's own. For a model conf/model/custom.yaml does the same.
    own_class = {"_target_": MISSING}
    store.store(group="head", name="custom", node=own_class)
    store.store(group="sparsity", name="custom", node=writable(SparsityConfig(controller=own_class)))
    dense = {"target_sparsity": 0, "sparsity": writable(DENSE)}
    store.store(group="sparsity", name="dense", node=dense, package="_global_")


def writable(node: Any) -> Any:
    """Return a structured config that Hydra can compose: OmegaConf makes those of frozen classes read-only."""
    config = OmegaConf.structured(node)
    _clear_readonly(config)
    return config


def _clear_readonly(config: Any) -> None:
    OmegaConf.set_readonly(config, None)
    names = list(config) if isinstance(config, DictConfig) else range(len(config))
    for name in names:
        child = config._get_node(name)
        if OmegaConf.is_config(child) and not child._is_missing() and not child._is_none():
            _clear_readonly(child)


def to_config(composed: DictConfig) -> Config:
    """Build the settings from what Hydra composed.

    Raises:
        ValueError: a setting is missing or not allowed; names it, what is allowed and what came.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given, for instance {missing[0]}=...")
    try:
        return cast(Config, OmegaConf.to_object(composed))
    except OmegaConfBaseException as error:
        raise ValueError(f"the configuration cannot be resolved: {error}") from error


def load_config(composed: DictConfig) -> Config:
    """Build a new run's settings from what Hydra composed, with absolute paths.

    Raises:
        ValueError: a setting is missing or not allowed; names it, what is allowed and what came.
    """
    config = absolute_paths(to_config(composed))
    # The order of crops depends on the number of workers there, so that resuming needs the same.
    if config.data.reads_shards and config.trainer.num_workers == "auto":
        config = replace(config, trainer=replace(config.trainer, num_workers=default_num_workers()))
    return config


def typed_groups(config: Config, groups: Sequence[str]) -> dict[str, Any]:
    """Return groups of a run's settings as nodes that Hydra composes and checks, for a run that starts from it.

    Args:
        config: of the run.
        groups: names of groups. The seed of the held-out speakers is filled in: they stay the same with another seed.
    """
    nodes: dict[str, Any] = {}
    for group in groups:
        value = getattr(config, group)
        if group == "data":
            value = replace(value, val_seed=config.val_seed)
        nodes[group] = writable(value) if is_dataclass(value) else value
    return nodes


def absolute_paths(config: Config) -> Config:
    """Return the settings with absolute paths, so that a run can be continued from anywhere."""
    data = config.data
    changes: dict[str, Any] = {}
    for name in ("cache_dir", "root", "prepared_dir", "trial_root", "train_utterances", "speaker_metadata"):
        path = vars(data).get(name)
        if path is not None:
            changes[name] = _absolute(path)
    lists = vars(data).get("trial_lists")
    if lists is not None:
        if isinstance(lists, str):
            changes["trial_lists"] = _absolute_trial_list(lists, data)
        else:
            changes["trial_lists"] = [_absolute_trial_list(path, data) for path in lists]
    augment = config.augment
    if augment.noise_dir is not None:
        augment = replace(augment, noise_dir=_absolute(augment.noise_dir))
    return replace(
        config,
        data=replace(data, **changes),
        augment=augment,
        run_dir=None if config.run_dir is None else _absolute(config.run_dir),
        init_from=None if config.init_from is None else _absolute(config.init_from),
        teacher=config.teacher if config.teacher in {None, SELF_TEACHER} else _absolute(str(config.teacher)),
    )


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _absolute_trial_list(path: str, data: DataConfig) -> str:
    """Return a file's path, or ``FOLDER:list``; a list of the run's own prepared folder has no path."""
    folder, _, name = path.rpartition(":")
    of_prepared = isinstance(data, PreparedDataConfig)
    if of_prepared and not folder:
        return path
    if folder and (of_prepared or os.path.isdir(os.path.expanduser(folder))):
        return f"{_absolute(folder)}:{name}"
    return _absolute(path)


def read_config(run: Path) -> Config:
    """Read the settings that a run's folder keeps.

    Raises:
        OSError: there are none.
        ValueError: they are not those of this version.
    """
    return Config.from_dict(read_settings(run), str(run / "config.yaml"))


def read_settings(run: Path) -> dict[str, Any]:
    """Read the settings that a run's folder keeps, as plain data.

    Raises:
        OSError: there are none.
    """
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(run / "config.yaml")))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their names as typed, such as ``trainer.epochs``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def conf_dir() -> Path:
    """Return the folder conf, which lies in the package in an installed wheel and beside it in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def default_num_workers() -> int:
    """Return how many processes read crops by default: all cores of this process but one, at most 8."""
    cores = int(cpu_count()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(8, cores - 1))


def _schema_of(settings: Mapping[str, Any], choices: Mapping[str, Any]) -> Any:
    """Return the schema that belongs to a group's plain settings."""
    if "name" in settings:
        return writable(choices[settings["name"]])
    if "synthesize" in settings:
        return writable(choices["demo"])
    if "trial_root" in settings:
        return writable(choices["audio"])
    return writable(choices["prepared" if "prepared_dir" in settings else "folder"])


# Hydra expects it so: whoever imports the settings can compose them.
register_schema()
