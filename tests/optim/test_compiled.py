"""The step under torch.compile, which is what fused means off the CPU."""

import pytest
import torch
from torch import nn

from sv_sparse.optim import AdaBreg, LinBreg

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from the compiler's own imports


@pytest.mark.parametrize(("kind", "settings"), [(LinBreg, {"momentum": 0.9}), (AdaBreg, {"weight_decay": 0.01})])
def test_it_is_the_plain_step_and_a_change_of_lr_or_lambda_compiles_nothing_again(kind, settings):
    torch._dynamo.reset()
    shapes = [(6, 5), (4, 3, 3, 3)]
    start = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    start[1] = start[1].to(memory_format=torch.channels_last)
    models = [[nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2)]
    one, other = (
        kind(params, lr=0.1, lambda_=0.2, implementation=way, **settings)
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
        AdaBreg([{"params": [param]} for param in params], lr=0.1, lambda_=0.2, implementation=way)
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
