"""Laws of the landing, and of what a controller refuses."""

import pytest
import torch
from helpers.controlled import TARGETS, batches, network, run, start
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    LinBreg,
    QuantileController,
    count_zeros,
    param_groups,
)


@pytest.mark.parametrize("target", [*TARGETS, 0.123])
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_landing_meets_the_target_to_the_weight(kind, target):
    model, optimizer, controller = start(kind, target, 60)
    run(model, optimizer, controller, batches(60))
    controller.finalize()
    size = sum(param.numel() for param in controller.params)
    assert size - int(count_zeros(controller.params)) == round((1 - target) * size)


def test_a_dense_group_stays_dense_under_the_controller():
    model, optimizer, controller = start(AdaBreg, 0.99, 100, lambda_init=10.0)
    alive = [param != 0 for param in optimizer.param_groups[1]["params"]]
    run(model, optimizer, controller, batches(100))
    controller.finalize()
    for param, before in zip(optimizer.param_groups[1]["params"], alive, strict=True):
        assert before.any() or param.any()
        assert param[before].all()


def test_a_target_of_zero_regulates_nothing():
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty="none"), lambda_init=5.0)
    controller = FeedbackController(optimizer, 0.0, 20)
    for x, y in batches(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        controller.step()
    controller.finalize()
    assert controller.params == []
    assert controller.lambda_.item() == 0
    assert count_zeros(list(model.parameters())).item() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 1.0}, "target_sparsity must be at least 0 and below 1, got 1.0"),
        ({"target_sparsity": -0.1}, "target_sparsity must be at least 0 and below 1, got -0.1"),
        ({"target_sparsity": 0.0}, r"target_sparsity=0 is dense training: groups \[None\] need penalty='none'"),
        ({"total_steps": 0}, "total_steps must be a whole number, 1 or more, got 0"),
        ({"freeze_fraction": 1.0}, "freeze_fraction must be at least 0 and below 1, got 1.0"),
        ({"alpha": 0.0}, "alpha must be above 0, got 0.0"),
        ({"gamma": 1.5}, "gamma must be above 0 and at most 1, got 1.5"),
        ({"min_gain": 2.0}, "min_gain must be at most 1.0, got 2.0"),
        ({"target_sparsity": 0.99}, "target_sparsity=0.99 of 16 weights keeps 0 of them"),
        ({"target_sparsity": 0.001}, "target_sparsity=0.001 of 16 weights keeps 16 of them"),
        ({"min_gain": -1.0}, "min_gain must be 0 or more, got -1.0"),
        ({"deadband": -1.0}, "deadband must be 0 or more, got -1.0"),
    ],
)
def test_a_setting_out_of_bounds_is_named_with_its_bounds(settings, message):
    optimizer = AdaBreg(nn.Linear(4, 4, bias=False).parameters(), lambda_init=0.1)
    with pytest.raises(ValueError, match=message):
        FeedbackController(optimizer, **{"target_sparsity": 0.9, "total_steps": 10} | settings)


def test_a_lambda_that_starts_at_zero_is_refused_since_it_could_never_grow():
    with pytest.raises(ValueError, match="must start above 0, got 0.0"):
        FeedbackController(AdaBreg(nn.Linear(4, 4).parameters(), lambda_init=0.0), 0.9, 10)


def test_a_target_without_anything_to_regulate_is_refused():
    with pytest.raises(ValueError, match=r"target_sparsity=0.9 needs a group with a penalty"):
        FeedbackController(AdaBreg(nn.Linear(4, 4).parameters(), penalty="none"), 0.9, 10)


def test_groups_that_start_with_different_lambdas_are_refused():
    groups = [{"params": [nn.Parameter(torch.ones(4, 4))], "lambda_": value} for value in (0.5, 2.0)]
    with pytest.raises(ValueError, match=r"share one lambda_ and differ by lambda_scale, got \[0.5, 2.0\]"):
        FeedbackController(AdaBreg(groups), 0.5, 10)


def test_a_frozen_parameter_is_refused_since_it_could_never_become_sparse():
    layer = nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="1 regularized parameters are frozen"):
        FeedbackController(AdaBreg(layer.parameters()), 0.5, 10)


