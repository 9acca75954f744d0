"""The kernels that training on a CPU takes: the same function as torch's operations, with its gradients."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sv_sparse.models.cpu_kernels import accelerate, bindings, ops
from sv_sparse.models.cpu_kernels.bindings import transposed
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.layers import ConvReluNorm
from sv_sparse.models.pooling import statistics


def twins(layout: str) -> tuple[ECAPA, ECAPA]:
    torch.manual_seed(0)
    ours = ECAPA(mel_bins=20, channels=64, mfa_channels=48, attention_channels=8, se_channels=8, layout=layout)
    theirs = copy.deepcopy(ours)
    accelerate(ours, True)
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
            y = ops.normalized_relu(x.clone(), torch.zeros(70), norm)
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
        found = statistics(*ends, correction=0, variance_floor=1e-8, moments=ops.FusedMoments if kernels else None)
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
    unit = ConvReluNorm(8, 8)
    unit.norm = OtherNorm(8)
    unit(torch.randn(4, 8, 1, 10)).sum().backward()
    assert unit.norm.calls == 1


@pytest.mark.parametrize("frozen", ["conv", "norm"])
def test_frozen_weights_get_no_gradient(frozen: str) -> None:
    unit = ConvReluNorm(8, 8)
    getattr(unit, frozen).requires_grad_(False)
    unit(torch.randn(4, 8, 1, 10)).sum().backward()
    assert {name for name, p in unit.named_parameters() if p.grad is None} == {f"{frozen}.weight", f"{frozen}.bias"}


def test_a_second_backward_pass_needs_a_retained_graph() -> None:
    unit = accelerate(ConvReluNorm(8, 8), True)
    loss = unit(torch.randn(4, 8, 1, 10))[0].sum()
    loss.backward(retain_graph=True)
    once = unit.conv.weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(unit.conv.weight.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second backward pass .* specify retain_graph=True"):
        loss.backward()


def test_a_model_keeps_its_parameters_names_and_hooks() -> None:
    model = ECAPA(channels=16, mfa_channels=24)
    params, keys = dict(model.named_parameters()), list(model.state_dict())
    hook = model.stem.conv.register_forward_hook(lambda *_: None)
    assert accelerate(model, True) is model
    assert all(param is params[name] for name, param in model.named_parameters())
    assert list(model.state_dict()) == keys
    assert hook.id in model.stem.conv._forward_hooks
    assert type(copy.deepcopy(model)) is type(model) is not ECAPA
    assert isinstance(model, ECAPA)


def test_subclasses_and_parametrized_modules_are_left_alone() -> None:
    class Unit(ConvReluNorm):
        pass

    unit, parametrized = Unit(4, 4), ConvReluNorm(4, 4)
    parametrize.register_parametrization(parametrized.conv, "weight", nn.Identity())
    accelerate(nn.ModuleList([unit]), True)
    assert type(unit) is Unit
    accelerate(parametrized, True)
    x = torch.randn(2, 4, 1, 9)
    assert not ops.can_fuse(parametrized, x, [parametrized.conv], [parametrized.norm])


@pytest.fixture
def without(monkeypatch, tmp_path) -> Iterator[Callable[[str], None]]:
    """Compile the kernels anew by this compiler, into an empty cache."""

    def use(compiler: str) -> None:
        monkeypatch.setenv("CXX", compiler)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    before = bindings.library, bindings.available
    for function in before:
        function.cache_clear()
    yield use
    for function in before:
        function.cache_clear()


def write_compiler(folder: Path, script: str) -> str:
    """A compiler that is a shell script; returns its path."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


NO_OPENMP = 'for word; do [ "$word" = -fopenmp ] && { echo "no libgomp here" >&2; exit 1; }; done; exec g++ "$@"'
OTHER_MACHINE = """
out=; previous=
for word; do [ "$previous" = -o ] && out=$word; previous=$word; done
[ -n "$out" ] || exec g++ "$@"
echo "for another machine" > "$out"
"""
BROKEN = {
    "absent": (None, "No such file"),
    "without OpenMP": (NO_OPENMP, "no libgomp here"),
    "for another machine": (OTHER_MACHINE, "kernel-"),
}


def small(enabled: bool | str = "auto") -> nn.Module:
    return accelerate(ECAPA(mel_bins=20, channels=16, mfa_channels=24), enabled)


@pytest.mark.parametrize("kind", BROKEN)
def test_without_kernels_training_goes_on_with_one_warning(kind: str, without, tmp_path: Path) -> None:
    script, reason = BROKEN[kind]
    without(write_compiler(tmp_path, script) if script else "no-such-compiler")
    with pytest.warns(UserWarning, match=reason) as warned:
        steps = [trained(small().train(), bf16=False) for _ in range(2)]
    assert all(value.isfinite().all() for step in steps for value in step)
    (words,) = [str(warning.message) for warning in warned]
    assert "choose trainer.cpu_kernels=false" in words
    assert "takes longer, most in bf16" in words


def test_a_cache_that_cannot_be_written_is_as_no_compiler(without, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, in which there can be no folder")
    without(os.environ.get("CXX", "g++"))
    with pytest.warns(UserWarning, match="Not a directory|exists"):
        trained(small(), bf16=False)


def test_a_compiler_that_fails_is_asked_once(without, tmp_path: Path) -> None:
    without(write_compiler(tmp_path, f"echo called >> {tmp_path / 'calls'}\nexit 1"))
    with pytest.warns(UserWarning, match="failed"):
        trained(small(), bf16=False)
    trained(small(), bf16=False)
    assert (tmp_path / "calls").read_text().splitlines() == ["called"]


def test_kernels_that_are_required_are_an_error_without_a_compiler_which_says_what_to_choose(without) -> None:
    without("no-such-compiler")
    with pytest.raises(OSError, match="cannot be compiled with no-such-compiler: .*choose trainer.cpu_kernels=false"):
        small(True)


def test_no_compiler_is_asked_for_where_no_kernels_are_wanted(without) -> None:
    without("no-such-compiler")
    trained(small(False).train(), bf16=True)
    accelerate(nn.Linear(3, 3), True)
