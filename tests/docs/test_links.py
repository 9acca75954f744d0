"""Links of the manual to files of the repository, which the built manual names instead."""

from types import SimpleNamespace

import pytest

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
