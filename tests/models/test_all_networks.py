"""Laws of every built-in network: gradients, precision, copies, export, which parameters become sparse."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sv_sparse.models.campplus import CAMPlusPlus
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.registry import MODELS
from sv_sparse.models.resnet import ResNet, ResNet34, ResNet50
from sv_sparse.models.se_resnet import SEResNet
from sv_sparse.models.xvector import XVector

ECAPA_SIZES: dict[str, Any] = {"channels": 32, "mfa_channels": 48, "attention_channels": 8, "se_channels": 8}
CAMPPLUS_SIZES: dict[str, Any] = {"front_channels": 4, "channels": 8, "growth_rate": 4, "bottleneck_channels": 8}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ecapa": lambda: ECAPA(mel_bins=20, **ECAPA_SIZES),
    "ecapa, speechbrain": lambda: ECAPA(mel_bins=20, **ECAPA_SIZES, layout="speechbrain"),
    "resnet34": lambda: ResNet34(base_channels=4, embedding_dim=8, mel_bins=20),
    "resnet50": lambda: ResNet50(base_channels=4, embedding_dim=8, mel_bins=20),
    "se_resnet": lambda: SEResNet(channels=(4, 4, 8, 8), attention_channels=6, embedding_dim=8, mel_bins=20),
    "campplus": lambda: CAMPlusPlus(mel_bins=20, **CAMPPLUS_SIZES, block_layers=(3, 2, 2), embedding_dim=6),
    "xvector": lambda: XVector(mel_bins=20, channels=16, statistics_channels=24, embedding_dim=6),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def test_none_is_left_out() -> None:
    tested = {type(make()) for make in NETWORKS.values()}
    for kind in MODELS.values():
        # Deeper ResNets differ from ResNet34 and ResNet50 in the number of blocks alone.
        assert kind in tested or issubclass(kind, ResNet)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_every_parameter_gets_a_finite_gradient_even_from_constant_input(network: nn.Module, scale: float) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        embedding = network(scale * torch.randn(4, 20, 30))
    assert embedding.dtype == torch.float32
    embedding.square().sum().backward()
    assert all(param.grad is not None and param.grad.isfinite().all() for param in network.parameters())


def test_embeddings_under_autocast_are_float32_and_close(network: nn.Module) -> None:
    network.eval()
    filterbank = torch.randn(2, 20, 230)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        embedding = network(filterbank)
    assert embedding.dtype == torch.float32
    assert torch.cosine_similarity(embedding, network(filterbank)).min() > 0.999


def test_a_copy_is_equal(network: nn.Module) -> None:
    network.eval()
    filterbank = torch.randn(2, 20, 30)
    assert torch.equal(copy.deepcopy(network)(filterbank), network(filterbank))


def test_it_can_be_exported_with_any_batch_size_and_length(network: nn.Module) -> None:
    network.eval()
    axes = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(network, (torch.randn(2, 20, 40),), dynamic_shapes=axes).module()
    for frames in (55, 201, 500):
        filterbank = torch.randn(3, 20, frames)
        torch.testing.assert_close(exported(filterbank), network(filterbank))


def test_parameters_live_in_convolutions_linear_layers_and_norms_only(network: nn.Module) -> None:
    for module in network.modules():
        if list(module.parameters(recurse=False)):
            assert type(module) in {nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d}
