"""Averaging the duals of a run's last states against averaging their weights: sparsity and loss, several seeds.

The network and the noisy problem are those of controller.py, without its learning-rate schedule unless asked for. Ten
states are taken over the last fifth of a run. The mean of the weights is pruned by size to the same sparsity; each
network's batch-norm statistics are refreshed, and losses are over batches that were not trained on.
"""

import argparse
import copy
import statistics
from collections.abc import Sequence

import torch
from controller import OPTIMIZERS, network
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from sv_sparse.optim import (
    BregmanOptimizer,
    DualAverage,
    FeedbackController,
    param_groups,
    sparse_init_,
    sparsity,
    warmup_decay,
)

Batches = Sequence[tuple[Tensor, Tensor]]
COLUMNS = ("weights: sparsity", "duals: sparsity", "last: loss", "weights: loss", "weights pruned: loss", "duals: loss")


def noisy_batches(steps: int, seed: int) -> Batches:
    """Return batches of ten noisy patterns."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(10, 8, 12, generator=generator)
    labels = [torch.randint(10, (16,), generator=generator) for _ in range(steps)]
    return [(patterns[y] + 2 * torch.randn(16, 8, 12, generator=generator), y) for y in labels]


@torch.no_grad()
def held_out_loss(model: nn.Module, train: Batches, held_out: Batches) -> float:
    """Return the loss on batches that were not trained on, after a refresh of the batch-norm statistics."""
    update_bn([x for x, _ in train[-50:]], model)
    model.eval()
    return sum(nn.functional.cross_entropy(model(x), y).item() for x, y in held_out) / len(held_out)


@torch.no_grad()
def prune(params: Sequence[Tensor], target: float) -> None:
    """Zero the smallest weights, all layers together."""
    sizes = torch.cat([param.abs().flatten() for param in params])
    threshold = sizes.kthvalue(round(target * len(sizes))).values
    for param in params:
        param.masked_fill_(param.abs() <= threshold, 0)


def run(name: str, target: float, steps: int, seed: int, decay: bool) -> list[float]:
    """Train once and return the figures of COLUMNS."""
    batches = noisy_batches(steps + 100, seed)
    train, held_out = batches[:steps], batches[steps:]
    model = network(64, seed)
    groups = param_groups(model)
    sparse_init_(groups, generator=torch.Generator().manual_seed(seed))
    optimizer_class, lr = OPTIMIZERS[name]
    optimizer: BregmanOptimizer = optimizer_class(groups, lr=lr)
    controller = FeedbackController(optimizer, target, steps)
    controller.reminders.active = False
    duals, weights = DualAverage(), AveragedModel(model)
    for step, (x, y) in enumerate(train):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup_decay(step, steps) if decay else lr
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        controller.step()
        if step >= steps - steps // 5 and (step + 1) % (steps // 50) == 0:
            duals.add(optimizer)
            weights.update_parameters(model)
    last, last_controller = copy.deepcopy((model, controller))
    last_controller.finalize()
    averaged = [param for param in weights.parameters() if param.ndim > 1]
    figures = [100 * sparsity(averaged).item()]
    duals.copy_to(optimizer)
    figures.append(100 * sparsity(controller.params).item())
    figures.append(held_out_loss(last, train, held_out))
    figures.append(held_out_loss(weights.module, train, held_out))
    prune(averaged, target)
    controller.finalize()
    figures.append(held_out_loss(weights.module, train, held_out))
    figures.append(held_out_loss(model, train, held_out))
    return figures


def main() -> None:
    """Print a row for each optimizer, target and schedule: means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.75, 0.9, 0.95])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| optimizer | target | rate | " + " | ".join(COLUMNS) + " |\n|---|---:|---|" + "---:|" * len(COLUMNS))
    for name in OPTIMIZERS:
        for target in args.targets:
            for decay in (False, True):
                runs = [run(name, target, args.steps, seed, decay) for seed in range(args.seeds)]
                means = [statistics.mean(column) for column in zip(*runs, strict=True)]
                entries = [f"{mean:.2f} %" for mean in means[:2]] + [f"{mean:.4f}" for mean in means[2:]]
                rate = "decays" if decay else "constant"
                print(f"| {name} | {target} | {rate} | " + " | ".join(entries) + " |", flush=True)


if __name__ == "__main__":
    main()
