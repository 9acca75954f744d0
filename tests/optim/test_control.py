"""Laws of the feedback controller and of the landing."""

import copy
import io
import pickle

import pytest
import torch
from controlled import TARGETS, batches, network, run, start
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    LinBreg,
    partition,
    sparsity,
)


@pytest.mark.parametrize("lambda_", [1e-4, 1e-1, 1e2])
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_every_target_is_reached_from_any_lambda_and_held(kind, lambda_):
    data = batches(400)
    for target in TARGETS:
        path = run(*start(kind, target, 400, lambda_), data)
        worst = max(abs(value - target) for value in path[-80:])
        assert worst < 0.002, (target, worst)


def test_lambda_grows_while_too_dense_and_shrinks_while_too_sparse():
    for weight, grows in ((torch.ones(10, 10), True), (torch.eye(10), False)):
        param = nn.Parameter(weight)
        optimizer = LinBreg([param], lr=0.0, lambda_=0.1)
        controller = FeedbackController(optimizer, 0.5, 100, trend=0.0, ramp=None, initial_sparsity=0.99)
        param.grad = torch.zeros_like(param)
        optimizer.step()
        controller.step()
        gap = abs(0.5 - sparsity([param]).item())
        expected = 0.1 * (1 + gap) if grows else 0.1 / (1 + gap)
        assert controller.lambda_.item() == pytest.approx(expected)


def crossing(sides: list[float], **settings) -> FeedbackController:
    """A controller that measured the given gaps, one per step, on a hundred weights."""
    param = nn.Parameter(torch.zeros(1000))
    controller = FeedbackController(LinBreg([param], lr=1.0, lambda_=0.1), 0.5, 1000, **{"trend": 0.0} | settings)
    for gap in sides:
        with torch.no_grad():
            param.copy_((torch.arange(1000) >= round(1000 * (0.5 - gap))).float())
        controller.step()
    return controller


def test_the_first_crossing_is_free_and_each_later_one_lowers_the_gain():
    for sides, gain in (([-0.1, 0.1], 1.0), ([-0.1, 0.1, -0.1], 0.95), ([-0.1, 0.1, -0.1, 0.1], 0.95**2)):
        before, after = crossing(sides), crossing([*sides, sides[-1]])
        ratio = after.lambda_.item() / before.lambda_.item()
        expected = 1 + gain * 0.1 if sides[-1] > 0 else 1 / (1 + gain * 0.1)
        assert ratio == pytest.approx(expected, rel=1e-4)


def test_a_gap_of_exactly_zero_does_not_hide_a_crossing():
    assert crossing([-0.1, 0.0, 0.1]).crossings.item() == 1


def test_noise_inside_the_dead_band_is_no_crossing():
    assert crossing([-0.1, 0.001, -0.001, 0.001, -0.001], band=0.002).crossings.item() == 0


def test_the_gain_has_a_floor():
    controller = crossing([-0.1, 0.1] * 100, floor=0.2)
    before = controller.lambda_.item()
    controller.step()
    assert controller.lambda_.item() / before == pytest.approx(1 + 0.2 * 0.1, rel=1e-4)


def test_the_drift_sums_the_gaps_and_starts_anew_at_a_crossing():
    controller = crossing([-0.1, -0.1, -0.1], trend=0.05)
    assert controller.drift.item() == pytest.approx(-0.015, rel=1e-4)
    assert crossing([-0.1, -0.1, 0.1], trend=0.05).drift.item() == 0


def test_a_halved_learning_rate_forgets_the_crossings():
    controller = crossing([-0.1, 0.1, -0.1])
    assert controller.crossings.item() == 2
    controller.optimizer.param_groups[0]["lr"] = 0.6
    controller.step()
    assert controller.crossings.item() == 2
    controller.optimizer.param_groups[0]["lr"] = 0.4
    controller.step()
    assert controller.crossings.item() == 0


def test_lambda_stands_still_while_settling():
    param = nn.Parameter(torch.zeros(10))
    controller = FeedbackController(LinBreg([param], lambda_=0.1), 0.5, 10, settle=0.3)
    path = []
    for _ in range(10):
        controller.step()
        path.append(controller.lambda_.item())
    assert len(set(path[:7])) == 7
    assert len(set(path[6:])) == 1


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_resuming_the_controller_changes_no_bit(kind):
    data = batches(200)
    model, optimizer, controller = start(kind, 0.9, 200)
    run(model, optimizer, controller, data[:90])
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), controller.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    others = start(kind, 0.9, 200, lambda_=3.0)
    for one, state in zip(others, saved, strict=True):
        one.load_state_dict(state)
    assert run(model, optimizer, controller, data[90:]) == run(*others, data[90:])
    assert torch.equal(controller.lambda_, others[2].lambda_)


def test_several_groups_share_one_lambda():
    model = network()
    groups = partition(model[0], regularizer="l1") + partition(model[3], regularizer="l1")
    optimizer = AdaBreg(groups, lambda_=0.1)
    controller = FeedbackController(optimizer, 0.9, 10)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    controller.step()
    values = {group["lambda_"].item() for group in optimizer.param_groups if group["regularizer"] == "l1"}
    assert len(values) == 1
    assert values != {0.1}


def test_the_regulated_groups_learning_rate_decides_also_after_a_start_at_zero():
    param = nn.Parameter((torch.arange(1000) >= 600).float())
    optimizer = LinBreg([{"params": [nn.Parameter(torch.ones(3))], "regularizer": "none"}, {"params": [param]}], lr=0.0)
    controller = FeedbackController(optimizer, 0.5, 1000)
    for lr, crossings in ((0.0, 5), (1.0, 0), (0.9, 5), (0.01, 0)):
        optimizer.param_groups[1]["lr"] = lr
        controller.crossings.fill_(5)
        controller.step()
        assert controller.crossings.item() == crossings


def test_copies_of_network_optimizer_and_controller_go_on_alike():
    data = batches(60)
    one = start(AdaBreg, 0.9, 60)
    run(*one, data[:30])
    other = copy.deepcopy(one)
    third = pickle.loads(pickle.dumps(one))
    paths = [run(*each, data[30:]) for each in (one, other, third)]
    assert paths[0] == paths[1] == paths[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks for a CUDA device: that nothing waits for it")
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_neither_step_waits_for_the_device(kind):
    model = network().cuda()
    optimizer = kind(partition(model), lambda_=0.1)
    controller = FeedbackController(optimizer, 0.9, 100)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    controller.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            optimizer.step()
            controller.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
