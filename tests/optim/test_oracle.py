"""The optimizers and controllers against an oracle in NumPy float64 that shares no line with them."""

import numpy as np
import pytest
import torch
from helpers import oracle
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    LinBreg,
    PaperController,
    ProxSGD,
    QuantileController,
)
from sv_sparse.optim.controllers._order_statistics import lambda_interval

SHAPES = [(1,), (7,), (1023,), (1025,), (4097,), (6, 5, 3, 3)]
GROUPED = [(12, 7), (10, 6, 3), (9, 8, 2, 2)]
DIRECTION = {LinBreg: oracle.Sgd, AdaBreg: oracle.Adam}
RATE = {LinBreg: 0.1, AdaBreg: 0.02, ProxSGD: 0.1}
CASES = [
    (LinBreg, {}),
    (LinBreg, {"momentum": 0.9}),
    (LinBreg, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    (LinBreg, {"momentum": 0.8, "dampening": 0.3, "delta": 0.5}),
    (LinBreg, {"weight_decay": 0.1, "delta": 2.0, "lambda_scale": 0.3}),
    (AdaBreg, {}),
    (AdaBreg, {"betas": (0.8, 0.99), "eps": 1e-3, "delta": 2.0}),
    (AdaBreg, {"weight_decay": 0.1, "delta": 0.5, "lambda_scale": 1.7}),
    (LinBreg, {"penalty": "l0"}),
    (LinBreg, {"penalty": "l0", "momentum": 0.9, "weight_decay": 0.02, "delta": 0.5}),
    (AdaBreg, {"penalty": "l0", "weight_decay": 0.1, "delta": 2.0, "lambda_scale": 0.3}),
]


def oracles(kind, start, lr, delta=1.0, penalty="l1", granularity=None, lambda_scale=1.0, **settings):
    """An oracle for each weight; lambda_scale is a factor on what they are given."""
    if kind is ProxSGD:
        return [oracle.Prox(weight, lr, granularity) for weight in start]
    if penalty == "none":
        return [oracle.Plain(weight, DIRECTION[kind](**settings), lr, delta) for weight in start]
    hard = penalty == "l0"
    return [oracle.Bregman(weight, DIRECTION[kind](**settings), lr, delta, granularity, hard) for weight in start]


def compare(kind, problem: oracle.Problem, steps: int, settings: dict, rtol: float, atol: float, backend=None) -> None:
    """Both ways over the same lambdas; what is compared has come and gone on the way."""
    chosen = {} if backend is None else {"backend": backend}
    optimizer = kind(problem.params, lr=RATE[kind], lambda_init=0.8, **settings, **chosen)
    others = oracles(kind, problem.start, RATE[kind], **settings)
    group, scale = optimizer.param_groups[0], settings.get("lambda_scale", 1.0)
    born = died = 0
    before = np.concatenate([weight.ravel() for weight in problem.start])
    for step in range(steps):
        group["lambda_"].fill_(0.9 + 0.8 * np.sin(step / 12))
        problem.differentiate()
        for other, gradient in zip(others, problem.gradients([other.weight for other in others]), strict=True):
            other.step(gradient, group["lambda_"].item() * scale)
        optimizer.step()
        expected = np.concatenate([other.weight.ravel() for other in others])
        actual = np.concatenate([weight.ravel() for weight in problem.weights()])
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)
        if rtol < 1e-6:
            np.testing.assert_array_equal(actual == 0, expected == 0)
        born, died = born + np.sum((expected != 0) > (before != 0)), died + np.sum((expected == 0) > (before == 0))
        before = expected
    if settings.get("penalty") != "none" and steps >= 100:
        assert born
        assert died


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_two_hundred_steps_follow_the_formulas_in_float64(kind, settings):
    compare(kind, oracle.Problem(SHAPES), 200, settings, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("backend", ["cpp", "foreach"])
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_two_hundred_steps_follow_the_formulas_in_float32(kind, settings, backend):
    compare(kind, oracle.Problem(SHAPES, torch.float32), 200, settings, 1e-4, 1e-4, backend)


@pytest.mark.parametrize("granularity", ["out_channel", "in_channel", "kernel"])
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_a_hundred_steps_with_groups_follow_the_formulas(kind, granularity):
    settings = {"penalty": "group", "granularity": granularity, "delta": 0.8, "weight_decay": 0.01}
    compare(kind, oracle.Problem(GROUPED), 100, settings, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    "settings", [{}, *({"penalty": "group", "granularity": g} for g in ("out_channel", "in_channel"))]
)
def test_a_hundred_proximal_steps_follow_the_formulas(settings):
    compare(ProxSGD, oracle.Problem(GROUPED), 100, settings | {"lambda_scale": 1.5}, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_without_a_penalty_it_is_sgd_or_adam_at_delta_times_the_rate(kind, settings):
    compare(kind, oracle.Problem(SHAPES[:3]), 100, settings | {"penalty": "none"}, rtol=1e-7, atol=1e-10)


SIZE = 1000


def lambdas(controller, gaps: list[float], target: float, rates: list[float] | None = None) -> list[float]:
    """The lambda after each controller.step() that measured a gap, at a learning rate."""
    param, path = controller.optimizer.param_groups[0]["params"][0], []
    for index, gap in enumerate(gaps):
        with torch.no_grad():
            param.copy_(torch.arange(SIZE) >= round(SIZE * (target - gap)))
        if rates is not None:
            controller.optimizer.param_groups[0]["lr"] = rates[index]
        controller.step()
        path.append(controller.lambda_.item())
    return path


def regulated(kind=LinBreg, **settings):
    param = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))  # a sparse start, which is left as it is
    return kind([param], lr=1.0, lambda_init=0.1, **settings)


