"""Laws of the command line's entry point."""

import os
import subprocess
import sys

import pytest
from helpers.tiny import ROOT

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
