"""Settings that a run takes from the run that ``init_from`` names, unless the command line has others.

Hydra composes them. Before it does, each run that ``init_from`` names becomes a choice of the group ``init_from``. The
choice brings the run's ``target_sparsity`` (group ``init_from_target``) and its model, data, optim and sparsity (group
``init_from_groups``). In conf/config.yaml these groups stand where the usual order gives everything else precedence:
``target_sparsity`` before the sparsity, which is dense or not, and the groups before the experiment.

The features are those that the weights were trained on, also of a file of another toolkit's weights, and beside a
choice of ``model``; only ``model.features`` changes them.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import MISSING
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sv_sparse import checkpoint
from sv_sparse.config.overrides import read_overrides, values_of
from sv_sparse.config.schema import (
    MODEL_SETTINGS,
    Config,
    ModelConfig,
    flatten,
    read_config,
    trains_dense,
    typed_groups,
    writable,
)
from sv_sparse.evaluation.corpus import corpus_summary
from sv_sparse.models.pretrained.convert import pretrained_settings
from sv_sparse.training.init_from import network_file, read_weights

GROUPS = ("model", "data", "optim", "sparsity")
# Begins the names of the choices that are made here.
CHOICE = "from_run"

# Settings in a line of the log.
_MAX_NAMES = 5


def register_init_sources(arguments: Sequence[str]) -> None:
    """Make each run that ``init_from`` names on a command line a choice of Hydra's.

    Where ``run_dir`` names a run with a checkpoint, which torchrun or SLURM start again with the same command, its own
    settings are offered: it is resumed without what it started from.

    Args:
        arguments: the command line without the program's name.

    Raises:
        ValueError: the command line cannot be read, or ``init_from`` names neither a finished run nor a file of
            weights.
    """
    # Earlier calls in this process have left theirs.
    _remove_choices()
    overrides = read_overrides(arguments)
    existing = _config_of_existing_run(overrides)
    names_class = any(override.key_or_group == "model._target_" for override in overrides)
    for override in overrides:
        if override.key_or_group != "init_from" or override.type != OverrideType.CHANGE:
            continue
        paths = values_of(override)
        if None in paths and len(paths) > 1:
            raise ValueError("init_from=null beside runs: give a command of its own for what starts from scratch")
        for index, path in enumerate(paths, start=1):
            # Otherwise it is known only when composed.
            if isinstance(path, str) and path and "${" not in path:
                config = existing if existing is not None else source_config(path)
                model = _file_model(path) if config is None else config.model
                if config is None and names_class:
                    model = {"_target_": MISSING}
                _register(path, f"{CHOICE}_{index}", config, model)


def source_config(path: str | Path) -> Config | None:
    """Return the settings of the run that ``init_from`` names; None for weights of another toolkit.

    Raises:
        ValueError: it is neither a finished run nor a file of weights, or cannot be read.
    """
    file = network_file(Path(os.path.expanduser(path)))
    run_dir = file.parent.parent
    if file.parent.name == "checkpoints" and (run_dir / "config.yaml").is_file():
        return _read_config(run_dir, f"init_from={path}")
    if "format" in read_weights(file):
        state = checkpoint.load(file, checkpoint.NETWORK_KEYS)
        return Config.from_dict(state["config"], f"init_from={path}")
    return None


def describe_sources(config: Config) -> dict[str, str]:
    """Return what a new run trains on and starts from, in words, for the first lines of its log.

    Args:
        config: of the run, as Hydra has just composed it.

    Returns:
        ``corpus``, and ``init_from`` where it starts from something.

    Raises:
        ValueError: ``init_from`` names a run whose data could not be taken, and the command line has none.
    """
    composed = HydraConfig.get()
    is_named = any(word.startswith("data=") for word in composed.overrides.task)
    by_default = not is_named and composed.runtime.choices["data"] == "demo"
    sources = {"corpus": _corpus_in_words(config, by_default=by_default)}
    path = config.init_from
    if path is None:
        return sources
    source = source_config(path)
    if source is None:
        sources["init_from"] = f"{path}, which does not say what it was trained on"
        return sources
    if by_default and composed.runtime.choices.get("init_from") is None:
        raise ValueError(
            f"init_from={path}: a run's model and data are taken only where the command line names the run in "
            f"full, without ${{...}}; give model= and data= here"
        )
    sources["init_from"] = f"{path}; {_compare(config, source)}"
    return sources


def _config_of_existing_run(overrides: Sequence[Override]) -> Config | None:
    """Return the settings of the run that ``run_dir`` names, None where it has no checkpoint to resume from."""
    folders = []
    for override in overrides:
        if override.key_or_group == "run_dir":
            folders += values_of(override)
    if len(folders) != 1 or not isinstance(folders[0], str):
        return None
    run_dir = Path(folders[0])
    if not (run_dir / "checkpoints" / "last.pt").is_file():
        return None
    return _read_config(run_dir, f"run_dir={run_dir}")


def _file_model(path: str) -> ModelConfig | None:
    """Return the settings of a network whose weights are another toolkit's; None where they cannot be told."""
    try:
        settings = pretrained_settings(read_weights(Path(os.path.expanduser(path))))
    except ValueError:
        # The run that is about to start says what is wrong with the file.
        return None
    return replace(MODEL_SETTINGS[settings["name"]], **settings)


