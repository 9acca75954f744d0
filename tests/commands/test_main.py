"""Laws of the command line's entry point."""

import argparse
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from helpers.tiny import ROOT

from sv_sparse import __version__
from sv_sparse.commands.main import COMMANDS, _show_compilation, build_parser, main, subparsers_of

PROBE = """
import os, sys
from sv_sparse.commands import main as cli
assert "torch" not in sys.modules  # which reads the variable when it is loaded
def build_parser(arguments):
    print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
    sys.exit()
cli.build_parser = build_parser
cli.main(sys.argv[1:])
"""


def waiting(*words: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | variables
    words = (sys.executable, "-c", PROBE, *words)
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout.strip()


def test_threads_that_wait_let_other_programs_have_their_core_unless_the_user_says_otherwise():
    assert waiting("verify", "a.wav", "b.wav") == "PASSIVE False"
    assert waiting("verify", "a.wav", "b.wav", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE False"


def test_a_program_that_imports_the_package_keeps_its_environment():
    probe = (
        "import os; before = dict(os.environ);"
        "import sv_sparse.commands.main, sv_sparse.runtime.verifier, sv_sparse.commands.serve;"
        "print({name: os.environ[name] for name in os.environ if os.environ[name] != before.get(name)})"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "{}\n"


@pytest.mark.parametrize("words", [["-m", "sv_sparse.commands.main", "--help"], ["train.py", "--cfg", "job"]])
def test_what_an_entry_point_prints_need_not_be_read(words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, *words], stdout=writing, stderr=subprocess.PIPE, check=False, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "usage", "message"),
    [
        (["verfy", "a", "b"], "sv-sparse [--version] COMMAND", "unknown command 'verfy'; .*; did you mean verify?"),
        (["verify", "a", "b", "--theshold", "1"], "sv-sparse verify", "--theshold 1; did you mean --threshold?"),
        (["verify", "a", "b", "c"], "sv-sparse verify", "unrecognized arguments: c\n"),
    ],
)
def test_what_is_mistyped_is_refused_with_the_usage_of_its_command_and_the_near_name(words, usage, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    error = capsys.readouterr().err
    assert error.startswith(f"usage: {usage}")
    assert re.search(message.replace("?", r"\?"), error)


def test_without_a_command_the_help_is_printed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "Decide whether two recordings" in capsys.readouterr().err


def parsers() -> Iterator[argparse.ArgumentParser]:
    """Every parser that prints a help text."""
    yield build_parser([])
    for name in COMMANDS.keys() - {"train"}:
        parser = subparsers_of(build_parser([name]))[name]
        yield parser
        if name == "prepare":
            (action,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            yield from action.choices.values()


@pytest.fixture(scope="module")
def every_parser() -> list[argparse.ArgumentParser]:
    return list(parsers())


@pytest.mark.parametrize("columns", [40, 300])
def test_help_fits_the_terminal_and_at_most_100_columns(every_parser, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for parser in every_parser:
        text = parser.format_help()
        usage, summary, *_ = text.split("\n\n")
        assert usage.startswith(f"usage: {parser.prog}")
        assert summary.endswith(".")
        assert summary[0].isupper()
        assert max(map(len, text.splitlines())) <= 100
        assert max(map(len, summary.splitlines())) <= columns
        for action in parser._actions:
            assert action.help is not None or isinstance(action, argparse._SubParsersAction), action
            assert not (action.help or "").endswith(".")


def test_every_example_in_a_help_text_is_a_command_line_that_the_parser_takes(every_parser):
    for parser in every_parser:
        examples = [line.strip() for line in (parser.epilog or "").splitlines() if line.startswith("  sv-sparse")]
        assert len(examples) in {1, 2, 3} or parser.prog == "sv-sparse"
        for example in examples:
            words = shlex.split(example)[1:]
            assert " ".join(["sv-sparse", *words]).startswith(parser.prog)
            build_parser(words).parse_args(words)


def test_arguments_of_several_commands_have_one_help_text(every_parser):
    texts: dict[str, set[str]] = {}
    for parser in every_parser:
        for action in parser._actions:
            if {"--model", "--model-class", "--threads", "--json", "--database"}.intersection(action.option_strings):
                texts.setdefault(action.option_strings[0], set()).add(action.help or "")
    assert len(texts) == 5
    assert {name: len(variants) for name, variants in texts.items()} == dict.fromkeys(texts, 1)


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser(["--version"]).parse_args(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"sv-sparse {__version__}\n"


def test_commands_say_that_they_compile_and_leave_the_log_to_themselves(capsys):
    root_handlers = logging.getLogger().handlers[:]
    with _show_compilation():
        logging.getLogger("sv_sparse.optim.cpp.compiler").info("compiling kernels")
        logging.getLogger("sv_sparse.data").info("not shown")
        assert logging.getLogger().handlers == root_handlers
    assert capsys.readouterr().err == "compiling kernels\n"
