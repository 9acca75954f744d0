"""What goes wrong in optimizers of one's own: precision, devices, layouts, versions, numbers that are none."""

import copy
import subprocess
import sys

import pytest
import torch
from helpers.small import network, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    GradualMagnitudePruning,
    LinBreg,
    ProxSGD,
    QuantileController,
    clip_grad_norm_,
    param_groups,
)

KINDS = [(LinBreg, {"momentum": 0.9}), (AdaBreg, {})]


def stepped(weight: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: torch.Tensor) -> torch.Tensor:
    weight.grad = gradient
    optimizer.step()
    return weight.detach()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["cpp", "foreach"])
@pytest.mark.parametrize("kind", [LinBreg, AdaBreg])
def test_a_dense_bf16_weight_is_not_shrunk(kind, backend):
    weight = nn.Parameter(torch.full((4,), 0.05, dtype=torch.bfloat16))
    optimizer = kind([weight], penalty="none", lambda_init=0.1, lr=1e-3, backend=backend)
    assert torch.equal(stepped(weight, optimizer, torch.zeros_like(weight)), torch.full_like(weight, 0.05))


@pytest.mark.parametrize("penalty", ["l1", "l0", "none"])
@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("backend", ["cpp", "foreach"])
def test_a_change_of_memory_layout_in_mid_run_changes_nothing(kind, settings, backend, penalty):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, bias=False)]
    layers.append(copy.deepcopy(layers[0]))
    options = {"lr": 0.01, "lambda_init": 0.02, "penalty": penalty, "backend": backend}
    optimizers = [kind(layer.parameters(), **options, **settings) for layer in layers]
    for step in range(4):
        gradient = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(step))
        layers[1].to(memory_format=torch.channels_last if step % 2 else torch.contiguous_format)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            stepped(layer.weight, optimizer, gradient.clone())
    torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "default", ["torch.set_default_dtype(torch.float64)", "torch.set_default_dtype(torch.bfloat16)",
                "torch.set_default_device('meta')"],
)  # fmt: skip
def test_the_kernels_do_not_care_for_torchs_defaults(default):
    code = f"""
import torch
from sv_sparse.optim import AdaBreg, FeedbackController
weight = torch.nn.Parameter(torch.linspace(-1, 1, 100))
weight.grad = torch.ones(100)
optimizer = AdaBreg([weight])
controller = FeedbackController(optimizer, 0.9, 10)
{default}
optimizer.step()
controller.step()
controller.finalize()
print(int(weight.count_nonzero()))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "10", done.stderr


def test_autograd_notices_that_a_step_changed_what_it_kept():
    weight = nn.Parameter(torch.ones(3))
    optimizer = AdaBreg([weight])
    loss = (weight * weight).sum()
    stepped(weight, optimizer, torch.ones(3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_edit_after_the_step_is_counted():
    weight = nn.Parameter(torch.ones(3))
    optimizer = AdaBreg([weight])
    stepped(weight, optimizer, torch.ones(3))
    with torch.no_grad():
        weight.zero_()
    assert optimizer.count_nonzero([weight]).tolist() == [0]


def test_nan_is_not_hidden_by_groups_nor_made_by_masks():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = LinBreg([weight], penalty="group", lambda_init=0.1)
    assert stepped(weight, optimizer, torch.tensor([[torch.nan, 0, 0], [0, 0, 0]]))[0].isnan().any()
    pruned = nn.Parameter(torch.arange(1.0, 5.0).view(2, 2))
    masked = LinBreg([{"params": [pruned], "prunable": True}], penalty="none")
    controller = GradualMagnitudePruning(masked, 0.5, 10)
    controller.finalize()
    after = stepped(pruned, masked, torch.full((2, 2), torch.inf))
    controller.step()
    assert (after[0] == 0).all()
    assert after[1].isinf().all()


def test_a_beta_next_to_one_keeps_its_digits():
    for beta in (0.9999, 0.999999, 0.99999999):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = AdaBreg([weight], lr=1.0, betas=(0.9, beta), penalty="none")
        for _ in range(3):
            stepped(weight, optimizer, torch.ones(1))
        assert weight.item() == pytest.approx(-3.0, abs=1e-4)


def test_a_state_regularized_otherwise_is_refused_and_the_backend_stays():
    model = network()
    saved = AdaBreg(param_groups(model, penalty="none"), backend="foreach").state_dict()
    with pytest.raises(ValueError, match="a saved group's penalty must be the group's own, 'l1', got 'none'"):
        AdaBreg(param_groups(model)).load_state_dict(saved)
    other = AdaBreg(param_groups(model, penalty="none"))
    other.load_state_dict(saved)
    assert {group["backend"] for group in other.param_groups} == {"auto"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": "mask"}, "penalty must be one of l1, l0, group, none, got 'mask'"),
        (
            {"params": [nn.Parameter(torch.ones(2))], "delta": 2.0},
            "delta must be 1, since there is no dual variable, got 2.0",
        ),
    ],
)
def test_what_proxsgd_cannot_do_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ProxSGD([settings]) if "params" in settings else ProxSGD([nn.Parameter(torch.ones(2))], **settings)


def test_lambda_may_be_a_number_when_the_controller_comes():
    weight = nn.Parameter(torch.ones(4, 5))
    optimizer = AdaBreg([weight])
    controller = FeedbackController(optimizer, 0.5, 10)
    stepped(weight, optimizer, torch.ones(4, 5))
    optimizer.param_groups[0]["lambda_"] = 0.5
    controller.step()
    assert controller.lambda_.item() > 0.5


def test_clipping_on_the_support_is_told_which_parameters_have_one():
    sparse, dense = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    sparse.grad, dense.grad = torch.full((2, 2), 1e30), torch.full((2, 2), 3.0)
    assert clip_grad_norm_([sparse, dense], 1.0, sparse_params=[sparse]).item() == pytest.approx(6.0)
    torch.testing.assert_close(dense.grad, torch.full((2, 2), 0.5))


class NoHostRead(TorchDispatchMode):
    """Fails where a tensor's value would be read by Python: on a GPU that waits for the device."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert "_local_scalar_dense" not in str(function)
        assert "nonzero.default" not in str(function) or "count" in str(function)
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("control", [FeedbackController, QuantileController, GradualMagnitudePruning])
@pytest.mark.parametrize("penalty", ["l1", "l0", "group"])
@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_no_step_reads_a_tensor_into_python(kind, settings, control, penalty, monkeypatch):
    # weights are compared with samples on the CPU only, where nothing waits
    monkeypatch.setattr("sv_sparse.optim.weight_edits.SampledValues.differ", lambda *_: False)
    model = network()
    penalty = "none" if control is GradualMagnitudePruning else penalty
    groups = param_groups(model, penalty=penalty)
    optimizer = kind(groups, lr=torch.tensor(0.01), lambda_init=0.05, backend="foreach", **settings)
    controller = control(optimizer, 0.5, 20)
    train(model, optimizer, 5, after=controller.step)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    with NoHostRead():
        for _ in range(3):
            optimizer.step()
            controller.step()
