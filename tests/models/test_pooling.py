import pytest
import torch
from torch import Tensor, nn

from sv_sparse.models.pooling import AttentiveStatisticsPooling, TemporalStatisticsPooling, statistics


def written_out(frames: Tensor, scores: Tensor | None, correction: int, variance_floor: float) -> Tensor:
    """`statistics` operation by operation."""
    count = frames.shape[1]
    weight = torch.full_like(frames, 1 / count) if scores is None else scores.softmax(dim=1)
    mean = (weight * frames).sum(dim=1, keepdim=True)
    variance = (weight * (frames - mean) ** 2).sum(dim=1) * count / (count - correction)
    return torch.cat([mean.squeeze(1), variance.clamp(min=variance_floor).sqrt()], dim=1)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients_are_those_of_the_formula(weighted: bool, correction: int) -> None:
    torch.manual_seed(0)
    frames = (3 + torch.randn(3, 50, 7)).requires_grad_()
    inputs = [frames, torch.randn(3, 50, 7).requires_grad_()] if weighted else [frames]
    scores = inputs[1] if weighted else None
    ours = statistics(frames, scores, correction=correction, variance_floor=1e-10)
    theirs = written_out(frames, scores, correction, 1e-10)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), rtol=1e-4, atol=1e-6
    )
    with torch.no_grad():
        without_grad = statistics(frames, scores, correction=correction, variance_floor=1e-10)
    torch.testing.assert_close(ours, without_grad)


@pytest.mark.parametrize("weighted", [False, True])
def test_second_derivatives_are_those_of_the_formula(weighted: bool) -> None:
    frames = (3 + torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(0))).requires_grad_()
    penalties = []
    for function in (statistics, written_out):
        scores = frames.roll(1, dims=2).sin() if weighted else None  # as a network's depend on the frames
        pooled = function(frames, scores, correction=1, variance_floor=1e-10)
        (slope,) = torch.autograd.grad(pooled.square().sum(), frames, create_graph=True)
        penalties.append([slope.detach(), *torch.autograd.grad(slope.square().sum(), frames)])
    for ours, theirs in zip(*penalties, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, 1000.3])
@pytest.mark.parametrize("pooling", ["temporal", "attentive", "attentive with norm"])
def test_constant_input_has_finite_gradients(pooling: str, value: float) -> None:
    x = torch.full((2, 8, 5, 20), value, requires_grad=True)
    if pooling == "temporal":
        TemporalStatisticsPooling()(x).sum().backward()
    else:
        AttentiveStatisticsPooling(40, 4, hidden_norm="norm" in pooling)(x.flatten(1, 2)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_large_mean_does_not_swallow_a_small_deviation() -> None:
    x = 1000 + 0.01 * torch.tensor([1.0, -1.0]).repeat(100).view(1, 1, 1, 200)
    pooled = TemporalStatisticsPooling()(x)
    torch.testing.assert_close(pooled, torch.tensor([[1000.0, x.double().std().item()]]), rtol=1e-3, atol=0)


def test_temporal_statistics_are_torchs_mean_and_std() -> None:
    x = torch.randn(3, 4, 5, 30)
    expected = torch.cat([x.mean(dim=3).flatten(1), x.std(dim=3).flatten(1)], dim=1)
    torch.testing.assert_close(TemporalStatisticsPooling()(x), expected)


def test_attention_sees_each_frame_with_the_mean_and_deviation() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 30)
    pooling = AttentiveStatisticsPooling(6, 4)
    context = [x.mean(dim=2, keepdim=True).expand_as(x), x.std(dim=2, keepdim=True).expand_as(x)]
    frames = torch.cat([x, *context], dim=1).transpose(1, 2)
    scores = pooling.linear2(torch.tanh(pooling.linear1(frames)))
    torch.testing.assert_close(pooling(x), written_out(x.transpose(1, 2), scores, 0, 1e-10))


@pytest.mark.parametrize("pooling", [TemporalStatisticsPooling(), AttentiveStatisticsPooling(40, 4)])
def test_statistics_are_float32_under_autocast(pooling: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 40, 1, 30) if isinstance(pooling, TemporalStatisticsPooling) else torch.randn(2, 40, 30)
    x = (5 + x).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooling(x)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, pooling(x.float()), rtol=0.02, atol=0.02)
    pooled.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_one_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 frames at its input, got 1"):
        TemporalStatisticsPooling()(torch.zeros(1, 4, 5, 1))
    with pytest.raises(ValueError, match="at least 2 frames at its input, got 1"):
        AttentiveStatisticsPooling(4, 4)(torch.zeros(1, 4, 1))
