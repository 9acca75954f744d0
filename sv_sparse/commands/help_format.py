"""Layout of the commands' help: at most 100 columns, paragraphs, and examples as they are."""

# The parser of all commands uses this module, so it imports nothing that takes time to load.
import argparse
import shutil
import textwrap
from collections.abc import Sequence

_MAX_COLUMNS = 100


class HelpFormatter(argparse.HelpFormatter):
    """Formatter of help texts whose paragraphs are separated by an empty line; indented lines stay as they are."""

    def __init__(self, prog: str) -> None:
        columns = min(_MAX_COLUMNS, shutil.get_terminal_size().columns)
        # argparse leaves two columns free, too.
        super().__init__(prog, max_help_position=30, width=columns - 2)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _fill(text, width).splitlines()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return _fill_paragraphs(text, width)


def _fill_paragraphs(text: str, width: int) -> str:
    paragraphs = []
    for paragraph in text.split("\n\n"):
        has_indented_lines = "\n  " in paragraph
        paragraphs.append(paragraph if has_indented_lines else _fill(paragraph, width))
    return "\n\n".join(paragraphs)


def _fill(text: str, width: int) -> str:
    # Options such as --target-far stay on one line.
    return textwrap.fill(" ".join(text.split()), width, break_on_hyphens=False)


def format_epilog(notes: str | None, examples: Sequence[str]) -> str:
    """Return the end of a command's help: notes, if there are any, and examples.

    >>> format_epilog(None, ["sv-sparse compare RUN RUN"]).splitlines()
    ['Examples:', '  sv-sparse compare RUN RUN']
    """
    lines = "\n".join(["Examples:", *(f"  {example}" for example in examples)])
    # Filled here, too, since the documentation shows the text itself.
    return lines if notes is None else f"{_fill_paragraphs(notes, _MAX_COLUMNS)}\n\n{lines}"
