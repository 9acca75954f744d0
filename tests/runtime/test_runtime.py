"""A packaged network on this machine: which engine, which plan, and the same embeddings by all."""

import logging

import pytest
import torch
from helpers import deployed

from sv_sparse.export.package import write_package
from sv_sparse.runtime.engine import bindings as native
from sv_sparse.runtime.engine.autotune import TILES, autotune
from sv_sparse.runtime.engine.bindings import library
from sv_sparse.runtime.engine.executor import SparseEngine
from sv_sparse.runtime.engine.plan import USE_DENSE, Plan
from sv_sparse.runtime.engine.runtime import Runtime, plan_path
from sv_sparse.runtime.package import read_package


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Of a tiny ECAPA-TDNN; plans are looked for in an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = deployed.trained(deployed.ECAPA, 0.1)
    write_package(tmp_path / "m", network, deployed.ECAPA, deployed.backend(), {}, features=deployed.FEATURES)
    return read_package(tmp_path / "m")


def without_compiler(monkeypatch):
    library.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")


def test_without_a_compiler_numpy_computes_and_the_log_says_so(package, monkeypatch, caplog):
    x = torch.randn(1, 80, 60)
    expected = Runtime.load(package)(x)
    without_compiler(monkeypatch)
    with caplog.at_level(logging.WARNING):
        found = Runtime.load(package)
    library.cache_clear()
    assert "no-such-compiler" in caplog.text
    assert "install g++" in caplog.text
    assert "falling back to numpy" in caplog.text
    assert found.description.startswith("numpy, ")
    torch.testing.assert_close(found(x), expected, rtol=1e-4, atol=1e-5)


def test_asked_for_sparse_kernels_nothing_else_is_taken(package, monkeypatch):
    without_compiler(monkeypatch)
    with pytest.raises(OSError, match="engine=numpy"):
        Runtime.load(package, engine="sparse")
    library.cache_clear()


@pytest.mark.parametrize("engine", ["sparse", "numpy"])
@pytest.mark.parametrize("shape", [(80, 50), (1, 40, 50), (1, 1, 80, 50)])
def test_a_filterbank_of_another_shape_is_refused(package, engine, shape):
    with pytest.raises(ValueError, match=r"expected a filterbank \[B, 80, T\]"):
        Runtime.load(package, engine=engine)(torch.randn(shape))


@pytest.mark.parametrize("text", ["{}", '{"layers": {"a": 1}, "machine": "x", "checksum": "x"}'])
def test_a_stored_plan_of_no_use_is_warned_of_and_left(package, caplog, text):
    path = plan_path(package, 1)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert "planned by density" in Runtime.load(package, threads=1).description
    assert str(path) in caplog.text


def test_without_a_home_there_is_no_plan(package, monkeypatch):
    for variable in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pathlib.Path.home", nobody)
    assert Runtime.load(package, engine="numpy")(torch.randn(1, 80, 60)).isfinite().all()
    with pytest.raises(OSError, match="the user's cache"):
        plan_path(package, 1)


def nobody():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(("setting", "value"), [("engine", "fast"), ("threads", 0), ("threads", 100_000)])
def test_a_wrong_setting_is_named(package, setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be .*{value}"):
        Runtime.load(package, **{setting: value})


def test_a_measured_plan_names_every_layer_and_is_found_again(package):
    program = package.program
    plan = autotune(program, "this machine", rounds=1)
    assert set(plan.layers) == {layer.name for layer in program.layers}
    assert set(plan.layers.values()) <= {*TILES, USE_DENSE, 1}
    path = plan_path(package, 1)
    path.parent.mkdir(parents=True)
    plan.save(path)
    found = Runtime.load(package, threads=1)
    assert isinstance(found.engine, SparseEngine)
    assert found.engine.plan == plan
    assert "planned by measurement on this machine, 1 threads" in found.description
    assert "planned by density" in Runtime.load(package, threads=2).description


@pytest.mark.parametrize("text", ["", "[]", '{"layers": {"a": 99}, "machine": ""}', '{"layers": {"a": 1}}'])
def test_a_damaged_plan_is_named(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=r"plan\.json is not a"):
        Plan.load(tmp_path / "plan.json")


def test_a_plan_of_which_a_bit_changed_is_damaged(tmp_path):
    path = tmp_path / "plan.json"
    plan = Plan({"first": 4, "second": USE_DENSE}, "this machine")
    plan.save(path)
    assert Plan.load(path) == plan
    content = path.read_bytes()
    for place in (content.index(b"first"), content.index(b"4"), content.index(b"this"), content.index(b'sum": "') + 7):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"plan\.json is not a readable plan: it is damaged"):
            Plan.load(path)


def test_short_utterances_are_computed_by_one_thread_and_long_ones_by_all_unless_a_number_is_given(
    package, monkeypatch
):
    used = []
    real = native.run_steps

    def run_steps(steps, levels, arena, threads, *ends):
        used.append(threads)
        real(steps, levels, arena, threads, *ends)

    monkeypatch.setattr(native, "run_steps", run_steps)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for threads, expected in ((None, {300: {1}, 1200: {2}}), (2, {300: {2}, 1200: {2}})):
        runtime = Runtime.load(package, threads=threads, engine="sparse")
        for frames, numbers in expected.items():
            used.clear()
            runtime(torch.randn(1, 80, frames))
            assert set(used) == numbers, (threads, frames)
