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

    def plain_norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        axes = (1, -1, *[1] * (x.ndim - 2))
        return (x - mean.view(axes)) / (variance.view(axes) + 1e-5).sqrt()

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


def noise(frames: int = FRAMES) -> Tensor:
    """Three utterances of a loud, a soft and a very soft noise, [3, S]."""
    return torch.tensor([[0.3], [0.01], [0.0002]]) * torch.randn(3, 160 * (frames - 1) + 400)


def kaldi(waveforms: Tensor, window: str = "hamming", scale: int = 32768) -> Tensor:
    """WeSpeaker's features of 16-bit sample values, mean-normalized, [B, F, T]; or others of Kaldi's."""
    settings = {"num_mel_bins": BINS, "window_type": window, "dither": 0.0}
    rows = [torchaudio.compliance.kaldi.fbank(row.unsqueeze(0) * scale, **settings).T for row in waveforms]
    filterbanks = torch.stack(rows)
    return filterbanks - filterbanks.mean(dim=2, keepdim=True)


def bottleneck_state(width: int) -> State:
    """ResNet50, of which only the names and the order of the blocks are written out."""
    state: State = {}
    layer(state, "conv1", width, 1, 3, 3, bias=False)
    norm(state, "bn1", width)
    before = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        now = width * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            for number, shape in ((1, (now, before, 1, 1)), (2, (now, now, 3, 3)), (3, (4 * now, now, 1, 1))):
                layer(state, f"{name}.conv{number}", *shape, bias=False)
                norm(state, f"{name}.bn{number}", shape[0])
            if not block:
                layer(state, f"{name}.shortcut.0", 4 * now, before, 1, 1, bias=False)
                norm(state, f"{name}.shortcut.1", 4 * now)
            before = 4 * now
    layer(state, "seg_1", 16, 2 * before * BINS // 8)
    return state


def bottleneck(state: State, x: Tensor) -> Tensor:
    by = Formulas(state)
    x = by.norm(F.conv2d(x.unsqueeze(1), state["conv1.weight"], padding=1), "bn1").relu()
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = by.norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            y = F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1)
            y = F.conv2d(by.norm(y, f"{name}.bn2").relu(), state[f"{name}.conv3.weight"])
            if not block:
                x = by.norm(F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=stride), f"{name}.shortcut.1")
            x = (by.norm(y, f"{name}.bn3") + x).relu()
    moments = x.mean(dim=3).flatten(1), (x.var(dim=3) + 1e-7).sqrt().flatten(1)
    return by.linear(torch.cat(moments, dim=1), "seg_1")


LAYERS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))  # taps and dilations of the x-vector TDNN


def statistics_of(state: State, name: str, width: int) -> None:
    """A batch norm without weights."""
    norm(state, name, width)
    del state[f"{name}.weight"], state[f"{name}.bias"]


def xvector_state(width: int) -> State:
    state: State = {}
    widths = (BINS, width, width, width, width, 2 * width)
    for i, (taps, _) in enumerate(LAYERS):
        layer(state, f"frame_{i + 1}.conv_1d", widths[i + 1], widths[i], taps)
        statistics_of(state, f"frame_{i + 1}.bn", widths[i + 1])
    layer(state, "seg_1", 16, 4 * width)
    statistics_of(state, "seg_bn_1", 16)
    layer(state, "seg_2", 16, 16)
    return state


def xvector(state: State, x: Tensor) -> Tensor:
    by = Formulas(state)
    for i, (_, dilation) in enumerate(LAYERS):
        name = f"frame_{i + 1}.conv_1d"
        x = F.conv1d(x, state[f"{name}.weight"], state[f"{name}.bias"], dilation=dilation).relu()
        x = by.plain_norm(x, f"frame_{i + 1}.bn")
    moments = x.mean(dim=2), (x.var(dim=2) + 1e-7).sqrt()
    hidden = by.linear(torch.cat(moments, dim=1), "seg_1").relu()
    return by.linear(by.plain_norm(hidden, "seg_bn_1"), "seg_2")


BLOCKS = ((3, 1), (2, 2), (4, 2))  # layers and dilations of CAM++'s dense blocks, fewer than the published ones


