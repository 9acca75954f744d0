"""A network of anybody's becomes a program, or the operation that cannot is named with its place."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.export.operations import lower
from sv_sparse.runtime.engine.bindings import ACTIONS, OPERATIONS
from sv_sparse.runtime.engine.executor import SparseEngine, uniform_plan
from sv_sparse.runtime.engine.numpy_engine import NumpyEngine
from sv_sparse.runtime.engine.plan import USE_DENSE
from sv_sparse.runtime.engine.program import NoProgramError


class Lambda(nn.Module):
    """A function of the filterbank [1, 80, T] and a bank of layers."""

    def __init__(self, function, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.layers)


def conv(*arguments, **settings):
    return nn.Conv1d(80, 12, *arguments, **settings)


def pooled(x: Tensor) -> Tensor:
    return x.flatten(1, -2).mean(-1)


def image(x: Tensor) -> Tensor:
    return x.unsqueeze(1)


# Functions of the filterbank and the layers, which end in an embedding.
FRAMES = {
    "no padding": (lambda x, layers: pooled(layers.a(x)), {"a": conv(5)}),
    "padding that makes frames": (lambda x, layers: pooled(layers.a(x)), {"a": conv(3, padding=4)}),
    "dilated": (lambda x, layers: pooled(layers.a(x)), {"a": conv(3, dilation=7, padding=7)}),
    "even kernel, stride 3": (lambda x, layers: pooled(layers.a(x)), {"a": conv(4, stride=3, padding=1)}),
    "stride larger than the kernel": (lambda x, layers: pooled(layers.a(x)), {"a": conv(1, stride=5)}),
    "groups": (lambda x, layers: pooled(layers.a(x)), {"a": conv(3, groups=4, bias=False)}),
    "strided groups": (lambda x, layers: pooled(layers.a(x)), {"a": conv(3, groups=2, stride=2)}),
    "depthwise": (lambda x, layers: pooled(layers.a(x)), {"a": nn.Conv1d(80, 160, 5, groups=80)}),
    "mirror image": (lambda x, layers: pooled(layers.a(x)), {"a": conv(5, padding=2, padding_mode="reflect")}),
    "last value": (lambda x, layers: pooled(layers.a(x)), {"a": conv(5, padding=2, padding_mode="replicate")}),
    "padding apart": (lambda x, layers: pooled(layers.a(F.pad(x, (3, 0)))), {"a": conv(4)}),
    "mirror image and zeros": (
        lambda x, layers: pooled(layers.a(x) + layers.b(x)),
        {"a": conv(3, padding=1), "b": conv(3, padding=1, padding_mode="reflect")},
    ),
    "zeros behind a mirror image": (
        lambda x, layers: pooled(layers.b(x) + layers.a(x)),
        {"a": conv(3, padding=1), "b": conv(3, padding=1, padding_mode="reflect")},
    ),
    "two strides": (
        lambda x, layers: pooled(layers.b(layers.a(x))),
        {"a": conv(3, stride=2), "b": nn.Conv1d(12, 5, 3, stride=2)},
    ),
    "linear over frames": (lambda x, layers: layers.a(x.transpose(1, 2)).mean(1), {"a": nn.Linear(80, 7)}),
    "slices of frames": (lambda x, layers: pooled(layers.a(x)[:, :, :-7]), {"a": conv(3)}),
    "channels turned": (
        lambda x, layers: pooled(layers.a(x).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)),
        {"a": conv(3)},
    ),
    "chunks, not in their order": (
        lambda x, layers: pooled(torch.cat(layers.a(x).chunk(3, 1)[::-1], 1)),
        {"a": conv(3)},
    ),
    "the same twice": (lambda x, layers: pooled(torch.cat([layers.a(x)] * 2, 1)), {"a": conv(3)}),
    "a vector beside frames": (
        lambda x, layers: pooled(layers.a(torch.cat([x, x.mean(2, keepdim=True).expand_as(x)], 1))),
        {"a": nn.Conv1d(160, 9, 3)},
    ),
    "norm before convolution": (
        lambda x, layers: pooled(layers.b(F.relu(layers.a(x)))),
        {"a": nn.BatchNorm1d(80), "b": conv(3, padding=1)},
    ),
    "norm over both": (lambda x, layers: pooled(layers.b(layers.a(x))), {"a": conv(3), "b": nn.BatchNorm1d(12)}),
    "in place": (lambda x, layers: pooled(F.relu(layers.a(x), inplace=True).mul_(2).add_(1)), {"a": conv(3)}),
    "channels in other groups": (
        lambda x, layers: pooled(
            layers.a(x).unflatten(1, (3, 4)).flatten(1, 2).unflatten(1, (6, 2)).transpose(1, 2).flatten(1, 2)
        ),
        {"a": conv(3)},
    ),
    "zeros behind the last frame": (lambda x, layers: pooled(layers.a(F.pad(x, (0, 10)))), {"a": conv(3)}),
    "zeros behind, stride": (lambda x, layers: pooled(layers.a(F.pad(x, (1, 5)))), {"a": conv(2, stride=2)}),
    "rows behind an image": (
        lambda x, layers: pooled(layers.a(F.pad(image(x), (0, 1, 0, 3)))),
        {"a": nn.Conv2d(1, 4, 3, stride=(2, 1))},
    ),
    "two ways to a quarter": (
        lambda x, layers: (
            layers.b(layers.a(x)).mean(2) + layers.c(x).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2).mean(2)
        ),
        {"a": conv(2, stride=2), "b": nn.Conv1d(12, 12, 2, stride=2), "c": conv(5, stride=4)},
    ),
    "logarithm of the input": (lambda x, layers: layers.a(torch.log(x.abs() + 1e-3)).mean(2), {"a": conv(1)}),
    "the input's mean removed": (
        lambda x, layers: pooled(layers.a((x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True))),
        {"a": conv(3)},
    ),
    "constants of constants": (
        lambda x, layers: pooled(
            torch.addcmul(layers.a(x), layers.b.running_var[:, None], layers.b.running_mean[:, None])
        ),
        {"a": conv(3), "b": nn.BatchNorm1d(12)},
    ),
    "segments": (lambda x, layers: pooled(F.avg_pool1d(layers.a(x), 7, ceil_mode=True)), {"a": conv(3)}),
    "whole segments": (lambda x, layers: pooled(F.avg_pool1d(layers.a(x), 7)), {"a": conv(3)}),
    "the input alone": (lambda x, layers: x.mean(2), {}),
    "image": (
        lambda x, layers: pooled(layers.b(F.relu(layers.a(image(x))))),
        {"a": nn.Conv2d(1, 4, 3, padding=1), "b": nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 0))},
    ),
    "image, stride in time": (
        lambda x, layers: pooled(layers.a(image(x))),
        {"a": nn.Conv2d(1, 4, (5, 3), stride=(1, 2), padding=(2, 1))},
    ),
    "image without padding": (lambda x, layers: pooled(layers.a(image(x))), {"a": nn.Conv2d(1, 4, 5, stride=3)}),
    "image to frames": (
        lambda x, layers: pooled(layers.b(layers.a(image(x)).flatten(1, 2))),
        {"a": nn.Conv2d(1, 3, 3, stride=(8, 1), padding=1), "b": nn.Conv1d(30, 6, 3)},
    ),
    "frames to image": (
        lambda x, layers: pooled(layers.b(layers.a(x).unflatten(1, (3, 4)))),
        {"a": conv(3), "b": nn.Conv2d(3, 5, 3, padding=1)},
    ),
    "parts of an image": (
        lambda x, layers: pooled(torch.cat(layers.a(image(x)).chunk(2, 1)[::-1], 1)),
        {"a": nn.Conv2d(1, 4, 3)},
    ),
    "gains of an image": (
        lambda x, layers: pooled(torch.sigmoid((y := layers.a(image(x))).mean((2, 3), keepdim=True)) * y),
        {"a": nn.Conv2d(1, 4, 3)},
    ),
    "deviation of an image": (lambda x, layers: layers.a(image(x)).std(3).flatten(1), {"a": nn.Conv2d(1, 4, 3)}),
}


def elementwise(function):
    return lambda x, layers: torch.cat([pooled(function(layers.a(x), layers.b(x), x)), x.mean(2)], 1)


ELEMENTWISE = {
    "sum": lambda a, b, x: a + b,
    "difference": lambda a, b, x: a - b,
    "difference to the one before": lambda a, b, x: b - a,
    "quotient": lambda a, b, x: a / (1 + b * b),
    "quotient by the one before": lambda a, b, x: b / (2 + a.sigmoid()),
    "from a number": lambda a, b, x: 2 - a,
    "one over": lambda a, b, x: 1 / (2 + a.sigmoid()),
    "alpha": lambda a, b, x: torch.add(a, b, alpha=0.3),
    "less the mean": lambda a, b, x: (a - a.mean(2, keepdim=True)) * b,
    "mean less it": lambda a, b, x: a.mean(2, keepdim=True) - b,
    "mean over it": lambda a, b, x: a.mean(2, keepdim=True) / (2 + b.sigmoid()),
    "over its deviation": lambda a, b, x: a / a.std(2, keepdim=True),
    "times frames": lambda a, b, x: a.sum(2, keepdim=True) / a.shape[2] + b * (1 / (b.shape[2] - 1)) + 1 / a.shape[2],
    "largest": lambda a, b, x: a - a.amax(2, keepdim=True),
    "softmax": lambda a, b, x: F.softmax(a, 2) * b,
    "scores of all channels": lambda a, b, x: F.softmax(a[:, :1], 2) * b,
    "constants": lambda a, b, x: a * torch.arange(12.0).view(1, 12, 1) - torch.ones(12, 1),
    "roots": lambda a, b, x: (a.square() + 1).sqrt() + (b**2 + 1) ** 0.5 + (a * a + 1).rsqrt(),
    "exp and log": lambda a, b, x: torch.log(1 + torch.exp(a)),
    "clamped": lambda a, b, x: a.clamp(-0.1, 0.2) + b.clamp(min=0.05) + F.relu6(10 * a) + F.hardtanh(b),
    "swish": lambda a, b, x: F.silu(a) + F.hardswish(b) + F.hardsigmoid(a) + F.leaky_relu(b, 0.2),
    "tanh": lambda a, b, x: -torch.tanh(a) * torch.sigmoid(b),
    "read again": lambda a, b, x: F.relu(a) + a.tanh() * a,
}


def trained(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with norms that have seen data."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def check(network: nn.Module, tiles=(USE_DENSE, 2, 8)) -> None:
    network = trained(network)
    program = lower(network, 80)
    engines = [NumpyEngine(program), *(SparseEngine(program, plan=uniform_plan(program, tile)) for tile in tiles)]
    for frames in {program.min_frames, 50, 51, 64, 130, 220}:
        x = torch.randn(2, 80, frames)
        with torch.no_grad():
            expected = network(x).numpy()
        for engine in engines:
            np.testing.assert_allclose(engine(x.numpy()), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", FRAMES)
def test_layers_and_shapes_are_those_of_torch(name):
    function, layers = FRAMES[name]
    torch.manual_seed(0)
    check(Lambda(function, **layers))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_operations_are_those_of_torch(name):
    torch.manual_seed(0)
    check(Lambda(elementwise(ELEMENTWISE[name]), a=conv(3, padding=1), b=conv(3, padding=1)), (8,))


class Attributes(nn.Module):
    """Tensors that are no buffers, tied weights, and what evaluation leaves out."""

    def __init__(self):
        super().__init__()
        self.scale = torch.rand(80, 1)
        self.first = nn.Conv1d(80, 80, 1)
        self.second = nn.Conv1d(80, 80, 1)
        self.second.weight = self.first.weight
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.second(torch.relu(self.first(x * self.scale)))).mean(2)


def test_a_network_may_hold_tensors_and_weights_in_any_way():
    check(Attributes(), (8,))


def attention(x, layers):
    frames = layers.a(x)
    scores = layers.b(torch.tanh(frames))
    weights = F.softmax(scores, 2)
    mean = (frames * weights).sum(2)
    deviation = ((frames - mean.unsqueeze(2)).pow(2) * weights).sum(2).clamp(min=1e-6).sqrt()
    second_moment = (weights * frames**2).sum(2) - mean**2
    return torch.cat([mean, deviation, second_moment, frames.mean(2), frames.var(2), frames.var(2, correction=0)], 1)


def test_attentive_statistics_are_steps_of_their_own():
    network = Lambda(attention, a=conv(3), b=nn.Conv1d(12, 12, 1))
    check(network)
    steps = [step.op for step in lower(network, 80).steps]
    # One for mean and deviation, one for the mean of squares.
    assert steps.count("attend") == 2


def test_what_follows_a_convolution_is_done_in_its_registers():
    layers = {"a": conv(3, padding=1), "b": nn.BatchNorm1d(12), "c": nn.Conv1d(12, 12, 1)}
    network = Lambda(lambda x, layers: (layers.b(F.relu(layers.a(x))) + layers.c(layers.a(x))).mean(2), **layers).eval()
    steps = [step.op for step in lower(network, 80).steps]
    assert "elementwise" not in steps
    assert steps.count("convolve") == 3


def test_a_norm_behind_a_convolution_costs_nothing():
    network = Lambda(lambda x, layers: layers.b(layers.a(x)).mean(2), a=conv(3), b=nn.BatchNorm1d(12)).eval()
    (step,) = (step for step in lower(network, 80).steps if step.op == "convolve")
    assert [code for code, _ in step.actions] == ["add_constant", "store_plane"]


def by_length(x, layers):
    for _ in range(x.shape[2] // 100):
        x = torch.tanh(x)
    return x.mean(2)


UNKNOWN = {
    "gelu: the sparse kernels have no such operation": lambda x, layers: F.gelu(x).mean(2),
    "only frames, or frames and rows together, can be reduced": lambda x, layers: (x - x.mean(1, keepdim=True)).mean(2),
    "only products with a constant on the right are known": lambda x, layers: (x @ x.transpose(1, 2)).mean(2),
    "its operations depend on the length of the utterance": by_length,
    "a tensor there depends on the length": lambda x, layers: (x * torch.arange(x.shape[2])).mean(2),
    "a network must map a filterbank": lambda x, layers: x,
    "the output of the network still has frames": lambda x, layers: x[:, 0],
    "cannot be listed": lambda x, layers: x.mean(2) * x.sum().item(),
    "only squares and square roots": lambda x, layers: (x**3).mean(2),
    "too large for the sparse kernels": lambda x, layers: layers.a(x).mean(2),
    "a convolution with a stride can be continued by zeros only": lambda x, layers: F.conv1d(
        F.pad(x, (2, 2), mode="reflect"), torch.ones(80, 1, 5, device=x.device), stride=2, groups=80
    ).mean(2),
    "images can be continued by zeros only": lambda x, layers: F.conv2d(
        F.pad(image(x), (2, 2, 0, 0), mode="replicate"), torch.ones(3, 1, 1, 5, device=x.device)
    ).mean((2, 3)),
    "an axis has a fixed number of frames": lambda x, layers: x[:, :, :100].mean(2),
    "only a convolution can read frames that are continued": lambda x, layers: (
        F.pad(x, (3, 3), mode="replicate").transpose(1, 2).mean(1)
    ),
    "only float32 is known": lambda x, layers: (x.int() * 2.0).mean(2),
    "what is combined has different axes": lambda x, layers: (
        F.conv2d(image(x), torch.ones(80, 1, 1, 1, device=x.device)) * x.mean(2).view(1, 1, 80, 1)
    ).mean((2, 3)),
    "make that a buffer": lambda x, layers: (x * torch.tensor([0.5])).mean(2),
    "does not depend on the utterance": lambda x, layers: torch.ones(1, 4, device=x.device),
    "it cannot be run on shapes alone": lambda x, layers: torch.from_numpy(x.numpy()).mean(2),
    "frames and channels, or the rows of an image, would be mixed": lambda x, layers: (
        F.conv2d(image(x), torch.ones(3, 1, 1, 1, device=x.device)).unflatten(2, (8, 10)).mean((3, 4)).flatten(1)
    ),
    "only channels can be put side by side": lambda x, layers: (
        torch.cat([x.view(1, 4, 20, -1), x.view(1, 4, 20, -1)], 1).mean(3).flatten(1)
    ),
}


@pytest.mark.parametrize("problem", UNKNOWN)
def test_what_cannot_be_lowered_is_named(problem):
    layers = {"a": nn.Conv1d(80, 4, 300, padding=150) if "too large" in problem else nn.Conv1d(80, 36, 1)}
    with pytest.raises(NoProgramError, match=problem):
        lower(Lambda(UNKNOWN[problem], **layers), 80)


def test_the_place_is_that_in_the_code_of_the_network():
    line = UNKNOWN["only squares and square roots"].__code__.co_firstlineno
    with pytest.raises(NoProgramError, match=rf"test_lowering\.py, line {line}: pow\.Tensor_Scalar: "):
        lower(Lambda(UNKNOWN["only squares and square roots"]), 80)


def test_every_operation_and_action_of_the_kernels_is_used_here():
    steps = []
    for function, layers in FRAMES.values():
        steps += lower(trained(Lambda(function, **layers)), 80).steps
    for function in (*map(elementwise, ELEMENTWISE.values()), attention):
        layers = {"a": conv(3, padding=1), "b": nn.Conv1d(12, 12, 1) if function is attention else conv(3, padding=1)}
        steps += lower(Lambda(function, **layers), 80).steps
    assert {step.op for step in steps} == set(OPERATIONS)
    actions = {code for step in steps for code, _ in step.actions}
    assert actions == set(ACTIONS)
