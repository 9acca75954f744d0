"""Small networks as training leaves them: sparse, with norms that have seen data."""

from typing import Any

import numpy as np
import torch
from torch import nn

from sv_sparse.models.registry import build_model
from sv_sparse.scoring.backend import Backend
from sv_sparse.scoring.calibration import Calibration

FEATURES = {"sample_rate": 16000, "mel_bins": 80}
ECAPA: dict[str, Any] = {
    "name": "ecapa",
    **{"channels": 32, "mfa_channels": 24, "attention_channels": 12, "se_channels": 8, "res2net_scale": 4},
    **{"kernel_sizes": [5, 3, 3], "dilations": [1, 2, 5], "embedding_dim": 16},
}
SPEECHBRAIN = ECAPA | {"layout": "speechbrain"}
RESNET: dict[str, Any] = {"name": "resnet34", "base_channels": 4, "embedding_dim": 16}
SE_RESNET: dict[str, Any] = {
    "name": "se_resnet",
    **{"channels": [4, 4, 8, 8], "attention_channels": 8, "embedding_dim": 16},
}
CAMPPLUS: dict[str, Any] = {
    "name": "campplus",
    **{"front_channels": 4, "channels": 16, "growth_rate": 8, "bottleneck_channels": 16},
    **{"block_layers": [2, 1, 2], "embedding_dim": 16},
}
XVECTOR: dict[str, Any] = {"name": "xvector", "channels": 16, "statistics_channels": 24, "embedding_dim": 16}
MODELS = {
    "ecapa": ECAPA,
    "speechbrain": SPEECHBRAIN,
    "resnet": RESNET,
    "se_resnet": SE_RESNET,
    "campplus": CAMPPLUS,
    "resnet50": RESNET | {"name": "resnet50"},
    "xvector": XVECTOR,
}


@torch.no_grad()
def trained(model: dict[str, Any], density: float = 0.3, seed: int = 0, mel_bins: int = 80) -> nn.Module:
    """A network with so many of its weights left, some rows and columns empty, one row full."""
    torch.manual_seed(seed)
    network = build_model(model, mel_bins).eval()
    for param in network.parameters():
        if param.ndim > 1:
            full = torch.randn(param[0].shape) / param[0].numel() ** 0.5
            param.mul_(torch.rand(param.shape) < density)
            param[torch.rand(len(param)) < 0.1] = 0
            param[:, torch.rand(param.shape[1]) < 0.1] = 0
            if density > 0:
                param[0] = full
        else:
            param.copy_(torch.randn(param.shape) * 0.3)
    for norm in network.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
    return network


def backend(size: int = 16, *, cohort: bool = False) -> Backend:
    """One that is calibrated."""
    generator = np.random.default_rng(0)
    calibration = Calibration(8.0, -2.5, {}, 0.1, 1000, 100, 10, {0.05: 0.5, 0.01: 2.0})
    speakers = generator.normal(size=(6, size)).astype(np.float32) if cohort else None
    return Backend(generator.normal(size=size).astype(np.float32), speakers, 4 if cohort else 0, calibration)
