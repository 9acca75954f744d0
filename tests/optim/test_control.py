"""Laws of the feedback controller and of the landing."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    Feedback,
    LinBreg,
    count_zeros,
    partition,
    sparse_init_,
    sparsity,
    warmup_exponential,
)

TARGETS = (0.5, 0.75, 0.9, 0.95, 0.99)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(8, 64, 3, padding=1),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Conv1d(64, 128, 3, padding=1),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A learnable problem that is never solved: each class has a pattern of its own under strong noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 8, 12, generator=generator)
    labels = [torch.randint(10, (16,), generator=generator) for _ in range(steps)]
    return [(patterns[y] + 2 * torch.randn(16, 8, 12, generator=generator), y) for y in labels]


def start(kind, target: float, steps: int, lambda_: float = 0.1, lr: float | None = None, **settings):
    model = network()
    groups = partition(model)
    sparse_init_([p for _, p in groups[0]["params"]], density=0.01, generator=torch.Generator().manual_seed(0))
    lr = lr or (0.01 if kind is AdaBreg else 0.1)
    optimizer = kind(groups, lr=lr, lambda_=lambda_)
    return model, optimizer, Feedback(optimizer, target, steps, **settings)


def run(model, optimizer, controller, data) -> list[float]:
    """Sparsity after each step."""
    path = []
    base = optimizer.param_groups[0]["lr"]
    for step, (x, y) in enumerate(data, start=controller.steps):
        for group in optimizer.param_groups:
            group["lr"] = base * warmup_exponential(step, controller.total_steps)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        controller.step()
        path.append(sparsity(controller.params).item())
    return path


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
        controller = Feedback(optimizer, 0.5, 100, trend=0.0)
        param.grad = torch.zeros_like(param)
        optimizer.step()
        controller.step()
        gap = abs(0.5 - sparsity([param]).item())
        expected = 0.1 * (1 + gap) if grows else 0.1 / (1 + gap)
        assert controller.lambda_.item() == pytest.approx(expected)


def crossing(sides: list[float], **settings) -> Feedback:
    """A controller that measured the given gaps, one per step, on a hundred weights."""
    param = nn.Parameter(torch.zeros(1000))
    controller = Feedback(LinBreg([param], lr=1.0, lambda_=0.1), 0.5, 1000, **{"trend": 0.0} | settings)
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


def test_a_long_run_updates_lambda_at_most_so_many_times():
    param = nn.Parameter((torch.arange(10) >= 6).float())
    controller = Feedback(LinBreg([param], lambda_=0.1), 0.5, 1000, updates=100, settle=0.0, trend=0.0)
    values = set()
    for _ in range(1000):
        controller.step()
        values.add(controller.lambda_.item())
    assert len(values) == 101


def test_lambda_stands_still_while_settling():
    param = nn.Parameter(torch.zeros(10))
    controller = Feedback(LinBreg([param], lambda_=0.1), 0.5, 10, settle=0.3)
    path = []
    for _ in range(10):
        controller.step()
        path.append(controller.lambda_.item())
    assert len(set(path[:7])) == 7
    assert len(set(path[6:])) == 1


@pytest.mark.parametrize("target", [*TARGETS, 0.123])
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_landing_meets_the_target_to_the_weight(kind, target):
    model, optimizer, controller = start(kind, target, 60)
    run(model, optimizer, controller, batches(60))
    controller.land()
    size = sum(param.numel() for param in controller.params)
    assert size - int(count_zeros(controller.params)) == round((1 - target) * size)


def test_a_dense_group_stays_dense_under_the_controller():
    model, optimizer, controller = start(AdaBreg, 0.99, 100, lambda_=10.0)
    alive = [param != 0 for param in optimizer.param_groups[1]["params"]]
    run(model, optimizer, controller, batches(100))
    controller.land()
    for param, before in zip(optimizer.param_groups[1]["params"], alive, strict=True):
        assert before.any() or param.any()
        assert param[before].all()


def test_a_target_of_zero_regulates_nothing():
    model = network()
    optimizer = AdaBreg(partition(model, regularizer="none"), lambda_=5.0)
    controller = Feedback(optimizer, 0.0, 20)
    for x, y in batches(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        controller.step()
    controller.land()
    assert controller.params == []
    assert controller.lambda_.item() == 0
    assert count_zeros(list(model.parameters())).item() == 0


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
    controller = Feedback(optimizer, 0.9, 10)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    controller.step()
    values = {group["lambda_"].item() for group in optimizer.param_groups if group["regularizer"] == "l1"}
    assert len(values) == 1
    assert values != {0.1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 1.0}, "target_sparsity must be at least 0 and below 1, got 1.0"),
        ({"target_sparsity": -0.1}, "target_sparsity must be at least 0 and below 1, got -0.1"),
        ({"target_sparsity": 0.0}, r"target_sparsity=0 is dense training: groups \[None\] need regularizer='none'"),
        ({"total_steps": 0}, "total_steps must be 1 or more, got 0"),
        ({"settle": 1.0}, "settle must be at least 0 and below 1, got 1.0"),
        ({"alpha": 0.0}, "alpha must be above 0, got 0.0"),
        ({"gamma": 1.5}, "gamma must be at most 1, got 1.5"),
        ({"updates": 0}, "updates must be above 0, got 0"),
        ({"floor": 2.0}, "floor must be at most 1.0, got 2.0"),
        ({"target_sparsity": 0.99}, "target_sparsity=0.99 of 20 weights keeps 0 of them"),
        ({"target_sparsity": 0.001}, "target_sparsity=0.001 of 20 weights keeps 20 of them"),
        ({"floor": -1.0}, "floor must be 0 or more, got -1.0"),
        ({"band": -1.0}, "band must be 0 or more, got -1.0"),
    ],
)
def test_a_setting_out_of_bounds_is_named_with_its_bounds(settings, message):
    optimizer = AdaBreg(nn.Linear(4, 4).parameters(), lambda_=0.1)
    with pytest.raises(ValueError, match=message):
        Feedback(optimizer, **{"target_sparsity": 0.9, "total_steps": 10} | settings)


def test_a_lambda_that_starts_at_zero_is_refused_since_it_could_never_grow():
    with pytest.raises(ValueError, match="must start above 0, got 0.0"):
        Feedback(AdaBreg(nn.Linear(4, 4).parameters(), lambda_=0.0), 0.9, 10)


def test_a_target_without_anything_to_regulate_is_refused():
    with pytest.raises(ValueError, match=r"target_sparsity=0.9 needs a group with a regularizer"):
        Feedback(AdaBreg(nn.Linear(4, 4).parameters(), regularizer="none"), 0.9, 10)


def test_groups_that_start_with_different_lambdas_are_refused():
    groups = [{"params": [nn.Parameter(torch.ones(4, 4))], "lambda_": value} for value in (0.5, 2.0)]
    with pytest.raises(ValueError, match=r"regulated groups share one lambda_, got \[0.5, 2.0\]"):
        Feedback(AdaBreg(groups), 0.5, 10)


def test_a_frozen_parameter_is_refused_since_it_could_never_become_sparse():
    layer = nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="1 regulated parameters are frozen"):
        Feedback(AdaBreg(layer.parameters()), 0.5, 10)


def test_landing_counts_parameters_that_never_had_a_gradient():
    used, unused = nn.Parameter(torch.randn(20, 20)), nn.Parameter(torch.randn(20, 20))
    optimizer = AdaBreg([used, unused])
    controller = Feedback(optimizer, 0.75, 10)
    used.grad = torch.randn(20, 20)
    optimizer.step()
    controller.land()
    assert 800 - int(count_zeros([used, unused])) == 200


def test_landing_says_so_where_it_cannot_be_exact():
    param = nn.Parameter(torch.zeros(10, 10))
    controller = Feedback(AdaBreg([param]), 0.5, 10)
    with pytest.warns(UserWarning, match="landed on 0 weights instead of 50: too many duals are equal"):
        controller.land()


def test_landing_is_exact_in_float64():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        param = nn.Parameter(torch.randn(30, 30, generator=generator, dtype=torch.float64))
        controller = Feedback(LinBreg([param]), 0.9, 10)
        controller.land()
        assert int(count_zeros([param])) == 810


def test_the_regulated_groups_learning_rate_decides_also_after_a_start_at_zero():
    param = nn.Parameter((torch.arange(1000) >= 600).float())
    optimizer = LinBreg([{"params": [nn.Parameter(torch.ones(3))], "regularizer": "none"}, {"params": [param]}], lr=0.0)
    controller = Feedback(optimizer, 0.5, 1000)
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
    controller = Feedback(optimizer, 0.9, 100)
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
