"""Settings that a run takes over from the run that it starts from, as far as no others are chosen.

Hydra composes them: before it does, each run that ``init_from`` names is made a choice of the group ``init_from``. The
choice brings the run's ``target_sparsity`` (group ``origin_target``) and its model, data, optim and sparsity (group
``origin_groups``). In conf/config.yaml these groups stand where the usual order gives everything else precedence:
``target_sparsity`` before the sparsity, which is dense or not, and the groups before the experiment.
"""

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sv_sparse import checkpoint
from sv_sparse.config.overrides import read_overrides, values_of
from sv_sparse.config.settings import Settings, classes, flat, plain, read_choice, read_settings
from sv_sparse.evaluation.corpus import corpus_summary
from sv_sparse.training.init_from import network_file, read_weights

GROUPS = ("model", "data", "optim", "sparsity")

_ABSENT = object()
_PROVIDER = "init_from"  # of stored choices
_NAMED = 5  # settings in a line of the log


def offer_origins(arguments: Sequence[str], conf: Path) -> None:
    """Make each run that ``init_from`` names on a command line a choice of Hydra's, and those of earlier calls none.

    Where ``folder`` names a run that was begun, which torchrun or SLURM start again with the same words, its own
    settings are offered: it goes on without what it started from.

    Args:
        arguments: the command line without the program's name.
        conf: the configuration folder.

    Raises:
        ValueError: the command line cannot be read, or ``init_from`` names neither a finished run nor a file of
            weights.
    """
    _withdraw()
    overrides = read_overrides(arguments)
    begun = _begun(overrides)
    for override in overrides:
        if override.key_or_group == "init_from" and override.type == OverrideType.CHANGE:
            paths = values_of(override)
            if None in paths and len(paths) > 1:
                raise ValueError("init_from=null beside runs: give a command of its own for what starts from scratch")
            for number, path in enumerate(paths, start=1):
                if isinstance(path, str) and path and "${" not in path:  # which is known only when it is composed
                    _offer(path, f"origin_{number}", conf, begun)


def _begun(overrides: Sequence[Override]) -> Settings | None:
    """Return the settings of the run that ``folder`` names, None where it has no checkpoint to go on from."""
    folders = [folder for override in overrides if override.key_or_group == "folder" for folder in values_of(override)]
    if len(folders) != 1 or not isinstance(folders[0], str):
        return None
    folder = Path(folders[0])
    return _read_config(folder, f"folder={folder}") if (folder / "checkpoints" / "last.pt").is_file() else None


def _withdraw() -> None:
    """Forget what earlier calls in this process have stored."""
    repo = ConfigStore.instance().repo
    for group in ("init_from", "origin_target", "origin_groups"):
        repo.pop(group, None)
    for group in GROUPS:
        repo[group] = {name: node for name, node in repo.get(group, {}).items() if node.provider != _PROVIDER}


def origin_settings(path: str | Path) -> Settings | None:
    """Return the settings of the run that ``init_from`` names; None for weights of another toolkit.

    Raises:
        ValueError: it is neither a finished run nor a file of weights, or cannot be read.
    """
    network = network_file(Path(os.path.expanduser(path)))
    folder = network.parent.parent
    if network.parent.name == "checkpoints" and (folder / "config.yaml").is_file():
        settings = _read_config(folder, f"init_from={path}")
    elif "format" in read_weights(network):
        settings = checkpoint.load(network, checkpoint.NETWORK_KEYS)["config"]
    else:
        return None
    settings["data"].setdefault("validation_seed", settings["seed"])  # one seed for everything in earlier versions
    if "prepared" in settings["data"]:  # of which corpus, settings of earlier versions do not say
        settings["data"].setdefault("corpus", corpus_summary(settings)["name"])
    return settings


def describe_sources(settings: Settings) -> dict[str, str]:
    """Say what a run that is about to begin trains on, and what it starts from, for the first lines of its log.

    Args:
        settings: of the run, resolved, as Hydra has just composed them.

    Returns:
        ``corpus``, and ``init_from`` where it starts from something.

    Raises:
        ValueError: ``init_from`` names a run whose data could not be taken over, and nobody chose others.
    """
    composed = HydraConfig.get()
    typed = any(word.startswith("data=") for word in composed.overrides.task)
    by_default = not typed and composed.runtime.choices["data"] == "demo"
    sources = {"corpus": _corpus_in_words(settings, by_default=by_default)}
    path = settings["init_from"]
    theirs = origin_settings(path) if path is not None else None
    if theirs is not None:
        if by_default and composed.runtime.choices.get("init_from") is None:
            raise ValueError(
                f"init_from={path}: a run's model and data are taken over only where the command line names the run in "
                f"full, without ${{...}}; give model= and data= here"
            )
        sources["init_from"] = f"{path}; {_compared(settings, theirs)}"
    elif path is not None:
        sources["init_from"] = f"{path}, which does not say what it was trained on"
    return sources


