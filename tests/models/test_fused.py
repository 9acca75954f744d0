"""The kernels that training on a CPU takes: the same function as torch's operations, with its gradients."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from sv_sparse.models import fused
from sv_sparse.models.ecapa import ECAPA
from sv_sparse.models.layers import ConvUnit
from sv_sparse.models.native import transposed
from sv_sparse.models.pooling import statistics


def twins(layout: str) -> tuple[ECAPA, ECAPA]:
    torch.manual_seed(0)
    ours = ECAPA(mel_bins=20, channels=64, mfa_channels=48, attention_channels=8, se_channels=8, layout=layout)
    theirs = copy.deepcopy(ours)
    fused.choose(theirs, "torch")
    return ours, theirs


def trained(model: nn.Module, bf16: bool) -> list[Tensor]:
    """Embedding, gradients and buffers after a step's passes."""
    generator = torch.Generator().manual_seed(1)
    filterbank, slope = torch.randn(6, 20, 40, generator=generator), torch.randn(6, 192, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        embedding = model(filterbank)
    (embedding * slope).sum().backward()
    return [embedding.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Of all values together, relative."""
    a, b = (torch.cat([tensor.flatten().double() for tensor in each]) for each in (one, other))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("layout", ["wespeaker", "speechbrain"])
def test_a_step_is_that_of_torchs_operations(layout: str) -> None:
    ours, theirs = (trained(model, bf16=False) for model in twins(layout))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("layout", ["wespeaker", "speechbrain"])
def test_in_bf16_it_is_as_near_to_float32_as_torchs_operations_are(layout: str) -> None:
    exact = trained(twins(layout)[1], bf16=False)
    ours, theirs = (distance(trained(model, bf16=True), exact) for model in twins(layout))
    assert ours < 1.2 * theirs


def test_the_number_of_threads_changes_no_bit_of_a_unit() -> None:
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            x = torch.randn(5, 70, 1, 33, generator=torch.Generator().manual_seed(0), requires_grad=True)
            norm = nn.BatchNorm2d(70)
            y = fused.normalized_relu(x.clone(), torch.zeros(70), norm)
            y.square().sum().backward()
        finally:
            torch.set_num_threads(before)
        found.append([y.detach(), x.grad, norm.weight.grad, norm.running_var])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weighted_statistics_are_those_of_torchs_operations(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    frames, scores = (torch.randn(3, 30, 9) + 100 * shift for shift in (1, -1))
    gradients = []
    for kernels in (True, False):
        ends = [tensor.to(dtype).requires_grad_() for tensor in (frames, scores)]
        found = statistics(*ends, correction=0, variance_floor=1e-8, kernels=kernels)
        (found * torch.arange(18)).sum().backward()
        gradients.append([found, *(end.grad for end in ends)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(64, 32), (40, 72), (7, 9)])
def test_a_transpose_is_a_transpose(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape).to(torch.bfloat16)
    assert torch.equal(transposed(matrix), matrix.T)


class OtherNorm(nn.BatchNorm2d):
    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(input)


def test_a_norm_that_is_not_torchs_own_is_called() -> None:
    unit = ConvUnit(8, 8)
    unit.norm = OtherNorm(8)
    unit(torch.randn(4, 8, 1, 10)).sum().backward()
    assert unit.norm.calls == 1


@pytest.mark.parametrize("frozen", ["conv", "norm"])
def test_frozen_weights_get_no_gradient(frozen: str) -> None:
    unit = ConvUnit(8, 8)
    getattr(unit, frozen).requires_grad_(False)
    unit(torch.randn(4, 8, 1, 10)).sum().backward()
    assert {name for name, p in unit.named_parameters() if p.grad is None} == {f"{frozen}.weight", f"{frozen}.bias"}


def test_a_second_backward_pass_is_refused() -> None:
    loss = ConvUnit(8, 8)(torch.randn(4, 8, 1, 10)).square().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="implementation must be one of fused, torch, got 'fast'"):
        ECAPA(channels=16, mfa_channels=24, implementation="fast")


def test_without_a_compiler_the_error_says_what_to_choose() -> None:
    code = """
import torch
from sv_sparse.models.layers import ConvUnit
from sv_sparse.models.native import transposed
unit = ConvUnit(8, 8)
unit.implementation = "torch"
unit(torch.randn(4, 8, 1, 10))
unit.implementation = "fused"
unit(torch.randn(4, 8, 1, 10))
"""
    environment = os.environ | {"CXX": "no-such-compiler"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "OSError: the network's kernels cannot be compiled with no-such-compiler" in found.stderr
    assert "choose model.implementation=torch" in found.stderr
