"""Laws of averaging: the mean of the duals is as sparse as what went into it."""

import copy

import pytest
import torch
from helpers.controlled import batches, network, start
from helpers.small import network as small_network
from helpers.small import train
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from sv_sparse.optim import (
    AdaBreg,
    DualAverage,
    GradualMagnitudePruning,
    LinBreg,
    ProxSGD,
    QuantileController,
    param_groups,
    sparsity,
)

KINDS = [LinBreg, AdaBreg]
STEPS = 400


def fit(model, optimizer, controller, data, snapshot=None) -> None:
    """Train at a constant rate; ``snapshot`` is called ten times in the last fifth."""
    for step, (x, y) in enumerate(data):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        controller.step()
        if snapshot is not None and step >= len(data) - len(data) // 5 and (step + 1) % (len(data) // 50) == 0:
            snapshot()


def averaged(model, optimizer, controller, data) -> tuple[DualAverage, AveragedModel, list[float]]:
    """The mean of the duals, that of the weights, and the sparsity of the states that were averaged."""
    duals, weights, path = DualAverage(), AveragedModel(model), []

    def snapshot() -> None:
        duals.add(optimizer)
        weights.update_parameters(model)
        path.append(sparsity(controller.params).item())

    fit(model, optimizer, controller, data, snapshot)
    return duals, weights, path


def regulated(optimizer, model) -> list[torch.Tensor]:
    """The weights of ``model`` that the optimizer's own model has regulated."""
    shapes = {param.shape for group in optimizer.param_groups for param in group["params"] if param.ndim > 1}
    return [param for param in model.parameters() if param.shape in shapes]


def state_of(optimizer) -> list[torch.Tensor]:
    """Lambdas and duals."""
    groups = optimizer.param_groups
    return [*(group["lambda_"] for group in groups), *(dual for group in groups for dual in optimizer.duals(group))]


