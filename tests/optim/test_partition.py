"""Laws of the partition, the sparse start, the count of zeros, clipping and schedules."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from sv_sparse.optim import (
    DENSE_TYPES,
    clip_grad_norm_,
    count_zeros,
    describe,
    partition,
    sparse_init_,
    sparsity,
    warmup_exponential,
)


def test_every_parameter_is_in_exactly_one_group():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), shared, shared, nn.LayerNorm(4))
    groups = partition(model)
    grouped = [param for group in groups for _, param in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    assert {name for name, _ in groups[0]["params"]} == {"0.weight", "2.weight"}
    assert [group["regularizer"] for group in groups] == ["l1", "none"]


def test_a_module_type_in_neither_list_is_an_error_that_says_where_to_list_it():
    message = r"1.weight is sparse or dense: Embedding is in neither list.*dense_types=\(\*DENSE_TYPES, Embedding\)"
    with pytest.raises(ValueError, match=message):
        partition(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2)))


def test_a_listed_type_is_accepted():
    groups = partition(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2)), dense_types=(*DENSE_TYPES, nn.Embedding))
    assert "1.weight" in dict(groups[1]["params"])


def test_the_description_counts_the_parameters():
    text = describe(partition(nn.Linear(100, 30)))
    assert "| sparse | 1 | 3,000 | l1 |" in text
    assert "| dense | 1 | 30 | none |" in text


def test_a_sparse_start_keeps_the_forward_variance():
    torch.manual_seed(0)
    layer = nn.Linear(4000, 500, bias=False)
    x = torch.randn(20, 4000)
    before = layer(x).var().item()
    sparse_init_([layer.weight], density=0.05, generator=torch.Generator().manual_seed(1))
    assert sparsity([layer.weight]).item() == pytest.approx(0.95, abs=0.002)
    assert layer(x).var().item() == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize("shape", [(64, 1, 3, 3), (128, 16), (96, 128, 1), (64, 64, 3, 3)])
@pytest.mark.parametrize("density", [0.01, 0.3])
def test_a_sparse_start_keeps_the_mean_square_whatever_the_fan_in(shape, density):
    generator = torch.Generator().manual_seed(0)
    squares = []
    for _ in range(20):
        weight = torch.randn(shape, generator=generator)
        sparse_init_([weight], density=density, generator=generator)
        squares.append(weight.square().mean().item())
    assert sum(squares) / 20 == pytest.approx(1.0, rel=0.15)


def test_a_parameter_with_one_axis_cannot_start_sparse():
    with pytest.raises(ValueError, match=r"two axes or more, got one of shape \(5,\)"):
        sparse_init_([torch.ones(5)])


def test_the_mask_does_not_depend_on_the_memory_layout():
    plain = torch.randn(8, 4, 3, 3)
    last = plain.clone().to(memory_format=torch.channels_last)
    for weight in (plain, last):
        sparse_init_([weight], density=0.2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain, last)


def test_an_unscaled_sparse_start_leaves_the_surviving_weights_as_they_were():
    weight = torch.randn(50, 20)
    before = weight.clone()
    sparse_init_([weight], density=0.5, rescale=False)
    assert torch.equal(weight[weight != 0], before[weight != 0])
    assert 0.4 < sparsity([weight]).item() < 0.6


def test_a_sparse_start_leaves_no_output_channel_dead():
    weight = torch.randn(500, 1, 3, 3)
    sparse_init_([weight], density=0.01, generator=torch.Generator().manual_seed(0))
    assert (weight != 0).flatten(1).any(1).all()
    assert (weight != 0).sum() < 600


def test_the_density_is_checked():
    with pytest.raises(ValueError, match="density must be above 0 and at most 1, got 0"):
        sparse_init_([torch.ones(3, 3)], density=0)


def test_zeros_are_counted_exactly_and_without_reading_the_device():
    params = [torch.tensor([0.0, 1e-38, -0.0]), torch.eye(3)]
    assert count_zeros(params).item() == 8
    assert isinstance(sparsity(params), torch.Tensor)


def test_clipping_on_the_support_counts_gradients_of_live_weights_only():
    weight = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    weight.grad = torch.tensor([[0.5, 10.0, 10.0, 10.0]])
    assert clip_grad_norm_([weight], 1.0, on="support").item() == pytest.approx(0.5)
    assert weight.grad[0, 0].item() == pytest.approx(0.5)
    assert clip_grad_norm_([weight], 1.0, on="all").item() == pytest.approx(300.25**0.5)
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_a_single_tensor_is_clipped_as_torch_does():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.full((2, 2), 5.0)
    assert clip_grad_norm_(weight, 1.0).item() == pytest.approx(10.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_biases_at_zero_count_when_clipping_on_the_support():
    bias = nn.Parameter(torch.zeros(4))
    bias.grad = torch.ones(4)
    assert clip_grad_norm_([bias], 1.0, on="support").item() == 2.0


@pytest.mark.parametrize(("settings", "message"), [({"on": "live"}, "support, all"), ({"max_norm": 0.0}, "above 0")])
def test_clipping_checks_its_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        clip_grad_norm_([], **{"max_norm": 1.0} | settings)


def test_the_first_update_of_a_schedule_already_moves():
    factors = [warmup_exponential(step, 100, warmup=0.1, final=0.01) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[-1] == pytest.approx(0.01)
    assert all(later < earlier for earlier, later in pairwise(factors[9:]))


@pytest.mark.parametrize("settings", [{"warmup": 1.0}, {"final": 0.0}])
def test_a_schedule_checks_its_settings(settings):
    with pytest.raises(ValueError, match="must be"):
        warmup_exponential(0, 10, **settings)
