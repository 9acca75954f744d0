import io
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sv_sparse.config.overrides import parse_command_line
from sv_sparse.data.torchaudio_guard import torchaudio  # noqa: F401  (importing SpeechBrain needs the guard)
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.features import build_features
from sv_sparse.models.pretrained.convert import convert, kinds, pretrained_settings
from sv_sparse.models.registry import build_model
from sv_sparse.models.resnet import ResNet34

# WeSpeaker's names for modules of ours, written out.
WESPEAKER_ECAPA = {
    "layer1.conv": "stem.conv",
    "layer1.bn": "stem.norm",
    "conv": "mfa",
    "pool.linear1": "pooling.linear1",
    "pool.linear2": "pooling.linear2",
    "bn": "norm",
    "linear": "embedding",
}
for number, block in (("2", "0"), ("3", "1"), ("4", "2")):
    WESPEAKER_ECAPA |= {
        f"layer{number}.se_res2block.0.conv": f"blocks.{block}.conv_in.conv",
        f"layer{number}.se_res2block.0.bn": f"blocks.{block}.conv_in.norm",
        f"layer{number}.se_res2block.2.conv": f"blocks.{block}.conv_out.conv",
        f"layer{number}.se_res2block.2.bn": f"blocks.{block}.conv_out.norm",
        f"layer{number}.se_res2block.3.linear1": f"blocks.{block}.se.squeeze",
        f"layer{number}.se_res2block.3.linear2": f"blocks.{block}.se.expand",
    }
    for unit in "0123456":
        WESPEAKER_ECAPA[f"layer{number}.se_res2block.1.convs.{unit}"] = f"blocks.{block}.res2.convs.{unit}.conv"
        WESPEAKER_ECAPA[f"layer{number}.se_res2block.1.bns.{unit}"] = f"blocks.{block}.res2.convs.{unit}.norm"

WESPEAKER_RESNET = {"conv1": "conv", "bn1": "norm", "seg_1": "embedding"}
for number, stage, blocks in (("1", "0", "012"), ("2", "1", "0123"), ("3", "2", "012345"), ("4", "3", "012")):
    for block in blocks:
        for theirs, ours in (("conv1", "conv1"), ("bn1", "norm1"), ("conv2", "conv2"), ("bn2", "norm2")):
            WESPEAKER_RESNET[f"layer{number}.{block}.{theirs}"] = f"stages.{stage}.{block}.{ours}"
    if number != "1":
        for part in "01":
            WESPEAKER_RESNET[f"layer{number}.0.shortcut.{part}"] = f"stages.{stage}.0.shortcut.{part}"


