"""Laws of the Bregman optimizers."""

import pytest
import torch
from helpers.small import network, same, train
from torch import nn

from sv_sparse.optim import AdaBreg, FeedbackController, LinBreg, param_groups, sparse_init_
from sv_sparse.optim.prox import shrink, subgradient

SGD_SETTINGS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.1},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"weight_decay": 0.1, "maximize": True},
]


@pytest.mark.parametrize("settings", SGD_SETTINGS)
def test_linbreg_without_lambda_is_sgd(settings):
    left, right = network(), network()
    train(left, LinBreg(left.parameters(), lr=0.05, lambda_init=0.0, **settings), 20)
    train(right, torch.optim.SGD(right.parameters(), lr=0.05, fused=True, **settings), 20)
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", SGD_SETTINGS[:4])
def test_linbreg_without_lambda_and_weight_decay_is_sgd_to_the_last_bit(settings):
    left, right = network(), network()
    train(left, LinBreg(left.parameters(), lr=0.05, lambda_init=0.0, backend="foreach", **settings), 20)
    train(right, torch.optim.SGD(right.parameters(), lr=0.05, fused=True, **settings), 20)
    assert same(left, right)


@pytest.mark.parametrize("maximize", [False, True])
def test_adabreg_without_lambda_is_adam_to_the_last_bit(maximize):
    left, right = network(), network()
    settings = {"betas": (0.8, 0.99), "eps": 1e-6, "maximize": maximize}
    train(left, AdaBreg(left.parameters(), lr=0.01, lambda_init=0.0, backend="foreach", **settings), 20)
    train(right, torch.optim.Adam(right.parameters(), lr=0.01, fused=True, **settings), 20)
    assert same(left, right)


def test_adabreg_without_lambda_and_with_weight_decay_is_adamw():
    left, right = network(), network()
    train(left, AdaBreg(left.parameters(), lr=0.01, lambda_init=0.0, weight_decay=0.1), 20)
    train(right, torch.optim.AdamW(right.parameters(), lr=0.01, weight_decay=0.1), 20)
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("delta", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_delta_scales_the_step_where_nothing_is_regularized(kind, delta):
    left, right = network(), network()
    train(left, kind(left.parameters(), lr=0.01, lambda_init=0.0, delta=delta), 5)
    train(right, kind(right.parameters(), lr=0.01 * delta, lambda_init=0.0), 5)
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("delta", [1.0, 0.5])
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_after_every_step_the_weights_are_the_shrunk_duals_exactly(kind, delta):
    model = network()
    optimizer = kind(param_groups(model), lr=0.05, lambda_init=0.02, delta=delta, weight_decay=0.01)

    def check() -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                if group["penalty"] == "none":
                    assert "dual" not in optimizer.state[param]  # it is its own
                else:
                    assert torch.equal(param, delta * shrink(optimizer.state[param]["dual"], group["lambda_"]))

    train(model, optimizer, 10, after=check)
    assert any((param == 0).any() for param in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize("delta", [1.0, 0.5])
def test_the_first_dual_is_a_subgradient_whose_read_out_is_the_weight(delta):
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    weight[::3] = 0.0
    lambda_ = torch.tensor(0.3)
    dual = subgradient(weight, lambda_, delta)
    slope = dual - weight / delta
    assert (slope.abs() <= lambda_ * (1 + 1e-6)).all()
    torch.testing.assert_close(slope[weight != 0], lambda_ * weight[weight != 0].sign())
    torch.testing.assert_close(delta * shrink(dual, lambda_), weight, rtol=0, atol=1e-6)


def test_a_change_of_lambda_moves_live_weights_by_its_amount():
    model = nn.Linear(50, 40, bias=False)
    optimizer = LinBreg(model.parameters(), lr=0.0, lambda_init=0.1)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    before = model.weight.detach().clone()
    optimizer.param_groups[0]["lambda_"].add_(0.05)
    optimizer.step()
    live = model.weight != 0
    expected = before - 0.05 * before.sign()
    torch.testing.assert_close(model.weight[live], expected[live], rtol=1e-4, atol=1e-6)
    assert ((before.abs() > 0.0501) == live)[(before.abs() - 0.05).abs() > 1e-4].all()


def test_five_lines_make_a_plain_training_loop_sparse():
    model = network()
    groups = param_groups(model)
    sparse_init_((param for _, param in groups[0]["params"]), density=0.1)
    optimizer = AdaBreg(groups, lr=1e-2, lambda_init=0.1)
    controller = FeedbackController(optimizer, target_sparsity=0.75, total_steps=100)
    train(model, optimizer, 100, after=controller.step)
    controller.finalize()
    sparse = optimizer.param_groups[0]["params"]
    zeros, size = sum(int((p == 0).sum()) for p in sparse), sum(p.numel() for p in sparse)
    assert size - zeros == round(0.25 * size)
