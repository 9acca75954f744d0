"""Allocation of a sparsity among layers."""

import copy

import pytest
import torch
from helpers.small import network, same, train
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    FixedController,
    GradualMagnitudePruning,
    LinBreg,
    PaperController,
    QuantileController,
    param_groups,
    sparse_init_,
    sparsity,
)
from sv_sparse.optim.allocation import layer_nnz, round_to_sum

SHAPES = [(8, 1, 3), (64, 64, 3), (16, 16), (1, 100), (512, 64)]
SIZES = [24, 12288, 256, 100, 32768]


def counts(controller) -> list[int]:
    return [int(param.count_nonzero()) for param in controller.params]


@pytest.mark.parametrize("nnz", [5, 6, 100, 4544, 20000, 45435, 45436])
@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_it_is_exact_in_total_and_leaves_each_layer_a_weight(allocation, nnz):
    layers = layer_nnz(SHAPES, nnz, allocation)
    assert sum(layers) == nnz
    assert all(1 <= count <= size for count, size in zip(layers, SIZES, strict=True))


def test_uniform_is_the_same_fraction_of_each():
    layers = layer_nnz(SHAPES, 9087, "uniform")
    for count, size in zip(layers, SIZES, strict=True):
        assert abs(count - 0.2 * size) <= 1


def test_erk_is_in_proportion_to_the_sum_over_the_product_of_the_shape():
    layers = layer_nnz(SHAPES, 2000, "erk")
    scores = [sum(shape) / size for shape, size in zip(SHAPES, SIZES, strict=True)]
    assert layers[3] == 100  # nearly as many inputs and outputs as weights: all of them
    free = [0, 1, 2, 4]
    densities = [layers[index] / SIZES[index] / scores[index] for index in free if layers[index] < SIZES[index]]
    assert max(densities) == pytest.approx(min(densities), rel=0.02)


def test_too_few_weights_for_the_layers_are_refused():
    with pytest.raises(ValueError, match="4 nonzero weights in 5 layers of 45436 weights: one of each must stay"):
        layer_nnz(SHAPES, 4, "uniform")


def test_a_target_that_leaves_less_than_a_weight_for_each_layer_is_refused():
    optimizer = AdaBreg(param_groups(network(), per_weight=True))
    with pytest.raises(ValueError, match="keeps 1 of them, and allocation='erk' leaves at least one in each of 2 lay"):
        FeedbackController(optimizer, 0.997, 10, allocation="erk")


def test_rounding_stays_near_and_within_the_layers():
    assert round_to_sum([0.0, 0.0, 3.0], 3, [5, 5, 5]) == [1, 1, 1]
    assert round_to_sum([5.6, 0.6, 0.8], 8, [5, 5, 5]) == [5, 1, 2]
    for total in (2, 16):
        with pytest.raises(ValueError, match=f"{total} nonzero weights in 3 layers of 15 weights"):
            round_to_sum([0.0, 0.0, 3.0], total, [5, 5, 5])


def test_layers_of_zeros_keep_one_weight_of_each_on_the_way():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    for layer in model:
        nn.init.zeros_(layer.weight)
    optimizer = AdaBreg(param_groups(model, per_weight=True))
    controller = QuantileController(optimizer, 0.5, 100_000, allocation="uniform", ramp_start=0.0, ramp_end=0.5)
    assert sum(controller._layer_nnz_on_the_way(1.0)) == 5
    assert controller._layer_nnz_on_the_way(0.0) == [8] * 5


def test_layers_that_are_added_need_another_controller():
    model = nn.Sequential(nn.Linear(40, 20), nn.Linear(20, 10))
    model[0].requires_grad_(False)
    optimizer = AdaBreg(param_groups(model, per_weight=True))
    controller = FeedbackController(optimizer, 0.5, 10, allocation="uniform")
    for group in param_groups(model[0].requires_grad_(True), per_weight=True):
        optimizer.add_param_group(group)
    for method in (controller.step, controller.finalize):
        with pytest.raises(ValueError, match="among the 1 weights .* and now there are 2: make a new controller"):
            method()


def test_without_a_target_there_is_nothing_to_allocate():
    optimizer = AdaBreg(param_groups(network(), per_weight=True))
    with pytest.raises(ValueError, match="allocation of a FixedController must be global: .*, got 'uniform'"):
        FixedController(optimizer, 0.5, 10, allocation="uniform")


