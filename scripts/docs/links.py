"""Hook of mkdocs: the built manual names files of the repository, to which the pages of docs/ link on a code host."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_DOCS = ROOT / "docs"
_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace links that leave docs/ by their text and the path.

    Args:
        markdown: text of the page.
        page: page of mkdocs.

    Returns:
        The text; a link whose file does not exist stays, so that mkdocs warns of it.
    """
    folder = (_DOCS / page.file.src_uri).parent

    def replaced(match: re.Match[str]) -> str:
        text, link, _anchor = match.groups()
        target = (folder / link).resolve()
        if target.is_relative_to(_DOCS) or not target.exists():
            return match[0]
        path = str(target.relative_to(ROOT))
        # A text that is a part of the path says nothing beside it.
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    return _LINK.sub(replaced, markdown)
