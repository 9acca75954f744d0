"""The method on a fake CUDA device: no step of an optimizer or a controller waits for it."""

import warnings
from itertools import product

import pytest
import torch
from helpers.fake_cuda import CUDA, Device, on_fake_cuda
from helpers.small import network
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    DualAverage,
    FeedbackController,
    FixedController,
    GradualMagnitudePruning,
    LinBreg,
    PaperController,
    ProxSGD,
    QuantileController,
    SupportDiagnostics,
    clip_grad_norm_,
    count_zeros,
    param_groups,
    sparsity,
)

STEPS = 4
OPTIMIZERS = {
    "AdaBreg": (AdaBreg, {}),
    "AdaBreg, decay": (AdaBreg, {"weight_decay": 0.1, "delta": 2.0, "maximize": True}),
    "LinBreg": (LinBreg, {}),
    "LinBreg, momentum": (LinBreg, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "ProxSGD": (ProxSGD, {}),
}
PRUNING = {"ramp_start": None, "ramp_end": None, "num_mask_updates": STEPS}
CONTROLLERS = {
    "feedback": (FeedbackController, {}),
    "ramp": (FeedbackController, {"ramp_start": 0.0, "ramp_end": 0.5}),
    "paper": (PaperController, {"update_interval": 1}),
    "fixed": (FixedController, {}),
    "quantile": (QuantileController, {}),
    "magnitude": (GradualMagnitudePruning, PRUNING),
    "per layer": (GradualMagnitudePruning, {**PRUNING, "allocation": "erk"}),
}
MASKED = {"magnitude", "per layer"}
ON_DUALS = [
    (optimizer, penalty, controller)
    for optimizer, penalty, controller in product(OPTIMIZERS, ("l1", "l0", "group", "none"), CONTROLLERS)
    if (penalty == "none") == (controller in MASKED)
    and not (optimizer == "ProxSGD" and (controller == "quantile" or penalty == "l0"))
]


def network_and_optimizer(device, optimizer, penalty="l1", dtype=None, **settings):
    """A network on the device, and its optimizer."""
    model = network()
    kind, own = OPTIMIZERS[optimizer]
    with device.waiting():
        model.to(CUDA, dtype)
        return model, kind(param_groups(model, penalty=penalty), lr=0.01, **own, **settings)


def backward(model):
    """Gradients of a batch."""
    x = torch.randn(16, 4, 8, device=CUDA, dtype=next(model.parameters()).dtype)
    y = torch.randint(5, (16,), device=CUDA)
    model.zero_grad()
    nn.functional.cross_entropy(model(x).float(), y).backward()


def update(model, bregman, control):
    """One update of a training loop."""
    backward(model)
    bregman.step()
    control.step()


def finalize(device, control):
    """End a run; what is counted on a fake device is no count, which finalize() warns of."""
    with device.waiting(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "finaliz")
        control.finalize()


@pytest.mark.parametrize(("optimizer", "penalty", "controller"), ON_DUALS)
@on_fake_cuda
def test_steps_do_not_wait_and_a_run_ends(optimizer, penalty, controller):
    kind, settings = CONTROLLERS[controller]
    with Device() as device:
        model, bregman = network_and_optimizer(device, optimizer, penalty)
        with device.waiting():
            control = kind(bregman, 0.5, STEPS + 2, **settings)
        diagnostics = SupportDiagnostics(control)
        with device.not_waiting():
            for _ in range(STEPS):
                backward(model)
                clip_grad_norm_(model.parameters(), 1.0, sparse_params=control.params)
                diagnostics.snapshot()
                bregman.step()
                control.step()
                diagnostics.compute()
            diagnostics.dual_histogram()
            control.reset_gain()
            control.sparsity()
        with device.waiting():
            control.start_from_current_sparsity()
            state = bregman.state_dict(), control.state_dict(), diagnostics.state_dict()
            bregman.load_state_dict(state[0])
            control.load_state_dict(state[1])
            diagnostics.load_state_dict(state[2])
            update(model, bregman, control)  # the first after loading may compare the weights with the duals
        with device.not_waiting():
            update(model, bregman, control)
        finalize(device, control)
        for param in model.parameters():
            for name, value in bregman.state[param].items():
                assert value.device == CUDA, name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@on_fake_cuda
def test_weights_in_16_bits_and_a_rate_on_the_device_do_not_wait(optimizer):
    with Device() as device:
        model, bregman = network_and_optimizer(device, optimizer, dtype=torch.bfloat16)
        for group in bregman.param_groups:
            group["lr"] = torch.full((), 0.01, device=CUDA)
        with device.not_waiting():
            for _ in range(2):
                backward(model)
                bregman.step()


@pytest.mark.parametrize("scope", ["support", "all"])
@on_fake_cuda
def test_clipping_does_not_wait(scope):
    with Device() as device:
        model, _ = network_and_optimizer(device, "LinBreg")
        with device.not_waiting():
            backward(model)
            assert clip_grad_norm_(model.parameters(), 1.0, scope=scope).device == CUDA


@pytest.mark.parametrize("optimizer", ["AdaBreg", "LinBreg, momentum"])
@on_fake_cuda
def test_an_average_of_duals_does_not_wait(optimizer):
    with Device() as device:
        model, bregman = network_and_optimizer(device, optimizer)
        average = DualAverage()
        with device.not_waiting():
            for _ in range(2):
                backward(model)
                bregman.step()
                average.add(bregman)
            average.copy_to(bregman)


@on_fake_cuda
def test_counting_zeros_does_not_wait():
    with Device() as device:
        model, _ = network_and_optimizer(device, "LinBreg")
        params = list(model.parameters())
        with device.not_waiting():
            assert count_zeros(params).device == sparsity(params).device == CUDA


@on_fake_cuda
def test_a_number_set_as_lambda_from_outside_does_not_wait():
    with Device() as device:
        model, bregman = network_and_optimizer(device, "AdaBreg")
        with device.not_waiting():
            bregman.param_groups[0]["lambda_"] = 0.2
            backward(model)
            bregman.step()


@pytest.mark.parametrize("controller", sorted(set(CONTROLLERS) - MASKED))
@on_fake_cuda
def test_a_network_that_moves_after_its_optimizer_was_made_takes_lambda_and_the_controller_along(controller):
    kind, settings = CONTROLLERS[controller]
    with Device() as device:
        model = network()
        bregman = AdaBreg(param_groups(model), backend="foreach")
        control = kind(bregman, 0.5, STEPS, **settings)
        with device.waiting():
            model.to(CUDA)
            update(model, bregman, control)
        with device.not_waiting():
            update(model, bregman, control)
        finalize(device, control)
