"""Three kinds of network, from scratch and pretrained: held-out loss at 90 % zeros beside AdamW's.

From scratch by the README's five lines, pretrained with both penalties as docs/optimizer.md says. Each network learns a
made-up task whose loss has a floor above zero. AdamW makes as many updates, on the same batches.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import update_bn

from sv_sparse.optim import (
    AdaBreg,
    Controller,
    FeedbackController,
    QuantileController,
    param_groups,
    sparse_init_,
    warmup_decay,
)

TARGET = 0.9
ADAMW_LR = 1e-3
MAX_RATIO = 2.0  # times AdamW's loss
TOKENS, LENGTH, WIDTH, HEADS = 32, 32, 64, 4
CLASSES, PIXELS = 10, 12
Batch = tuple[Tensor, Tensor]


@dataclass
class Start:
    """Settings that make a network sparse from one kind of start."""

    penalty: str
    lr: float
    controller: type[Controller] = FeedbackController
    decays: bool = False  # the learning rate warms up and falls linearly


STARTS = {
    "scratch": Start("l1", 1e-2),
    "pretrained, l1": Start("l1", 3e-3),
    "pretrained, l0": Start("l0", 1e-3, QuantileController, decays=True),
}


class CNN(nn.Module):
    """Two convolutions with batch normalization, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.second_norm = nn.BatchNorm2d(64)
        self.classifier = nn.Linear(64 * (PIXELS // 2) ** 2, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, 1, PIXELS, PIXELS] to logits [B, CLASSES]."""
        hidden = F.relu(self.first_norm(self.first(images)))
        hidden = F.relu(self.second_norm(self.second(hidden)))
        return self.classifier(hidden.flatten(1))


class Block(nn.Module):
    """MultiheadAttention and a feed-forward layer behind RMSNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp_norm = nn.RMSNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, T, WIDTH] to [B, T, WIDTH]."""
        mask = nn.Transformer.generate_square_subsequent_mask(hidden.shape[1])
        normalized = self.attention_norm(hidden)
        attended, _ = self.attention(
            normalized, normalized, normalized, attn_mask=mask, is_causal=True, need_weights=False
        )
        hidden = hidden + attended
        return hidden + self.mlp(self.mlp_norm(hidden))


class Transformer(nn.Module):
    """A language model whose output layer shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, TOKENS, bias=False)
        nn.init.normal_(self.tokens.weight, std=WIDTH**-0.5)
        self.output.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, T] to logits [B, TOKENS, T]."""
        hidden = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.output(self.norm(self.blocks(hidden))).transpose(1, 2)


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it: the weight is [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        return hidden @ self.weight + self.bias


class GPT2Block(nn.Module):
    """Attention and a feed-forward layer of Conv1D behind LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.queries_keys_values = Conv1D(WIDTH, 3 * WIDTH)
        self.projection = Conv1D(WIDTH, WIDTH)
        self.mlp_norm = nn.LayerNorm(WIDTH)
        self.rise = Conv1D(WIDTH, 4 * WIDTH)
        self.fall = Conv1D(4 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, T, WIDTH] to [B, T, WIDTH]."""
        mixed = self.queries_keys_values(self.attention_norm(hidden))
        queries, keys, values = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in mixed.chunk(3, -1))
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden = hidden + self.projection(attended.transpose(1, 2).flatten(-2))
        return hidden + self.fall(F.gelu(self.rise(self.mlp_norm(hidden))))


class GPT2(nn.Module):
    """A language model of GPT-2's kind of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(GPT2Block(), GPT2Block())
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, TOKENS, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.output.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, T] to logits [B, TOKENS, T]."""
        hidden = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.output(self.norm(self.blocks(hidden))).transpose(1, 2)


def images(seed: int) -> Iterator[Batch]:
    """Yield patterns under noise, one in twenty with a label drawn at random; the floor is 0.33."""
    patterns = torch.randn(CLASSES, 1, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    while True:
        labels = torch.randint(CLASSES, (32,), generator=generator)
        noise = torch.randn(32, 1, PIXELS, PIXELS, generator=generator)
        shown = patterns[labels] + 2 * noise
        random_labels = torch.randint(CLASSES, (32,), generator=generator)
        is_random = torch.rand(32, generator=generator) < 0.05
        yield shown, torch.where(is_random, random_labels, labels)


def sentences(seed: int) -> Iterator[Batch]:
    """Yield token sequences: each token follows the one before by a table, or copies the fifth before it."""
    table = torch.softmax(5 * torch.randn(TOKENS, TOKENS, generator=torch.Generator().manual_seed(0)), dim=1)
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(TOKENS, (16, LENGTH + 1), generator=generator)
        copies = torch.rand(16, LENGTH + 1, generator=generator) < 0.2
        for index in range(1, LENGTH + 1):
            sampled = torch.multinomial(table[tokens[:, index - 1]], 1, generator=generator).squeeze(1)
            earlier = tokens[:, max(0, index - 5)]
            tokens[:, index] = torch.where(copies[:, index], earlier, sampled)
        yield tokens[:, :-1], tokens[:, 1:]


NETWORKS: dict[str, tuple[type[nn.Module], Callable[[int], Iterator[Batch]]]] = {
    "CNN": (CNN, images),
    "transformer, tied, MultiheadAttention, RMSNorm": (Transformer, sentences),
    "GPT-2's layers, Conv1D": (GPT2, sentences),
}


@dataclass
class Cell:
    """Held-out losses of one network and one start."""

    network: str
    start: str
    adamw: float
    sparse: float
    sparsity: float  # of the sparse group, as a fraction

    @property
    def ratio(self) -> float:
        """Our loss over AdamW's."""
        return self.sparse / self.adamw


def train_adamw(model: nn.Module, batches: Iterator[Batch], steps: int) -> None:
    """Make ``steps`` updates with AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=ADAMW_LR)
    for _ in range(steps):
        inputs, labels = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def train_sparse(model: nn.Module, batches: Iterator[Batch], steps: int, start: str, **settings: Any) -> float:
    """Make ``steps`` updates as ``STARTS`` says; return the sparsity."""
    setup = STARTS[start]
    groups = param_groups(model, penalty=setup.penalty)
    if start == "scratch":
        sparse_init_(groups)
    optimizer = AdaBreg(groups, lr=setup.lr, **settings)
    controller = setup.controller(optimizer, target_sparsity=TARGET, total_steps=steps)
    scheduler = LambdaLR(
        optimizer, lambda step: warmup_decay(min(step, steps - 1), steps, decay="linear") if setup.decays else 1.0
    )
    for _ in range(steps):
        inputs, labels = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        controller.step()
        scheduler.step()
    controller.finalize()
    return controller.sparsity().item()


@torch.no_grad()
def held_out_loss(model: nn.Module, task: Callable[[int], Iterator[Batch]]) -> float:
    """Return the mean loss of 20 batches that no run trains on, after a refresh of batch-norm statistics."""
    batches = task(10**6)
    update_bn([next(batches)[0] for _ in range(20)], model)
    model.eval()
    losses = []
    for _ in range(20):
        inputs, labels = next(batches)
        losses.append(F.cross_entropy(model(inputs), labels).item())
    model.train()
    return sum(losses) / len(losses)


def measure(network: str, start: str, *, steps: int, seed: int = 0, **settings: Any) -> Cell:
    """Train one network both ways; ``settings`` are further ones of AdaBreg."""
    network_class, task = NETWORKS[network]
    torch.manual_seed(seed)
    model = network_class()
    if start != "scratch":
        train_adamw(model, task(3 * seed + 1), steps)
    peer = copy.deepcopy(model)
    train_adamw(peer, task(3 * seed + 2), steps)
    sparsity = train_sparse(model, task(3 * seed + 2), steps, start, **settings)
    return Cell(network, start, held_out_loss(peer, task), held_out_loss(model, task), sparsity)


def main() -> None:
    """Print a row per network and start, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="updates of each run, also of pretraining")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="auto", help="of AdaBreg; foreach needs no compiler")
    args = parser.parse_args()
    print("| network | start | AdamW's loss | ours | ratio | zeros |\n|---|---|---:|---:|---:|---:|")
    cells = []
    for network in NETWORKS:
        for start in STARTS:
            cell = measure(network, start, steps=args.steps, seed=args.seed, backend=args.backend)
            cells.append(cell)
            print(
                f"| {network} | {start} | {cell.adamw:.3f} | {cell.sparse:.3f} | {cell.ratio:.2f} | "
                f"{100 * cell.sparsity:.2f} % |",
                flush=True,
            )
    ratios = {f"{cell.network}, {cell.start}": round(cell.ratio, 3) for cell in cells}
    print(json.dumps({"benchmark": "networks", "ratios": ratios, "met": max(ratios.values()) <= MAX_RATIO}))


if __name__ == "__main__":
    main()
