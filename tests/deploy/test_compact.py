"""Networks without their dead channels."""

import json

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sv_sparse.deploy.compact import compact
from sv_sparse.models.ecapa import ECAPA, LAYOUTS
from sv_sparse.models.resnet import ResNet34
from sv_sparse.models.se_resnet import SEResNet

BINS = 10
LAYERS = (nn.Conv2d, nn.Linear)
KINDS = (*LAYOUTS, "resnet34")
FEWEST_FRAMES = {"wespeaker": 2, "speechbrain": 5, "resnet34": 9}  # what the originals take


def new(kind: str) -> nn.Module:
    """A small network."""
    if kind == "resnet34":
        return ResNet34(base_channels=4, embedding_dim=6, mel_bins=BINS)
    return ECAPA(
        mel_bins=BINS,
        channels=16,
        mfa_channels=12,
        attention_channels=8,
        se_channels=8,
        res2net_scale=4,
        embedding_dim=6,
        layout=kind,
    )


@torch.no_grad()
def worn(kind: str, share: float, seed: int = 0) -> nn.Module:
    """A network with biases and statistics as if trained, and a share of each layer's rows zero."""
    generator = torch.Generator().manual_seed(seed)
    network = new(kind).eval()
    for module in network.modules():
        if isinstance(module, LAYERS):
            module.weight.normal_(0, 1.5 * module.weight[0].numel() ** -0.5, generator=generator)
            module.weight[torch.rand(len(module.weight), generator=generator) < share] = 0
            if module.bias is not None:
                module.bias.normal_(0, 0.5, generator=generator)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            if module.affine:
                module.weight.normal_(0, 1, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
    return network


def filterbanks(frames: int) -> Tensor:
    return torch.randn(3, BINS, frames, generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def assert_equal_outputs(kind: str, network: nn.Module, smaller: nn.Module) -> None:
    """Also where all frames are near an end, and where most are not."""
    fewest = FEWEST_FRAMES[kind]
    for frames in (fewest, fewest + 1, fewest + 4, 40):
        wanted = network(filterbanks(frames))
        torch.testing.assert_close(smaller(filterbanks(frames)), wanted, rtol=0, atol=1e-5 * max(1, wanted.abs().max()))


def parameters(network: nn.Module) -> int:
    return sum(param.numel() for param in network.parameters())


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    share=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.85]),
    seed=st.integers(0, 1 << 30),
    round_to=st.sampled_from([1, 2, 8]),
)
def test_outputs_are_those_of_the_original_whatever_is_dead(kind: str, share: float, seed: int, round_to: int):
    network = worn(kind, share, seed)
    assert_equal_outputs(kind, network, compact(network, round_to))


def test_a_shift_that_only_the_first_block_hears_is_kept():
    network = worn("resnet34", 0.7, 2097152)  # whose later blocks cut it off
    assert_equal_outputs("resnet34", network, compact(network))


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_original_where_nothing_or_everything_is_dead(kind: str, share: float):
    network = worn(kind, share)
    assert_equal_outputs(kind, network, compact(network))


@pytest.mark.parametrize("kind", KINDS)
def test_any_one_layer_may_be_dead(kind: str):
    names = [name for name, module in new(kind).named_modules() if isinstance(module, LAYERS)]
    for seed, name in enumerate(names):
        network = worn(kind, 0.3, seed)
        network.get_submodule(name).weight.data.zero_()
        assert_equal_outputs(kind, network, compact(network, 2))


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("chunk", range(4))
def test_a_whole_chunk_of_a_res2net_convolution_may_be_dead(kind: str, chunk: int):
    network = worn(kind, 0.2)
    rows = slice(4 * chunk, 4 * chunk + 4)
    for block in network.blocks:
        block.enter.conv.weight.data[rows] = 0
    network.blocks[1].res2.units[min(chunk, 2)].conv.weight.data.zero_()
    assert_equal_outputs(kind, network, compact(network, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_nobody_hears_are_removed(kind: str):
    network = worn(kind, 0.0)
    for name, module in network.named_modules():
        if isinstance(module, LAYERS) and name not in {"conv", "first.conv", "embedding"}:
            module.weight.data[:, ::2] = 0
    smaller = compact(network, 1)
    assert parameters(smaller) < 0.6 * parameters(network)
    assert_equal_outputs(kind, network, smaller)


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_whose_norm_multiplies_by_zero_is_a_constant(kind: str):
    network = worn(kind, 0.2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data[::3] = 0
    assert_equal_outputs(kind, network, compact(network, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_more_is_dead_the_fewer_parameters_there_are(kind: str):
    sizes = [parameters(compact(worn(kind, share), 1)) for share in (0.2, 0.5, 0.8)]
    assert parameters(new(kind)) > sizes[0] > sizes[1] > sizes[2]


@pytest.mark.parametrize("round_to", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_multiples_of_what_was_asked_for(kind: str, round_to: int):
    smaller = compact(worn(kind, 0.4), round_to)
    widths = [module.out_channels for module in smaller.modules() if isinstance(module, nn.Conv2d)]
    assert widths
    assert not [width for width in widths if width % round_to]
    assert {len(smaller(filterbanks(9))[0])} == {6}


@pytest.mark.parametrize("kind", KINDS)
def test_settings_that_went_through_a_file_build_it_again_and_its_state_fills_it(kind: str):
    smaller = compact(worn(kind, 0.5))
    again = instantiate(json.loads(json.dumps(smaller.settings)), mel_bins=BINS)
    again.load_state_dict(smaller.state_dict())
    assert again.settings == smaller.settings
    assert torch.equal(again.eval()(filterbanks(20)), smaller(filterbanks(20)))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_became_constants_are_left_out(kind: str):
    network = worn(kind, 0.0)
    blocks = network.stages[0] if kind == "resnet34" else network.blocks
    for block in blocks:
        (block.conv1 if kind == "resnet34" else block.leave.conv).weight.data.zero_()
    smaller = compact(network, 1)
    if kind != "resnet34":
        assert not len(smaller.blocks)
    assert_equal_outputs(kind, network, smaller)


def test_the_original_stays_as_it_is():
    network = worn("wespeaker", 0.5).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    smaller = compact(network)
    assert network.training
    assert not smaller.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_another_network_is_refused_with_those_that_are_allowed():
    with pytest.raises(ValueError, match="only ECAPA and ResNet34 can be made compact, got SEResNet"):
        compact(SEResNet(channels=(4, 4, 8, 8), mel_bins=BINS))
    with pytest.raises(ValueError, match="round_to must be at least 1, got 0"):
        compact(new("wespeaker"), 0)
