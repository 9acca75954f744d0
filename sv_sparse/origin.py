"""Where a run starts that does not start from scratch: the network, the head and the lambda of a finished run."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from sv_sparse import checkpoint
from sv_sparse.data.manifest import Manifest, match
from sv_sparse.data.prepared import rows_of
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
        manifest: What the other run trained on.
    """

    folder: Path
    model: Settings
    weights: dict[str, Any]
    figures: dict[str, Any]
    rows: dict[str, Tensor]
    manifest: Manifest

    @property
    def started_sparse(self) -> bool:
        """Whether its weights grew from a sparse start, which makes them larger, and the rate that suits them."""
        return bool(self.figures["started_sparse"])

    def put_into(self, network: nn.Module, model: Settings, head: AAMSoftmax, manifest: Manifest) -> None:
        """Load the network, and the head's rows of the speakers that both runs train on; the others stay as they are.

        Args:
            network: What is trained.
            model: Its settings.
            head: The new head.
            manifest: What is trained on now; names of speakers mean the same where they say the same utterances.

        Raises:
            ValueError: The network is another than the origin's; says how to choose it.
        """
        if model != self.model:
            differing = sorted(name for name in model | self.model if model.get(name) != self.model.get(name))
            theirs = ", ".join(f"model.{name}={self.model.get(name)}" for name in differing)
            raise ValueError(f"init_from={self.folder}: its network has {theirs}; choose the same model")
        network.load_state_dict(self.weights)
        speakers, shared = manifest.speakers("train"), _shared_speakers(self.manifest, manifest)
        known = [row for row, speaker in enumerate(speakers) if speaker in self.rows and speaker in shared]
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
    manifest = Manifest(folder / "manifest.parquet")
    rows = _head_rows(folder, manifest)
    return Origin(folder, state["config"]["model"], state["model"], state["figures"], rows, manifest)


def _shared_speakers(one: Manifest, other: Manifest) -> set[str]:
    """Speakers of whom both train on some utterance of one name: of the same corpus, that is, whatever its files."""
    theirs, ours = (rows_of(manifest.source, "train") for manifest in (one, other))
    place = match(ours.column("utterance").to_pylist(), theirs.column("utterance").combine_chunks())
    names, others = (table.column("speaker").cast(pa.string()) for table in (ours, theirs))
    speakers = names.filter(pa.array(place >= 0))
    same = pc.equal(speakers, others.take(place[place >= 0]))
    return set(speakers.filter(same).unique().to_pylist())


def _head_rows(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    last = folder / "checkpoints" / "last.pt"
    if not last.is_file():
        return {}
    weight = checkpoint.load(last, checkpoint.TRAINING_KEYS)["head"]["weight"]
    return dict(zip(manifest.speakers("train"), weight, strict=False))  # the rows after them: the same, at other speeds