# Layers of a hundred weights move in steps of a percent.
@pytest.mark.filterwarnings("ignore:finalizing from")
@pytest.mark.parametrize("allocation", ["uniform", "erk"])
@pytest.mark.parametrize("penalty", ["l1", "l0"])
@pytest.mark.parametrize(
    ("controller", "settings"),
    [(FeedbackController, {}), (QuantileController, {}), (PaperController, {"update_interval": 1})],
)
def test_each_layer_reaches_its_share_from_a_dense_start(controller, settings, penalty, allocation):
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty=penalty, per_weight=True), lr=0.01)
    control = controller(optimizer, 0.7, 400, allocation=allocation, **settings)
    train(model, optimizer, 400, after=control.step)
    size = sum(param.numel() for param in control.params)
    expected = layer_nnz([param.shape for param in control.params], round(0.3 * size), allocation)
    assert float(sparsity(control.params)) == pytest.approx(0.7, abs=0.03)
    for count, share, param in zip(counts(control), expected, control.params, strict=True):
        assert abs(count - share) <= max(3, 0.06 * param.numel())
    control.finalize()
    assert counts(control) == expected


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_a_sparse_start_reaches_its_shares_too(kind):
    model = network()
    groups = param_groups(model, per_weight=True)
    sparse_init_(groups, density=0.1)
    optimizer = kind(groups, lr=0.01 if kind is AdaBreg else 0.5)
    control = FeedbackController(optimizer, 0.8, 300, allocation="uniform")
    train(model, optimizer, 300, after=control.step)
    control.finalize()
    for count, param in zip(counts(control), control.params, strict=True):
        assert abs(count - 0.2 * param.numel()) <= 1


def test_during_a_ramp_the_quantile_is_exact_in_total():
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty="l0", per_weight=True), lr=0.01)
    control = QuantileController(optimizer, 0.8, 40, ramp_start=0.0, ramp_end=0.5, allocation="erk")
    size = sum(param.numel() for param in control.params)

    def check() -> None:
        control.step()
        assert abs(sum(counts(control)) - (1 - control.target) * size) <= 1

    train(model, optimizer, 30, after=check)


def test_magnitude_pruning_allocates_without_groups_of_their_own():
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty="none"), lr=0.01)
    control = GradualMagnitudePruning(optimizer, 0.7, 60, allocation="erk")
    train(model, optimizer, 60, after=control.step)
    control.finalize()
    size = sum(param.numel() for param in control.params)
    assert counts(control) == layer_nnz([param.shape for param in control.params], round(0.3 * size), "erk")


@pytest.mark.parametrize("controller", [FeedbackController, QuantileController])
def test_a_resumed_run_is_the_same_to_the_bit(controller):
    def make(model):
        optimizer = AdaBreg(param_groups(model, penalty="l0", per_weight=True), lr=0.01)
        return optimizer, controller(optimizer, 0.7, 40, allocation="erk")

    model = network()
    optimizer, control = make(model)
    train(model, optimizer, 10, after=control.step)
    twin = network()
    with torch.no_grad():  # another start, whose sparsity must not be taken for that of the first
        for param in twin.parameters():
            param.mul_(param > 0)
    other, other_control = make(twin)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_control.load_state_dict(copy.deepcopy(control.state_dict()))
    train(model, optimizer, 20, after=control.step)
    train(twin, other, 20, after=other_control.step)
    assert same(model, twin)
    with pytest.raises(ValueError, match="allocation of a saved controller must be global, got 'erk'"):
        controller(AdaBreg(param_groups(network())), 0.7, 40).load_state_dict(control.state_dict())


def test_lambda_is_the_mean_over_the_values():
    weights = [nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(10, 8))]
    optimizer = AdaBreg([{"params": [weight]} for weight in weights])
    control = FeedbackController(optimizer, 0.5, 10, allocation="uniform")
    for group, value in zip(optimizer.param_groups, (0.3, 0.8), strict=True):
        group["lambda_"].fill_(value)
    assert float(control.lambda_) == pytest.approx(0.2 * 0.3 + 0.8 * 0.8)


def test_weights_that_share_a_group_are_refused_and_so_is_another_word():
    groups = param_groups(network())
    with pytest.raises(ValueError, match=r"allocation='erk' needs a group for each regularized weight.*\['sparse'\]"):
        FeedbackController(AdaBreg(groups), 0.5, 10, allocation="erk")
    with pytest.raises(ValueError, match="allocation must be one of global, uniform, erk, got 'ERK'"):
        FeedbackController(AdaBreg(param_groups(network())), 0.5, 10, allocation="ERK")
