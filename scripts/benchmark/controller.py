"""How far from the target a run stays in its last fifth: with the drift term, and with the paper's rule alone.

A small convolutional network on a noisy problem, both optimizers, three starting lambdas, five targets.
"""

import argparse
import itertools

import torch
from torch import nn

from sv_sparse.optim import AdaBreg, BregmanOptimizer, FeedbackController, LinBreg, partition, sparse_init_, sparsity
from sv_sparse.optim import warmup_exponential as factor

LAMBDAS = (1e-4, 1e-1, 1e2)
TARGETS = (0.5, 0.75, 0.9, 0.95, 0.99)


def network(width: int, seed: int) -> nn.Sequential:
    """Two convolutions and a classifier."""
    torch.manual_seed(seed)
    first = [nn.Conv1d(8, width, 3, padding=1), nn.BatchNorm1d(width), nn.ReLU()]
    second = [nn.Conv1d(width, 2 * width, 3, padding=1), nn.BatchNorm1d(2 * width), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def worst_gap(kind: type, lambda_: float, target: float, trend: float, steps: int, width: int, seed: int) -> float:
    """Largest distance from the target over the last fifth of a run."""
    model = network(width, seed)
    groups = partition(model)
    sparse_init_([param for _, param in groups[0]["params"]], generator=torch.Generator().manual_seed(seed))
    lr = 0.01 if kind is AdaBreg else 0.1
    optimizer: BregmanOptimizer = kind(groups, lr=lr, lambda_=lambda_)
    controller = FeedbackController(optimizer, target, steps, trend=trend)
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(10, 8, 12, generator=generator)
    worst = 0.0
    for step in range(steps):
        y = torch.randint(10, (16,), generator=generator)
        x = patterns[y] + 2 * torch.randn(16, 8, 12, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor(step, steps)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        controller.step()
        if step >= 0.8 * steps:
            worst = max(worst, abs(sparsity(controller.params).item() - target))
    return worst


def main() -> None:
    """Print a row per rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for trend in (0.0, 0.05):
        cases = itertools.product((LinBreg, AdaBreg), LAMBDAS, TARGETS, range(chosen.seeds))
        gaps = torch.tensor(
            [100 * worst_gap(k, start, target, trend, chosen.steps, chosen.width, s) for k, start, target, s in cases]
        )
        print(
            f"trend {trend}: worst gap {gaps.max():.2f} points, median {gaps.median():.3f}, "
            f"{int((gaps > 0.2).sum())} of {len(gaps)} runs beyond 0.2 points"
        )


if __name__ == "__main__":
    main()