def _register(path: str, name: str, config: Config | None, model: Any) -> None:
    """Store a choice ``init_from=PATH`` and what it chooses.

    Args:
        path: what ``init_from`` names.
        name: of the choice.
        config: settings of the run there; None for a file of weights.
        model: settings of the network there; None where they are not known. Its features are chosen also beside
            another ``model=``.
    """
    store = ConfigStore.instance()
    groups_node: dict[str, Any] = {}
    choices = [{"override /init_from_groups": name}]
    if config is not None:
        nodes = typed_groups(config, GROUPS)
        if trains_dense(config.sparsity):
            # A dense run's, with which no target could be asked for.
            del nodes["sparsity"]
        for group, group_node in nodes.items():
            store.store(group=group, name=name, node=group_node)
        groups_node["defaults"] = [{f"override /{group}": name} for group in nodes]
        target = {"target_sparsity": config.target_sparsity}
        store.store(group="init_from_target", name=name, node=target, package="_global_")
        choices.append({"override /init_from_target": name})
    elif model is not None:
        store.store(group="model", name=name, node=model if isinstance(model, dict) else writable(model))
        groups_node["defaults"] = [{"override /model": name}]
    # A class of the user's own has settings by name.
    features = model.get("features") if isinstance(model, dict) else getattr(model, "features", None)
    if features is not None:
        groups_node["model"] = {"features": features}
    store.store(group="init_from_groups", name=name, node=groups_node, package="_global_")
    node = {"defaults": choices, "init_from": path}
    # Hydra looks for a choice without the slash, and reads it with it.
    for choice in {path, path.rstrip("/")}:
        folder, _, last = choice.rpartition("/")
        group = "/".join(["init_from", *filter(None, folder.split("/"))])
        store.store(group=group, name=last, node=node, package="_global_")


def _remove_choices() -> None:
    repo = ConfigStore.instance().repo
    for group in ("init_from", "init_from_target", "init_from_groups"):
        repo.pop(group, None)
    for group in GROUPS:
        for name in [name for name in repo.get(group, {}) if name.startswith(CHOICE)]:
            del repo[group][name]


def _corpus_in_words(config: Config, *, by_default: bool) -> str:
    corpus = corpus_summary(config)
    notes = []
    if corpus["synthetic"]:
        notes.append("synthetic voices")
    if by_default:
        notes.append("data=demo is the default, data=folder reads your recordings")
    in_parentheses = f" ({'; '.join(notes)})" if notes else ""
    return f"{corpus['name']}{in_parentheses}, {corpus['path']}"


def _compare(config: Config, source: Config) -> str:
    """Return in words which of the settings that can be taken are as in the source, and which are not."""
    names = (*GROUPS, "target_sparsity")
    current = {name: value for name, value in config.to_dict().items() if name in names}
    values = flatten(current)
    source_values = flatten({name: value for name, value in source.to_dict().items() if name in names})
    source_values["data.val_seed"] = source.val_seed
    differing = [name for name in sorted(source_values) if values.get(name) != source_values[name]]
    same = []
    for name in names:
        if not any(other == name or other.startswith(f"{name}.") for other in differing):
            same.append(name)
    words = f"as there: {', '.join(same) or 'nothing'}"
    if differing:
        more = f" and {len(differing) - _MAX_NAMES} more" if len(differing) > _MAX_NAMES else ""
        words += f"; other than there: {', '.join(differing[:_MAX_NAMES])}{more}"
    return words


def _read_config(run_dir: Path, setting: str) -> Config:
    """Read a run's config.yaml; a ValueError says which setting named the run."""
    try:
        return read_config(run_dir)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{setting}: {run_dir / 'config.yaml'} cannot be read: {error}") from error
