"""The manual is built without a warning, and its reference pages are those of the code."""

import sys

import pytest
from helpers.pages import run
from helpers.tiny import ROOT

from scripts.docs.docstrings import to_markdown
from scripts.docs.reference import DOCS, commands_page, settings_page


@pytest.mark.parametrize(("name", "page"), [("settings", settings_page), ("commands", commands_page)])
def test_a_reference_page_is_that_of_the_code(name, page):
    assert (DOCS / f"{name}.md").read_text() == page(), "run make docs and commit the page"


def test_the_manual_is_built_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    run(words, ROOT, NO_MKDOCS_2_WARNING="1")
    for page in DOCS.glob("*.md"):
        assert (tmp_path / "site" / f"{page.stem}.html").is_file()
    optim = (tmp_path / "site" / "api" / "optim.html").read_text()
    assert 'id="sv_sparse.optim.AdaBreg"' in optim
    # An example of a docstring, as code and not as a quotation.
    assert "<blockquote>" not in optim


def test_examples_in_docstrings_become_code():
    docstring = "Return two, as::\n\n    two()\n\n>>> two()\n2\n\nSee three."
    assert to_markdown(docstring) == "Return two, as:\n\n    two()\n\n```pycon\n>>> two()\n2\n```\n\nSee three."
