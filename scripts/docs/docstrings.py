"""Extension of griffe that makes Markdown of the docstrings: the manual's API pages are made of them."""

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).*)*", re.MULTILINE)


class MarkdownDocstrings(Extension):
    """Show interactive examples as code, where Markdown would see quotations, and ``::`` as a colon."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute that was read."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    """Return a docstring with fences around its interactive examples."""
    fenced = _EXAMPLE.sub(lambda match: f"```pycon\n{match.group()}\n```", docstring)
    return re.sub(r"::$", ":", fenced, flags=re.MULTILINE)
