"""Laws of the penalty l0: weights are their dual variables above lambda, and zero elsewhere."""

import copy

import pytest
import torch
from helpers.small import network, same, train
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    DualAverage,
    FeedbackController,
    LinBreg,
    PaperController,
    ProxSGD,
    QuantileController,
    count_zeros,
    param_groups,
    sparsity,
)
from sv_sparse.optim.functional import ProximalMap
from sv_sparse.optim.prox import hard_threshold

KINDS = [(LinBreg, {"lr": 0.1, "momentum": 0.9}), (AdaBreg, {"lr": 0.02})]
each_kind = pytest.mark.parametrize(("kind", "settings"), KINDS, ids=["LinBreg", "AdaBreg"])
each_backend = pytest.mark.parametrize("backend", ["cpp", "foreach"])


def rest(optimizer, params) -> None:
    """A step that changes no dual variable."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()


def test_without_lambda_linbreg_is_sgd_and_adabreg_adam_to_the_last_bit():
    pairs = [
        (LinBreg, {"lr": 0.05, "momentum": 0.9}, torch.optim.SGD),
        (AdaBreg, {"lr": 0.01}, torch.optim.Adam),
    ]
    for kind, settings, dense in pairs:
        left, right = network(), network()
        train(left, kind(left.parameters(), lambda_init=0.0, penalty="l0", backend="foreach", **settings), 20)
        train(right, dense(right.parameters(), fused=True, **settings), 20)
        assert same(left, right)


@each_backend
@pytest.mark.parametrize("delta", [1.0, 0.5])
@each_kind
def test_after_every_step_weights_equal_their_duals_above_lambda_and_are_zero_elsewhere(kind, settings, delta, backend):
    model = network()
    optimizer = kind(
        param_groups(model, penalty="l0"), lambda_init=0.1, delta=delta, weight_decay=0.01, backend=backend, **settings
    )
    regularized = optimizer.param_groups[0]

    def check() -> None:
        for param in regularized["params"]:
            dual = optimizer.state[param]["dual"]
            is_above = dual.abs() > regularized["lambda_"]
            assert torch.equal(param, torch.where(is_above, delta * dual, 0.0))
            assert not torch.signbit(param[~is_above]).any()

    train(model, optimizer, 10, after=check)
    assert 0 < count_zeros(regularized["params"]) < sum(param.numel() for param in regularized["params"])


@each_kind
def test_the_first_duals_are_the_weights(kind, settings):
    weight = nn.Parameter(torch.randn(30, 40))
    before = weight.detach().clone()
    optimizer = kind([weight], penalty="l0", lambda_init=0.01, delta=0.5, **settings)
    rest(optimizer, [weight])
    assert torch.equal(weight, torch.where(before.abs() > 0.5 * 0.01, before, 0.0))
    torch.testing.assert_close(optimizer.state[weight]["dual"], 2 * before)


@each_backend
@each_kind
def test_a_change_of_lambda_moves_no_survivor_and_a_fall_revives(kind, settings, backend):
    weight = nn.Parameter(torch.randn(50, 40))
    before = weight.detach().clone()
    optimizer = kind([weight], penalty="l0", lambda_init=1e-6, backend=backend, **settings)
    for lambda_ in (0.3, 1.2, 0.3, 0.0):
        optimizer.param_groups[0]["lambda_"].fill_(lambda_)
        rest(optimizer, [weight])
        assert torch.equal(weight, torch.where(before.abs() > lambda_, before, 0.0))
        optimizer.apply_prox()
        assert torch.equal(weight, torch.where(before.abs() > lambda_, before, 0.0))


@each_kind
def test_dead_weights_go_on_learning_and_are_born_with_the_value_of_their_dual(kind, settings):
    weight = nn.Parameter(torch.tensor([0.2, 1.0]))
    optimizer = kind([weight], penalty="l0", lambda_init=0.5, **settings)
    values = []
    for _ in range(100):
        weight.grad = torch.tensor([-1.0, 0.0])
        optimizer.step()
        values.append(weight.tolist())
    first = [value for value, _ in values]
    birth = next(step for step, value in enumerate(first) if value)
    assert birth > 0
    assert not any(first[:birth])
    assert all(value > 0.5 for value in first[birth:])
    assert all(value == 1.0 for _, value in values)


@each_kind
def test_weights_in_bf16_have_duals_in_float32(kind, settings):
    models = [network() for _ in range(2)]
    models[1].to(torch.bfloat16)
    for model in models:
        optimizer = kind(param_groups(model, penalty="l0"), lambda_init=0.05, **settings)
        for step in range(5):
            for param in model.parameters():
                generator = torch.Generator().manual_seed(step)
                param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            optimizer.step()
    lambda_ = optimizer.param_groups[0]["lambda_"]
    for param in optimizer.param_groups[0]["params"]:
        dual = optimizer.state[param]["dual"]
        assert dual.dtype == torch.float32
        assert torch.equal(param, hard_threshold(dual, lambda_).to(torch.bfloat16))
    for exact, rounded in zip(*(model.parameters() for model in models), strict=True):
        assert (exact - rounded.float()).abs().median() < 0.02


@pytest.mark.parametrize("delta", [1.0, 0.3])
def test_foreach_operations_have_the_bits_of_the_hard_threshold(delta):
    values = [0.0, -0.0, 0.3, -0.3, 0.30000001, -5.0, float("inf"), -float("inf"), float("nan"), 1e-42]
    duals = [torch.tensor(values), torch.randn(100)]
    for lambda_ in (0.0, 0.3, 1e-42):
        prox = ProximalMap(torch.tensor(lambda_), delta, "l0")
        weights = [torch.full_like(dual, 7.0) for dual in duals]
        prox._foreach_apply_(weights, duals)
        for weight, dual in zip(weights, duals, strict=True):
            expected = prox(dual)
            assert torch.equal(weight.isnan(), expected.isnan())
            assert torch.equal(weight.nan_to_num(), expected.nan_to_num())
            assert not torch.signbit(weight[weight == 0]).any()


@pytest.mark.parametrize("controller", [FeedbackController, QuantileController, PaperController])
@each_kind
def test_controllers_lead_a_dense_network_to_the_target_and_finalize_exactly(kind, settings, controller):
    model = network()
    optimizer = kind(param_groups(model, penalty="l0"), **settings)
    own = {"update_interval": 1} if controller is PaperController else {}
    control = controller(optimizer, target_sparsity=0.8, total_steps=300, **own)
    assert control.ramp == (0.0, 0.5)
    train(model, optimizer, 300, after=control.step)
    assert float(sparsity(control.params)) == pytest.approx(0.8, abs=0.01)
    survivors = [param.detach().clone() for param in control.params]
    control.finalize()
    size = sum(param.numel() for param in control.params)
    assert size - int(count_zeros(control.params)) == round(0.2 * size)
    for before, param in zip(survivors, control.params, strict=True):
        both = (before != 0) & (param != 0)
        assert torch.equal(before[both], param[both])


@each_kind
@pytest.mark.parametrize("initial_sparsity", [None, 0.7])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_a_sparse_network_keeps_its_weights_at_the_start(kind, settings, initial_sparsity, allocation):
    """As one that masks have pruned, whose weights are below the lambda that an optimizer starts from."""
    model = network()
    params = [param for _, param in param_groups(model)[0]["params"]]
    with torch.no_grad():
        for param in params:
            param[param.abs() < param.abs().quantile(0.7)] = 0
    before = [param.clone() for param in params]
    groups = param_groups(model, penalty="l0", per_weight=allocation != "global")
    optimizer = kind(groups, lambda_init=10.0, **settings)
    FeedbackController(optimizer, 0.9, 100, allocation=allocation, initial_sparsity=initial_sparsity)
    rest(optimizer, params)
    assert all(torch.equal(param, value) for param, value in zip(params, before, strict=True))


@each_kind
def test_a_saved_state_continues_to_the_bit(kind, settings):
    model = network()
    optimizer = kind(param_groups(model, penalty="l0"), lambda_init=0.05, **settings)
    train(model, optimizer, 5)
    twin = copy.deepcopy(model)
    other = kind(param_groups(twin, penalty="l0"), lambda_init=0.7, **settings)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network_, optimizer_ in ((model, optimizer), (twin, other)):
        train(network_, optimizer_, 5)
    assert same(model, twin)
    with pytest.raises(ValueError, match="a saved group's penalty must be the group's own, 'l1', got 'l0'"):
        kind(param_groups(twin), **settings).load_state_dict(optimizer.state_dict())


def test_the_average_of_duals_is_thresholded():
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = LinBreg([weight], lr=1.0, lambda_init=0.6, penalty="l0")
    average = DualAverage()
    for gradient in ([0.0, 0.5], [0.0, 0.5]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        average.add(optimizer)
    average.copy_to(optimizer)
    assert weight.tolist() == [1.0, 0.0]


def test_zeroing_a_weight_from_outside_holds_and_an_edit_continues_from_there():
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 0.2]))
    optimizer = LinBreg([weight], lr=0.1, lambda_init=0.5, penalty="l0")
    rest(optimizer, [weight])
    assert weight.tolist() == [1.0, 2.0, 0.0]
    with torch.no_grad():
        weight[0] = 0.0
        weight[1] = 3.0
    optimizer.adopt_weights()
    rest(optimizer, [weight])
    assert weight.tolist() == [0.0, 3.0, 0.0]


def test_proxsgd_refuses_what_needs_a_dual_variable():
    with pytest.raises(ValueError, match="penalty must be l1, group or none: l0 needs a dual variable, got 'l0'"):
        ProxSGD([nn.Parameter(torch.ones(2))], penalty="l0")


def test_it_compiles():
    weights = [nn.Parameter(torch.linspace(-1, 1, 24).view(4, 6)) for _ in range(2)]
    optimizers = [AdaBreg([weight], lr=0.1, lambda_init=0.3, penalty="l0", backend="foreach") for weight in weights]
    steps = [optimizers[0].step, torch.compile(optimizers[1].step, backend="aot_eager")]
    for index in range(4):
        for weight, step in zip(weights, steps, strict=True):
            weight.grad = torch.linspace(-1, 1, 24).view(4, 6) * (index + 1)
            step()
    torch.testing.assert_close(*[weight.detach() for weight in weights])
    assert (weights[0] == 0).any()
