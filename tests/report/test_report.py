"""Laws of a run's report, on made-up runs."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from helpers.reported import (
    COMMAND,
    DEMO,
    DEMO_CORPUS,
    FOLDER,
    evaluation,
    results,
    rows,
    run_folder,
    unknown,
    write_scores,
)

from sv_sparse.commands.main import build_parser
from sv_sparse.report import refresh_report, write_report, write_results
from sv_sparse.report.tables import NEXT_COMMANDS

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


def reported(folder: Path, content: dict, **options) -> Page:
    """Return the page of a run with these results."""
    run_folder(folder, content, **options)
    write_report(folder, content)
    return Page((folder / "report.html").read_text())


def test_a_report_is_one_file_that_needs_nothing_but_itself(tmp_path):
    page = reported(tmp_path / "run", results(lists=[evaluation("a"), unknown("b")]))
    text = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"https?:|@import|<script|<link|<img|\bsrc=|url\((?!#)", text)
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)


def test_no_two_elements_share_an_id_and_every_reference_has_its_own(tmp_path):
    page = reported(tmp_path / "run", results(lists=[evaluation("a"), unknown("b")]))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
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
    content = results(lists=[evaluation(ODD, breakdown=groups), unknown("_b")], layers=[ODD, "embedding.weight"])
    page = reported(tmp_path / ODD, content)
    assert not page.all("b")
    assert page.text.count(ODD) >= 4
    for path in (tmp_path / ODD / "figures").iterdir():
        ElementTree.parse(path)
    table = (tmp_path / ODD / "report.md").read_text().splitlines()[2:6]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_what_is_not_known_is_a_dash_and_what_is_absent_is_left_out(tmp_path):
    content = results(lists=[unknown("trials")])
    del content["validation_eer"], content["validation_eer_tracked"]
    page = reported(tmp_path / "run", content)
    assert "none: speakers unknown" in page.text
    assert "EER of groups" not in page.text
    assert "held-out training speakers" not in page.text
    assert "None" not in page.text


def test_a_report_names_its_corpus_its_path_and_its_lists(tmp_path):
    page = reported(tmp_path / "run", results())
    texts = page.text, (tmp_path / "run" / "report.md").read_text()
    assert all("Corpus: voxceleb, 108 speakers, 1,296 utterances" in text for text in texts)
    for text in texts:
        assert all(word in text for word in ("/data/prepared", "vox2_dev", "vox1_O_cleaned"))
        assert "(synthetic voices)" not in text
        assert "trained on synthetic voices" not in text


def test_a_report_says_that_voices_are_synthetic(tmp_path):
    page = reported(tmp_path / "run", results(corpus=DEMO_CORPUS))
    assert "Corpus: demo (synthetic voices), 108 speakers, 1,296 utterances" in page.text
    assert "demo (synthetic voices)" in (tmp_path / "run" / "report.md").read_text()


def test_the_untrained_eer_is_shown_only_where_a_run_evaluated_it(tmp_path):
    for name, lists, shown in (("with", [evaluation("a")], True), ("without", [unknown("a")], False)):
        page = reported(tmp_path / name, results(lists=lists))
        assert ("untrained EER" in page.text) == shown
        assert ("untrained EER" in (tmp_path / name / "report.md").read_text()) == shown


def test_the_agreement_with_a_teacher_is_shown_where_there_was_one(tmp_path):
    title = "Agreement with the teacher"
    assert title not in reported(tmp_path / "without", results()).text
    cosines = {"teacher_cosine": 0.9512, "min_teacher_cosine": 0.6234, "teacher_recordings": 4708}
    cosines |= {"validation_teacher_cosine_tracked": 0.9433, "validation_teacher_cosine": 0.9544}
    folder = run_folder(tmp_path / "run", results(**cosines))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        if "loss" in row:
            row["teacher_cosine"] = 1 - 1 / row["step"]
            del row["accuracy"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    write_report(folder, results(**cosines))
    texts = Page((folder / "report.html").read_text()).text, (folder / "report.md").read_text()
    for text in texts:
        assert title in text
        assert all(number in text for number in ("4,708 trial recordings", "0.9512", "0.6234", "0.9433", "0.9544"))
    figure = (folder / "figures" / "teacher.svg").read_text()
    assert "from 0.000 to 0.950" in figure


def test_a_dense_run_has_no_figures_of_lambda_and_sparsity(tmp_path):
    content = results(target=0.0)
    page = reported(tmp_path / "run", content, controller="fixed")
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
    content = json.loads((folder / "results.json").read_text())
    write_report(folder, content)
    assert "0.00%" in (folder / "report.html").read_text()


def test_equal_runs_have_equal_reports(tmp_path):
    content = results(lists=[evaluation("a"), unknown("b")])
    folders = [run_folder(tmp_path / side / "run", content) for side in ("left", "right")]
    for folder in folders:
        write_report(folder, content)
    left, right = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert left == right


def test_lists_that_a_run_was_judged_by_since_are_in_its_report(tmp_path):
    content = results()
    folder = run_folder(tmp_path / "run", content)
    write_report(folder, content)
    before = (folder / "results.json").read_text()
    later = {"later_as_norm": evaluation("later", eer=0.0777), "trials": evaluation("trials", eer=0.0333)}
    for result in later.values():
        del result["untrained_eer"]
    (folder / "evaluations.json").write_text(json.dumps(later))
    write_scores(folder / "scores" / "later_as_norm.txt", 400)
    refresh_report(folder)
    page = Page((folder / "report.html").read_text())
    assert "later_as_norm" in page.text
    assert "7.77%" in page.text
    assert "3.33%" not in page.text  # the run's own evaluation stays
    assert (folder / "figures" / "scores_later_as_norm.svg").is_file()
    assert "## later_as_norm" in (folder / "report.md").read_text()
    assert (folder / "results.json").read_text() == before


def test_a_million_trials_and_a_hundred_thousand_rows_make_no_large_page(tmp_path):
    content = results(lists=[evaluation("trials", trials=1_000_000)])
    folder = run_folder(tmp_path / "run", content, trials=1_000_000)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(0.9, 100_000)))
    write_report(folder, content)
    assert (folder / "report.html").stat().st_size < 300_000
    assert all(path.stat().st_size < 60_000 for path in (folder / "figures").iterdir())


def test_every_number_has_its_conditions(tmp_path):
    text = reported(tmp_path / "run", results()).text
    for words in (
        *("400 (100 targets)", "one utterance", "AS-norm, top 300 of 5,994 training speakers", "48"),
        *("logistic regression on 1,234 trials", "p_target 0.05, c_miss 1, c_fa 1", "9.81% to 13.02%", "0.0500"),
        *("mean embedding of 512 training crops", "91.2 ms for 3 s of speech", "on cpu, threads: 1", COMMAND),
        "PyTorch does not skip zeros",
    ):
        assert words in text or words == "0.0500", words


def test_a_report_says_what_decisions_mean_and_what_they_are_not_good_for(tmp_path):
    for name, data, warned in (("real", FOLDER, False), ("demo", DEMO, True)):
        page = reported(tmp_path / name, results(), data=data).text
        for text in (page, (tmp_path / name / "report.md").read_text()):
            for words in ('"accepted"', '"not accepted"', "replayed", "spoofing", "deepfakes", "consent"):
                assert words in text
            assert ("Warning: trained on synthetic voices only (demo corpus)" in text) == warned


def test_the_length_of_a_run_is_said_in_epochs_only_where_they_count(tmp_path):
    content = results()
    assert "6 epochs (60 steps)" in reported(tmp_path / "epochs", content).text
    folder = run_folder(tmp_path / "steps", content)
    config = json.loads((folder / "config.yaml").read_text()) | {"trainer": {"max_steps": 60}}
    (folder / "config.yaml").write_text(json.dumps(config))
    write_report(folder, content)
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "60 steps" in text
        assert "epochs" not in text


def test_dead_channels_are_marked_only_where_there_are_any(tmp_path):
    content = results()
    reported(tmp_path / "dead", content)
    assert ">dead output channels<" in (tmp_path / "dead" / "figures" / "layers.svg").read_text()
    for layer in content["layers"].values():
        layer["dead_channels"] = 0
    reported(tmp_path / "alive", content)
    text = (tmp_path / "alive" / "figures" / "layers.svg").read_text()
    assert ">dead output channels<" not in text
    assert "Dead output channels (all weights 0): none." in text


def test_the_latency_stands_beside_the_next_commands(tmp_path):
    reported(tmp_path / "run", results())
    for name in ("report.html", "report.md"):
        text = (tmp_path / "run" / name).read_text()
        for command in NEXT_COMMANDS:
            assert command in text
            arguments = command.split()[1:]
            build_parser(arguments).parse_args(arguments)


def test_the_markdown_has_the_table_and_links_figures_that_are_there(tmp_path):
    content = results(lists=[evaluation("trials"), unknown("other list")])
    folder = run_folder(tmp_path / "run", content)
    table = write_results(folder, content)
    write_report(folder, content)
    text = (folder / "report.md").read_text()
    assert table in text
    assert "minDCF(0.01)" in table
    assert "0.738" in table
    links = [unquote(link) for link in re.findall(r"\]\((.*?)\)", text)]
    assert {folder / link for link in links} == set((folder / "figures").iterdir())
    assert COMMAND in text
