"""Laws of the controllers that set the sparsity: quantile, magnitude pruning, fixed lambda; and of ramps."""

import copy
import io
from itertools import pairwise

import pytest
import torch
from helpers.small import network, train
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    FixedController,
    GradualMagnitudePruning,
    LinBreg,
    ProxSGD,
    QuantileController,
    param_groups,
    sparsity,
)


def support(controller) -> list[torch.Tensor]:
    return [param.detach() != 0 for param in controller.params]


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_the_quantile_controller_meets_the_target_to_the_weight_after_every_update(kind):
    model = network()
    controller = QuantileController(
        kind(param_groups(model), lr=0.02, lambda_init=0.01), 0.8, 30, ramp_start=None, ramp_end=None
    )

    def check() -> None:
        controller.step()
        alive = sum(int(mask.sum()) for mask in support(controller))
        assert alive == round(0.2 * sum(param.numel() for param in controller.params))

    train(model, controller.optimizer, 30, after=check)


@pytest.mark.parametrize("kind", [QuantileController, GradualMagnitudePruning])
def test_a_ramp_leads_from_the_initial_to_the_final_target(kind):
    model = network()
    penalty = "none" if kind is GradualMagnitudePruning else "l1"
    optimizer = AdaBreg(param_groups(model, penalty=penalty), lr=0.02, lambda_init=0.01)
    controller = kind(optimizer, 0.8, 40, ramp_start=0.25, ramp_end=0.75, initial_sparsity=0.2)
    path = []

    def keep() -> None:
        controller.step()
        path.append((controller.target, sparsity(controller.params).item()))

    train(model, optimizer, 40, after=keep)
    size = sum(param.numel() for param in controller.params)
    assert path[9][0] == pytest.approx(0.2)
    assert path[19][0] == pytest.approx(0.8 - 0.6 * 0.5**3)
    assert all(target == pytest.approx(0.8) for target, _ in path[29:])
    for target, measured in path[10:]:
        assert measured == pytest.approx(target, abs=1.01 / size)


def test_pruned_weights_stay_zero_and_masks_only_grow():
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty="none"), lr=0.02)
    controller = GradualMagnitudePruning(optimizer, 0.9, 40, num_mask_updates=7)
    alive = []

    def keep() -> None:
        controller.step()
        alive.append(support(controller))

    train(model, optimizer, 40, after=keep)
    for before, after in pairwise(alive):
        assert not any((new & ~old).any() for old, new in zip(before, after, strict=True))
    assert all(mask.all() for mask in alive[2])
    size = sum(param.numel() for param in controller.params)
    assert size - sum(int(mask.sum()) for mask in alive[-1]) == size - round(0.1 * size)


def test_pruning_without_a_ramp_is_at_its_target_from_the_first_masks_on():
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty="none"), lr=0.02)
    controller = GradualMagnitudePruning(optimizer, 0.9, 40, num_mask_updates=10, ramp_start=None, ramp_end=None)
    measured = []

    def keep() -> None:
        controller.step()
        measured.append(float(controller.sparsity()))

    train(model, optimizer, 40, after=keep)
    assert max(measured[:3]) < 0.1
    assert measured[3:] == [pytest.approx(0.9, abs=1.01 / sum(param.numel() for param in controller.params))] * 37


def test_what_is_pruned_first_is_smallest_over_all_layers_together():
    small, large = nn.Parameter(torch.full((4, 4), 0.1)), nn.Parameter(torch.full((4, 4), 10.0))
    groups = [{"params": [param], "penalty": "none", "prunable": True} for param in (small, large)]
    controller = GradualMagnitudePruning(AdaBreg(groups), 0.5, 10)
    controller.finalize()
    assert (small == 0).all()
    assert (large == 10).all()