def randomize_norms(model: nn.Module) -> None:
    """Give batch norms gains, offsets and statistics that are not the neutral ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            module.running_mean.normal_(0.3, 0.1)
            module.running_var.uniform_(0.3, 1.5)
            module.num_batches_tracked.fill_(7)


def from_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def build(settings: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    model = build_model(settings, 80)
    model.load_state_dict(weights)
    return model


def voices(num_samples: int) -> Tensor:
    """Three sounds of different loudness with a pause of digital silence, in 16-bit samples, [3, S]."""
    phase = torch.arange(num_samples) * 2 * torch.pi * 150 / 16000
    generator = torch.Generator().manual_seed(0)
    sound = sum(torch.sin(k * phase + k) / k for k in range(1, 50)) * torch.sin(phase / 50)
    sound = sound + 0.02 * torch.randn(3, num_samples, generator=generator)
    sound[:, num_samples // 3 : num_samples // 2] = 0
    loudness = torch.tensor([[0.3], [0.03], [0.001]])
    return (loudness * sound * 32768).round() / 32768


def their_ecapa() -> nn.Module:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN  # noqa: PLC0415

    return ECAPA_TDNN(80, channels=[16] * 4 + [24], attention_channels=8, se_channels=4, lin_neurons=6)


def their_resnet() -> nn.Module:
    from speechbrain.lobes.models.ResNet import ResNet  # noqa: PLC0415

    return ResNet(80, channels=[4, 4, 8, 6], lin_neurons=5)


def wespeaker_ecapa() -> tuple[ECAPA, dict[str, Tensor]]:
    ours = ECAPA(channels=16, mfa_channels=24, attention_channels=8, se_channels=4, embedding_dim=6)
    randomize_norms(ours)
    state = {}
    for theirs, module in WESPEAKER_ECAPA.items():
        for leaf, value in ours.get_submodule(module).state_dict().items():
            one_dimensional = value.squeeze(2) if value.ndim == 4 else value
            state[f"{theirs}.{leaf}"] = (
                one_dimensional.unsqueeze(2) if "pool." in theirs and value.ndim == 2 else one_dimensional
            )
    return ours, state


def wespeaker_resnet() -> tuple[ResNet34, dict[str, Tensor]]:
    ours = ResNet34(base_channels=4, embedding_dim=6, statistics_norm=False)
    randomize_norms(ours)
    modules = ((theirs, ours.get_submodule(module)) for theirs, module in WESPEAKER_RESNET.items())
    return ours, {
        f"{theirs}.{leaf}": value for theirs, module in modules for leaf, value in module.state_dict().items()
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [their_ecapa, their_resnet])
def test_a_network_of_speechbrains_gives_the_same_embeddings_here_from_waveforms(make: Any, training: bool) -> None:
    from speechbrain.lobes.features import Fbank  # noqa: PLC0415
    from speechbrain.processing.features import InputNormalization  # noqa: PLC0415

    torch.manual_seed(0)
    theirs = make()
    randomize_norms(theirs)
    _, settings, weights = convert(from_file(theirs.state_dict()))
    ours = build(settings, weights)
    ours.train(training)
    theirs.train(training)
    waveforms = voices(9000)
    normalize = InputNormalization(norm_type="sentence", std_norm=False)
    with torch.no_grad():
        expected = theirs(normalize(Fbank(n_mels=80)(waveforms), torch.ones(3))).reshape(3, -1)
        embedding = ours(build_features(ours.features)(waveforms))
    # On CPUs torch sums a batch's mean and variance over channels-last images less exactly than over others.
    tolerance = 1e-3 if training else 1e-4
    assert (embedding - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("make", [wespeaker_ecapa, wespeaker_resnet])
def test_weights_of_wespeakers_networks_find_their_places(make: Any) -> None:
    ours, state = make()
    _, settings, weights = convert(from_file(state))
    expected = ours.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    build(settings, weights)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: their_ecapa().state_dict(), ("SpeechBrain's ECAPA-TDNN", "ecapa_speechbrain")),
        (lambda: their_resnet().state_dict(), ("SpeechBrain's ResNet", "se_resnet")),
        (lambda: wespeaker_ecapa()[1], ("WeSpeaker's ECAPA-TDNN", "ecapa")),
        (lambda: wespeaker_resnet()[1], ("WeSpeaker's ResNet34", "resnet34")),
    ],
)
def test_the_settings_have_the_names_of_a_configuration_and_are_read_from_shapes(
    make: Any, expected: tuple[str, str]
) -> None:
    kind, settings, _ = convert(make())
    name, file = expected
    configuration = parse_command_line([]).compose([f"model={file}"]).model
    assert kind == name
    assert settings.keys() == set(configuration)
    assert settings["name"] == configuration["name"]
    assert settings == pretrained_settings(make())
    if "kernel_sizes" in settings:
        fixed = ("kernel_sizes", "dilations", "res2net_scale", "layout")
        assert all(settings[name] == configuration[name] for name in fixed)
        assert [settings[name] for name in ("channels", "mfa_channels", "embedding_dim")] == [16, 24, 6]
        assert [settings[name] for name in ("attention_channels", "se_channels")] == [8, 4]


def test_other_kernel_sizes_and_scales_are_read_too() -> None:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN  # noqa: PLC0415

    theirs = ECAPA_TDNN(80, channels=[16] * 4 + [24], kernel_sizes=[3, 5, 3, 7, 1], res2net_scale=4, lin_neurons=6)
    _, settings, weights = convert(theirs.state_dict())
    assert settings["kernel_sizes"] == [3, 5, 3, 7]
    assert settings["res2net_scale"] == 4
    build(settings, weights)


@pytest.mark.parametrize(
    ("make", "features"),
    [
        (lambda: their_ecapa().state_dict(), "speechbrain"),
        (lambda: their_resnet().state_dict(), "speechbrain"),
        (lambda: wespeaker_ecapa()[1], "wespeaker"),
        (lambda: wespeaker_resnet()[1], "wespeaker"),
    ],
)
def test_a_network_has_the_features_of_its_toolkit(make: Any, features: str) -> None:
    _, settings, weights = convert(make())
    assert build(settings, weights).features == features


def test_an_attention_without_context_becomes_one_that_ignores_it(caplog: pytest.LogCaptureFixture) -> None:
    ours, state = wespeaker_ecapa()
    with torch.no_grad():
        ours.pooling.linear1.weight[:, 24:] = 0
    state["pool.linear1.weight"] = state["pool.linear1.weight"][:, :24]
    with caplog.at_level(logging.INFO):
        _, _, weights = convert(state)
    assert torch.equal(weights["pooling.linear1.weight"], ours.pooling.linear1.weight)
    assert "no global context" in caplog.text


def test_wespeakers_head_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    _, state = wespeaker_resnet()
    with caplog.at_level(logging.INFO):
        _, _, weights = convert(state | {"projection.weight": torch.zeros(3, 6)})
    assert weights.keys() == convert(state)[2].keys()
    assert "left out the head: projection.weight" in caplog.text


def test_averaged_counts_of_batches_become_whole_numbers() -> None:
    _, state = wespeaker_resnet()
    _, _, weights = convert(state | {"bn1.num_batches_tracked": torch.tensor(12.5)})
    assert torch.equal(weights["norm.num_batches_tracked"], torch.tensor(12))


def test_the_weights_are_copies() -> None:
    _, state = wespeaker_resnet()
    _, _, weights = convert(state)
    weights["norm.weight"].zero_()
    assert state["bn1.weight"].any()


@pytest.mark.parametrize("make", [lambda: their_ecapa().state_dict(), lambda: wespeaker_ecapa()[1]])
@pytest.mark.parametrize("axis", ["weight", "bias"])
def test_each_missing_tensor_is_named(make: Any, axis: str) -> None:
    state = dict(make())
    for name in [name for name in state if name.endswith(axis)]:
        rest = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match="do not fit") as caught:
            convert(rest)
        assert "missing" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer1.0.extra": torch.zeros(1)}, "WeSpeaker's ResNet34, but do not fit: left over layer1.0.extra"),
        ({"layer1.3.conv1.weight": torch.zeros(4, 4, 3, 3)}, r"left over layer1\.3\.conv1\.weight"),
        ({"bn1.bias": torch.zeros(5)}, r"bn1\.bias must have shape \(4,\), axes of size one aside, got \(5,\)"),
        ({"seg_1.weight": torch.zeros(6)}, r"seg_1\.weight must have 2 axes, got shape \(6,\)"),
        ({"seg_1.weight": torch.zeros(6, 7)}, r"seg_1\.weight must have shape \(6, 640\)"),
        ({"seg_2.weight": torch.zeros(6, 6)}, r"second embedding layer \(two_emb_layer\)"),
        ({"pool.linear1.weight": torch.zeros(6, 6, 1)}, "a pooling with weights"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(wespeaker_resnet()[1] | changes)


def test_a_norm_behind_wespeakers_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch norm behind the embedding \(emb_bn\)"):
        convert(wespeaker_ecapa()[1] | {"bn2.weight": torch.ones(6)})


@pytest.mark.parametrize(
    "state", [{}, {3: torch.zeros(1)}, {"epoch": 3}, {"a.weight": torch.zeros(1)}, {"model": {"a": torch.zeros(1)}}]
)
def test_anything_else_is_refused_with_what_each_kind_lacks(state: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="fit no network that can be read; got (nothing|3|epoch|a.weight|model)"
    ) as caught:
        convert(state)
    text = str(caught.value)
    assert all(f"- {kind}: missing " in text for kind in kinds())
    assert len(kinds()) == 12
    assert ("left over" in text) == bool(state)


def test_the_nearest_kind_comes_first() -> None:
    _, state = wespeaker_ecapa()
    # What makes them ECAPA-TDNN's is missing; the rest is.
    rest = {name: value for name, value in state.items() if "layer2.se_res2block." not in name}
    with pytest.raises(ValueError, match="fit no network") as caught:
        convert(rest)
    first, *_ = str(caught.value).splitlines()[1:]
    assert first.startswith("- WeSpeaker's ECAPA-TDNN: missing layer2.se_res2block.0.bn.bias, ")


WRAPPINGS = {
    "as it is": (lambda state: state, ""),
    "Lightning": (lambda state: {"state_dict": state, "epoch": 3}, "unwrapped: state_dict"),
    "beside a tensor": (lambda state: {"model": state, "loss": torch.tensor(0.3)}, "unwrapped: model"),
    "DDP": (lambda state: {f"module.{name}": value for name, value in state.items()}, "unwrapped: module."),
    "both": (
        lambda state: {"model": {f"module.model.{name}": value for name, value in state.items()}, "optimizer": {}},
        "unwrapped: model, module., model.",
    ),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_are_taken_off_and_named(wrapping: str, caplog: pytest.LogCaptureFixture) -> None:
    wrap, words = WRAPPINGS[wrapping]
    ours, state = wespeaker_resnet()
    with caplog.at_level(logging.INFO):
        kind, settings, weights = convert(from_file(wrap(state)))
        assert kind == "WeSpeaker's ResNet34"
        assert pretrained_settings(wrap(state)) == settings
        assert settings["features"] == "wespeaker"
        own_kind, own_settings, own = convert(from_file(wrap(ours.state_dict())), {"name": "resnet34"}, ours)
    assert (own_kind, own_settings) == ("the network of model=resnet34", {"name": "resnet34"})
    for loaded in (weights, own):
        assert loaded.keys() == ours.state_dict().keys()
        assert all(torch.equal(loaded[name], value) for name, value in ours.state_dict().items())
    if words:
        assert caplog.text.count(words) == 2
    else:
        assert "unwrapped" not in caplog.text


def test_what_does_not_fit_the_network_of_the_run_is_named() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    state = dict(network.state_dict())
    del state["1.running_mean"]
    changed = state | {"2.weight": torch.zeros(2, 5), "3.bias": torch.zeros(2), "0.bias": "text"}
    for given in (changed, {"state_dict": {f"module.{name}": value for name, value in changed.items()}}):
        with pytest.raises(ValueError, match="fit no network") as caught:
            convert(given, {"_target_": "mypkg.net.Net"}, network)
        first, *_ = str(caught.value).splitlines()[1:]
        assert first == (
            "- the network mypkg.net.Net: missing 1.running_mean; left over 3.bias; wrong shape "
            "0.bias (expected [4], got str), 2.weight (expected [2, 4], got [2, 5])"
        )


def test_weights_of_a_toolkit_that_do_not_fit_are_compared_with_the_network_of_the_run_too() -> None:
    ours, state = wespeaker_resnet()
    del state["bn1.weight"]
    with pytest.raises(
        ValueError, match=r"missing bn1\.weight; they do not fit the network of model=resnet34 either: "
    ):
        convert(state, {"name": "resnet34"}, ours)
