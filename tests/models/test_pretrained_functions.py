"""WeSpeaker's networks written out as formulas over their own names: what is converted computes the same."""

import logging

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sv_sparse.data.torchaudio_guard import torchaudio
from sv_sparse.models.features import build_features
from sv_sparse.models.pretrained.convert import convert
from sv_sparse.models.registry import build_model

State = dict[str, Tensor]
BINS, FRAMES = 80, 60


def layer(state: State, name: str, *shape: int, bias: bool = True) -> None:
    """A convolution or linear layer with weights that keep the signal's size."""
    state[f"{name}.weight"] = torch.randn(shape) / (torch.Size(shape).numel() / shape[0]) ** 0.5
    if bias:
        state[f"{name}.bias"] = 0.3 * torch.randn(shape[0])


def norm(state: State, name: str, width: int) -> None:
    """A batch norm that is not the neutral one."""
    state[f"{name}.weight"], state[f"{name}.bias"] = 0.5 + torch.rand(width), 0.3 * torch.randn(width)
    state[f"{name}.running_mean"], state[f"{name}.running_var"] = 0.3 * torch.randn(width), 0.5 + torch.rand(width)
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def ecapa_state(width: int, aggregated: int, *, context: bool) -> State:
    state: State = {}

    def unit(name: str, rows: int, columns: int, taps: int, batch_norm: str) -> None:
        layer(state, name, rows, columns, taps)
        norm(state, batch_norm, rows)

    unit("layer1.conv", width, BINS, 5, "layer1.bn")
    for block in ("layer2", "layer3", "layer4"):
        inside = f"{block}.se_res2block"
        unit(f"{inside}.0.conv", width, width, 1, f"{inside}.0.bn")
        for chunk in range(7):
            unit(f"{inside}.1.convs.{chunk}", width // 8, width // 8, 3, f"{inside}.1.bns.{chunk}")
        unit(f"{inside}.2.conv", width, width, 1, f"{inside}.2.bn")
        layer(state, f"{inside}.3.linear1", 12, width)
        layer(state, f"{inside}.3.linear2", width, 12)
    layer(state, "conv", aggregated, 3 * width, 1)
    layer(state, "pool.linear1", 10, aggregated * (3 if context else 1), 1)
    layer(state, "pool.linear2", aggregated, 10, 1)
    norm(state, "bn", 2 * aggregated)
    layer(state, "linear", 16, 2 * aggregated)
    return state


class Formulas:
    """Layers by their name in a state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, gain, offset = (
            self.state[f"{name}.{part}"].view(1, -1, *[1] * (x.ndim - 2))
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + offset

    def conv(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = dilation * (weight.shape[2] - 1) // 2
        return F.conv1d(x, weight, self.state[f"{name}.bias"], dilation=dilation, padding=padding)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def unit(self, x: Tensor, conv: str, batch_norm: str, dilation: int = 1) -> Tensor:
        return self.norm(self.conv(x, conv, dilation).relu(), batch_norm)


def ecapa(state: State, x: Tensor) -> Tensor:
    by = Formulas(state)
    x = by.unit(x, "layer1.conv", "layer1.bn")
    outputs = []
    for dilation in (2, 3, 4):
        inside = f"layer{dilation}.se_res2block"
        chunks = by.unit(x, f"{inside}.0.conv", f"{inside}.0.bn").split(x.shape[1] // 8, dim=1)
        found: list[Tensor] = []
        for i in range(7):
            entering = chunks[i] + found[-1] if found else chunks[i]
            found.append(by.unit(entering, f"{inside}.1.convs.{i}", f"{inside}.1.bns.{i}", dilation))
        y = by.unit(torch.cat([*found, chunks[7]], dim=1), f"{inside}.2.conv", f"{inside}.2.bn")
        squeezed = by.linear(y.mean(dim=2), f"{inside}.3.linear1").relu()
        x = x + y * by.linear(squeezed, f"{inside}.3.linear2").sigmoid().unsqueeze(2)
        outputs.append(x)
    x = by.conv(torch.cat(outputs, dim=1), "conv").relu()
    seen = x
    if state["pool.linear1.weight"].shape[1] == 3 * x.shape[1]:
        mean, deviation = x.mean(dim=2, keepdim=True), (x.var(dim=2, keepdim=True) + 1e-10).sqrt()
        seen = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], dim=1)
    weight = by.conv(by.conv(seen, "pool.linear1").tanh(), "pool.linear2").softmax(dim=2)
    mean = (weight * x).sum(dim=2)
    deviation = ((weight * x.square()).sum(dim=2) - mean.square()).clamp(min=1e-10).sqrt()
    return by.linear(by.norm(torch.cat([mean, deviation], dim=1), "bn"), "linear")


def resnet_state(width: int) -> State:
    state: State = {}
    layer(state, "conv1", width, 1, 3, 3, bias=False)
    norm(state, "bn1", width)
    before = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        now = width * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            layer(state, f"{name}.conv1", now, before, 3, 3, bias=False)
            norm(state, f"{name}.bn1", now)
            layer(state, f"{name}.conv2", now, now, 3, 3, bias=False)
            norm(state, f"{name}.bn2", now)
            if before != now:
                layer(state, f"{name}.shortcut.0", now, before, 1, 1, bias=False)
                norm(state, f"{name}.shortcut.1", now)
            before = now
    layer(state, "seg_1", 16, 2 * before * BINS // 8)
    return state


def resnet(state: State, x: Tensor) -> Tensor:
    by = Formulas(state)
    x = by.norm(F.conv2d(x.unsqueeze(1), state["conv1.weight"], padding=1), "bn1").relu()
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(by.norm(y, f"{name}.bn1").relu(), state[f"{name}.conv2.weight"], padding=1)
            if stride == 2:
                x = by.norm(F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=2), f"{name}.shortcut.1")
            x = (by.norm(y, f"{name}.bn2") + x).relu()
    moments = x.mean(dim=3).flatten(1), (x.var(dim=3) + 1e-7).sqrt().flatten(1)
    return by.linear(torch.cat(moments, dim=1), "seg_1")


def noise() -> Tensor:
    """Three utterances of a loud, a soft and a very soft noise, [3, S]."""
    return torch.tensor([[0.3], [0.01], [0.0002]]) * torch.randn(3, 160 * (FRAMES - 1) + 400)


def kaldi(waveforms: Tensor) -> Tensor:
    """WeSpeaker's features of 16-bit sample values, mean-normalized, [B, F, T]."""
    settings = {"num_mel_bins": BINS, "window_type": "hamming", "dither": 0.0}
    rows = [torchaudio.compliance.kaldi.fbank(row.unsqueeze(0) * 32768, **settings).T for row in waveforms]
    filterbanks = torch.stack(rows)
    return filterbanks - filterbanks.mean(dim=2, keepdim=True)


def converted(state: State, waveforms: Tensor) -> Tensor:
    _, settings, weights = convert(state)
    network = build_model(settings, BINS)
    network.load_state_dict(weights)
    with torch.no_grad():
        return network.eval()(build_features(network.features)(waveforms))


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("aggregated", [24, 48])  # three times the width in older versions
def test_wespeakers_ecapa_computes_what_its_formulas_say(context: bool, aggregated: int) -> None:
    torch.manual_seed(0)
    state, waveforms = ecapa_state(16, aggregated, context=context), noise()
    expected = ecapa(state, kaldi(waveforms))
    torch.testing.assert_close(converted(state, waveforms), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_wespeakers_resnet34_computes_what_its_formulas_say() -> None:
    torch.manual_seed(0)
    state, waveforms = resnet_state(4), noise()
    expected = resnet(state, kaldi(waveforms))
    torch.testing.assert_close(converted(state, waveforms), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("make", [lambda: ecapa_state(16, 24, context=True), lambda: resnet_state(4)])
def test_the_head_is_left_out_and_that_is_said(make, caplog) -> None:
    state = make()
    _, without, weights = convert(state)
    with caplog.at_level(logging.INFO, logger="sv_sparse.models.pretrained.convert"):
        _, settings, same = convert(state | {"projection.weight": torch.randn(5, 16)})
    assert "left out the head" in caplog.text
    assert settings == without
    assert same.keys() == weights.keys()
    assert all(torch.equal(same[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ecapa_state(16, 24, context=True), "layer3.se_res2block.1.convs.6.weight"),
        (lambda: resnet_state(4), "layer3.5.conv2.weight"),
    ],
)
def test_a_missing_a_foreign_and_a_misshapen_tensor_are_named(make, name) -> None:
    state = make()
    for wrong, named in (
        ({key: value for key, value in state.items() if key != name}, name),
        (state | {"extra.weight": torch.zeros(2)}, "extra.weight"),
        (state | {name: torch.zeros(1, 2, 3, 3)[: state[name].ndim]}, name),
    ):
        with pytest.raises(ValueError, match=named):
            convert(wrong)


@pytest.mark.parametrize("depth", [5, 7])
def test_a_resnet_of_another_depth_is_refused(depth: int) -> None:
    state = resnet_state(4)
    kept = {name: value for name, value in state.items() if not name.startswith("layer3.5.")}
    longer = {name.replace("layer3.5.", "layer3.6."): value for name, value in state.items() if "layer3.5." in name}
    with pytest.raises(ValueError, match=r"layer3\."):
        convert(kept if depth == 5 else state | longer)
