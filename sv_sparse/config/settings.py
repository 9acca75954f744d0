"""A run's settings: every value is checked once, at the door, and paths are made absolute.

A setting is checked by its entry in ``_CHECKS``. One without an entry must be of the kind of its default in conf/: a
number where that is a number, null only where that is null.
"""

import math
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from joblib import cpu_count
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sv_sparse.data.unreadable import UnreadableLimit
from sv_sparse.scoring.config import ScoringConfig

Settings = dict[str, Any]


def refuse_dense_target(target: Any, sparsity: Settings) -> None:
    """Raise a ValueError if a dense run is asked for a sparsity."""
    if sparsity["regularizer"] == "none" and target != 0:
        raise ValueError(f"target_sparsity={target}: sparsity=dense trains dense; leave target_sparsity out")


def check_value(name: str, value: Any, settings: Settings) -> None:
    """Raise a ValueError if a setting's value is not allowed, as far as that is known without the others' values.

    Args:
        name: as typed, such as ``trainer.epochs``.
        value: to check.
        settings: all of them; its group's say which choice in conf/ has the defaults.
    """
    allowed, meaning = _CHECKS.get(name) or _of_default(name, settings) or (lambda _: True, "")
    if not allowed(value):
        raise ValueError(f"{name} must be {meaning}, got {'null' if value is None else repr(value)}")


def resolve(config: DictConfig) -> Settings:
    """The configuration as plain data, interpolations resolved and every value checked.

    Raises:
        ValueError: a value is missing or not allowed; names the setting, what is allowed, and what came.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{', '.join(missing)} must be given, for instance {missing[0]}=...")
    try:
        settings: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"the configuration cannot be resolved: {error}") from error
    check(settings)
    settings["data"] = _absolute(settings["data"])
    for place, name in ((settings, "folder"), (settings, "init_from"), (settings["augment"], "store")):
        if place.get(name) is not None:
            place[name] = os.path.abspath(os.path.expanduser(place[name]))
    if settings["data"].get("storage") == "shards" and settings["trainer"]["workers"] == "auto":
        settings["trainer"]["workers"] = automatic_workers()  # on which the order of crops depends
    return settings


def read_settings(run: Path) -> Settings:
    """The settings that a run's folder keeps, as they were resolved.

    Raises:
        OSError: there are none.
    """
    settings: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    return settings


def flat(settings: Settings, prefix: str = "") -> Settings:
    """Settings by their names as typed: ``trainer.epochs``."""
    found: Settings = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def is_synthetic(settings: Settings) -> bool:
    """Return whether a run trains on synthetic voices only.

    What ``init_from`` brought does not count: the thresholds are of synthetic voices all the same.
    """
    return "make" in settings["data"]  # of all corpora only the demo's is made, by eSpeak NG


def automatic_workers() -> int:
    """How many processes read crops where nobody says so: one of the cores that this process may use trains."""
    cores: int = cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(8, cores - 1))


def _absolute(data: Settings) -> Settings:
    """The data settings with absolute paths, so that a run can be continued from anywhere."""
    found: Settings = {}
    for name in ("cache", "root", "prepared", "trials", "train_list", "speakers"):
        value = data.get(name)
        if isinstance(value, str):
            found[name] = _absolute_path(value, name, data)
        elif value:
            found[name] = [_absolute_path(path, name, data) for path in value]
    if "make" in data:
        found["make"] = data["make"] | {"root": found["cache"]}
    return data | found


def _absolute_path(path: str, name: str, data: Settings) -> str:
    """A path, or a trial list as ``FOLDER:list``; a list of the run's own prepared folder has no path."""
    folder, colon, rest = path.rpartition(":")
    if name == "trials" and not folder and "prepared" in data:
        return path
    if name == "trials" and folder and ("prepared" in data or os.path.isdir(os.path.expanduser(folder))):
        return os.path.abspath(os.path.expanduser(folder)) + colon + rest
    return os.path.abspath(os.path.expanduser(path))


