"""The command line's settings: unknown names are refused with the valid ones, before anything is composed."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from sv_sparse.config.settings import Settings, check_value, refuse_dense_target


def check_names(arguments: Sequence[str], conf: Path) -> None:
    """Refuse command-line overrides that name no setting or no choice.

    Args:
        arguments: the command line without the program's name; words that begin with ``-`` are the launcher's.
        conf: the configuration folder.

    Raises:
        ValueError: an override cannot be read, or names a setting or choice that is not there; lists the valid ones.
    """
    own = [override for override in read_overrides(arguments) if not override.key_or_group.startswith("hydra")]
    groups = {folder.name: _choices(folder) for folder in sorted(conf.iterdir()) if folder.is_dir()}
    chosen = []
    for override in own:
        if override.key_or_group in groups:
            picked = _picked(override)
            _refuse_choice(override.key_or_group, picked, groups[override.key_or_group])
            chosen.append([f"{override.key_or_group}={choice}" for choice in picked])
        elif override.key_or_group == "init_from":  # a setting, and where it names a run a choice too
            chosen.append(_alternatives(override))
    settings = [override for override in own if override.key_or_group not in groups]
    for combination in product(*filter(None, chosen)):  # of a sweep; one otherwise
        with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
            known: Any = OmegaConf.to_container(compose("config", list(combination)))
        try:
            _check_overrides(settings, known, sorted(groups))
        except ValueError as error:
            raise ValueError(f"{error} (with {' '.join(combination)})" if combination else str(error)) from error


def _check_overrides(overrides: Sequence[Override], known: Settings, groups: Sequence[str]) -> None:
    for override in overrides:
        if override.is_delete():
            raise ValueError(f"{override.input_line}: settings cannot be removed, only given another value")
        default = _default(override.key_or_group, known, groups)
        for value in values_of(override):
            _refuse_value(override.key_or_group, value, default, known)
            if override.key_or_group == "target_sparsity":
                refuse_dense_target(value, known["sparsity"])


def read_overrides(arguments: Sequence[str]) -> list[Override]:
    """Read the settings of a command line.

    Args:
        arguments: the command line without the program's name; words that begin with ``-`` are the launcher's.

    Raises:
        ValueError: one of them is no setting; says how settings are written.
    """
    try:
        return OverridesParser.create().parse_overrides(_overrides(arguments))
    except OverrideParseException as error:
        raise ValueError(
            f"cannot read {error.override!r}: expected SETTING=VALUE or GROUP=CHOICE; a value with spaces, commas, "
            f"equals signs or brackets goes in quotes, twice: \"data.root='/my data/a=b'\""
        ) from error


def values_of(override: Override) -> list[Any]:
    """Return the values that an override gives, several in a sweep, none where only Hydra can list them."""
    parser = OverridesParser.create()
    return [parser.parse_override(word).value() for word in _alternatives(override)]


def _alternatives(override: Override) -> list[str]:
    """Return an override as words that give one value each."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []
    return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]


def _choices(group: Path) -> list[str]:
    return sorted(file.stem for file in group.glob("*.yaml"))


def _overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments that are settings: not an option of the launcher (``-m``, ``--cfg``), nor its value (``job``)."""
    return [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if not word.startswith("-") and not (before.startswith("-") and "=" not in word)
    ]


def _picked(override: Override) -> list[str]:
    return [str(value) for value in values_of(override)]


def _refuse_choice(group: str, picked: Sequence[str], choices: Sequence[str]) -> None:
    for choice in picked:
        if choice not in choices:
            raise ValueError(f"{group}={choice}: expected one of {', '.join(choices)}")


def _default(key: str, known: Settings, groups: Sequence[str]) -> Any:
    """The default of a setting; a ValueError lists the valid names where there is none of this name."""
    node: Any = known
    parts = key.split(".")
    for depth, part in enumerate(parts):
        valid = [name for name in node if not name.startswith("_")] if isinstance(node, dict) else []
        if part not in valid:
            inside = f" under {'.'.join(parts[:depth])}" if depth else ""
            own = [name for name in valid if depth or name not in groups]
            hint = "" if depth else f"; groups with choices: {', '.join(groups)}"
            meant = [name for name in _leaves(known) if name.rsplit(".", 1)[-1].strip("_") == parts[-1].strip("_")]
            asked = f"; did you mean {' or '.join(meant)}?" if meant else ""
            raise ValueError(f"unknown setting {key!r}; valid{inside}: {', '.join(own) or 'nothing'}{hint}{asked}")
        node = node[part]
    return node


def _leaves(node: Settings, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")


def _refuse_value(key: str, value: Any, default: Any, known: Settings) -> None:
    """Refuse what the checks of single settings refuse; an interpolation's value is known, and checked, later."""
    if isinstance(value, str) and "${" in value:
        return
    if isinstance(value, dict) and isinstance(default, dict):
        for name, inner in value.items():
            if name not in default:
                raise ValueError(f"unknown setting {f'{key}.{name}'!r}; valid under {key}: {', '.join(default)}")
            _refuse_value(f"{key}.{name}", inner, default[name], known)
    else:
        check_value(key, value, known)
