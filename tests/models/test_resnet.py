import copy
import io

import pytest
import torch
from torch import nn

from sv_sparse.models.registry import MODELS
from sv_sparse.models.resnet import ResNet34, ResNet50
from sv_sparse.models.se_resnet import SEResNet
from sv_sparse.optim import param_groups, sparse_init_


def small() -> ResNet34:
    return ResNet34(base_channels=4, embedding_dim=8, mel_bins=20)


def in_channels_last(model: nn.Module) -> bool:
    """Whether every square convolution with more than one input channel keeps its weights channels-last."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return all(convolution.weight.is_contiguous(memory_format=torch.channels_last) for convolution in convolutions)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        # WeSpeaker's tables say 6.63, 11.13, 15.89, 19.81, 23.79 and 28.62 million.
        (34, 6_634_336),
        (50, 11_131_360),
        (101, 15_892_448),
        (152, 19_814_880),
        (221, 23_792_224),
        (293, 28_626_016),
    ],
)
def test_the_size_is_that_of_the_published_model(depth: int, expected: int) -> None:
    with torch.device("meta"):
        model = MODELS[f"resnet{depth}"]()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == num_params(depth)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    # The shortcuts are not counted: of bottleneck blocks the first stage has one too.
    assert len(layers) - (3 if depth == 34 else 4) == depth


def num_params(depth: int) -> int:
    """Parameters by arithmetic, of 80 bins, 32 channels and embeddings of 256."""
    num_blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 221: (6, 16, 48, 3), 293: (10, 20, 64, 3)}
    width, expansion = 32, 1 if depth == 34 else 4
    count, entering = 9 * width + 2 * width, width
    for stage, blocks in enumerate(num_blocks.get(depth, (3, 4, 6, 3))):
        inner = width * 2**stage
        leaving = expansion * inner
        for block in range(blocks):
            if depth == 34:
                count += 9 * entering * inner + 9 * inner * inner + 4 * inner
            else:
                count += entering * inner + 9 * inner * inner + inner * leaving + 4 * inner + 2 * leaving
            if block == 0 and entering != leaving:
                count += entering * leaving + 2 * leaving
            entering = leaving
    return count + 2 * entering * 10 * 256 + 256


def test_the_memory_order_changes_no_result() -> None:
    torch.manual_seed(0)
    model = small().eval()
    filterbank = torch.randn(2, 20, 40)
    x = filterbank.unsqueeze(1)
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    x = plain.stages(plain.norm(plain.conv(x)).relu())
    mean, std = x.mean(dim=3), x.var(dim=3).clamp(min=1e-8).sqrt()
    expected = plain.embedding(plain.statistics_norm(torch.cat([mean.flatten(1), std.flatten(1)], dim=1)))
    torch.testing.assert_close(model(filterbank), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [1.0, 0.01])
def test_normalized_statistics_keep_the_embeddings_of_strangers_apart(density: float) -> None:
    cosines = {}
    for statistics_norm in (True, False):
        torch.manual_seed(0)
        model = ResNet34(base_channels=8, embedding_dim=32, mel_bins=20, statistics_norm=statistics_norm)
        groups = param_groups(model)
        sparse_init_((p for _, p in groups[0]["params"]), density=density)
        embedding = nn.functional.normalize(model(torch.randn(16, 20, 40)))
        cosines[statistics_norm] = ((embedding @ embedding.T).sum() - 16).item() / (16 * 15)
    assert abs(cosines[True]) < 0.2
    assert cosines[False] > 0.7


def test_without_normalized_statistics_the_state_is_that_of_wespeakers_layout() -> None:
    with_norm = ResNet34(base_channels=4).state_dict()
    without = ResNet34(base_channels=4, statistics_norm=False).state_dict()
    extra = {name for name in with_norm if name not in without}
    assert extra == {f"statistics_norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_bins_and_frames_are_halved_three_times_rounding_up() -> None:
    images = small().stages(torch.randn(2, 4, 20, 41))
    assert images.shape == (2, 32, 3, 6)


def test_copies_and_loaded_states_stay_channels_last() -> None:
    torch.manual_seed(0)
    model = ResNet34(base_channels=16, embedding_dim=8, mel_bins=20)
    assert in_channels_last(model)
    assert in_channels_last(copy.deepcopy(model))
    file = io.BytesIO()
    plain = {name: value.contiguous() for name, value in model.state_dict().items()}
    torch.save(plain, file)
    file.seek(0)
    twin = ResNet34(base_channels=16, embedding_dim=8, mel_bins=20)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert in_channels_last(twin)
    filterbank = torch.randn(2, 20, 40)
    assert torch.equal(twin.eval()(filterbank), model.eval()(filterbank))


@pytest.mark.parametrize("setting", ["base_channels", "embedding_dim", "mel_bins"])
def test_a_wrong_setting_is_named_with_what_is_allowed(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be at least 1, got 0"):
        ResNet34(**{setting: 0})


def test_too_short_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 frames at its input, got 1"):
        small()(torch.zeros(2, 20, 8))
    assert small()(torch.zeros(2, 20, 9)).shape == (2, 8)


@pytest.mark.parametrize(
    "model",
    [
        ResNet34(base_channels=8, mel_bins=20),
        ResNet50(base_channels=2, mel_bins=20),
        SEResNet(channels=(4, 4, 8, 8), attention_channels=8, mel_bins=20),
    ],
    ids=["resnet34", "resnet50", "se_resnet"],
)
def test_narrow_networks_have_gradients(model) -> None:
    assert not in_channels_last(model)  # in that order the backward pass of torch 2.13 crashes
    model(torch.randn(4, 20, 60)).square().mean().backward()
    assert all(param.grad is not None and param.grad.isfinite().all() for param in model.parameters())
