"""Write the reference pages of the manual from the code: docs/settings.md and docs/commands.md.

Usage: python scripts/docs/reference.py
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from sv_sparse.commands.main import COMMANDS, build_parser, subparsers_of
from sv_sparse.config.help import INTRODUCTION, REQUIRED, SectionHelp, sections
from sv_sparse.config.overrides import GROUPS, CommandLine, parse_command_line
from sv_sparse.config.schema import register_schema
from sv_sparse.io import write_text

DOCS = Path(__file__).resolve().parents[2] / "docs"
_NOTICE = "<!-- Made by scripts/docs/reference.py; `make docs` makes it again. -->"
# Choices that set several groups at once, or need a setting beside them, have no table of their own.
_WITHOUT_TABLE = ("experiment",)


def settings_page() -> str:
    """Return docs/settings.md: each choice of each group, and each setting with type, default and meaning."""
    register_schema()
    line = parse_command_line([])
    lines = [
        "# Settings",
        "",
        _NOTICE,
        "",
        "Settings of `python train.py` and `sv-sparse train`. Write `SETTING=VALUE` or `GROUP=CHOICE` on the",
        "command line. `python train.py --help` prints the same for the choices on its command line.",
        "",
        "## Run",
        "",
    ]
    root, *_ = sections(line, [])
    lines += _table(root)
    for group in GROUPS:
        lines += ["", f"## {group}", ""]
        lines += _group_lines(line, group)
    return "\n".join(lines) + "\n"


def _group_lines(line: CommandLine, group: str) -> Iterator[str]:
    """Yield the choices of a group and the settings of each; a choice that only sets values lists these."""
    choices = line.choices(group)
    yield f"Choices: {', '.join(f'`{group}={choice}`' for choice in choices)}."
    if group in _WITHOUT_TABLE:
        yield ""
        yield "Each sets a network, a corpus and their schedule: see the files in `conf/experiment`."
        return
    # Choices with the same settings; the first of them is built in, the others are files that set some values.
    families: dict[tuple[str, ...], dict[str, list[SectionHelp]]] = {}
    files = {file.stem for file in (DOCS.parent / "conf" / group).glob("*.yaml")}
    for choice in sorted(choices, key=lambda name: (name in files, name)):
        # The settings of a class of the user's own are not known here.
        if choice == "custom":
            continue
        own_sections = [section for section in sections(line, [f"{group}={choice}"]) if _is_of(section, group)]
        names = tuple(setting.name for section in own_sections for setting in section.settings)
        families.setdefault(names, {})[choice] = own_sections
    for family in families.values():
        (base, base_sections), *variants = family.items()
        for section in base_sections:
            yield ""
            yield f"### {group}={base}" if section.name == group else f"#### {section.name}, with {group}={base}"
            yield ""
            yield _cell(section.summary)
            if section.settings:
                yield ""
                yield from _table(section)
        for choice, variant_sections in variants:
            yield ""
            differences = _differences(base_sections, variant_sections)
            if differences:
                yield f"`{group}={choice}` is `{group}={base}` with {differences}."
            else:
                yield f"`{group}={choice}` has the same settings."


def _is_of(section: SectionHelp, group: str) -> bool:
    return section.name == group or section.name.startswith(f"{group}.")


def _differences(base: Sequence[SectionHelp], other: Sequence[SectionHelp]) -> str:
    base_values = {setting.name: setting.default for section in base for setting in section.settings}
    words = []
    for section in other:
        for setting in section.settings:
            if base_values[setting.name] != setting.default:
                words.append(f"`{setting.name}={setting.default}`")
    return ", ".join(words)


def _table(section: SectionHelp) -> Iterator[str]:
    yield "| setting | type | default | meaning |"
    yield "|---|---|---|---|"
    for setting in section.settings:
        # A bar would end the cell.
        type_name = setting.type.replace(" | None", " or null").replace(" | ", " or ")
        default = setting.default if setting.default == REQUIRED else f"`{setting.default}`"
        yield f"| `{setting.name}` | {type_name} | {default} | {_cell(setting.help)} |"


def _cell(text: str) -> str:
    """Return a text for a cell of a table, in which it is neither HTML nor the end of the cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def commands_page() -> str:
    """Return docs/commands.md: each command of sv-sparse with its arguments."""
    lines = [
        "# Command line",
        "",
        _NOTICE,
        "",
        "Commands of the console script. `sv-sparse COMMAND --help` prints the same.",
        "",
        "| command | what it does |",
        "|---|---|",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"| [`{name}`](#sv-sparse-{name}) | {command.help} |")
    for name in COMMANDS:
        lines += ["", f"## sv-sparse {name}", ""]
        if name == "train":
            lines += ["The same as `python train.py`. Its settings: [Settings](settings.md).", ""]
            lines += ["```text", INTRODUCTION.strip(), "```"]
            continue
        lines += _parser_lines(subparsers_of(build_parser([name]))[name], f"sv-sparse {name}")
    return "\n".join(lines) + "\n"


def _parser_lines(parser: argparse.ArgumentParser, title: str) -> Iterator[str]:
    yield from (f"{parser.description}", "", "```text", f"usage: {parser.usage}", "```")
    formatter = parser.formatter_class(prog=parser.prog)
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, (argparse._SubParsersAction, argparse._HelpAction)):
                continue
            name = formatter._format_action_invocation(action)
            required = " (required)" if action.option_strings and action.required else ""
            rows.append(f"| `{name}` | {_cell(formatter._expand_help(action))}{required} |")
        if rows:
            yield from ("", f"**{group.title}**", "", "| argument | meaning |", "|---|---|", *rows)
    if parser.epilog:
        yield from ("", "```text", parser.epilog.strip(), "```")
    for name, subparser in subparsers_of(parser).items():
        yield from ("", f"### {title} {name}", "")
        yield from _parser_lines(subparser, f"{title} {name}")


def main() -> None:
    """Write the pages."""
    write_text(DOCS / "settings.md", settings_page())
    write_text(DOCS / "commands.md", commands_page())


if __name__ == "__main__":
    main()
