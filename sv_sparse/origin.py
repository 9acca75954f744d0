"""Where a run starts that does not start from scratch: the network, the head and the lambda of a finished run."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse import checkpoint
from sv_sparse.data.manifest import Manifest
from sv_sparse.head import AAMSoftmax
from sv_sparse.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What a run takes over from another.

    Attributes:
        folder: The other run's folder.
        model: Settings of its network.
        weights: The network's state, landed.
        figures: What its landing said.
        rows: The head's weight for each speaker; empty where the run kept no head.
    """

    folder: Path
    model: Settings
    weights: dict[str, Any]
    figures: dict[str, Any]
    rows: dict[str, Tensor]

    @property
    def started_sparse(self) -> bool:
        """Whether its weights grew from a sparse start, which makes them larger, and the rate that suits them."""
        return bool(self.figures["started_sparse"])

    def put_into(self, network: nn.Module, model: Settings, head: AAMSoftmax, speakers: list[str]) -> None:
        """Load the network, and the head's rows of the speakers that both runs train on; the others stay as they are.

        Args:
            network: What is trained.
            model: Its settings.
            head: The new head.
            speakers: Whom its first rows stand for.

        Raises:
            ValueError: The network is another than the origin's; says how to choose it.
        """
        if model != self.model:
            differing = sorted(name for name in model | self.model if model.get(name) != self.model.get(name))
            theirs = ", ".join(f"model.{name}={self.model.get(name)}" for name in differing)
            raise ValueError(f"init_from={self.folder}: its network has {theirs}; choose the same model")
        network.load_state_dict(self.weights)
        known = [row for row, speaker in enumerate(speakers) if speaker in self.rows]
        if known:
            with torch.no_grad():
                head.weight[known] = torch.stack([self.rows[speakers[row]] for row in known])
        logger.info(
            "starting from %s; the head knows %d of %d training speakers", self.folder, len(known), len(speakers)
        )


def read_origin(settings: Settings) -> Origin | None:
    """What ``init_from`` names; None where a run starts from scratch.

    Raises:
        ValueError: It is no finished run.
    """
    if settings["init_from"] is None:
        return None
    folder = Path(settings["init_from"])
    network = folder / "checkpoints" / "model.pt"
    if not network.is_file():
        raise ValueError(f"init_from={folder}: expected the folder of a finished run, with checkpoints/model.pt")
    state = checkpoint.load(network, checkpoint.NETWORK_KEYS)
    return Origin(folder, state["config"]["model"], state["model"], state["figures"], _head_rows(folder))


def _head_rows(folder: Path) -> dict[str, Tensor]:
    last = folder / "checkpoints" / "last.pt"
    if not last.is_file():
        return {}
    weight = checkpoint.load(last, checkpoint.TRAINING_KEYS)["head"]["weight"]
    speakers = Manifest(folder / "manifest.parquet").speakers("train")
    return dict(zip(speakers, weight, strict=False))  # what is left over stands for the same speakers at other speeds
