"""Laws of clipping by the norm over the support: by kernel and by torch, one number."""

import pytest
import torch
from torch import Tensor, nn

from sv_sparse.optim import clip_grad_norm_
from sv_sparse.optim.cpp import bindings

SHAPES = [(1, 1), (31,), (33, 1), (0, 4), (1024,), (5, 1025), (64, 32, 3), (16, 8, 3, 3)]


def pairs(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
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
    params = pairs(dtype)
    wanted = expected(params)
    norm = clip_grad_norm_(params, 1.0, sparse_params=params)
    assert norm.item() == pytest.approx(wanted, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert expected(params) == pytest.approx(1.0, rel=1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_kernel_and_torch_agree_whatever_the_layout(monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    weight = nn.Parameter(draw(16, 8, 3, 3).relu().to(memory_format=torch.channels_last))
    with_gaps = nn.Parameter(draw(12, 16).relu()[:, ::2])
    gradients = draw(16, 8, 3, 3), draw(12, 8)
    taken: list[int] = []
    by_kernel = bindings.support_norm
    monkeypatch.setattr(bindings, "support_norm", lambda *lists: taken.append(len(lists[0])) or by_kernel(*lists))
    found: list[Tensor] = []
    for backend in ("cpp", "foreach"):
        for layout in (torch.contiguous_format, torch.channels_last):
            weight.grad, with_gaps.grad = gradients[0].clone(memory_format=layout), gradients[1].clone()
            found.append(clip_grad_norm_([weight, with_gaps], 1e9, backend=backend))
    assert taken == [1]  # the gradient that is laid out like its weight, once
    torch.testing.assert_close(torch.stack(found), found[0].expand(4), rtol=1e-5, atol=0)


def test_the_kernels_norm_does_not_depend_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(2_000_003, generator=generator) for _ in range(2))
    threads, norms = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            norms.append(bindings.support_norm([weight], [gradient]).item())
    finally:
        torch.set_num_threads(threads)
    assert len(set(norms)) == 1
    assert norms[0] == pytest.approx(gradient.double().norm().item(), rel=1e-6)


@pytest.mark.parametrize("backend", ["cpp", "foreach"])
@pytest.mark.parametrize("place", [3, 99])
def test_an_infinite_gradient_of_a_zero_weight_is_not_overlooked(backend, place):
    weight = nn.Parameter(torch.ones(1, 100))
    weight.grad = torch.ones(1, 100)
    weight.data[0, place], weight.grad[0, place] = 0, float("inf")
    assert clip_grad_norm_([weight], 1.0, backend=backend).isnan()


def test_a_compiled_step_may_clip():
    def clip(weight: nn.Parameter) -> Tensor:
        return clip_grad_norm_([weight], 1.0, sparse_params=[weight])

    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.ones(4, 4)
    assert torch.compile(clip, backend="eager")(weight).item() == pytest.approx(4.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
