"""Laws of a run's report, on made-up runs."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from helpers.reported import COMMAND, DEMO_CORPUS, evaluation, results, rows, run_folder, unknown, write_scores

from sv_sparse.report import draw_run, refresh_report, write_report, write_results

ODD = """<b>"odd"'&|$x_1$ [a](b) `c` # %20"""  # what a name of a file, of a genre or of a layer may be, but for a slash


class Page(HTMLParser):
    """Elements and text of a page; every element that is opened has to be closed."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def reported(folder: Path, found: dict, **how) -> Page:
    """The page of a run with these results."""
    run_folder(folder, found, **how)
    write_report(folder, found, draw_run(folder, found))
    return Page((folder / "report.html").read_text())


def test_a_report_is_one_file_that_needs_nothing_but_itself(tmp_path):
    page = reported(tmp_path / "run", results(lists=[evaluation("a"), unknown("b")]))
    text = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"https?:|@import|<script|<link|<img|\bsrc=|url\((?!#)", text)
    links = [value for _, found in page.tags for name, value in found.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)


def test_no_two_elements_share_an_id_and_every_reference_has_its_own(tmp_path):
    page = reported(tmp_path / "run", results(lists=[evaluation("a"), unknown("b")]))
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    used = re.findall(r"(?:url\(|href=\")#([\w-]+)", (tmp_path / "run" / "report.html").read_text())
    assert used
    assert set(used) <= set(ids)


def test_every_figure_says_what_is_to_be_seen(tmp_path):
    page = reported(tmp_path / "run", results())
    drawings = page.all("svg")
    assert len(drawings) == len(page.all("figure")) >= 7
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 20 for drawing in drawings)
    assert len(page.all("table")) == len(page.all("caption"))


def test_odd_names_are_shown_and_do_nothing(tmp_path):
    groups = {"genre": {ODD: {"trials": 10, "targets": 5, "eer": 0.2}}}
    found = results(lists=[evaluation(ODD, breakdown=groups), unknown("_b")], layers=[ODD, "embedding.weight"])
    page = reported(tmp_path / ODD, found)
    assert not page.all("b")
    assert page.text.count(ODD) >= 4
    for path in (tmp_path / ODD / "figures").iterdir():
        ElementTree.parse(path)
    table = (tmp_path / ODD / "report.md").read_text().splitlines()[2:6]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_what_is_not_known_is_a_dash_and_what_is_absent_is_left_out(tmp_path):
    found = results(lists=[unknown("trials")])
    del found["validation_eer"], found["validation_eer_tracked"]
    page = reported(tmp_path / "run", found)
    assert "none: speakers not known" in page.text
    assert "EER of groups" not in page.text
    assert "held-out training speakers" not in page.text
    assert "None" not in page.text


def test_a_report_names_its_corpus_its_path_and_its_lists(tmp_path):
    page = reported(tmp_path / "run", results())
    texts = page.text, (tmp_path / "run" / "report.md").read_text()
    assert all("speakers of voxceleb, 1,296 utterances" in text for text in texts)
    for text in texts:
        assert all(word in text for word in ("/data/prepared", "vox2_dev", "vox1_O_cleaned"))
        assert "(synthetic voices)" not in text
        assert "trained on synthetic voices" not in text


def test_a_report_says_that_voices_are_synthetic(tmp_path):
    page = reported(tmp_path / "run", results(corpus=DEMO_CORPUS))
    assert "speakers of demo (synthetic voices), 1,296 utterances" in page.text
    assert "demo (synthetic voices)" in (tmp_path / "run" / "report.md").read_text()


def test_results_of_an_earlier_version_which_name_no_corpus_are_reported(tmp_path):
    found = results()
    del found["corpus"]
    page = reported(tmp_path / "run", found)
    assert "trained on 108 speakers, 1,296 utterances" in page.text


def test_a_dense_run_has_no_figures_of_lambda_and_sparsity(tmp_path):
    found = results(target=0.0)
    page = reported(tmp_path / "run", found, controller="FixedController")
    names = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert names == {"loss", "det", "scores_trials", "groups_trials", "layers"}
    assert "dense" in page.text


@pytest.mark.parametrize("steps", [0, 1])
def test_a_run_of_one_step_logged_or_not_is_reported(tmp_path, steps):
    reported(tmp_path / "run", results(), steps=steps)
    assert (tmp_path / "run" / "figures" / "loss.svg").is_file() == (steps == 1)


def test_a_list_without_errors_is_reported(tmp_path):
    folder = run_folder(tmp_path / "run", results(lists=[evaluation("trials", eer=0.0, eer_interval=[0.0, 0.0])]))
    (folder / "scores" / "trials.txt").write_text("a b 0.9 1\na c 0.8 1\na d 0.1 0\na e 0.2 0\n")
    found = json.loads((folder / "results.json").read_text())
    write_report(folder, found, draw_run(folder, found))
    assert "0.00%" in (folder / "report.html").read_text()


def test_equal_runs_have_equal_reports(tmp_path):
    found = results(lists=[evaluation("a"), unknown("b")])
    folders = [run_folder(tmp_path / side / "run", found) for side in ("left", "right")]
    for folder in folders:
        write_report(folder, found, draw_run(folder, found))
    left, right = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert left == right


def test_lists_that_a_run_was_judged_by_since_are_in_its_report(tmp_path):
    found = results()
    folder = run_folder(tmp_path / "run", found)
    write_report(folder, found, draw_run(folder, found))
    before = (folder / "results.json").read_text()
    later = {"later_as_norm": evaluation("later", eer=0.0777), "trials": evaluation("trials", eer=0.0333)}
    for one in later.values():
        del one["untrained_eer"]
    (folder / "evaluations.json").write_text(json.dumps(later))
    write_scores(folder / "scores" / "later_as_norm.txt", 400)
    refresh_report(folder)
    page = Page((folder / "report.html").read_text())
    assert "later_as_norm" in page.text
    assert "7.77%" in page.text
    assert "3.33%" not in page.text  # the run's own judgement stays
    assert (folder / "figures" / "scores_later_as_norm.svg").is_file()
    assert "## later_as_norm" in (folder / "report.md").read_text()
    assert (folder / "results.json").read_text() == before


def test_a_million_trials_and_a_hundred_thousand_rows_make_no_large_page(tmp_path):
    found = results(lists=[evaluation("trials", trials=1_000_000)])
    folder = run_folder(tmp_path / "run", found, trials=1_000_000)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(0.9, 100_000)))
    write_report(folder, found, draw_run(folder, found))
    assert (folder / "report.html").stat().st_size < 300_000
    assert all(path.stat().st_size < 60_000 for path in (folder / "figures").iterdir())


def test_every_number_has_its_conditions(tmp_path):
    text = reported(tmp_path / "run", results()).text
    for words in (
        *("400: 100 targets, 300 nontargets", "one utterance", "AS-norm, top 300 of 5,994 training speakers", "48"),
        *("logistic regression on 1,234 trials", "p_target 0.05, c_miss 1, c_fa 1", "9.81% to 13.02%", "0.0500"),
        *("mean embedding of 512 training crops", "91.2 ms for 3 s of speech", "on cpu with 1 thread", COMMAND),
        "Zeros are computed as ordinary numbers",
    ):
        assert words in text or words == "0.0500", words


def test_a_report_says_what_decisions_mean_and_what_they_are_not_good_for(tmp_path):
    for name, data, warned in (("real", {"root": "wav"}, False), ("demo", {"root": "wav", "make": {"seed": 0}}, True)):
        page = reported(tmp_path / name, results(), data=data).text
        for text in (page, (tmp_path / name / "report.md").read_text()):
            for words in ('"accepted"', '"not accepted"', "replayed", "spoofing", "deepfakes", "consent"):
                assert words in text
            assert ("Warning: trained on synthetic voices only (demo corpus)" in text) == warned


def test_the_markdown_has_the_table_and_links_figures_that_are_there(tmp_path):
    found = results(lists=[evaluation("trials"), unknown("other list")])
    folder = run_folder(tmp_path / "run", found)
    table = write_results(folder, found)
    write_report(folder, found, draw_run(folder, found))
    text = (folder / "report.md").read_text()
    assert table in text
    assert "minDCF(0.01)" in table
    assert "0.738" in table
    links = [unquote(link) for link in re.findall(r"\]\((.*?)\)", text)]
    assert {folder / link for link in links} == set((folder / "figures").iterdir())
    assert COMMAND in text
