"""Trained networks from their files."""

from collections.abc import Collection
from pathlib import Path

from torch import nn

from sv_sparse import checkpoint
from sv_sparse.config.schema import Config
from sv_sparse.models.features import MEL_BINS
from sv_sparse.models.registry import build_model
from sv_sparse.scoring.backend import Backend


def load_network(path: Path, trusted: Collection[str] = ()) -> tuple[nn.Module, Backend, Config]:
    """Load a trained network in evaluation mode on the CPU, with its scoring back-end and its run's settings.

    Args:
        path: folder of a run, or a network file: ``model.pt`` or ``best.pt``.
        trusted: import paths of the user's own classes, such as ``mypkg.net.Net``, that the file may name.

    Raises:
        ValueError: the file is no network file, or its network is neither registered nor trusted.
    """
    if path.is_dir():
        path = path / "checkpoints" / "model.pt"
    # A file alone never makes code run (DECISIONS 92): only names in ``trusted`` are imported.
    state = checkpoint.load(path, checkpoint.NETWORK_KEYS)
    config = Config.from_dict(state["config"], str(path))
    try:
        network = build_model(config.model_settings, MEL_BINS, trusted=trusted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    network.load_state_dict(state["model"])
    return network.eval(), Backend.from_dict(state["backend"]), config
