"""Laws of clipping by the norm over the support: by kernel and by torch, one number."""

import pytest
import torch
from torch import Tensor, nn

from sv_sparse.optim import clip_grad_norm_, native

SHAPES = [(1, 1), (31,), (33, 1), (0, 4), (1024,), (5, 1025), (64, 32, 3), (16, 8, 3, 3)]


def pairs(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in SHAPES:
        weight = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.3)
        params.append(nn.Parameter(weight.to(dtype)))
        params[-1].grad = torch.randn(shape, generator=generator).to(dtype)
    return params


def expected(params: list[nn.Parameter]) -> float:
    return sum((p.grad.double() ** 2)[p != 0].sum().item() for p in params) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_norm_is_that_of_the_gradients_of_nonzero_weights(dtype):
    params = pairs(dtype=dtype)
    wanted = expected(params)
    norm = clip_grad_norm_(params, 1.0, sparse=params)
    assert norm.item() == pytest.approx(wanted, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert expected(params) == pytest.approx(1.0, rel=1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_kernel_and_torch_agree_whatever_the_layout(monkeypatch):
    weight = nn.Parameter(torch.randn(16, 8, 3, 3).relu().to(memory_format=torch.channels_last))
    other = nn.Parameter(torch.randn(12, 16)[:, ::2].relu())
    gradients = torch.randn(16, 8, 3, 3), torch.randn(12, 8)
    found: list[Tensor] = []
    for there in (True, False):
        monkeypatch.setattr(native, "available", lambda there=there: there)
        for layout in (torch.contiguous_format, torch.channels_last):
            weight.grad, other.grad = gradients[0].clone(memory_format=layout), gradients[1].clone()
            found.append(clip_grad_norm_([weight, other], 1e9, sparse=[weight, other]))
    torch.testing.assert_close(torch.stack(found), found[0].expand(4), rtol=1e-6, atol=0)


def test_the_kernels_norm_does_not_depend_on_the_number_of_threads():
    threads, norms = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            params = pairs()
            norms.append(clip_grad_norm_(params, 1.0, sparse=params).item())
    finally:
        torch.set_num_threads(threads)
    assert len(set(norms)) == 1


@pytest.mark.parametrize("there", [True, False])
def test_an_infinite_gradient_of_a_zero_weight_is_not_overlooked(there, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: there)
    weight = nn.Parameter(torch.tensor([[1.0, 0.0]]))
    weight.grad = torch.tensor([[1.0, float("inf")]])
    assert clip_grad_norm_([weight], 1.0).isnan()


def test_clipping_needs_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.library.cache_clear()
    native.available.cache_clear()
    try:
        params = pairs()
        assert clip_grad_norm_(params, 1.0, sparse=params).item() == pytest.approx(expected(pairs()), rel=1e-6)
    finally:
        native.library.cache_clear()
        native.available.cache_clear()
