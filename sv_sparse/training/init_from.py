"""Where a run starts that does not start from scratch.

A finished run, or one of its network files (``best.pt``), gives the network, the head and lambda. Another toolkit's
weights give the network alone, which is dense.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from sv_sparse import checkpoint
from sv_sparse.config.settings import Settings
from sv_sparse.data.manifest import Manifest, match
from sv_sparse.data.prepared import rows_of
from sv_sparse.io import composed
from sv_sparse.models.heads import AAMSoftmax
from sv_sparse.models.pretrained.convert import convert

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What a run takes over.

    Attributes:
        path: What ``init_from`` named.
        model: Settings of its network.
        weights: The network's state.
        lambda_: At which it was read out; 0 for a dense one.
        started_sparse: Whether its weights grew from a sparse start, which makes them larger, and the rate that suits
            them.
        rows: The head's weight for each speaker; empty where no head was kept.
        manifest: What it was trained on, where that is known.
    """

    path: Path
    model: Settings
    weights: dict[str, Tensor]
    lambda_: float = 0.0
    started_sparse: bool = False
    rows: dict[str, Tensor] = field(default_factory=dict)
    manifest: Manifest | None = None

    def put_into(self, network: nn.Module, model: Settings, head: AAMSoftmax, manifest: Manifest) -> None:
        """Load the network, and the head's rows of the speakers that both train on; the others stay as they are.

        Args:
            network: What is trained.
            model: Its settings.
            head: The new head.
            manifest: What is trained on now; names of speakers mean the same where they say the same utterances.

        Raises:
            ValueError: The network is another than the origin's; says how to choose it.
        """
        if model["_target_"] != self.model["_target_"]:
            theirs = ", ".join(f"model.{name}={value}" for name, value in self.model.items() if name != "_target_")
            raise ValueError(
                f"init_from={self.path}: its network is {self.model['_target_']} with {theirs}; choose that"
            )
        wanted = [name for name in model | self.model if name != "implementation"]
        differing = sorted(name for name in wanted if model.get(name) != self.model.get(name))
        if differing:
            theirs = ", ".join(f"model.{name}={self.model.get(name)}" for name in differing)
            raise ValueError(f"init_from={self.path}: its network has {theirs}; choose the same model")
        network.load_state_dict(self.weights)
        speakers = manifest.speakers("train")
        their_name = _shared_speakers(self.manifest, manifest) if self.manifest is not None else {}
        known = [row for row, speaker in enumerate(speakers) if their_name.get(speaker) in self.rows]
        if known:
            with torch.no_grad():
                head.weight[known] = torch.stack([self.rows[their_name[speakers[row]]] for row in known])
        logger.info("starting from %s; the head knows %d of %d training speakers", self.path, len(known), len(speakers))


def read_origin(settings: Settings) -> Origin | None:
    """What ``init_from`` names; None where a run starts from scratch.

    Raises:
        ValueError: It is neither a finished run nor a file of weights that can be read.
    """
    if settings["init_from"] is None:
        return None
    path = Path(settings["init_from"])
    network = network_file(path)
    if path.is_file():
        state = read_weights(path)
        return _of_network_file(path, path) if "format" in state else _of_toolkit(path, state)
    return _of_network_file(path, network)


def network_file(path: Path) -> Path:
    """Return the file of weights that ``init_from`` names, in a run's folder ``checkpoints/model.pt``.

    Raises:
        ValueError: There is none.
    """
    network = path if path.is_file() else path / "checkpoints" / "model.pt"
    if not network.is_file():
        raise ValueError(
            f"init_from={path}: expected the folder of a finished run, with checkpoints/model.pt, one of its network "
            f"files, or weights of SpeechBrain or WeSpeaker"
        )
    return network


def _of_network_file(path: Path, file: Path) -> Origin:
    state = checkpoint.load(file, checkpoint.NETWORK_KEYS)
    figures, folder = state["figures"], file.parent.parent
    of_run = file.parent.name == "checkpoints" and (folder / "manifest.parquet").is_file()
    manifest = Manifest(folder / "manifest.parquet") if of_run else None
    return Origin(
        path,
        state["config"]["model"],
        state["model"],
        figures["lambda"],
        figures["started_sparse"],
        _head_rows(folder, manifest) if manifest is not None else {},
        manifest,
    )


def _of_toolkit(path: Path, state: dict[str, Any]) -> Origin:
    try:
        kind, model, weights = convert(state)
    except ValueError as error:
        raise ValueError(f"init_from={path}: {error}") from error
    logger.info("%s: %s, dense, of features and speakers that are not known here", path, kind)
    return Origin(path, model, weights)


def read_weights(path: Path) -> dict[str, Any]:
    """A file of tensors and plain data; nothing in it is run.

    Raises:
        ValueError: It cannot be read as one.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except checkpoint.DAMAGED as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"init_from={path}: cannot be read as a file of weights ({first})") from error
    if not isinstance(state, dict):
        raise ValueError(f"init_from={path}: holds a {type(state).__name__}, expected a state dict")
    return state


def _shared_speakers(one: Manifest, other: Manifest) -> dict[str, str]:
    """Return the other's names of speakers, with the one's names for them.

    They are those of whom both train on some utterance of one name: of the same corpus, that is, whatever its files.
    """
    theirs, ours = (rows_of(manifest.source, "train") for manifest in (one, other))
    place = match(ours.column("utterance").to_pylist(), theirs.column("utterance").combine_chunks())
    in_both = place >= 0
    names = ours.column("speaker").cast(pa.string()).filter(pa.array(in_both)).to_pylist()
    their_names = theirs.column("speaker").cast(pa.string()).take(pa.array(place[in_both])).to_pylist()
    pairs = dict.fromkeys(zip(names, their_names, strict=True))
    return {name: their_name for name, their_name in pairs if composed(name) == composed(their_name)}


def _head_rows(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    last = folder / "checkpoints" / "last.pt"
    if not last.is_file():
        return {}
    weight = checkpoint.load(last, checkpoint.TRAINING_KEYS)["head"]["weight"]
    return dict(zip(manifest.speakers("train"), weight, strict=False))  # the rows after them: the same, at other speeds
