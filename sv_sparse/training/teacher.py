"""The teacher of a run: a frozen network, whose embeddings the trained network learns to reproduce.

Its embeddings need no labels. Where the trained network keeps them, enrolled voiceprints and thresholds stay valid.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse import checkpoint
from sv_sparse.config.schema import SELF_TEACHER, Config
from sv_sparse.data.augment_ops import mask_filterbank
from sv_sparse.models.features import MEL_BINS, build_features
from sv_sparse.models.registry import build_model, features_of
from sv_sparse.training.device import DeviceConfig
from sv_sparse.training.init_from import read_source

# In checkpoints/: the network at the start of the run, with teacher=self.
TEACHER_FILE = "teacher.pt"

logger = logging.getLogger(__name__)


class Teacher:
    """Frozen network in evaluation mode, with the features that it takes.

    It is no module, so that no optimizer, no checkpoint and no bucket of gradients gets its parameters.

    Args:
        network: filterbank [B, F, T] to embedding [B, E], on the CPU; it is moved to the device and frozen.
        model: settings of the network.
        device: where a run trains, and how.

    Attributes:
        digest: checksum of the weights, 32 hexadecimal digits.
        filterbank: waveforms [B, S] to features [B, F, T].
    """

    def __init__(self, network: nn.Module, model: dict[str, Any], device: DeviceConfig) -> None:
        # On the CPU: devices do not change it.
        self.digest = checkpoint.weights_digest(network.state_dict()).hex()
        self.network = network.requires_grad_(False).eval().to(device.device)
        self.model = model
        self.filterbank = build_features(features_of(model)).to(device.device)
        self._forward = device.compile(self.network)

    @torch.no_grad()
    def embed(self, waveforms: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return embeddings [B, E] of crops, in the precision of the caller's autocast.

        Args:
            waveforms: float32 [B, S] in [-1, 1], on the device.
            mask: float32 [B, 4], the frames and bins to mask, as ``mask_filterbank`` takes them. Default: none.
        """
        features = self.filterbank(waveforms)
        if mask is not None:
            features = mask_filterbank(features, mask)
        embedding: Any = self._forward(features)
        return embedding


def build_teacher(
    config: Config, run_dir: Path, network: nn.Module, device: DeviceConfig, trusted_classes: Sequence[str]
) -> Teacher | None:
    """Build the teacher of a run; None where the settings name none.

    Args:
        config: settings of the run.
        run_dir: its folder. With teacher=self a resumed run has its teacher there.
        network: of the run, as it starts.
        device: where it trains.
        trusted_classes: import paths of network classes that the user named.

    Raises:
        ValueError: a file is missing or cannot be read; names it.
    """
    if config.teacher is None:
        return None
    if config.teacher == SELF_TEACHER:
        model, teacher_network = config.model_settings, copy.deepcopy(network)
        checkpoints = run_dir / "checkpoints"
        if (checkpoints / "last.pt").is_file():
            state = checkpoint.load(checkpoints / TEACHER_FILE, checkpoint.TEACHER_KEYS)
            teacher_network.load_state_dict(state["model"])
    else:
        teacher_network, model = _read_network(config, network, trusted_classes)
    teacher = Teacher(teacher_network, model, device)
    num_params = sum(param.numel() for param in teacher.network.parameters())
    logger.info(
        "teacher: %s, %s parameters, crops: %s, weight %g",
        config.teacher,
        f"{num_params:,}",
        config.distill.input,
        config.distill.weight,
    )
    return teacher


def check_teacher(config: Config, network: Any, trusted_classes: Sequence[str]) -> None:
    """Check that a teacher other than the network itself can be read, and has embeddings of the network's size.

    Args:
        config: settings of the run.
        network: of the run.
        trusted_classes: import paths of network classes that the user named.

    Raises:
        ValueError: it cannot be read, or has embeddings of another size; names both.
    """
    if config.teacher in {None, SELF_TEACHER}:
        return
    teacher, _ = _read_network(config, network, trusted_classes)
    size = teacher.embedding_dim
    if size != network.embedding_dim:
        raise ValueError(
            f"teacher={config.teacher} has embeddings of {size} numbers, {config.model_text} of "
            f"{network.embedding_dim}; they must be equal, choose for instance model.embedding_dim={size}"
        )


def _read_network(config: Config, network: nn.Module, trusted_classes: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Return the network that ``teacher`` names, on the CPU, and its settings; a file may be one of ``network``."""
    source = read_source("teacher", config, network, with_head=False)
    # The draws of its weights, which are replaced, leave those of the run as they are.
    with torch.random.fork_rng(devices=[]):
        try:
            teacher = build_model(source.model, MEL_BINS, trusted=trusted_classes)
            teacher.load_state_dict(source.weights)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"teacher={config.teacher}: {error}") from error
    return teacher, source.model