def test_layer_by_layer_the_same_share_of_each_is_pruned():
    torch.manual_seed(0)
    small, large = nn.Parameter(0.1 * torch.randn(40, 40)), nn.Parameter(10 * torch.randn(5, 6))
    optimizer = AdaBreg([{"params": [small, large], "prunable": True}], penalty="none")
    controller = GradualMagnitudePruning(optimizer, 0.9, 10, allocation="uniform")
    controller.finalize()
    for weight, masked in zip((small, large), controller.state_dict()["masks"], strict=True):
        alive = weight.detach().abs()
        assert int((alive > 0).sum()) == round(0.1 * weight.numel())
        assert (~masked).sum() == (alive > 0).sum()


def test_of_equal_weights_as_many_survive_as_of_others():
    equal, other = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.arange(24.0).view(8, 3) + 1)
    optimizer = AdaBreg([{"params": [equal, other], "prunable": True}], penalty="none")
    GradualMagnitudePruning(optimizer, 0.5, 10, allocation="uniform").finalize()
    assert int(equal.count_nonzero()) == 6
    assert (other.detach().flatten() != 0).tolist() == [False] * 12 + [True] * 12


def test_a_layer_that_cannot_reach_the_target_is_warned_of_whatever_the_others_do():
    dead, other = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.randn(8, 3))
    optimizer = AdaBreg([{"params": [dead, other], "prunable": True}], penalty="none")
    with pytest.warns(UserWarning, match="finalized with 12 nonzero weights instead of 18"):
        GradualMagnitudePruning(optimizer, 0.5, 10, allocation="uniform").finalize()


@pytest.mark.parametrize("settings", [{}, {"allocation": "uniform"}, {"allocation": "erk"}])
def test_what_a_trained_network_has_pruned_stays_pruned_while_its_ramp_goes_on_from_there(settings):
    def fresh(model: nn.Module, target: float) -> GradualMagnitudePruning:
        optimizer = AdaBreg(param_groups(model, penalty="none"), lr=0.02)
        return GradualMagnitudePruning(optimizer, target, 40, **settings)

    model = network()
    first = fresh(model, 0.5)
    train(model, first.optimizer, 40, after=first.step)
    first.finalize()
    pruned, before = support(first), float(first.sparsity())
    for target in (0.5, 0.8):
        later = copy.deepcopy(model)
        controller = fresh(later, target)
        controller.start_from_current_sparsity()
        assert controller.initial_sparsity == pytest.approx(before, abs=1e-6)
        path = []

        def keep(controller=controller, path=path) -> None:
            controller.step()
            path.append(float(controller.sparsity()))
            assert not any((new & ~old).any() for old, new in zip(pruned, support(controller), strict=True))

        train(later, controller.optimizer, 40, after=keep)
        assert path[0] == pytest.approx(before, abs=1e-6)
        assert path[-1] == pytest.approx(target, abs=0.01)


def test_dense_training_goes_on_from_anywhere():
    optimizer = AdaBreg(param_groups(network(), penalty="none"))
    for controller in (GradualMagnitudePruning(optimizer, 0, 10), FixedController(optimizer, 0, 10)):
        controller.start_from_current_sparsity()
        assert controller.initial_sparsity == 0


def test_a_ramp_that_began_where_a_trained_network_was_goes_on_from_there_when_resumed():
    model = network()
    with torch.no_grad():
        for param in model.parameters():
            param[param.abs() < 0.1] = 0
    controller = QuantileController(AdaBreg(param_groups(model), lr=0.02), 0.9, 40, ramp_start=0.1, ramp_end=0.6)
    controller.start_from_current_sparsity()
    train(model, controller.optimizer, 10, after=controller.step)
    other = QuantileController(AdaBreg(param_groups(network()), lr=0.02), 0.9, 40, ramp_start=0.1, ramp_end=0.6)
    assert other.initial_sparsity == 0
    other.load_state_dict(torch.load(_file(controller.state_dict()), weights_only=True))
    assert other.target == controller.target < 0.9


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_masked_training_resumes_without_changing_a_bit(allocation):
    def fresh():
        model = network()
        optimizer = AdaBreg(param_groups(model, penalty="none"), lr=0.02)
        return model, optimizer, GradualMagnitudePruning(optimizer, 0.9, 40, allocation=allocation)

    model, optimizer, controller = fresh()
    train(model, optimizer, 20, after=controller.step)
    saved = [item.state_dict() for item in (model, optimizer, controller)]
    saved = [torch.load(_file(state), weights_only=True) for state in saved]
    train(model, optimizer, 20, start=20, after=controller.step)
    other = fresh()
    for item, state in zip(other, saved, strict=True):
        item.load_state_dict(state)
    train(other[0], other[1], 20, start=20, after=other[2].step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other[0].parameters(), strict=True))
    assert sparsity(controller.params).item() == pytest.approx(0.9, abs=0.005)


