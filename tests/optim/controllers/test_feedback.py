"""Laws of the feedback controller and of the landing."""

import copy
import io
import math
import pickle

import pytest
import torch
from helpers.controlled import TARGETS, batches, network, run, start
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    FixedController,
    GradualMagnitudePruning,
    LinBreg,
    PaperController,
    ProxSGD,
    QuantileController,
    SupportDiagnostics,
    largest_initial_lambda,
    param_groups,
    sparse_init_,
    sparsity,
    warmup_decay,
)

FEEDBACK = [FeedbackController, PaperController]


@pytest.mark.parametrize("lambda_init", [1e-4, 1e-1, 1e2])
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_every_target_is_reached_from_any_lambda_and_held(kind, lambda_init):
    data = batches(400)
    for target in TARGETS:
        path = run(*start(kind, target, 400, lambda_init), data)
        worst = max(abs(value - target) for value in path[-80:])
        assert worst < 0.002, (target, worst)


def test_lambda_grows_while_too_dense_and_shrinks_while_too_sparse():
    for weight, grows in ((torch.ones(10, 10), True), (torch.eye(10), False)):
        param = nn.Parameter(weight)
        optimizer = LinBreg([param], lr=0.0, lambda_init=0.1)
        controller = FeedbackController(
            optimizer, 0.5, 100, drift_gain=0.0, ramp_start=None, ramp_end=None, initial_sparsity=0.99
        )
        param.grad = torch.zeros_like(param)
        optimizer.step()
        controller.step()
        gap = abs(0.5 - sparsity([param]).item())
        expected = 0.1 * (1 + gap) if grows else 0.1 / (1 + gap)
        assert controller.lambda_.item() == pytest.approx(expected)


def crossing(sides: list[float], **settings) -> FeedbackController:
    """A controller that measured the given gaps, one per step, on a hundred weights."""
    param = nn.Parameter(torch.zeros(1000))
    controller = FeedbackController(
        LinBreg([param], lr=1.0, lambda_init=0.1), 0.5, 1000, **{"drift_gain": 0.0} | settings
    )
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
    assert crossing([-0.1, 0.001, -0.001, 0.001, -0.001], deadband=0.002).crossings.item() == 0


def test_the_gain_has_a_floor():
    controller = crossing([-0.1, 0.1] * 100, min_gain=0.2)
    before = controller.lambda_.item()
    controller.step()
    assert controller.lambda_.item() / before == pytest.approx(1 + 0.2 * 0.1, rel=1e-4)


def test_the_drift_sums_the_gaps_and_starts_anew_at_a_crossing():
    controller = crossing([-0.1, -0.1, -0.1], drift_gain=0.05)
    assert controller.drift.item() == pytest.approx(-0.015, rel=1e-4)
    assert crossing([-0.1, -0.1, 0.1], drift_gain=0.05).drift.item() == 0


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
    controller = FeedbackController(LinBreg([param], lambda_init=0.1), 0.5, 10, freeze_fraction=0.3)
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
    others = start(kind, 0.9, 200, lambda_init=3.0)
    for one, state in zip(others, saved, strict=True):
        one.load_state_dict(state)
    assert run(model, optimizer, controller, data[90:]) == run(*others, data[90:])
    assert torch.equal(controller.lambda_, others[2].lambda_)


def test_several_groups_share_one_lambda():
    model = network()
    groups = param_groups(model[0], penalty="l1") + param_groups(model[3], penalty="l1")
    optimizer = AdaBreg(groups, lambda_init=0.1)
    controller = FeedbackController(optimizer, 0.9, 10)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    controller.step()
    values = {group["lambda_"].item() for group in optimizer.param_groups if group["penalty"] == "l1"}
    assert len(values) == 1
    assert values != {0.1}


def test_the_regulated_groups_learning_rate_decides_also_after_a_start_at_zero():
    param = nn.Parameter((torch.arange(1000) >= 600).float())
    optimizer = LinBreg([{"params": [nn.Parameter(torch.ones(3))], "penalty": "none"}, {"params": [param]}], lr=0.0)
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


@pytest.mark.parametrize("kind", [*FEEDBACK, QuantileController])
def test_a_network_that_starts_dense_is_taken_over_from_where_it_is(kind):
    model = network()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0  # half of the smaller layer
    params = [param for _, param in param_groups(model)[0]["params"]]
    before = sparsity(params).item()
    controller = kind(AdaBreg(param_groups(model), lr=3e-3), 0.9, 100)
    assert controller.ramp == (0.0, 0.5)
    assert controller.initial_sparsity == controller.target == pytest.approx(before)
    size = torch.cat([param.detach().flatten() for param in params])
    assert controller.lambda_.item() == pytest.approx(0.01 * size[size != 0].square().mean().sqrt().item())
    assert controller.lambda_.item() == pytest.approx(largest_initial_lambda(params))


