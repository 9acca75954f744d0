"""What a run delivers, read for use."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from sv_sparse import checkpoint
from sv_sparse.models.features import MEL_BINS
from sv_sparse.models.registry import build_model
from sv_sparse.scoring.backend import Backend


def load_network(path: Path, trusted: Collection[str] = ()) -> tuple[nn.Module, Backend, dict[str, Any]]:
    """A trained network in evaluation mode, what scores its embeddings, and its run's settings.

    Args:
        path: a network file: ``model.pt`` or ``best.pt``.
        trusted: import paths of the user's own classes that the file may name.

    Raises:
        ValueError: it is no network file, or one of a network that is none of ours; names it.
    """
    state = checkpoint.load(path, checkpoint.NETWORK_KEYS)
    settings: dict[str, Any] = state["config"]
    try:
        network = build_model(settings["model"], MEL_BINS, trusted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    network.load_state_dict(state["model"])
    return network.eval(), Backend.of(state["backend"]), settings
