"""Names of all settings of a run."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from sv_sparse.config.overrides import OWN_CLASSES
from sv_sparse.config.schema import (
    CONTROLLER_SETTINGS,
    DATA_SETTINGS,
    MODEL_SETTINGS,
    OPTIMIZER_SETTINGS,
    AugmentConfig,
    Config,
    DistillConfig,
    HeadConfig,
    SparsityConfig,
    TrainerConfig,
)
from sv_sparse.scoring.config import ScoringConfig


def _names_in(settings: Any, prefix: str) -> Iterator[str]:
    """Yield names as typed on a command line, of settings and of the groups that they lie in."""
    for setting in fields(settings):
        name = f"{prefix}{setting.name}"
        yield name
        value = getattr(settings, setting.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from _names_in(value, f"{name}.")


def setting_names() -> set[str]:
    """Return all settings and groups of them by their names, those of every choice included."""
    names = {setting.name for setting in fields(Config)} | {f"{setting}._target_" for setting in OWN_CLASSES}
    groups: dict[str, list[Any]] = {
        "model": [*MODEL_SETTINGS.values()],
        "data": [*DATA_SETTINGS.values()],
        "optim": [*OPTIMIZER_SETTINGS.values()],
        "sparsity": [SparsityConfig(controller=controller) for controller in CONTROLLER_SETTINGS.values()],
        "augment": [AugmentConfig()],
        "head": [HeadConfig()],
        "distill": [DistillConfig()],
        "trainer": [TrainerConfig()],
        "scoring": [ScoringConfig()],
    }
    for group, choices in groups.items():
        for settings in choices:
            names |= set(_names_in(settings, f"{group}."))
    return names
