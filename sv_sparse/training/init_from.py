"""Sources of a run that does not start from scratch.

A finished run, or one of its network files (``best.pt``), brings the network, the head and lambda. A state dict of the
run's network, or another toolkit's weights, bring the network alone, which is dense.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from sv_sparse import checkpoint
from sv_sparse.config.schema import Config, HeadConfig, read_config
from sv_sparse.data.manifest import Manifest, match_utterances
from sv_sparse.data.prepared import read_split
from sv_sparse.io import nfc
from sv_sparse.models.heads import AAMSoftmax, NoHead
from sv_sparse.models.pretrained.convert import convert, kinds
from sv_sparse.models.registry import features_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitSource:
    """State that a run starts from."""

    # The path that ``init_from``, or ``teacher``, named.
    path: Path
    # Settings of its network.
    model: dict[str, Any]
    # State dict of the network.
    weights: dict[str, Tensor]
    # Lambda that the weights were computed with; 0 for a dense network.
    lambda_: float = 0.0
    # True where the weights grew from a sparse start, which makes them larger.
    sparse_init: bool = False
    # The head's weights [sub_centers, E] of each speaker; empty if no head was kept.
    head_rows: dict[str, Tensor] = field(default_factory=dict)
    # ``head.sub_centers`` of that head.
    sub_centers: int = 1
    # Its training data, if known.
    manifest: Manifest | None = None

    def apply_to(self, network: nn.Module, model: dict[str, Any], head: nn.Module, manifest: Manifest) -> None:
        """Load the network, and the head's rows of speakers that both train on; other rows stay as they are.

        Args:
            network: the new network.
            model: its settings.
            head: the new head.
            manifest: the new training data; speakers are the same where both have utterances of the same names.

        Raises:
            ValueError: the network is another than the source's; says how to choose it.

        Warns of other features than the source's, by the log.
        """
        self._check_same_model(model)
        source_features = features_of(self.model)
        if features_of(model) != source_features:
            # No error: who goes on with other features, say those of a device, may train long enough for them.
            logger.warning(
                "init_from=%s: its network was trained on the features %s, this run computes %s; "
                "model.features=%s computes the same",
                self.path,
                source_features,
                features_of(model),
                source_features,
            )
        network.load_state_dict(self.weights)
        if isinstance(head, NoHead):
            logger.info("starting from %s", self.path)
            return
        speakers = manifest.speakers("train")
        source_names = _common_speakers(self.manifest, manifest) if self.manifest is not None else {}
        indices = []
        # What the parameters of a loss of the user's own mean is not known: it starts anew.
        if isinstance(head, AAMSoftmax) and self._fits_sub_centers(head):
            indices = [index for index, speaker in enumerate(speakers) if source_names.get(speaker) in self.head_rows]
            with torch.no_grad():
                rows = head.weight.unflatten(0, (-1, head.sub_centers))
                for index in indices:
                    rows[index] = self.head_rows[source_names[speakers[index]]]
        logger.info("starting from %s; the head has %d of %d training speakers", self.path, len(indices), len(speakers))

    def _fits_sub_centers(self, head: AAMSoftmax) -> bool:
        """Return whether a speaker has as many weight vectors in both heads; warn where rows are lost otherwise."""
        fits = head.sub_centers == self.sub_centers
        if self.head_rows and not fits:
            logger.warning(
                "init_from=%s: its head has head.sub_centers=%d, this one %d; it starts anew",
                self.path,
                self.sub_centers,
                head.sub_centers,
            )
        return fits

    def _check_same_model(self, model: dict[str, Any]) -> None:
        for key in ("name", "_target_"):
            if model.get(key) != self.model.get(key):
                # init_from brings the features.
                others = {name: value for name, value in self.model.items() if name not in {key, "features"}}
                listed = ", ".join(f"model.{name}={value}" for name, value in others.items())
                kind = self.model.get("name", self.model.get("_target_"))
                raise ValueError(f"init_from={self.path}: its network is {kind} with {listed}; choose that")
        names = sorted((model.keys() | self.model.keys()) - {"features"})
        differing = [name for name in names if model.get(name) != self.model.get(name)]
        if differing:
            listed = ", ".join(f"model.{name}={self.model.get(name)}" for name in differing)
            raise ValueError(f"init_from={self.path}: its network has {listed}; choose the same model")


def load_init_source(config: Config, network: nn.Module | None = None) -> InitSource | None:
    """Load what ``init_from`` names; None for a run from scratch.

    Args:
        config: settings of the run.
        network: network of the run; a file may hold its state dict. Default: none.

    Raises:
        ValueError: it is neither a finished run nor a file of weights that can be read.
    """
    return None if config.init_from is None else read_source("init_from", config, network, with_head=True)


def read_source(setting: str, config: Config, network: nn.Module | None, *, with_head: bool) -> InitSource:
    """Read a trained network: a finished run, one of its network files, or a file of weights.

    Args:
        setting: that names it: ``init_from`` or ``teacher``.
        config: settings of the new run.
        network: network of the new run; a file may hold its state dict.
        with_head: whether to read the finished run's head and training data too.

    Raises:
        ValueError: it is neither a finished run nor a file of weights that can be read.
    """
    path = Path(getattr(config, setting))
    file = network_file(path, setting)
    if path.is_file():
        state = read_weights(path, setting)
        # Every network file of a run has this key.
        if "format" not in state:
            return _from_pretrained(path, state, setting, config.model_settings, network)
    return _from_run_checkpoint(path, file, with_head=with_head)


def network_file(path: Path, setting: str = "init_from") -> Path:
    """Return the file of weights that a setting names; in a run's folder, ``checkpoints/model.pt``.

    Raises:
        ValueError: there is none.
    """
    if not path.exists():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(f"{setting}={path}: no such file or folder{where}")
    file = path if path.is_file() else path / "checkpoints" / "model.pt"
    if not file.is_file():
        raise ValueError(
            f"{setting}={path}: expected the folder of a finished run, with checkpoints/model.pt, one of its network "
            f"files, a state dict of the network of model=, or weights of {', '.join(kinds())}"
        )
    return file


def read_weights(path: Path, setting: str = "init_from") -> dict[str, Any]:
    """Read a file of tensors and plain data; nothing in it is run.

    Raises:
        ValueError: it cannot be read as that.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # Torch's own message advises to run what is in the file.
        has_classes = any(f"Unsupported {kind}" in str(error) for kind in ("global", "class"))
        problem = "has objects of Python classes, which could run code" if has_classes else "not a file of torch.save"
        raise ValueError(f"{setting}={path}: {problem}; expected a state dict that torch.save wrote") from error
    except checkpoint.CORRUPT_FILE_ERRORS as error:
        raise ValueError(
            f"{setting}={path}: damaged, or not written by torch.save; expected a state dict that torch.save wrote"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{setting}={path}: holds a {type(state).__name__}, expected a state dict")
    return state


def _from_run_checkpoint(path: Path, file: Path, *, with_head: bool) -> InitSource:
    state = checkpoint.load(file, checkpoint.NETWORK_KEYS)
    run_dir = file.parent.parent
    belongs_to_run = with_head and file.parent.name == "checkpoints" and (run_dir / "manifest.parquet").is_file()
    manifest = Manifest(run_dir / "manifest.parquet") if belongs_to_run else None
    # Heads of version 0.2 have no such setting; what one of a loss of the user's own means is not known.
    head = state["config"]["head"]
    sub_centers = 1 if "_target_" in head else head.get("sub_centers", 1)
    return InitSource(
        path,
        state["config"]["model"],
        state["model"],
        lambda_=state["metrics"]["lambda"],
        sparse_init=state["metrics"]["sparse_init"],
        head_rows={} if manifest is None else _load_head_rows(run_dir, manifest, sub_centers),
        sub_centers=sub_centers,
        manifest=manifest,
    )


def _from_pretrained(
    path: Path, state: dict[str, Any], setting: str, run_model: dict[str, Any], network: nn.Module | None
) -> InitSource:
    try:
        kind, model, weights = convert(state, run_model, network)
    except ValueError as error:
        raise ValueError(f"{setting}={path}: {error}") from error
    logger.info("%s: %s, dense, features %s; training speakers unknown", path, kind, features_of(model))
    return InitSource(path, model, weights)


def _common_speakers(source: Manifest, target: Manifest) -> dict[str, str]:
    """Return the target's names of speakers, each with the source's name.

    Speakers are common where both train on some utterance of the same name: of the same corpus, that is, wherever its
    files lie.
    """
    source_rows = read_split(source.source, "train")
    target_rows = read_split(target.source, "train")
    source_index = match_utterances(
        target_rows.column("utterance").to_pylist(), source_rows.column("utterance").combine_chunks()
    )
    in_both = source_index >= 0
    target_names = target_rows.column("speaker").cast(pa.string()).filter(pa.array(in_both)).to_pylist()
    source_names = source_rows.column("speaker").cast(pa.string()).take(pa.array(source_index[in_both])).to_pylist()
    # One comparison for each pair of speakers, not for each of a million utterances.
    pairs = dict.fromkeys(zip(target_names, source_names, strict=True))
    common = {}
    for target_name, source_name in pairs:
        if nfc(target_name) == nfc(source_name):
            common[target_name] = source_name
    return common


def _load_head_rows(run_dir: Path, manifest: Manifest, sub_centers: int) -> dict[str, Tensor]:
    last = run_dir / "checkpoints" / "last.pt"
    if not last.is_file() or not isinstance(read_config(run_dir).head, HeadConfig):
        return {}
    weight = checkpoint.load(last, checkpoint.TRAINING_KEYS)["head"]["weight"]
    # The rows beyond those of the speakers are the same speakers at other speeds.
    return dict(zip(manifest.speakers("train"), weight.unflatten(0, (-1, sub_centers)), strict=False))
