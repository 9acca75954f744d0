"""sv-sparse compare: finished runs in a table for each list, with figures."""

import csv
import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers.reported import DEMO_CORPUS, evaluation, results, run_folder, unknown

from sv_sparse.commands import main as cli
from sv_sparse.evaluation.score_files import eer_difference
from sv_sparse.report.compare import (
    add_eer_differences,
    compare_text,
    cost_table,
    read_run_results,
    write_comparison,
)
from sv_sparse.report.format import DASH


@pytest.fixture
def swept(tmp_path) -> list[Path]:
    """Two runs that find their target, three with a fixed lambda, a dense one, and one that is not finished."""
    runs = []
    for target in (0.75, 0.9):
        content = results(target, wall_time_s=180.0, sparsity_tracked=target + 1e-5)
        runs.append(run_folder(tmp_path / f"feedback_{target}", content))
    for lambda_, sparsity in ((0.05, 0.65), (0.1, 0.92), (0.2, 0.99)):
        content = results(sparsity_tracked=sparsity, sparsity=sparsity, wall_time_s=300.0) | {"lambda": lambda_}
        runs.append(run_folder(tmp_path / f"fixed_{lambda_}", content, controller="fixed"))
    runs.append(run_folder(tmp_path / "dense", results(0.0, lists=[unknown("trials")]), controller="fixed"))
    (tmp_path / "unfinished").mkdir()
    return [*runs, tmp_path / "unfinished"]


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the rows of each Markdown table in a text, by the list that the line above begins with."""
    rows: dict[str, list[dict[str, str]]] = {}
    for heading, table in re.findall(r"^(\S.*?): .*\n\n((?:\|.*\n?)+)", text, re.MULTILINE):
        header, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        rows[heading] = [dict(zip(header, line, strict=True)) for line in lines]
    return rows


def test_a_row_for_each_finished_run_and_a_word_on_the_others(swept, capsys):
    cli.main(["compare", *map(str, swept)])
    out, err = capsys.readouterr()
    rows = tables(out)["trials"]
    assert len(rows) == 6
    assert rows[0] | {"minutes": "3.0"} == {
        "run": "feedback_0.75",
        "settings": "feedback",
        "target": "75.00%",
        "final sparsity": "75.0000%",
        "EER": "11.28% [9.81, 13.02]",
        "minDCF(0.01)": "0.738",
        "minutes": "3.0",
    }
    assert [row["settings"] for row in rows[2:]] == ["fixed λ 0.05", "fixed λ 0.1", "fixed λ 0.2", "dense"]
    constants = "Same in all runs: corpus voxceleb, model ecapa, optimizer adabreg, lr 0.01"
    assert out.startswith(f"{constants}, duration 6 epochs (60 steps), seed 0.")
    assert f"{swept[-1]}: not finished, left out" in err


def test_a_comparison_names_the_corpora(tmp_path):
    runs = [run_folder(tmp_path / "one", results()), run_folder(tmp_path / "two", results(corpus=DEMO_CORPUS))]
    write_comparison(tmp_path / "out", read_run_results(runs)[0])
    for name in ("compare.html", "compare.md"):
        text = (tmp_path / "out" / name).read_text()
        assert re.search(r"two\W.*\Wdemo \(synthetic voices\)", text, re.DOTALL)
        assert re.search(r"one\W.*\Wvoxceleb", text, re.DOTALL)


def test_settings_of_the_model_and_what_a_run_started_from_are_named(tmp_path):
    runs = [run_folder(tmp_path / name, results()) for name in ("plain", "narrow", "later")]
    for run, changes in zip(
        runs[1:], ({"model": {"name": "ecapa", "channels": 256}}, {"init_from": "runs/plain"}), strict=True
    ):
        file = run / "config.yaml"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    write_comparison(tmp_path / "out", read_run_results(runs)[0])
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| ecapa " in text
    assert "| ecapa (channels=256) " in text
    assert "| ecapa, init_from plain " in text


def test_a_teacher_and_the_cosines_to_it_are_named(tmp_path):
    cosines = {"teacher_cosine": 0.95, "min_teacher_cosine": 0.62, "teacher_recordings": 18}
    runs = [run_folder(tmp_path / "plain", results()), run_folder(tmp_path / "taught", results(**cosines))]
    config = json.loads((runs[1] / "config.yaml").read_text())
    (runs[1] / "config.yaml").write_text(json.dumps(config | {"teacher": "/runs/large"}))
    teacher_runs, _ = read_run_results(runs)
    assert "| teacher large " in compare_text(teacher_runs)
    write_comparison(tmp_path / "compared", teacher_runs)
    plain, taught = csv.DictReader((tmp_path / "compared" / "compare.csv").read_text().splitlines())
    assert (plain["teacher_cosine"], plain["min_teacher_cosine"]) == ("", "")
    assert (taught["teacher_cosine"], taught["min_teacher_cosine"]) == ("0.95", "0.62")


def test_a_row_for_each_list_that_a_run_was_evaluated_on_since(tmp_path, capsys):
    run = run_folder(tmp_path / "run", results())
    later = evaluation("other", trials=1234)
    del later["untrained_eer"]
    (run / "evaluations.json").write_text(json.dumps({"other": later}))
    cli.main(["compare", str(run)])
    assert sorted(tables(capsys.readouterr().out)) == ["other", "trials"]
    cli.main(["compare", str(run), "--list", "other"])
    out = capsys.readouterr().out
    assert list(tables(out)) == ["other"]
    assert "other: trials 1,234 (100 targets), speakers 48" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "not finished, left out"), (["--list", "no"], "not evaluated on no, left out; it has trials")],
)
def test_nothing_to_compare_and_an_unknown_list_are_errors(swept, capsys, arguments, message):
    runs = swept[:1] if arguments else swept[-1:]
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", *map(str, runs), *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_does_not_exist_is_an_error(swept, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        cli.main(["compare", str(swept[0]), str(tmp_path / "typo")])
    assert end.value.code == 2
    assert f"{tmp_path / 'typo'}: no such folder" in capsys.readouterr().err


def test_a_run_that_was_not_evaluated_on_the_list_is_named_and_left_out(tmp_path):
    runs = [run_folder(tmp_path / name, results(lists=[evaluation(name)])) for name in ("a", "b")]
    run_results, messages = read_run_results(runs, "b")
    assert [result.run_name for result in run_results] == ["b"]
    assert messages == [f"{runs[0]}: not evaluated on b, left out; it has a"]


def test_a_run_of_an_earlier_version_is_named_and_left_out(swept):
    (swept[0] / "config.yaml").write_text(json.dumps({"optim": {"_target_": "sv_sparse.optim.AdaBreg"}}))
    run_results, messages = read_run_results(swept)
    assert len(run_results) == 5
    assert messages[0].startswith(f"{swept[0]}/config.yaml: its settings are not those of this version")
    with pytest.raises(ValueError, match="not those of this version"):
        read_run_results(swept[:1])


def test_runs_of_one_name_have_names_of_their_own(tmp_path):
    runs = [run_folder(tmp_path / side / "run", results()) for side in ("left", "right")]
    assert [result.run_name for result in read_run_results(runs)[0]] == ["left/run", "right/run"]


def test_the_csv_parses_back_to_the_numbers(swept, tmp_path):
    write_comparison(tmp_path / "out", read_run_results(swept)[0])
    with open(tmp_path / "out" / "compare.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    first = rows["feedback_0.75"]
    numbers = ("target_sparsity", "sparsity", "eer", "eer_low", "eer_high", "min_dcf(0.05)", "cllr", "minutes")
    assert [float(first[name]) for name in numbers] == [0.75, 0.75, 0.1128, 0.0981, 0.1302, 0.512, 0.41, 3.0]
    assert rows["dense"]["eer_low"] == rows["dense"]["calibration"] == rows["dense"]["lambda"] == ""


def test_a_comparison_is_a_page_a_text_and_figures(swept, tmp_path):
    for name in ("one", "two"):
        write_comparison(tmp_path / name, read_run_results(swept)[0])
    files = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.*")}
    assert {str(path) for path in files} == {
        *("compare.html", "compare.md", "compare.csv"),
        *("figures/eer_trials.svg", "figures/targets.svg"),
    }
    assert files == {path.relative_to(tmp_path / "two"): path.read_bytes() for path in (tmp_path / "two").rglob("*.*")}
    text = files[Path("compare.html")].decode()
    assert text.count("<svg") == 2
    assert "Cost of reaching a target" in text
    assert not re.search(r"https?:|@import|<script|<link|<img|\bsrc=|url\((?!#)", text)


def test_one_dense_run_is_compared_too(tmp_path):
    runs = [run_folder(tmp_path / "<i>dense", results(0.0))]
    write_comparison(tmp_path / "out", read_run_results(runs)[0])
    text = (tmp_path / "out" / "compare.html").read_text()
    assert "&lt;i&gt;dense" in text
    assert "<i>" not in text


def test_fixed_lambdas_cost_all_of_their_runs_and_count_by_the_nearest(swept):
    table = cost_table(read_run_results(swept)[0])
    assert [row[1:] for row in table.rows] == [
        ["75.00%", "sweep of fixed λ, nearest 0.05", "3", "15.0", "65.000%", "10.000"],
        ["75.00%", "feedback: feedback_0.75", "1", "3.0", "75.001%", "0.001"],
        ["90.00%", "sweep of fixed λ, nearest 0.1", "3", "15.0", "92.000%", "2.000"],
        ["90.00%", "feedback: feedback_0.9", "1", "3.0", "90.001%", "0.001"],
    ]
    assert cost_table(read_run_results(swept[:2])[0]) is None


def test_differences_to_the_first_run_are_a_column_where_they_are_known(swept):
    run_results = read_run_results(swept)[0]
    assert "first run" not in compare_text(run_results)
    run_results[1].eer_difference = (0.012, -0.003, 0.027)
    run_results[2].eer_difference = (-0.00001, -0.00002, 0.00001)
    text = compare_text(run_results)
    assert "Differences to the first run are in percentage points of EER" in " ".join(text.split())
    differences = {row["run"]: row["minus first run"] for row in tables(text)["trials"]}
    assert differences["feedback_0.9"] == "+1.20 [-0.30, +2.70]"
    assert differences["fixed_0.05"] == "0.00 [0.00, 0.00]"
    assert differences["feedback_0.75"] == DASH


def test_lines_for_a_terminal_are_short_and_say_what_they_leave_out(tmp_path):
    runs = []
    for seed, name in enumerate(("2026-11-29_22-14-21_ecapa_512_feedback_0.9", "a")):
        content = results(lists=[evaluation("a"), evaluation("b")], seed=seed)
        runs.append(run_folder(tmp_path / name, content, optimizer=("adabreg", "linbreg")[seed]))
    run_results = read_run_results(runs)[0]
    for result in run_results[2:]:
        result.eer_difference = (0.012, -0.003, 0.027)
    text = compare_text(run_results)
    assert max(map(len, text.splitlines())) <= 120
    assert "would be too long: settings, minDCF(0.01), minutes. --out FOLDER has them." in text
    write_comparison(tmp_path / "out", run_results)
    header = next(
        line for line in (tmp_path / "out" / "compare.md").read_text().splitlines() if line.startswith("| run")
    )
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    assert {"minutes", "settings"} < set(columns)
    assert len(columns) == 8


def test_the_axes_have_the_targets_as_ticks(swept, tmp_path):
    write_comparison(tmp_path / "out", read_run_results(swept)[0])
    for name, ticks in (("targets", {"75", "90"}), ("eer_trials", {"0", "75", "90"})):
        text = (tmp_path / "out" / "figures" / f"{name}.svg").read_text()
        labels = set(re.findall(r">(\d[\d.]*)</text>", text))
        assert ticks <= labels
        assert not labels & {"89.8", "90.2", "89.9", "90.1"}


def test_runs_that_scored_the_same_trials_are_compared_with_the_first(tmp_path, capsys):
    runs = [run_folder(tmp_path / name, results(target=target)) for name, target in (("one", 0.5), ("two", 0.9))]
    pairs = [(f"s{a % 8}/{a}", f"s{b % 8}/{b}", a % 8 == b % 8) for a in range(32) for b in range(a)]
    generator = np.random.default_rng(0)
    for run, spread in zip(runs, (1.0, 3.0), strict=True):
        lines = [f"{a} {b} {generator.normal(1.5 * same, spread):.6f} {int(same)}\n" for a, b, same in pairs]
        (run / "scores" / "trials.txt").write_text("".join(lines))
        (run / "scores" / "trials.speakers").write_text("".join(f"s{k % 8}/{k}\ts{k % 8}\n" for k in range(32)))
    cli.main(["compare", *map(str, runs), "--out", str(tmp_path / "out")])
    first, second = tables(capsys.readouterr().out)["trials"]
    assert first["minus first run"] == DASH
    assert re.fullmatch(r"\+\d+\.\d\d \[\+\d+\.\d\d, \+\d+\.\d\d\]", second["minus first run"])
    table = csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines())
    (row,) = [row for row in table if row["run"] == "two"]
    assert float(row["eer_difference_low"]) < float(row["eer_difference"]) < float(row["eer_difference_high"])


def test_other_trials_under_one_name_have_names_of_their_own(tmp_path):
    lists = [evaluation("trials"), evaluation("trials", trials=7, checksum="fedcba9876543210")]
    runs = [run_folder(tmp_path / name, results(lists=[entry])) for name, entry in zip("ab", lists, strict=True)]
    run_results, _ = read_run_results(runs)
    assert [result.list_name for result in run_results] == ["trials (012345)", "trials (fedcba)"]


def test_trials_that_were_left_out_are_named_where_there_are_any(tmp_path):
    lists = [evaluation("trials"), evaluation("trials", trials_left_out=1234, recordings_left_out=2)]
    runs = [run_folder(tmp_path / name, results(lists=[entry])) for name, entry in zip("ab", lists, strict=True)]
    run_results, _ = read_run_results(runs)
    assert "left out none (a); 1,234 trials, unusable recordings: 2 (b)" in compare_text(run_results)
    assert "left out" not in compare_text(run_results[:1])
    write_comparison(tmp_path / "out", run_results)
    table = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    assert [(row["trials_left_out"], row["recordings_left_out"]) for row in table] == [("", ""), ("1234", "2")]


def test_a_list_of_which_other_trials_were_scored_since_is_shown_as_it_was_evaluated_last(tmp_path):
    run = run_folder(tmp_path / "run", results(lists=[evaluation("trials", trials_left_out=5, recordings_left_out=1)]))
    mended = evaluation("trials", eer=0.09, checksum="fedcba9876543210")
    (run / "evaluations.json").write_text(json.dumps({"trials": mended}))
    (result,), _ = read_run_results([run])
    assert result.evaluation["eer"] == 0.09
    again = evaluation("trials", eer=0.08)  # of the same trials, on another device say
    (run / "evaluations.json").write_text(json.dumps({"trials": again}))
    (result,), _ = read_run_results([run])
    assert result.evaluation["eer"] == 0.1128


def test_scores_of_other_trials_are_not_compared_whatever_their_names(tmp_path):
    """Enrollments that are averages of fewer utterances have the same names."""
    lists = [evaluation("trials"), evaluation("trials", checksum="fedcba9876543210")]
    runs = [run_folder(tmp_path / name, results(lists=[entry])) for name, entry in zip("ab", lists, strict=True)]
    names = [f"s{k % 8}/{k}" for k in range(32)]
    for run in runs:
        generator = np.random.default_rng(0)
        pairs = [(a, b, a[:2] == b[:2]) for a, b in combinations(names, 2)]
        scores = "".join(f"{a} {b} {generator.normal(1.5 * same):.6f} {int(same)}\n" for a, b, same in pairs)
        (run / "scores" / "trials.txt").write_text(scores)
        (run / "scores" / "trials.speakers").write_text("".join(f"{name}\t{name[:2]}\n" for name in names))
    run_results, _ = read_run_results(runs)
    add_eer_differences(run_results)
    assert [result.eer_difference for result in run_results] == [None, None]
    assert eer_difference(*(run / "scores" / "trials.txt" for run in runs)) is not None
