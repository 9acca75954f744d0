"""A small convolutional network under a controller."""

import torch
from torch import nn

from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    param_groups,
    sparse_init_,
    sparsity,
    warmup_decay,
)

TARGETS = (0.5, 0.75, 0.9, 0.95, 0.99)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(8, 64, 3, padding=1),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Conv1d(64, 128, 3, padding=1),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A learnable problem that is never solved: each class has a pattern of its own under strong noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 8, 12, generator=generator)
    labels = [torch.randint(10, (16,), generator=generator) for _ in range(steps)]
    return [(patterns[y] + 2 * torch.randn(16, 8, 12, generator=generator), y) for y in labels]


def start(kind, target: float, steps: int, lambda_init: float = 0.1, lr: float | None = None, **settings):
    model = network()
    groups = param_groups(model)
    sparse_init_([p for _, p in groups[0]["params"]], density=0.01, generator=torch.Generator().manual_seed(0))
    lr = lr or (0.01 if kind is AdaBreg else 0.1)
    optimizer = kind(groups, lr=lr, lambda_init=lambda_init)
    return model, optimizer, FeedbackController(optimizer, target, steps, **settings)


def run(model, optimizer, controller, data) -> list[float]:
    """Sparsity after each step."""
    path = []
    base = optimizer.param_groups[0]["lr"]
    for step, (x, y) in enumerate(data, start=controller.steps):
        for group in optimizer.param_groups:
            group["lr"] = base * warmup_decay(step, controller.total_steps)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        controller.step()
        path.append(sparsity(controller.params).item())
    return path