def gaps(count: int) -> list[float]:
    """Gaps that swing ever less around zero, with noise; now and then exactly zero, never on the dead band's edge."""
    steps = np.arange(count)
    swing = 0.35 * np.exp(-steps / 60) * np.cos(steps / 6) + 0.01 * np.random.default_rng(0).normal(size=count)
    rounded = np.round(swing, 3)
    rounded[np.isclose(np.abs(rounded), 0.001)] *= 2
    return [float(gap) for gap in np.where(steps % 9 == 1, 0.0, rounded)]


def every_nth(path: list[float], interval: int, first: float, count: int) -> list[float]:
    """The path of an oracle that moves at each ``interval``-th step only, for ``count`` steps."""
    return [path[step // interval - 1] if step >= interval else first for step in range(1, count + 1)]


@pytest.mark.parametrize("update_interval", [1, 7])
def test_the_authors_newest_rule_follows_its_formula_and_settles(update_interval):
    measured = gaps(200)
    controller = PaperController(
        regulated(), 0.6, 200, alpha=0.8, gamma=0.9, update_interval=update_interval, freeze_fraction=0.25
    )
    moving = oracle.decaying(measured[update_interval - 1 : 150 : update_interval], 0.1, alpha=0.8, gamma=0.9)
    expected = every_nth(moving + [moving[-1]] * 200, update_interval, 0.1, 200)
    np.testing.assert_allclose(lambdas(controller, measured, 0.6), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"drift_gain": 0.0},
        {"alpha": 0.5, "gamma": 0.5, "min_gain": 0.2},
        {"deadband": 0.0505},
        {"drift_gain": 0.08},
    ],
)
def test_the_feedback_rule_follows_its_formula_and_settles(settings):
    measured = gaps(200)
    rates = [1.0] * 50 + [0.6] * 20 + [0.5] * 20 + [0.3] * 30 + [2.0] * 80
    controller = FeedbackController(regulated(), 0.6, 200, freeze_fraction=0.25, **settings)
    moving = oracle.feedback(measured[:150], 0.1, rates[:150], **settings)
    np.testing.assert_allclose(lambdas(controller, measured, 0.6, rates), moving + [moving[-1]] * 50, rtol=1e-5)


def test_the_target_follows_its_ramp_and_the_gap_is_measured_from_there():
    controller = PaperController(
        regulated(),
        0.6,
        100,
        update_interval=1,
        freeze_fraction=0.0,
        ramp_start=0.2,
        ramp_end=0.75,
        initial_sparsity=0.95,
    )
    targets = [oracle.ramp(step / 100, 0.2, 0.75, 0.95, 0.6) for step in range(101)]
    assert controller.target == pytest.approx(targets[0])
    path = []
    for target in targets[1:]:
        path += lambdas(controller, [0.0], 0.7)
        assert controller.target == pytest.approx(target, rel=1e-12)
    np.testing.assert_allclose(path, oracle.decaying([t - 0.7 for t in targets[1:]], 0.1, 1.0, 0.95), rtol=1e-5)


QUANTILES = [(LinBreg, 0.9, {"momentum": 0.9}), (AdaBreg, 0.73, {"delta": 0.5}), (AdaBreg, 0.999, {})]


