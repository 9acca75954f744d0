"""Checks of the command line: what is unknown or not allowed is refused with what is, before a run begins."""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from sv_sparse.config.schema import (
    ROOT_CHECKS,
    check_dense_target,
    check_plain,
    check_root_setting,
    conf_dir,
    show_value,
)

GROUPS = ("model", "data", "augment", "head", "distill", "optim", "sparsity", "trainer", "scoring", "experiment")
# Settings whose ``_target_`` may name a class of the user's own, each with its group of choices.
OWN_CLASSES = {
    "model": "model",
    "head": "head",
    "sparsity.controller": "sparsity",
    "augment.transform": "augment",
}
# Those of the groups that a class takes the place of. A transform stands beside the settings of augment.
CUSTOM_GROUPS = ("model", "head", "sparsity")
# A setting, and where it names a run a group too.
_INIT_FROM = "init_from"
_TYPE_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


@dataclass(frozen=True)
class CommandLine:
    """The command line of a training run."""

    # Its settings and choices, without those of Hydra itself.
    overrides: tuple[Override, ...]
    # Folders with configuration beside conf/, from ``--config-dir`` and ``hydra.searchpath``.
    search_path: tuple[str, ...]

    def compose(self, words: Sequence[str] = ()) -> DictConfig:
        """Return the configuration that some overrides give, as Hydra composes it."""
        words = [*words]
        if self.search_path:
            folders = ",".join(f"'file://{folder}'" for folder in self.search_path)
            words.append(f"hydra.searchpath=[{folders}]")
        with initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
            return compose("config", words)

    def choices(self, group: str) -> list[str]:
        """Return the choices of a group: files in conf/ and in the search path, and those that are built in."""
        names = {name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get(group, {})}
        for folder in (conf_dir(), *map(Path, self.search_path)):
            names |= {file.stem for file in (folder / group).glob("*.yaml")}
        return sorted(names)


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read the command line of a training run.

    Args:
        arguments: without the program's name.

    Raises:
        ValueError: a word cannot be read as a setting, or a folder of ``--config-dir`` is not there.
    """
    search_path = []
    overrides = []
    for override in read_overrides(arguments):
        if override.key_or_group == "hydra.searchpath":
            paths = override.value()
            entries = paths if isinstance(paths, list) else [paths]
            search_path += [str(entry).removeprefix("file://") for entry in entries]
        elif not override.key_or_group.startswith("hydra"):
            overrides.append(override)
    for option, value in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, attached = option.partition("=")
        if name in {"--config-dir", "-cd"}:
            folder = os.path.abspath(attached if equals else value)
            if not os.path.isdir(folder):
                raise ValueError(f"{name} {attached or value}: no such folder: {folder}")
            search_path.append(folder)
    return CommandLine(tuple(overrides), tuple(search_path))


def check_command_line(arguments: Sequence[str]) -> None:
    """Refuse overrides that name no setting or no choice, or give a value that is not allowed.

    Args:
        arguments: the command line without the program's name; words that begin with ``-`` are Hydra's.

    Raises:
        ValueError: an override cannot be read, or names a setting or choice that is not there; lists the valid ones.
    """
    line = parse_command_line(arguments)
    selections = []
    settings = []
    for override in line.overrides:
        if override.key_or_group in GROUPS:
            selections.append(_checked_choices(override, line))
        elif override.key_or_group == _INIT_FROM:
            selections.append(_alternatives(override))
            settings.append(override)
        else:
            settings.append(override)
    # A sweep has several combinations.
    for combination in product(*filter(None, selections)):
        try:
            _check_overrides(settings, line.compose(combination))
        except (ValueError, HydraException) as error:
            suffix = f" (with {' '.join(combination)})" if combination else ""
            raise ValueError(f"{error}{suffix}") from error


def complete_command_line(arguments: Sequence[str]) -> list[str]:
    """Add ``GROUP=custom`` for each class of the user's own whose ``_target_`` is set and whose group has no choice.

    What ``init_from`` brings is a choice too.
    """
    keys = {override.key_or_group for override in read_overrides(arguments)}
    choices = []
    for setting, group in OWN_CLASSES.items():
        # A run's loss is not taken by init_from.
        others = {group} if group == "head" else {group, _INIT_FROM}
        if group in CUSTOM_GROUPS and f"{setting}._target_" in keys and not keys & others:
            choices.append(f"{group}=custom")
    return [*choices, *arguments]


def read_overrides(arguments: Sequence[str]) -> list[Override]:
    """Read the settings of a command line.

    Args:
        arguments: the command line without the program's name; words that begin with ``-`` are Hydra's.

    Raises:
        ValueError: one of them is no setting; says how settings are written.
    """
    try:
        return OverridesParser.create().parse_overrides(_words_of_settings(arguments))
    except OverrideParseException as error:
        raise ValueError(
            f"cannot read {error.override!r}: expected SETTING=VALUE or GROUP=CHOICE; a value with spaces, commas, "
            f"equals signs or brackets goes in quotes, twice: \"data.root='/my data/a=b'\""
        ) from error


def values_of(override: Override) -> list[Any]:
    """Return the values that an override gives: several in a sweep, none where only Hydra can list them."""
    parser = OverridesParser.create()
    return [parser.parse_override(word).value() for word in _alternatives(override)]


def _alternatives(override: Override) -> list[str]:
    """Return an override as words that give one value each."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []
    return [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]


