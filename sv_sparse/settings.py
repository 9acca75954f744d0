"""A run's settings: every value is checked once, at the door, and paths are made absolute."""

import os
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from joblib import cpu_count
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sv_sparse.scoring.settings import Scoring

Settings = dict[str, Any]


def refuse_dense_target(target: Any, sparsity: Settings) -> None:
    """Raise a ValueError if a dense run is asked for a sparsity."""
    if sparsity["regularizer"] == "none" and target != 0:
        raise ValueError(f"target_sparsity={target}: sparsity=dense trains dense; leave target_sparsity out")


def check_value(name: str, value: Any) -> None:
    """Raise a ValueError if a setting's value is not allowed, as far as that is known without the others."""
    if name not in _CHECKS:
        return
    allowed, meaning = _CHECKS[name]
    if not allowed(value):
        raise ValueError(f"{name} must be {meaning}, got {value!r}")


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


def is_number(value: Any) -> bool:
    """Whether a setting is a number; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


Check = tuple[Callable[[Any], bool], str]
_COUNT: Check = (lambda v: _is_whole(v, 1), "a whole number, 1 or more")
_COUNT_OR_NONE: Check = (lambda v: v is None or _is_whole(v, 1), "null or a whole number, 1 or more")
_SHARE: Check = (_is_share, "a number, at least 0 and below 1")
_PATH: Check = (lambda v: v is None or (isinstance(v, str) and v != ""), "a folder, or null for none")
_FLAG: Check = (lambda v: isinstance(v, bool), "true or false")


def _one_of(*choices: str) -> Check:
    return (lambda value: value in choices, "one of " + ", ".join(choices))


_CHECKS: dict[str, Check] = {
    "target_sparsity": _SHARE,
    "seed": (lambda v: _is_whole(v, 0), "a whole number, 0 or more"),
    "name": (lambda v: isinstance(v, str) and v != "" and "/" not in v, "a word without /"),
    "folder": _PATH,
    "init_from": (_PATH[0], "a run's folder or a file of weights, or null for none"),
    "data.validation_share": _SHARE,
    "sparsity.regularizer": _one_of("l1", "group", "mask", "none"),
    "sparsity.grouping": _one_of("output", "input", "kernel"),
    "sparsity.density": (lambda v: is_number(v) and 0 < v <= 1, "a number above 0 and at most 1"),
    "sparsity.rescale": _FLAG,
    "sparsity.include_head": _FLAG,
    "scoring.top_n": _COUNT,
    "scoring.cohort_utterances": _COUNT,
    "trainer.epochs": _COUNT,
    "trainer.batch_size": (lambda v: _is_whole(v, 2), "a whole number, 2 or more"),
    "trainer.crop_seconds": (lambda v: is_number(v) and 0.2 <= v < float("inf"), "a number, 0.2 or more"),
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
    "trainer.lr_factor": (lambda v: is_number(v) and 0 < v < float("inf"), "a number above 0"),
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


def check(settings: Settings) -> None:
    """Check every value that no constructor checks for itself.

    Raises:
        ValueError: names the setting, what is allowed, and what came.
    """
    for name in _CHECKS:
        value: Any = settings
        for part in name.split("."):
            if part not in value:
                raise ValueError(f"{name} is missing: the settings are those of another version")
            value = value[part]
        check_value(name, value)
    Scoring(**settings["scoring"])  # checks itself
    storage = settings["data"].get("storage", "files")
    if storage not in {"files", "shards"}:
        raise ValueError(f"data.storage must be files or shards, got {storage!r}")
    validation_seed = settings["data"].get("validation_seed", 0)
    if not _is_whole(validation_seed, 0):
        raise ValueError(f"data.validation_seed must be a whole number, 0 or more, got {validation_seed!r}")
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
    if trainer["patience"] is not None and trainer["average"] > 1:
        raise ValueError("trainer.patience delivers the best epoch, trainer.average the last ones: choose one of them")
