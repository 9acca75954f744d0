"""Both engines compute what the network computes, whatever its zeros, its shape and its plan."""

import platform
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import deployed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sv_sparse.export.operations import lower
from sv_sparse.runtime.engine.bindings import MAX_TILE, library
from sv_sparse.runtime.engine.executor import SparseEngine, default_plan, uniform_plan
from sv_sparse.runtime.engine.numpy_engine import NumpyEngine
from sv_sparse.runtime.engine.plan import USE_DENSE, Plan


def noise(*shape: int) -> np.ndarray:
    return torch.randn(shape).numpy()


def difference(network: nn.Module, engine: SparseEngine | NumpyEngine, x: np.ndarray) -> float:
    """Largest difference, relative to the largest value, where memory held something else before."""
    if isinstance(engine, SparseEngine):
        _, size = engine._program.plane_layouts(x.shape[2])
        engine._frames, engine._memory = 0, np.full(size, np.nan, np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    return float(np.abs(engine(x) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("model", deployed.MODELS.values(), ids=deployed.MODELS)
def test_embeddings_are_those_of_the_network_with_its_zeros(model, density):
    network = deployed.trained(model, density)
    program = lower(network, 80)
    for engine in (SparseEngine(program), NumpyEngine(program)):
        for frames in (program.min_frames, 300, 16, 17, 47, 161, 202):
            assert difference(network, engine, noise(2, 80, max(frames, program.min_frames))) < 1e-5, frames


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_ecapa_is_computed(data):
    draw = data.draw
    blocks = draw(st.integers(1, 3))
    scale = draw(st.sampled_from([2, 3, 8]))
    layout = draw(st.sampled_from(["wespeaker", "speechbrain"]))
    model = deployed.ECAPA | {
        "layout": layout,
        "res2net_scale": scale,
        "channels": scale * draw(st.integers(1, 6)),
        "mfa_channels": draw(st.integers(1, 70)),
        "attention_channels": draw(st.integers(1, 40)),
        "se_channels": draw(st.integers(1, 20)),
        "kernel_sizes": draw(st.lists(st.sampled_from([1, 3, 5, 7]), min_size=blocks + 1, max_size=blocks + 1)),
        "dilations": draw(st.lists(st.integers(1, 6), min_size=blocks + 1, max_size=blocks + 1)),
    }
    network = deployed.trained(model, draw(st.sampled_from([0.0, 0.1, 0.7])), draw(st.integers(0, 99)))
    program = lower(network, 80)
    engine = SparseEngine(program, plan=uniform_plan(program, draw(st.integers(USE_DENSE, MAX_TILE))))
    least = program.min_frames
    for frames in draw(st.lists(st.integers(least, least + 90), min_size=1, max_size=3)):
        assert difference(network, engine, noise(1, 80, frames)) < 1e-4


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 5), st.integers(9, 120), st.integers(USE_DENSE, MAX_TILE), st.integers(8, 81))
def test_any_resnet_is_computed(base_channels, frames, tile, mel_bins):
    network = deployed.trained(deployed.RESNET | {"base_channels": base_channels}, 0.3, mel_bins=mel_bins)
    program = lower(network, mel_bins)
    engine = SparseEngine(program, plan=uniform_plan(program, tile))
    assert difference(network, engine, noise(1, mel_bins, frames)) < 1e-4


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx"])
def test_processors_with_narrower_vectors_compute_the_same(flag, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", f"g++ {flag}")
    library.cache_clear()
    for model in deployed.MODELS.values():
        network = deployed.trained(model)
        program = lower(network, 80)
        for tile in (USE_DENSE, 1, 3, 8):
            engine = SparseEngine(program, plan=uniform_plan(program, tile))
            for frames in (16, 47, 50, 51, 64):
                assert difference(network, engine, noise(1, 80, frames)) < 1e-5
    library.cache_clear()


@pytest.mark.parametrize("model", deployed.MODELS.values(), ids=deployed.MODELS)
def test_threads_change_no_bit(model):
    program = lower(deployed.trained(model), 80)
    x = noise(2, 80, 130)
    one, three = (SparseEngine(program, threads=threads)(x) for threads in (1, 3))
    assert np.array_equal(one, three)


@pytest.mark.parametrize("model", deployed.MODELS.values(), ids=deployed.MODELS)
def test_an_embedding_does_not_depend_on_what_was_embedded_before(model):
    engine, x = SparseEngine(lower(deployed.trained(model), 80)), noise(1, 80, 50)
    alone = engine(x)
    loud = np.full((1, 80, 50), 1e4, np.float32)
    assert np.array_equal(engine(np.concatenate([loud, x]))[1:], alone)
    for frames in (333, 40, 51):
        engine(1e4 * noise(1, 80, frames))
        assert np.array_equal(engine(x), alone)


def test_what_is_not_a_number_does_not_stay():
    engine, x = SparseEngine(lower(deployed.trained(deployed.ECAPA), 80)), noise(1, 80, 50)
    alone = engine(x)
    assert np.isnan(engine(np.full((1, 80, 50), np.nan, np.float32))).all()
    assert np.array_equal(engine(x), alone)


@pytest.mark.parametrize("name", ["pooling.linear1.bias", "blocks.0.se.squeeze.bias", "mfa.bias"])
def test_what_a_network_makes_no_number_of_is_no_number(name):
    network = deployed.trained(deployed.ECAPA)
    with torch.no_grad():
        network.get_parameter(name)[:] = torch.nan
    program = lower(network, 80)
    for engine in (SparseEngine(program), NumpyEngine(program)):
        assert not np.isfinite(engine(noise(1, 80, 50))).all()


def test_several_threads_may_call_at_once():
    engine = SparseEngine(lower(deployed.trained(deployed.ECAPA), 80))
    several = [noise(1, 80, frames) for frames in (20, 50, 80, 110) * 4]
    expected = [engine(x) for x in several]
    start = threading.Barrier(4)
    with ThreadPoolExecutor(4, initializer=start.wait) as pool:
        found = list(pool.map(engine, several))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("model", deployed.MODELS.values(), ids=deployed.MODELS)
def test_utterances_that_are_too_short_are_refused_as_the_network_refuses_them(model):
    network = deployed.trained(model)
    program = lower(network, 80)
    least = program.min_frames
    for engine in (SparseEngine(program), NumpyEngine(program)):
        assert np.isfinite(engine(noise(1, 80, least))).all()
        with pytest.raises(ValueError, match=f"at least {least} frames, got {least - 1}"):
            engine(noise(1, 80, least - 1))
    with pytest.raises((ValueError, RuntimeError)), torch.no_grad():
        network(torch.randn(1, 80, least - 1))


def test_layers_that_are_dense_are_left_to_torch():
    plan = default_plan(lower(deployed.trained(deployed.RESNET, density=1.0), 80))
    dense = [name for name, tile in plan.layers.items() if tile == USE_DENSE]
    assert len(dense) > len(plan.layers) / 2
    assert "embedding.weight" not in dense  # a product with a single vector


def test_a_plan_of_another_network_is_refused():
    program = lower(deployed.trained(deployed.ECAPA), 80)
    with pytest.raises(ValueError, match="another network"):
        SparseEngine(program, plan=Plan({"stem.conv.weight": 4}))