@pytest.mark.parametrize(("kind", "target", "settings"), QUANTILES)
def test_the_quantile_rule_keeps_exactly_so_many_weights_on_the_path_of_the_formulas(kind, target, settings):
    problem = oracle.Problem(SHAPES)
    groups = [{"params": problem.params[::2]}, {"params": problem.params[1::2], "lambda_scale": 0.5}]
    optimizer = kind(groups, lr=RATE[kind], lambda_init=0.5, **settings)
    controller = QuantileController(optimizer, target, 100, ramp_start=0.0, ramp_end=0.5, initial_sparsity=0.2)
    others, total = oracles(kind, problem.start, RATE[kind], **settings), sum(problem.sizes)
    scales, lambda_ = [1.0, 0.5] * 3, 0.5
    for step in range(1, 101):
        problem.differentiate()
        gradients = problem.gradients([other.weight for other in others])
        for other, gradient, scale in zip(others, gradients, scales, strict=True):
            other.step(gradient, lambda_ * scale)
        optimizer.step()
        controller.step()
        kept = round((1 - oracle.ramp(step / 100, 0.0, 0.5, 0.2, target)) * total)
        sizes = [np.abs(other.dual).ravel() / scale for other, scale in zip(others, scales, strict=True)]
        lambda_ = oracle.nearest(np.concatenate(sizes), kept, lambda_)
        for other, scale in zip(others, scales, strict=True):
            other.apply_prox(lambda_ * scale)
        assert sum(int(np.count_nonzero(weight)) for weight in problem.weights()) == kept
        assert controller.lambda_.item() == pytest.approx(lambda_, rel=1e-7)
        for other, weight in zip(others, problem.weights(), strict=True):
            np.testing.assert_allclose(weight, other.weight, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backend", ["cpp", "foreach"])
@pytest.mark.parametrize("scale", [1.0, 0.3, 1.7])
def test_the_quantile_rule_keeps_exactly_so_many_weights_in_float32(scale, backend):
    problem = oracle.Problem(SHAPES, torch.float32)
    groups = [{"params": problem.params[:3]}, {"params": problem.params[3:], "lambda_scale": scale}]
    optimizer = AdaBreg(groups, lr=0.02, lambda_init=0.5, backend=backend)
    controller = QuantileController(optimizer, 0.9, 100)
    for _ in range(100):
        problem.differentiate()
        optimizer.step()
        controller.step()
        alive = sum(int(np.count_nonzero(weight)) for weight in problem.weights())
        assert alive == round(0.1 * sum(problem.sizes))


@pytest.mark.parametrize("granularity", ["out_channel", "in_channel", "kernel"])
def test_the_quantile_rule_keeps_the_largest_groups_that_fit(granularity):
    problem = oracle.Problem(GROUPED)
    optimizer = AdaBreg(problem.params, lr=0.02, lambda_init=0.5, penalty="group", granularity=granularity)
    controller = QuantileController(optimizer, 0.6, 60)
    for _ in range(60):
        problem.differentiate()
        optimizer.step()
        duals = [dual.numpy() for dual in optimizer.duals(optimizer.param_groups[0])]
        controller.step()
        cells = [
            (weight, dual[at], weight[at])
            for weight, dual in zip(problem.weights(), duals, strict=True)
            for at in oracle.group_indices(weight.shape, granularity)
        ]
        sizes = np.array([dual.size for _, dual, _ in cells])
        norms = np.array([np.sqrt(np.mean(dual**2)) for _, dual, _ in cells])
        expected = oracle.surviving_groups(norms, sizes, round(0.4 * sum(problem.sizes)))
        assert [bool(np.any(cell)) for _, _, cell in cells] == expected.tolist()
        assert 0 <= round(0.4 * sum(problem.sizes)) - sizes[expected].sum() < sizes.max()


def awkward(size: int) -> np.ndarray:
    """Duals with ties, both zeros, denormals, and infinities."""
    generator = np.random.default_rng(size)
    values = generator.normal(size=size).astype(np.float32)
    kinds = generator.integers(0, 8, size)
    values[kinds == 0] = np.round(values[kinds == 0], 1)
    values[kinds == 1] = np.where(values[kinds == 1] < 0, np.float32(-0.0), np.float32(0.0))
    values[kinds == 2] *= np.float32(1e-41)
    values[kinds == 3] = np.where(np.abs(values[kinds == 3]) > 1.5, np.inf * np.sign(values[kinds == 3]), 0.25)
    return values


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 4.0), (0.3, 1.7)])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 255, 1023, 1024, 1025, 3000, 5000])
def test_the_cutoff_is_the_order_statistic_of_a_full_sort(size, scales):
    values = [awkward(size), awkward(size + 1)[:size]]
    params = [nn.Parameter(torch.ones(size)) for _ in scales]
    groups = [{"params": [param], "lambda_scale": scale} for param, scale in zip(params, scales, strict=True)]
    optimizer = LinBreg(groups, lambda_init=0.1, backend="cpp")
    for param, value, group in zip(params, values, optimizer.param_groups, strict=True):
        optimizer.duals(group)
        optimizer.state[param]["dual"].copy_(torch.from_numpy(value))
    ratios = np.concatenate([np.abs(value) / np.float32(scale) for value, scale in zip(values, scales, strict=True)])
    for kept in sorted({0, 1, size // 10, size // 2, size, 3 * size // 2, 2 * size - 1, 2 * size}):
        found = np.float32(lambda_interval(optimizer, optimizer.param_groups, kept)[0].item())
        np.testing.assert_array_max_ulp(found, oracle.cutoff(ratios, kept), maxulp=0 if scales[0] != 0.3 else 1)
        alive = sum(np.sum(np.abs(v) > found * np.float32(s)) for v, s in zip(values, scales, strict=True))
        assert alive <= kept