def _words_of_settings(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that are settings: not an option of Hydra (``-m``, ``--cfg``), nor its value (``job``)."""
    words = []
    previous = ""
    for word in arguments:
        is_value_of_option = previous.startswith("-") and previous not in {"-m", "--multirun"} and "=" not in word
        if not word.startswith("-") and not is_value_of_option:
            words.append(word)
        previous = word
    return words


def _checked_choices(override: Override, line: CommandLine) -> list[str]:
    """Return a choice of a group as words that choose one each; a ValueError lists the valid choices."""
    group = override.key_or_group
    valid = line.choices(group)
    words = []
    for value in values_of(override):
        if str(value) not in valid:
            raise ValueError(f"{group}={value}: expected one of {', '.join(valid)}{_suggestion(str(value), valid)}")
        words.append(f"{group}={value}")
    return words


def _check_overrides(overrides: Sequence[Override], composed: DictConfig) -> None:
    """Check each value of each override beside the others, of which a sweep has the first value."""
    values_by_key: dict[str, list[Any]] = {}
    for override in overrides:
        key = override.key_or_group
        if override.is_delete():
            raise ValueError(f"{override.input_line}: settings cannot be removed, only set to another value")
        if override.is_add() and _is_open(composed, key):
            continue
        _check_name(key, composed)
        _check_no_choice(key, composed)
        # An interpolation's value is known, and checked, when the run is composed.
        values = [value for value in values_of(override) if not (isinstance(value, str) and "${" in value)]
        for value in values:
            _updated(composed, key, value)
        if values:
            values_by_key[key] = values
    together = composed
    for key, values in values_by_key.items():
        together = _updated(together, key, values[0])
    for key, values in values_by_key.items():
        for value in values:
            _check_group(key, _updated(together, key, value))


def _is_open(composed: DictConfig, key: str) -> bool:
    """Return whether settings may be added: to a class of the user's own, as arguments of its constructor."""
    for setting in OWN_CLASSES:
        if key.startswith(f"{setting}.") and OmegaConf.get_type(OmegaConf.select(composed, setting)) is dict:
            return True
    return False


def _check_name(key: str, composed: DictConfig) -> None:
    """Raise a ValueError that lists the valid names if there is no setting of this name."""
    node: Any = composed
    parts = key.split(".")
    for depth, part in enumerate(parts):
        valid = list(node) if OmegaConf.is_dict(node) else []
        if part not in valid:
            if is_dataclass(OmegaConf.get_type(node)):
                valid = [name for name in valid if name != "name"]
            inside = f" under {'.'.join(parts[:depth])}" if depth else ""
            listed = [name for name in valid if depth or name not in GROUPS]
            groups = "" if depth else f"; groups with choices: {', '.join(GROUPS)}"
            names = list(_setting_names(composed))
            hint = _suggestion(key, names)
            if _is_open(composed, key):
                hint += f"; another argument of your class is added with a plus: +{key}=VALUE"
            raise ValueError(f"unknown setting {key!r}; valid{inside}: {', '.join(listed) or 'nothing'}{groups}{hint}")
        node = None if OmegaConf.is_missing(node, part) else node[part]


def _check_no_choice(key: str, composed: DictConfig) -> None:
    """Raise a ValueError for the name of a choice, whose other settings would stay those of another choice."""
    parent, _, last_part = key.rpartition(".")
    if last_part == "name" and is_dataclass(OmegaConf.get_type(OmegaConf.select(composed, parent))):
        group = parent.partition(".")[0]
        raise ValueError(f"{key} comes with the choice of {group}; choose {group}=NAME")


def _updated(composed: DictConfig, key: str, value: Any) -> DictConfig:
    """Return the configuration with another value; a ValueError says what the setting's type allows."""
    if isinstance(value, dict):
        for name in value:
            _check_name(f"{key}.{name}", composed)
    check_plain(key, value)
    candidate = copy.deepcopy(composed)
    try:
        OmegaConf.update(candidate, key, value)
    except ValidationError as error:
        name = str(error.full_key or key)
        raise ValueError(f"{name} must be {_allowed(composed, name)}, got {show_value(value)}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}: {str(error).partition(chr(10))[0]}") from error
    return candidate


def _check_group(key: str, candidate: DictConfig) -> None:
    """Let the class of a setting's group check its values; ``candidate`` may be changed."""
    group = key.partition(".")[0]
    if key in ROOT_CHECKS:
        check_root_setting(key, candidate[key])
    if key == "target_sparsity":
        check_dense_target(candidate.target_sparsity, candidate.sparsity)
    if is_dataclass(OmegaConf.get_type(candidate[group])):
        for missing in OmegaConf.missing_keys(candidate):
            if missing.startswith(f"{group}."):
                # A setting that must be given is refused when the run is composed.
                OmegaConf.update(candidate, missing, "unset")
        OmegaConf.to_object(candidate[group])


def _allowed(composed: DictConfig, key: str) -> str:
    """Return in words what the type of a setting allows."""
    parent, _, name = key.rpartition(".")
    node: Any = (OmegaConf.select(composed, parent) if parent else composed)._get_node(name.partition("[")[0])
    hint = str(node._metadata.ref_type).replace("typing.", "")
    # Where any number is allowed, whole ones need no words of their own.
    hint = hint.replace("int", "") if "float" in hint else hint
    types = [words for type_name, words in _TYPE_NAMES.items() if type_name in hint]
    allowed = " or ".join(types) or "a value of another kind"
    if OmegaConf.is_list(node):
        element = str(node._metadata.element_type)
        allowed = "a list" + "".join(
            f", each {words}" for type_name, words in _TYPE_NAMES.items() if type_name in element
        )
    return f"null or {allowed}" if node._metadata.optional else allowed


def _suggestion(name: str, valid: Sequence[str]) -> str:
    """Return ``; did you mean ...?`` with the valid names that a name resembles, by its last part or as a whole."""
    last = name.rpartition(".")[2].strip("_")
    same_last = [candidate for candidate in valid if candidate.rpartition(".")[2].strip("_") == last]
    close = same_last or get_close_matches(name, valid, n=2, cutoff=0.75)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _setting_names(node: Any, prefix: str = "") -> Iterator[str]:
    for name in map(str, node):
        yield f"{prefix}{name}"
        if not OmegaConf.is_missing(node, name) and OmegaConf.is_dict(node[name]):
            yield from _setting_names(node[name], f"{prefix}{name}.")
