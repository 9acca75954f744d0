"""scripts/compare.py: one table over finished runs."""

import json
import shutil
import subprocess
import sys

from tiny import ROOT


def compare(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_row_for_each_finished_run_and_a_word_on_the_others(finished, tmp_path):
    (tmp_path / "begun").mkdir()
    done = compare(finished, tmp_path / "begun", "--out", tmp_path / "table.md")
    assert done.returncode == 0, done.stderr
    head, _, row = done.stdout.splitlines()
    assert len(head.split("|")) == len(row.split("|"))
    assert finished.name in row
    assert "| ECAPA | AdaBreg | 0.01 | FeedbackController |" in row
    assert "begun: not finished, left out" in done.stderr
    assert (tmp_path / "table.md").read_text() == done.stdout


def test_a_row_for_each_list_that_a_run_was_judged_by_since(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    judged = json.loads((run / "results.json").read_text())["evaluations"]["trials"]
    del judged["start_eer"]
    (run / "evaluations.json").write_text(json.dumps({"other": judged | {"name": "other", "trials": 1234}}))
    rows = compare(run).stdout.splitlines()[2:]
    assert sorted(row.split("|")[2].strip() for row in rows) == ["other", "trials"]
    (only,) = compare(run, "--list", "other").stdout.splitlines()[2:]
    assert "| other | 1,234 |" in only


def test_nothing_to_compare_and_an_unknown_list_are_errors_in_words(finished, tmp_path):
    assert "none of these runs is finished" in compare(tmp_path).stderr
    done = compare(finished, "--list", "no")
    assert done.returncode == 1
    assert "no trial list 'no'; it has trials" in done.stderr