@pytest.mark.parametrize("kind", [*FEEDBACK, QuantileController])
def test_a_network_that_starts_sparse_goes_for_its_target_at_once(kind):
    groups = param_groups(network())
    sparse_init_(groups)
    controller = kind(AdaBreg(groups), 0.9, 100)
    assert controller.ramp is None
    assert controller.target == 0.9
    assert controller.lambda_.item() == pytest.approx(0.1)


def test_what_is_said_about_the_start_is_what_holds():
    for settings, ramp, initial, lambda_ in (
        ({"ramp_start": None, "ramp_end": None, "initial_sparsity": 0.99}, None, 0.99, 0.1),
        ({"ramp_start": 0.2, "ramp_end": 0.6, "initial_sparsity": 0.3}, (0.2, 0.6), 0.3, 0.1),
        ({"ramp_start": 0.2, "ramp_end": 0.6}, (0.2, 0.6), 0.0, None),
        ({"initial_sparsity": 0.3}, (0.0, 0.5), 0.3, 0.1),
    ):
        controller = FeedbackController(AdaBreg(param_groups(network()), lambda_init=0.1), 0.9, 100, **settings)
        assert (controller.ramp, controller.initial_sparsity) == (ramp, initial)
        assert lambda_ is None or controller.lambda_.item() == pytest.approx(lambda_)
    low = FeedbackController(AdaBreg(param_groups(network()), lambda_init=1e-6), 0.9, 100)
    assert low.lambda_.item() == pytest.approx(1e-6)
    fixed = FixedController(AdaBreg(param_groups(network()), lambda_init=0.1), 0.9, 100)
    assert fixed.lambda_.item() == pytest.approx(0.1)
    pruning = GradualMagnitudePruning(AdaBreg(param_groups(network(), penalty="none")), 0.9, 100)
    assert (pruning.ramp, pruning.initial_sparsity) == ((0.1, 0.6), 0.0)


def test_a_second_controller_leaves_the_lambda_that_the_optimizer_works_with():
    model, data = network(), batches(20)
    optimizer = AdaBreg(param_groups(model), lambda_init=0.01)
    run(model, optimizer, FixedController(optimizer, 0.5, 20), data)
    before = optimizer.param_groups[0]["lambda_"].item()
    assert FeedbackController(optimizer, 0.9, 20).lambda_.item() == before


@pytest.mark.parametrize("kind", [FeedbackController, QuantileController])
def test_a_pretrained_network_never_falls_back_to_chance_on_its_way_to_the_target(kind):
    torch.manual_seed(0)
    x = torch.randn(256, 20)
    y = (x @ torch.randn(20, 4)).argmax(1)
    chance = math.log(4)

    def losses(model, optimizer, steps: int, after=lambda: None) -> list[float]:
        path = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            after()
            path.append(loss.item())
        return path

    def worst(**settings) -> float:
        model = copy.deepcopy(pretrained)
        controller = kind(AdaBreg(param_groups(model), lr=3e-3, backend="foreach"), 0.9, 600, **settings)
        path = losses(model, controller.optimizer, 600, controller.step)
        controller.finalize()
        assert nn.functional.cross_entropy(model(x), y) < 0.03
        return max(path)

    pretrained = nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 4))
    assert losses(pretrained, torch.optim.AdamW(pretrained.parameters(), lr=3e-3), 300)[-1] < 1e-3
    assert worst() < 0.85 * chance
    assert worst(ramp_start=None, ramp_end=None, initial_sparsity=0.99) > 0.98 * chance  # which the default spares it


@pytest.mark.parametrize("kind", [*FEEDBACK, QuantileController])
def test_a_resumed_controller_has_the_ramp_that_it_began_with(kind):
    model, data = network(), batches(20)
    controller = kind(AdaBreg(param_groups(model), lr=3e-3), 0.9, 40)
    run(model, controller.optimizer, controller, data)
    sparse = param_groups(network())
    sparse_init_(sparse)
    other = kind(AdaBreg(sparse, lr=3e-3), 0.9, 40)
    assert other.ramp is None
    file = io.BytesIO()
    torch.save(controller.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.ramp, other.target) == (controller.ramp, controller.target)
    stated = kind(AdaBreg(param_groups(network())), 0.9, 40, ramp_start=0.1, ramp_end=0.3)
    stated.load_state_dict(controller.state_dict())
    assert stated.ramp == (0.1, 0.3)
    without = {name: value for name, value in controller.state_dict().items() if name != "ramp"}
    with pytest.raises(ValueError, match=f"the state of a {kind.__name__} must have ramp, got one with "):
        other.load_state_dict(without)


