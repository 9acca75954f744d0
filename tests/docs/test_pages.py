"""Laws of README.md and of the pages in docs/: short lines, links that lead somewhere, settings that exist."""

import re
from pathlib import Path

import pytest
from helpers.pages import GENERATED, PAGES, anchors, inline_code, is_table_row, links, prose
from helpers.settings import setting_names
from helpers.tiny import ROOT

from sv_sparse.config.overrides import GROUPS, parse_command_line

MAX_COLUMNS = 100
# Other Markdown files that people are led to.
GUIDES = [*sorted(ROOT.glob("recipes/*/README.md")), ROOT / "sv_sparse" / "models" / "README.md"]
SETTING = re.compile(rf"(?<![\w./])(?:{'|'.join(GROUPS)})(?:\.[a-z_]\w*)+(?![\w./(])")
# model.pt and data.py are files.
FILE_SUFFIXES = {"pt", "onnx", "safetensors", "py", "md"}
# It is gone; stored results are about it.
FORMER_CHOICES = {"sparsity=channels"}
CHOICE = re.compile(rf"(?<![\w./])({'|'.join(GROUPS)})=([a-z]\w*(?:,[a-z]\w*)*)(?![\w.(])")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def columns(line: str) -> int:
    """Length of a line without the targets of its links."""
    return len(re.sub(r"https?://\S+|(?<=\])\([^()]*\)", "", line))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED])
def test_lines_are_short(page):
    lines = prose(PAGES[page])
    assert [number for number, line in lines if not is_table_row(line) and columns(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README"])
def test_a_page_has_one_title(page):
    titles = [line for _, line in prose(PAGES[page]) if line.startswith("# ")]
    assert len(titles) == 1
    assert PAGES[page].read_text().startswith(titles[0])


@pytest.mark.parametrize("path", [*PAGES.values(), *GUIDES], ids=name_of)
def test_links_lead_somewhere(path):
    broken = []
    for number, link in links(path):
        file_name, _, anchor = link.partition("#")
        target = (path.parent / file_name).resolve() if file_name else path
        # The anchor of a picture names a color scheme.
        is_page = target.suffix == ".md"
        if not target.exists() or (anchor and is_page and anchor not in anchors(target)):
            broken.append((number, link))
    assert not broken


@pytest.mark.parametrize("path", [*PAGES.values(), *GUIDES], ids=name_of)
def test_settings_and_choices_in_the_text_exist(path):
    names = setting_names()
    line = parse_command_line([])
    unknown = []
    for number, code in inline_code(path):
        for setting in SETTING.findall(code):
            if setting not in names and setting.rpartition(".")[2] not in FILE_SUFFIXES:
                unknown.append((number, setting))
        for group, values in CHOICE.findall(code):
            for value in values.split(","):
                choice = f"{group}={value}"
                if value not in line.choices(group) and choice not in FORMER_CHOICES:
                    unknown.append((number, choice))
    assert not unknown


def test_the_laws_notice_what_they_are_about(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title\n\nSee [this](#a-title), [that](#nowhere) and [more](missing.md): `trainer.epoch=1`.\n")
    assert anchors(page) == {"a-title"}
    assert [target for _, target in links(page)] == ["#a-title", "#nowhere", "missing.md"]
    ((_, code),) = inline_code(page)
    assert SETTING.findall(code) == ["trainer.epoch"]
    assert "trainer.epochs" in setting_names()
    assert "trainer.epoch" not in setting_names()
    assert CHOICE.findall("sparsity=feedback,dense model=Net()") == [("sparsity", "feedback,dense")]
