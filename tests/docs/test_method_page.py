"""docs/method.md: its program ends at the target, as its output says, and its tables name what the program has."""

import re

import pytest
from helpers import pages

import sv_sparse.optim


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", line)]


def test_lambda_follows_the_gap_as_the_output_says(capsys):
    exec(pages.snippet("method", "lambda_init=1e-4"), {})
    printed = capsys.readouterr().out.splitlines()
    expected = pages.blocks("method", "text")[0].splitlines()
    assert len(printed) == len(expected)
    for line, expected_line in zip(printed, expected, strict=True):
        # Another processor adds in another order.
        assert numbers(line) == pytest.approx(numbers(expected_line), rel=0.1, abs=0.02)
    assert printed[-1] == expected[-1]


def test_the_controllers_of_the_table_exist():
    names = re.findall(r"^\| `\w+` \| `(\w+)` \|", pages.text("method"), flags=re.MULTILINE)
    assert len(names) == 6
    assert set(names) <= set(sv_sparse.optim.__all__)