@pytest.mark.parametrize("kind", [*FEEDBACK, QuantileController, FixedController])
def test_a_state_of_another_kind_or_without_its_entries_is_refused_in_words(kind):
    def fresh(kind=kind):
        return kind(AdaBreg(param_groups(network())), 0.9, 40)

    controller = fresh()
    before = controller.state_dict()
    other = QuantileController if kind is FeedbackController else FeedbackController
    with pytest.raises(ValueError, match=f"is of a {other.__name__}, expected that of a {kind.__name__}"):
        controller.load_state_dict(fresh(other).state_dict())
    with pytest.raises(ValueError, match=f"the state of a {kind.__name__} must have steps.*, got one with state, "):
        controller.load_state_dict(controller.optimizer.state_dict())
    with pytest.raises(ValueError, match="must be a dict, got list"):
        controller.load_state_dict([])
    with pytest.raises(ValueError, match="steps of a saved controller must be"):
        controller.load_state_dict(before | {"steps": 2.5})
    assert controller.state_dict() == before


@pytest.mark.parametrize("kind", FEEDBACK)
def test_a_controller_follows_its_model_to_another_precision(kind):
    model = network()
    controller = kind(AdaBreg(param_groups(model), lr=3e-3, backend="foreach"), 0.9, 40)
    model.double()
    for group in controller.optimizer.param_groups:
        group["lambda_"] = float(group["lambda_"])  # made anew for the parameters as they are
    data = [(x.double(), y) for x, y in batches(20)]
    path = run(model, controller.optimizer, controller, data)
    assert controller.lambda_.dtype == torch.float64
    assert {getattr(controller, name).dtype for name in controller._state_tensors} == {torch.float64}
    assert len(path) == 20


@pytest.mark.parametrize("kind", [*FEEDBACK, QuantileController])
def test_groups_may_come_and_go_while_training(kind):
    model, data = network(), batches(40)
    optimizer = AdaBreg(param_groups(model[:3]) + param_groups(model[3:8]), lr=3e-3, backend="foreach")
    controller = kind(optimizer, 0.5, 100)
    diagnostics = SupportDiagnostics(controller)

    def go_on(part) -> None:
        diagnostics.snapshot()
        run(model, optimizer, controller, part)
        diagnostics.compute()

    go_on(data[:10])
    diagnostics.snapshot()
    optimizer.add_param_group(param_groups(model[8])[0] | {"lambda_": float(controller.lambda_)})
    assert model[8].weight in set(controller.params)
    assert diagnostics.compute() == {}  # of what is in no snapshot
    go_on(data[10:20])
    gone = [optimizer.param_groups.pop(0) for _ in range(len(optimizer.param_groups))]
    assert controller.params == []
    lambda_ = controller.lambda_.item()
    controller.step()
    controller.finalize()
    assert (lambda_, controller.sparsity().item()) == (0, 0)
    optimizer.param_groups += gone
    go_on(data[20:])
    assert controller.steps == 41
    assert len(controller.params) == 3
    controller.reminders.active = False
    controller.finalize()
    assert controller.sparsity().item() == pytest.approx(0.5, abs=1e-3)


WRONG = [float("nan"), float("inf"), None, True, "0.5", torch.tensor(0.5), [0.5]]
NUMBERS = {
    FeedbackController: (
        "target_sparsity",
        "total_steps",
        "freeze_fraction",
        "alpha",
        "gamma",
        "min_gain",
        "deadband",
        "drift_gain",
    ),
    PaperController: ("target_sparsity", "total_steps", "freeze_fraction", "alpha", "gamma", "update_interval"),
    QuantileController: ("target_sparsity", "total_steps", "freeze_fraction", "update_interval"),
    GradualMagnitudePruning: ("target_sparsity", "total_steps", "freeze_fraction", "num_mask_updates"),
    FixedController: ("target_sparsity", "total_steps"),
}