def test_landing_counts_parameters_that_never_had_a_gradient():
    used, unused = nn.Parameter(torch.randn(20, 20)), nn.Parameter(torch.randn(20, 20))
    optimizer = AdaBreg([used, unused])
    controller = FeedbackController(optimizer, 0.75, 10)
    used.grad = torch.randn(20, 20)
    optimizer.step()
    controller.finalize()
    assert 800 - int(count_zeros([used, unused])) == 200


def test_landing_says_so_where_it_cannot_be_exact():
    param = nn.Parameter(torch.zeros(10, 10))
    controller = FeedbackController(AdaBreg([param]), 0.5, 10)
    with pytest.warns(
        UserWarning, match="finalized with 0 nonzero weights instead of 50: other dual variables are zero"
    ):
        controller.finalize()


@pytest.mark.parametrize("penalty", ["l1", "l0"])
@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_of_equal_dual_variables_as_many_stay_as_are_needed(penalty, scale, dtype):
    """Under l0 many gather at lambda, where weights go on crossing it."""
    params = [nn.Parameter(torch.full((4, 5), 0.3, dtype=dtype)), nn.Parameter(torch.full((8, 5), -0.3, dtype=dtype))]
    optimizer = AdaBreg(params, penalty=penalty, lambda_scale=scale, lambda_init=0.1)
    controller = FeedbackController(optimizer, 0.35, 10, ramp_start=None, ramp_end=None)
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    before = [dual.clone() for dual in optimizer.duals(optimizer.param_groups[0])]
    controller.finalize()
    assert sum(int(param.count_nonzero()) for param in params) == 39
    for dual, value in zip(optimizer.duals(optimizer.param_groups[0]), before, strict=True):
        torch.testing.assert_close(dual, value, rtol=1e-6, atol=0)


def test_landing_is_exact_in_float64():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        param = nn.Parameter(torch.randn(30, 30, generator=generator, dtype=torch.float64))
        controller = FeedbackController(LinBreg([param]), 0.9, 10)
        controller.finalize()
        assert int(count_zeros([param])) == 810


@pytest.mark.parametrize("backend", ["cpp", "foreach"])
def test_landing_moves_lambda_no_further_than_it_must(backend):
    param = nn.Parameter(torch.tensor([1.0, 1.0, 1.0, 1.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0]))
    optimizer = LinBreg([param], lr=1.0, lambda_init=2.0, penalty="l1", backend=backend)
    controller = FeedbackController(optimizer, target_sparsity=0.5, total_steps=10, initial_sparsity=0.5)
    param.grad = torch.zeros(10)
    param.grad[4] = -0.51  # its dual falls to 1.99: dead, by a hundredth, beside others whose duals are zero
    optimizer.step()
    assert param.count_nonzero() == 4
    controller.finalize()
    assert param.count_nonzero() == 5
    assert controller.lambda_.item() == pytest.approx(1.99, abs=1e-4)
    torch.testing.assert_close(param.detach()[:4], torch.full((4,), 1.01), atol=1e-4, rtol=0)


@pytest.mark.parametrize("penalty", ["l1", "group"])
def test_a_landed_network_goes_on_from_where_it_is_under_the_quantile(penalty):
    model, data = network(), batches(60)
    before = under_the_quantile(model, penalty, data, lr=0.01, lambda_init=0.1)
    landed = before.lambda_.item()
    weights = [param.detach().clone() for param in before.params]
    after = under_the_quantile(model, penalty, data, lr=3e-4, lambda_init=landed)
    assert after.lambda_.item() == pytest.approx(landed, rel=0.1)
    assert penalty == "group" or after.lambda_.item() != landed  # weights died, and lambda went after them
    for old, new in zip(weights, after.params, strict=True):
        torch.testing.assert_close(new.detach(), old, atol=60 * 3e-4 + 0.1 * landed, rtol=0)


def under_the_quantile(model, penalty, data, lr, lambda_init):
    """A run from the model's own weights, landed; its controller."""
    optimizer = AdaBreg(param_groups(model, penalty=penalty), lr=lr, lambda_init=lambda_init)
    controller = QuantileController(optimizer, 0.7, len(data))
    run(model, optimizer, controller, data)
    controller.finalize()
    return controller
