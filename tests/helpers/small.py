"""A small network, steps on random batches that depend on the step alone, and laws of networks."""

import torch
from torch import nn


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(4, 8, 3, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6, 5)
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0, after=None) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 4, 8, generator=generator), torch.randint(5, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if after is not None:
            after()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def assert_exact(model: nn.Module, fraction: float = 0.1) -> None:
    """Check that exactly this fraction of the weights is not zero."""
    matrices = [param for param in model.parameters() if param.ndim > 1]
    size = sum(matrix.numel() for matrix in matrices)
    assert sum(int(matrix.count_nonzero()) for matrix in matrices) == round(fraction * size)
