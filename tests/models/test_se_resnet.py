from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sv_sparse.models.se_resnet import SEResNet
from sv_sparse.optim import param_groups


def small() -> SEResNet:
    return SEResNet(channels=(4, 4, 8, 8), attention_channels=6, embedding_dim=8, mel_bins=20)


def test_the_size_is_that_of_the_published_model() -> None:
    with torch.device("meta"):
        model = SEResNet()
    assert sum(parameter.numel() for parameter in model.parameters()) == 15_438_336
    assert sum(len(group["params"]) for group in param_groups(model)) == len(list(model.parameters()))


def test_the_last_stages_have_no_excitation_and_the_first_blocks_of_three_a_shortcut() -> None:
    model = small()
    assert [stage[0].se is not None for stage in model.stages] == [True, True, False, False]
    assert [len(stage[0].shortcut) for stage in model.stages] == [0, 2, 2, 2]


def test_the_network_is_what_its_description_says_written_out() -> None:
    torch.manual_seed(0)
    model = small().eval()
    filterbank = torch.randn(2, 20, 40)

    def block_output(block: nn.Module, x: Tensor) -> Tensor:
        y = block.conv1(block.norm1(x).relu())
        y = block.conv2(block.norm2(y).relu())
        y = block.conv3(block.norm3(y).relu())
        gain = block.se(y) if block.se is not None else 1.0
        return gain * y + block.shortcut(x)

    x = model.norm(model.conv(filterbank.unsqueeze(1))).relu()
    for stage in model.stages:
        for block in stage:
            x = block_output(block, x)
    frames = x.flatten(1, 2)
    hidden = model.pooling.norm(model.pooling.linear1(frames.transpose(1, 2)).relu().transpose(1, 2))
    weight = model.pooling.linear2(hidden.transpose(1, 2)).transpose(1, 2).softmax(dim=2)
    mean = (weight * frames).sum(dim=2)
    deviation = ((weight * frames.square()).sum(dim=2) - mean.square()).clamp(min=1e-5).sqrt()
    expected = model.embedding(model.statistics_norm(torch.cat([mean, deviation], dim=1)))
    torch.testing.assert_close(model(filterbank), model.embedding_norm(expected), rtol=1e-4, atol=1e-5)


def test_bins_and_frames_are_halved_three_times_rounding_up() -> None:
    assert small().stages(torch.randn(2, 4, 20, 41)).shape == (2, 8, 3, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": [4, 4, 8]}, r"channels must be 4 whole numbers of at least 1, got \[4, 4, 8\]"),
        ({"channels": [4, float("nan"), 8, 8]}, "channels must be 4 whole numbers of at least 1"),
        ({"channels": [4, 0, 8, 8]}, r"channels must be 4 whole numbers of at least 1, got \[4, 0, 8, 8\]"),
        ({"attention_channels": 0}, "attention_channels must be at least 1, got 0"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"mel_bins": 0}, "mel_bins must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SEResNet(**settings)


def test_too_short_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 frames at its input, got 1"):
        small()(torch.zeros(2, 20, 8))
    assert small()(torch.zeros(2, 20, 9)).shape == (2, 8)
