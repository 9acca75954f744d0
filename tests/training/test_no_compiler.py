"""A machine without a compiler: training, evaluation and use go on, and say once what that costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny import ROOT, TINY, Outcome, Tones

WITHOUT = "/nonexistent/g++"


def run(folder: Path, *words: str) -> Outcome:
    """Run Python in a process of its own, which has no compiler, and no kernels from an earlier time."""
    environment = os.environ | {"CXX": WITHOUT, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def trained(tones: Tones, tmp_path_factory) -> tuple[Outcome, Path]:
    """A run without a compiler."""
    folder = tmp_path_factory.mktemp("without")
    settings = (*TINY, *tones.settings(), "target_sparsity=0.8", f"run_dir={folder / 'run'}")
    return run(folder, str(ROOT / "train.py"), *settings), folder


def test_a_network_is_trained_and_one_plain_line_says_what_it_costs(trained):
    done, folder = trained
    assert done.status == 0, done.err
    assert (folder / "run" / "report.html").is_file()
    for kernels, cost in (("the network's", "takes longer, most in bf16"), ("the optimizer's", "about twice as long")):
        (line,) = (line for line in done.out.splitlines() if f"{kernels} kernels cannot be compiled" in line)
        assert f"with {WITHOUT}: " in line
        assert cost in line
        assert (folder / "run" / "train.log").read_text().count(line) == 1
    assert "UserWarning" not in done.out + done.err


def test_the_network_is_evaluated_exported_and_used(trained, tones):
    _, folder = trained
    left, right = (str(path) for path in sorted(tones.root.rglob("*.flac"))[:2])
    sv_sparse = ("-m", "sv_sparse.commands.main")
    assert run(folder, *sv_sparse, "evaluate", "run").status == 0
    assert run(folder, *sv_sparse, "export", "run", "--output", "model.safetensors").status == 0
    done = run(folder, *sv_sparse, "verify", "--model", "model.safetensors", left, right)
    assert done.status in {0, 1}, done.err  # the same speaker, or not
    assert "cannot be compiled" in done.err
    assert "falling back to numpy" in done.err


def test_kernels_that_were_asked_for_are_an_error_before_the_first_step(tones, tmp_path):
    settings = (*TINY, *tones.settings(), "trainer.cpu_kernels=true", f"run_dir={tmp_path / 'run'}")
    done = run(tmp_path, str(ROOT / "train.py"), *settings)
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith("error: the network's kernels cannot be compiled with")
    assert "choose trainer.cpu_kernels=false" in done.err
    assert not (tmp_path / "run").exists()