def campplus_state(front: int, width: int, growth: int, inner: int) -> State:
    state: State = {}
    layer(state, "head.conv1", front, 1, 3, 3, bias=False)
    norm(state, "head.bn1", front)
    for name in ("head.layer1.0", "head.layer1.1", "head.layer2.0", "head.layer2.1"):
        for number in (1, 2):
            layer(state, f"{name}.conv{number}", front, front, 3, 3, bias=False)
            norm(state, f"{name}.bn{number}", front)
        if name.endswith("0"):
            layer(state, f"{name}.shortcut.0", front, front, 1, 1, bias=False)
            norm(state, f"{name}.shortcut.1", front)
    layer(state, "head.conv2", front, front, 3, 3, bias=False)
    norm(state, "head.bn2", front)
    layer(state, "xvector.tdnn.linear", width, front * BINS // 8, 5, bias=False)
    norm(state, "xvector.tdnn.nonlinear.batchnorm", width)
    for i, (layers, _) in enumerate(BLOCKS, start=1):
        for j in range(1, layers + 1):
            name = f"xvector.block{i}.tdnnd{j}"
            norm(state, f"{name}.nonlinear1.batchnorm", width)
            layer(state, f"{name}.linear1", inner, width, 1, bias=False)
            norm(state, f"{name}.nonlinear2.batchnorm", inner)
            layer(state, f"{name}.cam_layer.linear_local", growth, inner, 3, bias=False)
            layer(state, f"{name}.cam_layer.linear1", inner // 2, inner, 1)
            layer(state, f"{name}.cam_layer.linear2", growth, inner // 2, 1)
            width += growth
        norm(state, f"xvector.transit{i}.nonlinear.batchnorm", width)
        layer(state, f"xvector.transit{i}.linear", width // 2, width, 1, bias=False)
        width //= 2
    norm(state, "xvector.out_nonlinear.batchnorm", width)
    layer(state, "xvector.dense.linear", 16, 2 * width, 1, bias=False)
    statistics_of(state, "xvector.dense.nonlinear.batchnorm", 16)
    return state


def campplus(state: State, x: Tensor) -> Tensor:
    by = Formulas(state)
    x = by.norm(F.conv2d(x.unsqueeze(1), state["head.conv1.weight"], padding=1), "head.bn1").relu()
    for name in ("head.layer1.0", "head.layer1.1", "head.layer2.0", "head.layer2.1"):
        stride = (2, 1) if name.endswith("0") else (1, 1)
        y = by.norm(F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1").relu()
        y = by.norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if name.endswith("0"):
            x = by.norm(F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=stride), f"{name}.shortcut.1")
        x = (x + y).relu()
    x = by.norm(F.conv2d(x, state["head.conv2.weight"], stride=(2, 1), padding=1), "head.bn2").relu().flatten(1, 2)
    x = F.conv1d(x, state["xvector.tdnn.linear.weight"], stride=2, padding=2)
    x = by.norm(x, "xvector.tdnn.nonlinear.batchnorm").relu()
    for i, (layers, dilation) in enumerate(BLOCKS, start=1):
        for j in range(1, layers + 1):
            name = f"xvector.block{i}.tdnnd{j}"
            y = F.conv1d(by.norm(x, f"{name}.nonlinear1.batchnorm").relu(), state[f"{name}.linear1.weight"])
            y = by.norm(y, f"{name}.nonlinear2.batchnorm").relu()
            local = F.conv1d(y, state[f"{name}.cam_layer.linear_local.weight"], padding=dilation, dilation=dilation)
            means = [part.mean(dim=2, keepdim=True).expand_as(part) for part in y.split(100, dim=2)]
            context = y.mean(dim=2, keepdim=True) + torch.cat(means, dim=2)
            hidden = by.conv(context, f"{name}.cam_layer.linear1").relu()
            x = torch.cat([x, local * by.conv(hidden, f"{name}.cam_layer.linear2").sigmoid()], dim=1)
        x = by.norm(x, f"xvector.transit{i}.nonlinear.batchnorm").relu()
        x = F.conv1d(x, state[f"xvector.transit{i}.linear.weight"])
    x = by.norm(x, "xvector.out_nonlinear.batchnorm").relu()
    moments = torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1)
    return by.plain_norm(
        moments @ state["xvector.dense.linear.weight"].squeeze(2).T, "xvector.dense.nonlinear.batchnorm"
    )


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


@pytest.mark.parametrize("frames", [60, 231, 402])
def test_3d_speakers_campplus_computes_what_its_formulas_say(frames: int) -> None:
    torch.manual_seed(0)
    state, waveforms = campplus_state(4, 12, 6, 8), noise(frames)
    expected = campplus(state, kaldi(waveforms, "povey", 1))
    torch.testing.assert_close(converted(state, waveforms), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_wespeakers_xvector_computes_what_its_formulas_say() -> None:
    torch.manual_seed(0)
    state, waveforms = xvector_state(8), noise()
    expected = xvector(state, kaldi(waveforms))
    torch.testing.assert_close(converted(state, waveforms), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_wespeakers_resnet50_computes_what_its_formulas_say() -> None:
    torch.manual_seed(0)
    state, waveforms = bottleneck_state(4), noise()
    expected = bottleneck(state, kaldi(waveforms))
    torch.testing.assert_close(converted(state, waveforms), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_wespeakers_campplus_has_a_head_and_other_features() -> None:
    state = campplus_state(4, 12, 6, 8)
    kind, settings, _ = convert(state)
    assert (kind, settings["features"], settings["block_layers"]) == ("3D-Speaker's CAM++", "3dspeaker", [3, 2, 4])
    kind, settings, _ = convert(state | {"projection.weight": torch.zeros(5, 16)})
    assert (kind, settings["features"]) == ("WeSpeaker's CAM++", "wespeaker")


MAKERS = {
    "ecapa": lambda: ecapa_state(16, 24, context=True),
    "resnet34": lambda: resnet_state(4),
    "resnet50": lambda: bottleneck_state(4),
    "xvector": lambda: xvector_state(8),
    "campplus": lambda: campplus_state(4, 12, 6, 8),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_names_alone_say_which_network_it_is(name: str) -> None:
    _, settings, _ = convert(MAKERS[name]())
    assert settings["name"] == name


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
        (lambda: bottleneck_state(4), "layer3.5.conv3.weight"),
        (lambda: xvector_state(8), "frame_4.conv_1d.weight"),
        (lambda: campplus_state(4, 12, 6, 8), "xvector.block2.tdnnd1.cam_layer.linear1.weight"),
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