def _corpus_in_words(settings: Settings, *, by_default: bool) -> str:
    corpus = corpus_summary(settings)
    notes = ["synthetic voices"] if corpus["synthetic"] else []
    if by_default:
        notes.append("data=demo is the default, data=folder data.root=PATH data.trials=FILE are your own recordings")
    return f"{corpus['name']}{' (' if notes else ''}{'; '.join(notes)}{')' if notes else ''}, {corpus['path']}"


def _compared(settings: Settings, theirs: Settings) -> str:
    """Say what of the settings that can be taken over is as in the run that this one starts from, and what is not."""
    names = (*GROUPS, "target_sparsity")
    ours = flat({name: settings[name] for name in names})
    known = flat({name: theirs[name] for name in names})
    others = sorted(name for name, value in known.items() if ours.get(name, _ABSENT) != value)
    same = [name for name in names if not any(other == name or other.startswith(f"{name}.") for other in others)]
    words = f"as there: {', '.join(same) or 'nothing'}"
    if others:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        words += f"; other than there: {', '.join(others[:_NAMED])}{more}"
    return words


def _read_config(folder: Path, setting: str) -> Settings:
    """Read a run's config.yaml; a ValueError says which setting named the run."""
    config = folder / "config.yaml"
    try:
        settings = read_settings(folder)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{setting}: {config} cannot be read: {error}") from error
    needed = {*GROUPS, "target_sparsity", "seed"}
    missing = needed - set(settings) if isinstance(settings, dict) else needed
    if missing:
        raise ValueError(f"{setting}: {config} has no {', '.join(sorted(missing))}: it is no run's")
    return settings


def _offer(path: str, name: str, conf: Path, begun: Settings | None) -> None:
    """Store a choice ``init_from=PATH``, and under this name what it chooses: what a begun run has, if there is one."""
    store = ConfigStore.instance()
    theirs = origin_settings(path) if begun is None else begun
    node: Settings = {"init_from": path}
    if theirs is not None:
        dense = theirs["sparsity"]["regularizer"] == "none"  # with which no other target could be asked for
        groups = [group for group in GROUPS if not (group == "sparsity" and dense)]
        choices = [{f"override /{group}": _choice(group, theirs[group], conf)} for group in groups]
        store.store(group="origin_groups", name=name, node={"defaults": choices}, package="_global_")
        target = {"target_sparsity": theirs["target_sparsity"]}
        store.store(group="origin_target", name=name, node=target, package="_global_")
        node["defaults"] = [{"override /origin_groups": name}, {"override /origin_target": name}]
    for place in {path, path.rstrip("/")}:  # Hydra looks for a choice without the slash, and reads it with it
        folder, _, last = place.rpartition("/")
        group = "/".join(["init_from", *filter(None, folder.split("/"))])
        store.store(group=group, name=last, node=node, package="_global_")


def _choice(group: str, theirs: Settings, conf: Path) -> str:
    """Return the choice in conf/ that a run's settings are, or store the nearest one with what differs."""
    choices = {file.stem: read_choice(file) for file in sorted((conf / group).glob("*.yaml"))}
    of_its_class = [name for name, choice in choices.items() if classes(choice) == classes(theirs)]
    nearest = max(of_its_class, key=lambda name: _likeness(choices[name], theirs), default=None)
    differing = theirs if nearest is None else _differing(choices[nearest], theirs)
    if nearest is not None and not differing:
        return nearest
    node = differing if nearest is None else {"defaults": [nearest, "_self_"]} | differing
    store = ConfigStore.instance()
    for number in count(1):
        name = f"{nearest or group}_changed" + (f"_{number}" if number > 1 else "")
        before = store.repo.get(group, {}).get(f"{name}.yaml")
        if before is None or before.node == node:
            break
    store.store(group=group, name=name, node=node, package=group, provider=_PROVIDER)
    return name


def _likeness(choice: DictConfig, theirs: Settings) -> tuple[int, int]:
    """Return how near a run's settings are to a choice: best is one that adds no names, and has most of its values."""
    ours, known = plain(choice), plain(theirs)
    added = len(ours.keys() - known.keys())
    same = sum(known.get(name, _ABSENT) == value for name, value in ours.items())
    return -added, same


def _differing(choice: DictConfig, theirs: Settings) -> Settings:
    """Return the values of a run that a choice does not have; its interpolations follow the run's other values."""
    ours, known = plain(choice), plain(theirs)
    followed = [name for name in known if isinstance(ours.get(name), str) and "${" in ours[name]]
    filled = OmegaConf.create({"group": choice})
    for name in known.keys() - set(followed):
        OmegaConf.update(filled, f"group.{name}", known[name], force_add=True)
    differing = OmegaConf.create()
    for name, value in known.items():
        same = _resolved(filled, f"group.{name}") if name in followed else ours.get(name, _ABSENT)
        if same != value:
            OmegaConf.update(differing, name, value, force_add=True)
    container: Any = OmegaConf.to_container(differing)
    return container


def _resolved(config: DictConfig, name: str) -> Any:
    """Return a value with its interpolations resolved, or None where they lead outside."""
    try:
        return OmegaConf.select(config, name)
    except OmegaConfBaseException:
        return None