def read_choice(file: Path) -> DictConfig:
    """Read a choice of a group, with those that it begins with, interpolations as they are written."""
    choice: Any = OmegaConf.load(file)
    before = [name for name in choice.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    merged: Any = OmegaConf.merge(*(read_choice(file.with_stem(name)) for name in before), choice)
    return merged


def configuration() -> Path:
    """Return the folder conf, which lies in the package in an installed wheel and beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@cache
def _choices(group: str) -> list[Settings]:
    """Return the defaults of each choice of a group, by their names inside it; empty where there is no such group."""
    files = sorted((configuration() / group).glob("*.yaml"))
    return [_plain_choice(group, file) for file in files]


def _plain_choice(group: str, file: Path) -> Settings:
    """Return a choice's defaults by name; what is interpolated from outside the choice is left out."""
    choice = read_choice(file)
    own = choice.get(group, choice)  # sparsity=dense is written from the top
    defaults: Settings = {}
    for name, value in plain(own).items():
        if not isinstance(value, str) or "${" not in value:
            defaults[name] = value
            continue
        try:
            defaults[name] = OmegaConf.select(own, name)
        except OmegaConfBaseException:
            continue
    return defaults


def plain(choice: DictConfig | Settings) -> Settings:
    """Return a group's settings by their names inside it, interpolations as they are written."""
    container: Any = OmegaConf.to_container(choice) if isinstance(choice, DictConfig) else choice
    return flat(container)


def classes(choice: DictConfig | Settings) -> Settings:
    """Return the classes that a group's settings name, by the names of these settings."""
    return {name: value for name, value in plain(choice).items() if name.endswith("_target_")}


def _of_default(name: str, settings: Settings) -> "Check | None":
    """Return what a setting must be by its default in conf/; None where no choice there has its group's classes."""
    group, _, inner = name.partition(".")
    node = settings.get(group)
    if not inner or not isinstance(node, dict):
        return None
    present = flat(node)
    of_same_classes = [choice for choice in _choices(group) if classes(choice) == classes(present)]
    same = [choice for choice in of_same_classes if choice.keys() == present.keys()] or of_same_classes
    if any(known.startswith(f"{inner}.") for choice in same for known in choice):
        return lambda value: isinstance(value, dict), "settings by their names"
    defaults = [choice[inner] for choice in same if inner in choice]
    if not defaults:
        return None
    nullable = None in defaults
    examples = [default for default in defaults if default is not None]
    if not examples:  # other choices say what it is where it is not null
        examples = [choice[inner] for choice in _choices(group) if choice.get(inner) is not None]
    if name in _LISTS_OR_SINGLE:
        elements = [
            element for example in examples for element in (example if isinstance(example, list) else [example])
        ]
        examples = [elements[0], elements]
    kinds = [_kind(example) for example in examples]
    meanings = dict.fromkeys([*(["null"] if nullable else []), *(meaning for _, meaning in kinds)])
    return (
        lambda value: (value is None and nullable) or any(allowed(value) for allowed, _ in kinds),
        " or ".join(meanings),
    )


def _kind(example: Any) -> "Check":
    """Return what a value must be to be of the kind of an example."""
    if isinstance(example, bool):
        return _FLAG
    if isinstance(example, int):
        return is_whole, "a whole number"
    if isinstance(example, float):
        return is_number, "a number"
    if not isinstance(example, list):
        return _TEXT
    of_element, meaning = _kind(example[0]) if example else _TEXT
    return lambda value: isinstance(value, (list, tuple)) and all(map(of_element, value)), f"a list, each {meaning}"


def is_number(value: Any) -> bool:
    """Return whether a setting is a finite number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def is_whole(value: Any) -> bool:
    """Return whether a setting is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole(value: Any, least: int) -> bool:
    return is_whole(value) and value >= least


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


Check = tuple[Callable[[Any], bool], str]
_COUNT: Check = (lambda v: _is_whole(v, 1), "a whole number, 1 or more")
_COUNT_OR_NONE: Check = (lambda v: v is None or _is_whole(v, 1), "null or a whole number, 1 or more")
_SHARE: Check = (_is_share, "a number, at least 0 and below 1")
_TEXT: Check = (lambda v: isinstance(v, str) and v != "", "text")
_PATH: Check = (lambda v: v is None or _TEXT[0](v), "a folder, or null for none")
_FLAG: Check = (lambda v: isinstance(v, bool), "true or false")
_SEED: Check = (lambda v: _is_whole(v, 0) and v < 2**63, "a whole number, 0 or more and below 2**63")
_NAMES: Check = (lambda v: isinstance(v, (list, tuple)) and all(map(_TEXT[0], v)), "a list of names")


def _one_of(*choices: str) -> Check:
    return (lambda value: value in choices, "one of " + ", ".join(choices))


RATES = ("sparse", "others", "dense")  # learning rates, by the names in optim.lr


def _are_rates(value: Any) -> bool:
    """Return whether a value is a learning rate, or one for each of ``RATES``."""
    rates = list(value.values()) if isinstance(value, dict) else [value]
    named = not isinstance(value, dict) or set(value) == set(RATES)
    return named and all(is_number(rate) and rate > 0 for rate in rates)


# Settings of a list that take an element for a list of it.
_LISTS_OR_SINGLE = {"data.trials", "data.train", "scoring.p_target", "scoring.target_fars"}
# Settings that not every choice has, or no run of earlier versions.
_OPTIONAL = {"runs", "resume", "data.storage", "data.validation_seed", "sparsity.dense", "sparsity.sparse"}


_CHECKS: dict[str, Check] = {
    "target_sparsity": _SHARE,
    "seed": _SEED,
    "name": (lambda v: isinstance(v, str) and v != "" and "/" not in v, "a word without /"),
    "folder": _PATH,
    "runs": (_TEXT[0], "a folder"),
    "resume": (_PATH[0], "a run's folder or one of its checkpoints, or null for none"),
    "init_from": (_PATH[0], "a run's folder or a file of weights, or null for none"),
    "data.storage": _one_of("files", "shards"),
    "data.validation_seed": _SEED,
    "data.validation_share": _SHARE,
    "sparsity.regularizer": _one_of("l1", "group", "mask", "none"),
    "sparsity.grouping": _one_of("output", "input", "kernel"),
    "sparsity.density": (lambda v: is_number(v) and 0 < v <= 1, "a number above 0 and at most 1"),
    "sparsity.rescale": _FLAG,
    "sparsity.include_head": _FLAG,
    "sparsity.dense": _NAMES,
    "sparsity.sparse": _NAMES,
    "optim.lr": (_are_rates, "above 0, one number or {" + ", ".join(f"{name}: number" for name in RATES) + "}"),
    "scoring.top_n": _COUNT,
    "scoring.cohort_utts_per_speaker": _COUNT,
    "trainer.epochs": _COUNT,
    "trainer.batch_size": (lambda v: _is_whole(v, 2), "a whole number, 2 or more"),
    "trainer.crop_seconds": (lambda v: is_number(v) and v >= 0.2, "a number, 0.2 or more"),
    "trainer.device": _one_of("auto", "cpu", "cuda"),
    "trainer.precision": _one_of("auto", "bf16", "fp16", "fp32"),
    "trainer.compile": (lambda v: v == "auto" or isinstance(v, bool), "auto, true or false"),
    "trainer.steps": _COUNT_OR_NONE,
    "trainer.accumulate": _COUNT,
    "trainer.patience": _COUNT_OR_NONE,
    "trainer.average": _COUNT,
    "trainer.keep": (lambda v: _is_whole(v, 0), "a whole number, 0 or more"),
    "trainer.checkpoint_minutes": (lambda v: v is None or (is_number(v) and v > 0), "null or a number above 0"),
    "trainer.profile": _FLAG,
    "trainer.workers": (lambda v: v == "auto" or _is_whole(v, 0), "auto or a whole number, 0 or more"),
    "trainer.lr_factor": (lambda v: is_number(v) and v > 0, "a number above 0"),
    "trainer.warmup": _SHARE,
    "trainer.final_lr": (lambda v: is_number(v) and 0 < v <= 1, "a number above 0 and at most 1"),
    "trainer.margin_start": _SHARE,
    "trainer.margin_end": (lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "trainer.clip_norm": (lambda v: v is None or (is_number(v) and v > 0), "null or a number above 0"),
    "trainer.clip_on": _one_of("support", "all"),
    "trainer.band": (lambda v: is_number(v) and v >= 0, "a number, 0 or more"),
    "trainer.statistics_crops": _COUNT,
    "trainer.log_every": _COUNT,
}


def _nodes(settings: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting by its name as typed, and after those of a node the node itself."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _nodes(value, f"{prefix}{name}.")
        yield prefix + name, value


def check(settings: Settings) -> None:
    """Check every value, as far as no constructor checks it for itself.

    Raises:
        ValueError: names the setting, what is allowed, and what came.
    """
    present = dict(_nodes(settings))
    for name, value in present.items():
        check_value(name, value, settings)
    missing = sorted(_CHECKS.keys() - _OPTIONAL - present.keys())
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: the settings are those of another version")
    ScoringConfig(**settings["scoring"])  # checks itself
    UnreadableLimit(settings["data"]["max_unreadable"])
    sparsity = settings["sparsity"]
    refuse_dense_target(settings["target_sparsity"], sparsity)
    if sparsity["regularizer"] == "group" and sparsity["density"] < 1:
        raise ValueError(
            f"sparsity.regularizer=group makes whole groups zero, so its runs start dense: sparsity.density must be 1, "
            f"got {sparsity['density']}"
        )
    trainer = settings["trainer"]
    if trainer["margin_start"] > trainer["margin_end"]:
        raise ValueError(
            f"trainer.margin_start must be at most trainer.margin_end, "
            f"got {trainer['margin_start']} and {trainer['margin_end']}"
        )
    needed = max(trainer["average"] if trainer["average"] > 1 else 0, int(trainer["patience"] is not None))
    if trainer["keep"] < needed:
        raise ValueError(f"trainer.keep must be at least {needed}, the epochs that are needed, got {trainer['keep']}")
    if trainer["patience"] is not None and settings["data"]["validation_share"] == 0:
        raise ValueError(
            f"trainer.patience={trainer['patience']} needs speakers to validate on; "
            f"choose data.validation_share above 0"
        )
    if trainer["patience"] is not None and trainer["average"] > 1:
        raise ValueError("trainer.patience delivers the best epoch, trainer.average the last ones: choose one of them")
