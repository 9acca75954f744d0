"""The sparse engine computes what the network computes, whatever its zeros, its shape and its plan."""

import platform
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import deployed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sv_sparse.runtime.engine.bindings import MAX_TILE, library
from sv_sparse.runtime.engine.executor import SparseEngine, default_plan, uniform_plan
from sv_sparse.runtime.engine.lowering import lower
from sv_sparse.runtime.engine.plan import USE_DENSE, Plan
from sv_sparse.runtime.fold_bn import fold_batch_norm

RUN = deployed.LOWERED


def difference(network: nn.Module, engine: SparseEngine, x: Tensor) -> float:
    """Largest difference, relative to the largest value, where memory held something else before."""
    _, size = engine._layout.plane_layouts(x.shape[2])
    engine._frames, engine._memory = 0, torch.full((size,), torch.nan)
    with torch.no_grad():
        expected = network(x)
    return float((engine(x) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("model", RUN.values(), ids=RUN)
def test_embeddings_are_those_of_the_network_with_its_zeros(model, density):
    network = fold_batch_norm(deployed.trained(model, density))
    engine = SparseEngine(lower(network))
    for frames in (9, 300, 15, 16, 17, 47, 161):
        assert difference(network, engine, torch.randn(2, 80, frames)) < 1e-5, frames


def test_another_default_type_and_device_of_torch_change_nothing():
    network = fold_batch_norm(deployed.trained(deployed.ECAPA, 0.3))
    program = lower(network)
    x = torch.randn(2, 80, 50)
    expected = SparseEngine(program)(x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            embeddings = SparseEngine(program)(x)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(embeddings, expected)


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
    network = fold_batch_norm(deployed.trained(model, draw(st.sampled_from([0.0, 0.1, 0.7])), draw(st.integers(0, 99))))
    program = lower(network)
    engine = SparseEngine(program, plan=uniform_plan(program, draw(st.integers(USE_DENSE, MAX_TILE))))
    least = program.layout.min_frames
    for frames in draw(st.lists(st.integers(least, least + 90), min_size=1, max_size=3)):
        assert difference(network, engine, torch.randn(1, 80, frames)) < 1e-4


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 5), st.integers(9, 120), st.integers(USE_DENSE, MAX_TILE), st.integers(8, 81))
def test_any_resnet_is_computed(base_channels, frames, tile, mel_bins):
    network = fold_batch_norm(
        deployed.trained(deployed.RESNET | {"base_channels": base_channels}, 0.3, mel_bins=mel_bins)
    )
    program = lower(network)
    engine = SparseEngine(program, plan=uniform_plan(program, tile))
    assert difference(network, engine, torch.randn(1, mel_bins, frames)) < 1e-4


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx"])
def test_processors_with_narrower_vectors_compute_the_same(flag, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", f"g++ {flag}")
    library.cache_clear()
    for model in RUN.values():
        network = fold_batch_norm(deployed.trained(model))
        for tile in (USE_DENSE, 1, 3, 8):
            program = lower(network)
            engine = SparseEngine(program, plan=uniform_plan(program, tile))
            for frames in (9, 47, 50, 51, 64):
                assert difference(network, engine, torch.randn(1, 80, frames)) < 1e-5
    library.cache_clear()


@pytest.mark.parametrize("model", RUN.values(), ids=RUN)
def test_threads_change_no_bit(model):
    program = lower(fold_batch_norm(deployed.trained(model)))
    x = torch.randn(2, 80, 130)
    one, three = (SparseEngine(program, threads=threads)(x) for threads in (1, 3))
    assert torch.equal(one, three)


@pytest.mark.parametrize("model", RUN.values(), ids=RUN)
def test_an_embedding_does_not_depend_on_what_was_embedded_before(model):
    program = lower(fold_batch_norm(deployed.trained(model)))
    engine, x = SparseEngine(program), torch.randn(1, 80, 50)
    alone = engine(x)
    loud = 1e4 * torch.ones(1, 80, 50)
    assert torch.equal(engine(torch.cat([loud, x]))[1:], alone)
    for frames in (333, 40, 51):
        engine(1e4 * torch.randn(1, 80, frames))
        assert torch.equal(engine(x), alone)


def test_what_is_not_a_number_does_not_stay():
    engine, x = SparseEngine(lower(fold_batch_norm(deployed.trained(deployed.ECAPA)))), torch.randn(1, 80, 50)
    alone = engine(x)
    assert engine(torch.full((1, 80, 50), torch.nan)).isnan().all()
    assert torch.equal(engine(x), alone)


@pytest.mark.parametrize("name", ["pooling.linear1.bias", "blocks.0.se.squeeze.bias", "mfa.bias"])
def test_what_a_network_makes_no_number_of_is_no_number(name):
    network = fold_batch_norm(deployed.trained(deployed.ECAPA))
    with torch.no_grad():
        network.get_parameter(name)[:] = torch.nan
    assert not SparseEngine(lower(network))(torch.randn(1, 80, 50)).isfinite().all()


def test_several_threads_may_call_at_once():
    engine = SparseEngine(lower(fold_batch_norm(deployed.trained(deployed.ECAPA))))
    several = [torch.randn(1, 80, frames) for frames in (20, 50, 80, 110) * 4]
    expected = [engine(x) for x in several]
    start = threading.Barrier(4)
    with ThreadPoolExecutor(4, initializer=start.wait) as pool:
        found = list(pool.map(engine, several))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("model", RUN.values(), ids=RUN)
def test_utterances_that_are_too_short_are_refused_as_the_network_refuses_them(model):
    network = fold_batch_norm(deployed.trained(model))
    engine = SparseEngine(lower(network))
    least = lower(network).layout.min_frames
    assert engine(torch.randn(1, 80, least)).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {least} frames, got {least - 1}"):
        engine(torch.randn(1, 80, least - 1))
    with pytest.raises((ValueError, RuntimeError)), torch.no_grad():
        network(torch.randn(1, 80, least - 1))


def test_layers_that_are_dense_are_left_to_torch():
    program = lower(fold_batch_norm(deployed.trained(deployed.RESNET, density=1.0)))
    plan = default_plan(program)
    dense = [name for name, tile in plan.layers.items() if tile == USE_DENSE]
    assert len(dense) > len(plan.layers) / 2
    assert "embedding.weight" not in dense  # a product with a single vector


def test_a_plan_of_another_network_is_refused():
    program = lower(fold_batch_norm(deployed.trained(deployed.ECAPA)))
    with pytest.raises(ValueError, match="another network"):
        SparseEngine(program, plan=Plan({"stem.conv.weight": 4}))


def test_a_network_without_a_program_is_named():
    with pytest.raises(ValueError, match="no program for SEResNet, only for ECAPA, ResNet34"):
        lower(fold_batch_norm(deployed.trained(deployed.SE_RESNET)))


def test_more_channels_than_the_kernel_can_number_are_refused():
    model = deployed.ECAPA | {"channels": 8, "mfa_channels": 32_768}
    with pytest.raises(ValueError, match="too large for the sparse kernels"):
        lower(fold_batch_norm(deployed.trained(model, 0.01)))