@pytest.mark.parametrize("wrong", WRONG, ids=str)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NUMBERS.items() for name in names])
def test_what_is_no_number_is_refused_by_the_settings_name(kind, name, wrong):
    penalty = "none" if kind is GradualMagnitudePruning else "l1"
    optimizer = AdaBreg(param_groups(network(), penalty=penalty))
    with pytest.raises(ValueError, match=f"^{name} must be .*, got "):
        kind(optimizer, **{"target_sparsity": 0.5, "total_steps": 10} | {name: wrong})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 10.5}, "total_steps must be a whole number, 1 or more, got 10.5"),
        ({"update_interval": 2.5}, "update_interval must be a whole number, 1 or more, got 2.5"),
        (
            {"ramp_start": "slow", "ramp_end": "slow"},
            "two rising fractions of the run, from 0 to 1, or both \"auto\", or both None, got 'slow' and 'slow'",
        ),
        ({"ramp_start": 0.1, "ramp_end": float("nan")}, "ramp_start and ramp_end must be .*, got 0.1 and nan"),
        ({"ramp_start": 0.1, "ramp_end": None}, "ramp_start and ramp_end must be .*, got 0.1 and None"),
        ({"ramp_start": None, "ramp_end": 0.5}, "ramp_start and ramp_end must be .*, got None and 0.5"),
        ({"ramp_start": 0.5}, "ramp_start and ramp_end must be .*, got 0.5 and 'auto'"),
        ({"ramp_start": False, "ramp_end": True}, "ramp_start and ramp_end must be .*, got False and True"),
        ({"ramp_start": -0.1, "ramp_end": 0.5}, "ramp_start and ramp_end must be .*, got -0.1 and 0.5"),
        ({"ramp_start": 0.1, "ramp_end": 1.5}, "ramp_start and ramp_end must be .*, got 0.1 and 1.5"),
        ({"ramp_start": 0.1, "ramp_end": [0.2, 0.3]}, r"ramp_start and ramp_end must be .*, got 0.1 and \[0.2, 0.3\]"),
        ({"initial_sparsity": float("nan")}, "initial_sparsity must be at least 0 and below 1, got nan"),
        ({"initial_sparsity": False}, "initial_sparsity must be at least 0 and below 1, got False"),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=message):
        QuantileController(AdaBreg(param_groups(network())), **{"target_sparsity": 0.5, "total_steps": 10} | settings)


def test_a_whole_number_of_steps_may_come_as_a_float():
    controller = QuantileController(AdaBreg(param_groups(network())), 0.5, 300.0)
    assert controller.total_steps == 300
    assert isinstance(controller.total_steps, int)


@pytest.mark.parametrize("wrong", [float("nan"), None, True, "0.1"])
@pytest.mark.parametrize("name", ["warmup_fraction", "final_lr_fraction"])
def test_a_schedule_refuses_what_is_no_number(name, wrong):
    with pytest.raises(ValueError, match=f"{name} must be"):
        warmup_decay(0, 100, **{name: wrong})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks for a CUDA device: that nothing waits for it")
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_neither_step_waits_for_the_device(kind):
    model = network().cuda()
    optimizer = kind(param_groups(model), lambda_init=0.1)
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


@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_a_lambda_far_above_the_weights_does_not_blow_up_a_sparse_start(kind):
    torch.manual_seed(0)
    layer = nn.Linear(50, 40)
    groups = param_groups(layer)
    sparse_init_(groups, density=0.1)
    size = layer.weight[layer.weight != 0].square().mean().sqrt().item()
    controller = FeedbackController(kind(groups, lambda_init=100.0), 0.9, total_steps=100)
    assert float(controller.lambda_) == pytest.approx(size)


def test_the_group_that_lambda_moves_farthest_bounds_its_start():
    weights = [nn.Parameter(torch.ones(4, 4)) for _ in range(3)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "delta": 100.0}]
    groups.append({"params": [weights[2]], "delta": 10.0, "lambda_scale": 50.0})
    controller = FeedbackController(AdaBreg(groups, lambda_init=1.0), 0.9, total_steps=100)
    assert float(controller.lambda_) == pytest.approx(0.01 / 500)


def test_lambda_starts_where_it_is_without_dual_variables():
    optimizer = ProxSGD([nn.Parameter(torch.ones(4, 4))], lambda_init=1.0)
    assert float(FeedbackController(optimizer, 0.9, total_steps=100).lambda_) == 1
    assert SupportDiagnostics(FeedbackController(optimizer, 0.9, total_steps=100)).dual_histogram() is None


def test_a_refused_state_restores_nothing():
    controller = FeedbackController(AdaBreg([nn.Parameter(torch.eye(4))]), 0.9, total_steps=100)
    saved = controller.state_dict()
    for wrong in ({"steps": -1}, {"steps": "x"}, {"steps": 7, "ramp": [0.9, 0.1]}):
        with pytest.raises(ValueError, match="must be"):
            controller.load_state_dict(saved | wrong)
        assert controller.steps == 0


def test_a_group_with_the_name_of_the_optimizers_argument_is_refused():
    weight = nn.Parameter(torch.eye(4))
    with pytest.raises(ValueError, match="the key of a group is lambda_"):
        AdaBreg([{"params": [weight], "lambda_init": 7.0}])
