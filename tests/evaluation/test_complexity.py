"""Laws of complexity: counts are those of torch's own counter and of the published tables."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sv_sparse.evaluation.complexity import compressed_bytes, measure_complexity
from sv_sparse.models.campplus import CAMPlusPlus
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.resnet import ResNet34
from sv_sparse.models.se_resnet import SEResNet
from sv_sparse.models.xvector import XVector
from sv_sparse.optim import param_groups

ECAPA_SMALL = {"channels": 16, "mfa_channels": 24, "attention_channels": 8, "se_channels": 8, "res2net_scale": 4}
NETWORKS = {
    "ECAPA": lambda: ECAPA(**ECAPA_SMALL, embedding_dim=16),
    "ResNet34": lambda: ResNet34(base_channels=8, embedding_dim=16),
    "SEResNet": SEResNet,
    "CAM++": lambda: CAMPlusPlus(front_channels=4, channels=16, block_layers=(2, 1, 2), embedding_dim=16),
    "XVector": lambda: XVector(channels=16, statistics_channels=24, embedding_dim=16),
}


def measured(network: nn.Module) -> dict:
    weights = {name: p for group in param_groups(network) if group["name"] == "sparse" for name, p in group["params"]}
    return measure_complexity(network, weights, nn.Linear(16, 100, bias=False))


@pytest.mark.parametrize("name", NETWORKS)
def test_multiply_accumulates_are_half_of_what_torch_counts(name):
    network = NETWORKS[name]()
    complexity = measured(network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 80, 300))
    # torch's counter hooks into every module, and beside hooks the pooling repeats its context for every frame
    repeated = 2 * 24 * 8 * (300 - 1) if name == "ECAPA" else 0
    assert complexity["size"]["macs"] == counter.get_total_flops() // 2 - repeated
    assert sum(layer["macs"] for layer in complexity["layers"].values()) == complexity["size"]["macs"]


CONTEXT = 2 * 1536 * 128 * 199 / 1e9  # which ECAPA's pooling multiplies once, not for every frame


@pytest.mark.parametrize(("network", "published"), [(ECAPA, 2.65 - CONTEXT), (ResNet34, 4.53)])
def test_two_seconds_of_the_full_size_networks_cost_what_is_published(network, published, monkeypatch):
    monkeypatch.setattr("sv_sparse.evaluation.complexity.SECONDS", 2.0)
    monkeypatch.setattr("sv_sparse.evaluation.complexity._NUM_TIMING_ROUNDS", 1)
    complexity = measured(network())["size"]
    assert complexity["macs"] / 1e9 == pytest.approx(published, rel=0.02)
    assert complexity["head_parameters"] == 1600


def test_zeros_are_counted_as_weights_as_work_and_as_whole_channels():
    network = NETWORKS["ECAPA"]()
    dense = measured(network)
    name = "stem.conv.weight"
    weight = dict(network.named_parameters())[name]
    with torch.no_grad():
        weight[:3] = 0
        weight[:, 1] = 0
    complexity = measured(network)
    layer, before = complexity["layers"][name], dense["layers"][name]
    assert (layer["dead_channels"], layer["dead_inputs"]) == (3, 1)
    assert layer["zeros"] == int((weight == 0).sum())
    nonzero = 1 - layer["zeros"] / layer["parameters"]
    assert layer["nonzero_macs"] == pytest.approx(nonzero * before["macs"])
    assert complexity["size"]["nonzero_parameters"] == dense["size"]["nonzero_parameters"] - layer["zeros"]
    assert complexity["size"]["compressed_bytes"] < dense["size"]["compressed_bytes"] == dense["size"]["bytes"]
    assert complexity["size"]["parameters"] == sum(p.numel() for p in network.parameters())
    assert complexity["size"]["latency"]["seconds"] > 0
    assert not network.training


@pytest.mark.parametrize(
    ("nnz", "expected"),
    [(1000, 4000), (960, 3840 + 125), (100, 400 + 125), (10, 40 + 20 + 44), (0, 44)],
)
def test_a_compressed_weight_has_its_values_and_the_cheaper_form_of_positions(nnz, expected):
    assert compressed_bytes(1000, nnz, 10) == expected
