"""scripts/benchmark/gpu.py as far as it goes without a GPU: users run it for us, it must not rot."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from helpers.tiny import ROOT

FOLDER = ROOT / "scripts" / "benchmark"


@pytest.fixture
def gpu(monkeypatch) -> ModuleType:
    """The script as a module; what it imports from beside it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    import gpu  # noqa: PLC0415  # its folder is on the path only here

    yield gpu
    for path in FOLDER.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be checked")
def test_without_a_gpu_it_says_so_in_a_sentence():
    done = subprocess.run([sys.executable, FOLDER / "gpu.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == "gpu.py checks a CUDA GPU, and torch finds none here; --device cpu tries the script itself out\n"
    )


@pytest.mark.parametrize("section", ["method", "networks", "precision"])
def test_what_needs_no_gpu_passes_on_the_cpu(gpu, section, tmp_path):
    rows = list(gpu.rows_of(section, gpu.Options(torch.device("cpu"), True, tmp_path)))
    assert len(rows) > 1
    assert {each.result for each in rows} == {gpu.OK}, gpu.table(rows)


def test_what_needs_a_gpu_is_tried_and_says_that_it_needs_one(gpu, tmp_path):
    rows = list(gpu.rows_of("waits", gpu.Options(torch.device("cpu"), True, tmp_path)))
    assert {each[1:] for each in rows} == {(gpu.NEEDS, "needs CUDA")}, gpu.table(rows)


def test_a_section_that_fails_says_why_and_the_others_go_on(gpu, monkeypatch, capsys):
    def fails(_):
        yield gpu.row("first", True, "a | b")
        raise RuntimeError("no\n luck")

    monkeypatch.setattr(gpu, "SECTIONS", {"one": fails, "two": lambda _: iter([gpu.row("third", False, "differs")])})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 1
    assert capsys.readouterr().out.endswith(
        "| check | result | detail |\n|---|---|---|\n"
        "| first | ok | a \\| b |\n"
        "| one | FAILED | RuntimeError: no luck |\n"
        "| third | FAILED | differs |\n"
    )


def test_losses_and_tensors_that_differ_are_told_apart(gpu):
    same = [2.0, 1.9, 1.8, 1.7, 1.6, 1.5]
    assert gpu._alike("loss", same, same, 0.01).result == gpu.OK
    assert gpu._alike("loss", [2.0, 1.9, 1.8, 1.7, 1.6, 1.4], same, 0.01).result == gpu.FAILED
    assert gpu._alike("loss", [2.0, 1.9, 1.8, 1.7, 1.6, float("nan")], same, 0.01).result == gpu.FAILED
    assert gpu._compared("gradient", torch.ones(3), torch.ones(3), 0.01).result == gpu.OK
    assert gpu._compared("gradient", torch.tensor([1.0, 1.0, 1.1]), torch.ones(3), 0.01).result == gpu.FAILED
