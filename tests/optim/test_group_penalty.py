"""Groups of weights: whole channels and kernels become zero, steered and finalized like single weights."""

import pytest
import torch
from helpers.controlled import batches, network, run

from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    LinBreg,
    QuantileController,
    count_zeros,
    param_groups,
)
from sv_sparse.optim.prox import group_norms, group_size


def start(kind, granularity, controller, target=0.5, steps=300, **settings):
    model = network()
    groups = [group | {"granularity": granularity} for group in param_groups(model, penalty="group")]
    optimizer = kind(groups, lr=0.002 if kind is AdaBreg else 0.05, lambda_init=0.01)
    return model, optimizer, controller(optimizer, target, steps, **settings)


@pytest.mark.parametrize("granularity", ["out_channel", "in_channel", "kernel"])
def test_groups_are_zero_as_a_whole_or_not_at_all(granularity):
    model, optimizer, controller = start(AdaBreg, granularity, QuantileController, steps=10)
    run(model, optimizer, controller, batches(10))
    for param in controller.params:
        dead = group_norms(param, granularity) == 0
        assert 0 <= int(dead.sum()) * group_size(param, granularity) == int((param == 0).sum())
    assert count_zeros(controller.params) > 0


@pytest.mark.parametrize("granularity", ["out_channel", "in_channel", "kernel"])
def test_the_quantile_of_groups_is_exact_to_within_a_group(granularity):
    model, optimizer, controller = start(
        AdaBreg, granularity, QuantileController, steps=20, ramp_start=None, ramp_end=None
    )
    largest = max(group_size(param, granularity) for param in controller.params)
    size = sum(param.numel() for param in controller.params)
    for share in run(model, optimizer, controller, batches(20)):
        assert 0 <= share * size - 0.5 * size < largest + 1e-2


def test_before_a_ramp_from_a_dense_start_nothing_moves_the_weights_but_their_gradients():
    weights = [torch.nn.Parameter(torch.randn(8, 4) / 9), torch.nn.Parameter(torch.randn(64, 32) / 99)]
    before = [weight.detach().clone() for weight in weights]
    optimizer = AdaBreg([{"params": [each]} for each in weights], lambda_init=0.1, penalty="group")
    controller = QuantileController(optimizer, 0.5, 10, ramp_start=0.5, ramp_end=1.0, initial_sparsity=0.0)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    controller.step()
    for weight, old in zip(weights, before, strict=True):
        torch.testing.assert_close(weight.detach(), old)


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_feedback_reaches_a_target_in_kernels_from_a_dense_start(kind):
    granularity = "kernel"
    model, optimizer, controller = start(kind, granularity, FeedbackController)
    path = run(model, optimizer, controller, batches(300))
    step = max(group_size(param, granularity) for param in controller.params)
    size = sum(param.numel() for param in controller.params)
    assert max(abs(share - 0.5) for share in path[-60:]) < 0.01 + step / size
    controller.finalize()
    zeros = int(count_zeros(controller.params))
    assert 0 <= zeros - (size - round(0.5 * size)) < step


def test_a_kernel_of_size_one_is_a_single_weight():
    weight = torch.nn.Parameter(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    other = torch.nn.Parameter(weight.detach().clone())
    settings = {"lr": 0.05, "lambda_init": 0.3}
    optimizers = [
        AdaBreg([weight], penalty="group", granularity="kernel", **settings),
        AdaBreg([other], backend="foreach", **settings),
    ]
    for step in range(5):
        for param, optimizer in zip((weight, other), optimizers, strict=True):
            param.grad = torch.randn(5, 7, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    torch.testing.assert_close(weight, other)
    assert (weight == 0).any()


def test_a_parameter_with_one_axis_has_no_groups():
    with pytest.raises(ValueError, match=r'parameters with penalty="group" must be of two axes or more, got \[\(3,'):
        AdaBreg([torch.nn.Parameter(torch.ones(3))], penalty="group")
