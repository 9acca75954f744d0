"""The step of backend="compile", by torch.compile."""

import warnings

import pytest
import torch
from torch import nn

from sv_sparse.optim import AdaBreg, LinBreg, bregman_optimizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from the compiler's own imports


@pytest.mark.parametrize(("kind", "settings"), [(LinBreg, {"momentum": 0.9}), (AdaBreg, {"weight_decay": 0.01})])
def test_it_is_the_plain_step_and_a_change_of_lr_or_lambda_compiles_nothing_again(kind, settings):
    torch._dynamo.reset()
    shapes = [(6, 5), (4, 3, 3, 3)]
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    start[1] = start[1].to(memory_format=torch.channels_last)
    models = [[nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2)]
    one, other = (
        kind(params, lr=0.1, lambda_init=0.2, backend=way, **settings)
        for params, way in zip(models, ("compile", "foreach"), strict=True)
    )
    for step in range(6):
        for optimizer, params in ((one, models[0]), (other, models[1])):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.param_groups[0]["lambda_"].mul_(1.1)
            for param in params:
                param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
        with torch._dynamo.config.patch(error_on_recompile=step > 2):
            one.step()
        other.step()
        for a, b in zip(*models, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert one.count_nonzero(models[0]).tolist() == [int(param.count_nonzero()) for param in models[0]]
    assert 0 < int(models[0][0].count_nonzero()) < 30


def test_cycled_betas_and_many_groups_stay_within_what_the_compiler_allows():
    torch._dynamo.reset()
    models = [[nn.Parameter(torch.linspace(-1, 1, 5 + size)) for size in range(10)] for _ in range(2)]
    pair = [
        AdaBreg([{"params": [param]} for param in params], lr=0.1, lambda_init=0.2, backend=way)
        for params, way in zip(models, ("compile", "foreach"), strict=True)
    ]
    for step in range(10):
        for optimizer, params in zip(pair, models, strict=True):
            for group, param in zip(optimizer.param_groups, params, strict=True):
                group["betas"] = (0.85 + 0.01 * step, 0.999)
                param.grad = param.detach() + step
            optimizer.step()
    for a, b in zip(*models, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_layers_skipped_at_random_train_on_with_one_warning(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(bregman_optimizer, "_MAX_COMPILED_STEPS", 2)
    bregman_optimizer._warn_of_many_steps.cache_clear()
    models = [[nn.Parameter(torch.linspace(-1, 1, 5 + size)) for size in range(3)] for _ in range(2)]
    pair = [
        AdaBreg(params, lr=0.1, lambda_init=0.2, backend=way)
        for params, way in zip(models, ("compile", "foreach"), strict=True)
    ]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step in range(7):
            for optimizer, params in zip(pair, models, strict=True):
                for index, param in enumerate(params):
                    param.grad = param.detach() + step if (step + 1) >> index & 1 else None
                optimizer.step()
    for a, b in zip(*models, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    (message,) = (str(warning.message) for warning in seen if "sets of parameters" in str(warning.message))
    assert "more than 2 sets of parameters have had a gradient" in message


@pytest.mark.parametrize(
    ("kind", "settings", "changes"),
    [
        (
            LinBreg,
            {"momentum": 0.9, "weight_decay": 0.01},
            {"momentum": 0.01, "dampening": 0.02, "weight_decay": 0.001},
        ),
        (AdaBreg, {"weight_decay": 0.01}, {"eps": 1e-5, "weight_decay": 0.001}),
    ],
)
def test_settings_that_change_at_every_step_compile_nothing_again(kind, settings, changes):
    torch._dynamo.reset()
    models = [[nn.Parameter(torch.linspace(-1, 1, 6))] for _ in range(2)]
    pair = [
        kind(params, lr=0.1, lambda_init=0.2, backend=way, **settings)
        for params, way in zip(models, ("compile", "foreach"), strict=True)
    ]
    for step in range(12):
        for optimizer, params in zip(pair, models, strict=True):
            for name, change in changes.items():
                optimizer.param_groups[0][name] = settings.get(name, 0.0) + change * step / 12
            params[0].grad = params[0].detach() + step
            with torch._dynamo.config.patch(error_on_recompile=step > 2):
                optimizer.step()
    torch.testing.assert_close(models[0][0], models[1][0], rtol=1e-4, atol=1e-6)