@pytest.mark.parametrize("penalty", ["l1", "l0", "group", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_copies_of_one_state_is_that_state_to_the_bit(kind, penalty):
    model = small_network()
    optimizer = kind(param_groups(model, penalty=penalty), lr=0.01, lambda_init=0.05)
    train(model, optimizer, 5)
    before = copy.deepcopy((model, optimizer))
    average = DualAverage()
    for _ in range(3):
        average.add(optimizer)
    train(model, optimizer, 5, start=5)
    average.copy_to(optimizer)
    for after, known in zip(state_of(optimizer), state_of(before[1]), strict=True):
        assert torch.equal(after, known)
    for after, known in zip(model.parameters(), before[0].parameters(), strict=True):
        assert torch.equal(after, known)


@pytest.mark.parametrize("target", [0.75, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_averaging_duals_keeps_the_sparsity_that_averaging_weights_loses(kind, target):
    model, optimizer, controller = start(kind, target, STEPS)
    duals, weights, path = averaged(model, optimizer, controller, batches(STEPS))
    duals.copy_to(optimizer)
    assert min(path) > target - 0.01
    assert abs(sparsity(controller.params).item() - target) < 0.01
    assert sparsity(regulated(optimizer, weights)).item() < target - 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_averaging_duals_keeps_whole_groups_zero(kind):
    model = network()
    optimizer = kind(param_groups(model, penalty="group"), lr=0.01 if kind is AdaBreg else 0.3, lambda_init=0.01)
    controller = QuantileController(optimizer, 0.5, STEPS, ramp_start=None, ramp_end=None)
    duals, weights, path = averaged(model, optimizer, controller, batches(STEPS))
    duals.copy_to(optimizer)
    channel = max(param[0].numel() for param in controller.params) / sum(param.numel() for param in controller.params)
    # A mean of vectors is shorter: more channels fall. Rounding, by the processor, moves 3 of them either way.
    assert sparsity(controller.params).item() > min(path) - 4 * channel
    assert sparsity(regulated(optimizer, weights)) <= min(path)
    for param in controller.params:
        rows = (param != 0).flatten(1)
        assert torch.equal(rows.any(1), rows.all(1))
    controller.finalize()
    channel, size = 64 * 3, sum(param.numel() for param in controller.params)
    assert 0.5 <= sparsity(controller.params).item() < 0.5 + channel / size


@pytest.mark.parametrize("kind", KINDS)
def test_finalize_after_the_average_is_exact(kind):
    model, optimizer, controller = start(kind, 0.9, STEPS)
    duals, _, _ = averaged(model, optimizer, controller, batches(STEPS))
    duals.copy_to(optimizer)
    controller.finalize()
    size = sum(param.numel() for param in controller.params)
    assert sum(int(param.count_nonzero()) for param in controller.params) == round(0.1 * size)


@torch.no_grad()
def held_out_loss(model, data) -> float:
    """On the last hundred batches, after a refresh of the batch-norm statistics on the fifty before."""
    update_bn([x for x, _ in data[-150:-100]], model)
    model.eval()
    return sum(nn.functional.cross_entropy(model(x), y).item() for x, y in data[-100:]) / 100


def test_at_a_constant_rate_the_average_beats_the_last_state_and_equals_pruning_the_mean_of_the_weights():
    data = batches(2100)
    model, optimizer, controller = start(AdaBreg, 0.9, 2000)
    duals, weights, _ = averaged(model, optimizer, controller, data[:2000])
    controller.finalize()
    last = held_out_loss(model, data)
    duals.copy_to(optimizer)
    controller.finalize()
    params = regulated(optimizer, weights)
    sizes = torch.cat([param.detach().abs().flatten() for param in params])
    for param in params:
        param.data[param.abs() <= sizes.kthvalue(round(0.9 * len(sizes))).values] = 0
    pruned = held_out_loss(weights.module, data)
    ours = held_out_loss(model, data)
    assert ours < 0.8 * last
    assert ours == pytest.approx(pruned, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_what_nothing_regularizes_is_averaged_as_torch_averages_weights(kind):
    model = small_network()
    optimizer = kind(param_groups(model, penalty="none"), lr=0.01)
    duals, weights = DualAverage(), AveragedModel(model)
    for begin in (0, 3, 6):
        train(model, optimizer, 3, start=begin)
        duals.add(optimizer)
        weights.update_parameters(model)
    duals.copy_to(optimizer)
    for ours, theirs in zip(model.parameters(), weights.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_under_masks_it_is_the_mean_of_the_weights_inside_the_last_mask():
    model = network()
    optimizer = AdaBreg(param_groups(model, penalty="none"), lr=0.01)
    controller = GradualMagnitudePruning(optimizer, 0.9, 100, ramp_start=0.1, ramp_end=1.0, freeze_fraction=0.0)
    duals, weights, _ = averaged(model, optimizer, controller, batches(100))
    masks = controller.state_dict()["masks"]  # True where a weight is pruned
    duals.copy_to(optimizer)
    controller.step()  # the run is over: it applies the masks again and lets them grow no more
    for ours, theirs, mask in zip(controller.params, regulated(optimizer, weights), masks, strict=True):
        torch.testing.assert_close(ours.detach(), torch.where(mask, 0.0, theirs).detach(), rtol=1e-5, atol=1e-7)


def test_moments_steps_and_hyperparameters_stay_the_optimizers_own():
    model = small_network()
    optimizer = AdaBreg(param_groups(model), lr=0.01, lambda_init=0.05)
    average = DualAverage()
    train(model, optimizer, 3, after=lambda: average.add(optimizer))
    before = copy.deepcopy(optimizer.state_dict())
    average.copy_to(optimizer)
    for index, state in optimizer.state_dict()["state"].items():
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(state[name], before["state"][index][name])
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]


def test_training_goes_on_from_an_average():
    model, optimizer, controller = start(AdaBreg, 0.9, STEPS)
    duals, _, _ = averaged(model, optimizer, controller, batches(STEPS))
    duals.copy_to(optimizer)
    fit(model, optimizer, controller, batches(STEPS)[:50])
    assert abs(sparsity(controller.params).item() - 0.9) < 0.02


def test_weights_in_16_bits_are_averaged_in_32():
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = LinBreg([weight], lr=1.0, penalty="none")
    average = DualAverage()
    for _ in range(2):
        weight.grad = torch.full_like(weight, 2**-10)
        optimizer.step()
        average.add(optimizer)
    average.copy_to(optimizer)
    assert optimizer.duals(optimizer.param_groups[0])[0].tolist() == [1 - 1.5 * 2**-10] * 2


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match=r"DualAverage has no mean before the first add\(optimizer\)"):
        DualAverage().copy_to(LinBreg(small_network().parameters()))


def test_other_parameters_are_refused_by_their_shapes():
    average = DualAverage()
    average.add(LinBreg(nn.Linear(2, 3).parameters()))
    other = LinBreg(nn.Linear(2, 4).parameters())
    message = r"groups of \[\[\(3, 2\), \(3,\)\]\] takes no other parameters, got \[\[\(4, 2\), \(4,\)\]\]"
    for use in (average.add, average.copy_to):
        with pytest.raises(ValueError, match=message):
            use(other)


def test_an_optimizer_without_duals_is_refused():
    with pytest.raises(ValueError, match="takes the dual variables of LinBreg or AdaBreg, and ProxSGD has none"):
        DualAverage().add(ProxSGD(nn.Linear(2, 2).parameters()))