def _file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_fixed_lambda_is_never_touched_also_not_by_landing():
    model = network()
    optimizer = AdaBreg(param_groups(model), lr=0.02, lambda_init=0.05)
    controller = FixedController(optimizer, 0.9, 10)
    train(model, optimizer, 10, after=controller.step)
    before = sparsity(controller.params).item()
    controller.finalize()
    assert controller.lambda_.item() == pytest.approx(0.05)
    assert sparsity(controller.params).item() == before > 0


def test_fixed_with_nothing_regularized_is_dense_training():
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty="none"), lr=0.02)
    controller = FixedController(optimizer, 0.0, 10)
    train(model, optimizer, 3, after=controller.step)
    controller.finalize()
    assert controller.lambda_ == 0
    assert all((param != 0).all() for name, param in model.named_parameters() if name.endswith("weight"))


def test_a_scale_makes_a_group_sparser_under_the_common_lambda():
    model = network()
    groups = [
        {"params": [param], "lambda_scale": scale}
        for param, scale in zip([p for p in model.parameters() if p.ndim > 1], (1.0, 4.0), strict=True)
    ]
    optimizer = AdaBreg(groups, lr=0.02, lambda_init=0.01)
    controller = QuantileController(optimizer, 0.5, 20)
    train(model, optimizer, 20, after=controller.step)
    first, second = (sparsity([param]).item() for param in controller.params)
    assert second > first
    total = sum(param.numel() for param in controller.params)
    assert sparsity(controller.params).item() == pytest.approx(0.5, abs=1.01 / total)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: QuantileController(ProxSGD([p]), 0.5, 10), "ProxSGD has none; use LinBreg or AdaBreg"),
        (
            lambda p: QuantileController(AdaBreg([p]), 0.5, 10, update_interval=0),
            "update_interval must be a whole number, 1 or more, got 0",
        ),
        (
            lambda p: GradualMagnitudePruning(AdaBreg([{"params": [p], "prunable": True}]), 0.5, 10),
            "penalty must be none under GradualMagnitudePruning, got 'l1'",
        ),
        (
            lambda p: GradualMagnitudePruning(AdaBreg([p], penalty="none"), 0.5, 10),
            "needs a group with prunable=True, .* got none",
        ),
        (
            lambda p: QuantileController(AdaBreg([{"params": [p], "prunable": True}], penalty="none"), 0.5, 10),
            "needs a group with a penalty, got none",
        ),
        (
            lambda p: QuantileController(AdaBreg([p]), 0.5, 10, ramp_start=0.5, ramp_end=0.2),
            "ramp_start and ramp_end must be two rising fractions of the run, .*, got 0.5 and 0.2",
        ),
        (
            lambda p: QuantileController(AdaBreg([p]), 0.5, 10, initial_sparsity=1.0),
            "initial_sparsity must be at least 0 and below 1, got 1.0",
        ),
        (
            lambda p: GradualMagnitudePruning(
                AdaBreg([{"params": [p], "prunable": True}], penalty="none"), 0.5, 10, num_mask_updates=0
            ),
            "num_mask_updates must be a whole number, 1 or more, got 0",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make(nn.Parameter(torch.ones(4, 4)))
