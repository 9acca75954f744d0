"""Help text of ``python train.py --help``: choices, and each setting with type, default and one sentence."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sv_sparse.config.overrides import GROUPS, CommandLine, parse_command_line

# Start of the help text.
INTRODUCTION = """usage: sv-sparse train [GROUP=CHOICE ...] [SETTING=VALUE ...] [options of Hydra]
       python train.py [GROUP=CHOICE ...] [SETTING=VALUE ...] [options of Hydra]

Train a network to a target sparsity.

Examples:
  python train.py                                         ECAPA-TDNN, 90 % sparse, demo corpus
  python train.py model=resnet34 target_sparsity=0.95     another network and target; 0 is dense
  python train.py data=folder data.root=PATH data.trial_lists=FILE   your own recordings
  python train.py init_from=FILE teacher=self head=none data=audio data.root=PATH   published weights
  python train.py resume_from=RUN                         continue an interrupted run
  python train.py -m target_sparsity=0.75,0.9,0.95        a sweep, one run after the other
"""
_COLUMNS = 100

# In place of a default.
REQUIRED = "must be given"


@dataclass(frozen=True)
class SettingHelp:
    """Setting of a run, as help and documentation show it."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True)
class SectionHelp:
    """Group of settings; the first one, of the settings outside the groups, has no name."""

    name: str
    summary: str
    settings: list[SettingHelp]


def format_help(arguments: Sequence[str]) -> str:
    """Return the help text for the settings of the choices on a command line.

    Args:
        arguments: the command line without the program's name; its choices say which settings there are.
    """
    line = parse_command_line([word for word in arguments if word not in {"--help", "-h"}])
    selected = [str(override.input_line) for override in line.overrides if override.key_or_group in GROUPS]
    lines = [INTRODUCTION, "Choices (GROUP=CHOICE):", ""]
    lines += [f"  {group}: {', '.join(line.choices(group))}" for group in GROUPS]
    lines += ["", "Settings (SETTING=VALUE), of these choices:"]
    for section in sections(line, selected):
        if section.name:
            lines += ["", f"{section.name}: {section.summary}"]
        for setting in section.settings:
            details = ", ".join(filter(None, (setting.type, setting.default)))
            lines.append(f"  {setting.name} ({details})  {setting.help}".rstrip())
    lines += ["", "--cfg job prints the configuration; --hydra-help lists Hydra's own options."]
    return "\n".join(map(_wrap, lines))


def _wrap(line: str) -> str:
    """Return a line in at most 100 columns; further lines are indented by four more."""
    # The introduction is wrapped already.
    if "\n" in line or len(line) <= _COLUMNS:
        return line
    indent = " " * (4 + len(line) - len(line.lstrip()))
    return textwrap.fill(line, _COLUMNS, subsequent_indent=indent, break_on_hyphens=False)


def sections(line: CommandLine, selected: Sequence[str]) -> Iterator[SectionHelp]:
    """Yield the settings of some choices, group by group.

    Args:
        line: has the folders in which choices lie.
        selected: choices, as ``GROUP=CHOICE``; the others are those of conf/config.yaml.
    """
    composed = line.compose(selected)
    settings = []
    for name in map(str, composed):
        if OmegaConf.is_missing(composed, name) or not OmegaConf.is_dict(composed[name]):
            settings.append(_setting(composed, name, ""))
    yield SectionHelp("", "", settings)
    for group in GROUPS:
        if group in composed:
            yield from _group(composed[group], group)


def _group(node: DictConfig, name: str, help_text: str = "") -> Iterator[SectionHelp]:
    """Yield a group and the groups inside it.

    Args:
        node: settings of the group.
        name: of the group.
        help_text: sentence on a class of the user's own, whose arguments the settings are. Default: none.
    """
    kind = OmegaConf.get_type(node)
    settings = []
    inner = []
    for key in map(str, node):
        # A choice has set the name.
        if key == "name" and is_dataclass(kind):
            continue
        if OmegaConf.is_missing(node, key) or not OmegaConf.is_dict(node[key]):
            settings.append(_setting(node, key, f"{name}."))
        else:
            inner.append(key)
    summary = _first_line(kind) if is_dataclass(kind) else help_text or "arguments of its class"
    yield SectionHelp(name, summary, settings)
    for key in inner:
        yield from _group(node[key], f"{name}.{key}", _field_help(kind, key)[1])


def _setting(node: DictConfig, key: str, prefix: str) -> SettingHelp:
    hint, help_text = _field_help(OmegaConf.get_type(node), key)
    if key == "_target_":
        hint = "str" if OmegaConf.is_missing(node, key) else "str | None"
        help_text = "Import path of a class of your own; its arguments are added with a plus."
    default = REQUIRED if OmegaConf.is_missing(node, key) else _shown(node[key])
    return SettingHelp(prefix + key, hint, default, help_text)


def _field_help(kind: Any, key: str) -> tuple[str, str]:
    """Return type and sentence of a setting, empty unless it is a field of a dataclass."""
    if is_dataclass(kind):
        for setting in fields(kind):
            if setting.name == key:
                return _type_name(setting.type), setting.metadata.get("help", "")
    return "", ""


def _type_name(hint: Any) -> str:
    name = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)
    return "" if name in {"Any", "typing.Any"} else str(name)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(OmegaConf.to_container(value)) if OmegaConf.is_config(value) else str(value)
