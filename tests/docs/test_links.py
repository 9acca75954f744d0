"""Links of the manual to files of the repository: they exist, and the built manual names them instead."""

import re
from types import SimpleNamespace

import pytest
from helpers import pages
from helpers.tiny import ROOT

from scripts.docs.links import on_page_markdown


def rendered(markdown: str, source: str = "results.md") -> str:
    return on_page_markdown(markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri=source)), config=None, files=[])


@pytest.mark.parametrize(
    ("link", "text"),
    [
        ("[why](../DECISIONS.md)", "why (`DECISIONS.md`)"),
        ("[DECISIONS.md](../DECISIONS.md#rest)", "`DECISIONS.md`"),
        ("[`main.py`](../sv_sparse/commands/main.py)", "`sv_sparse/commands/main.py`"),
        ("[lost](../lost.md)", "[lost](../lost.md)"),
        ("[Data](data.md)", "[Data](data.md)"),
    ],
)
def test_a_link_out_of_the_manual_becomes_a_path(link, text):
    assert rendered(f"See {link}.") == f"See {text}."


def test_a_link_from_a_folder_of_the_manual_stays():
    assert rendered("[Settings](../settings.md)", "api/optim.md") == "[Settings](../settings.md)"


@pytest.mark.parametrize("page", [page for page in pages.PAGES if page != "README"])
def test_files_that_a_page_links_exist(page):
    links = re.findall(r"\]\((\.\./[^)#]+)", pages.text(page))
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]
