"""One update of ECAPA-TDNN's 14.66 M parameters: every way to make it, against torch's fused Adam.

Every optimizer has parameters and gradients of its own. On a GPU each row ends with a synchronization.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from interleaved import medians
from torch import Tensor, nn

from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.optim import AdaBreg, BregmanOptimizer, FeedbackController, LinBreg, QuantileController, partition

PEER = "torch Adam fused"
CONTROLLED = "AdaBreg with control and count"
CONTROL = "FeedbackController alone"
LINBREG = "LinBreg momentum 0.9"
FALLBACK = "AdaBreg foreach"
ENDLESS = 10**6  # updates: the controllers never settle here
AT_ONCE: dict[str, Any] = {"ramp": None, "initial_sparsity": 0.99}  # work as in the middle of a run
Step = Callable[[], object]


class TensorLoop:
    """AdaBreg as papers publish it: a loop over tensors, a new tensor per operation."""

    def __init__(self, params: Sequence[Tensor], lr: float, lambda_: float = 0.1) -> None:
        self.lr, self.lambda_, self.steps = lr, lambda_, 0
        self.params = params
        self.sub_grads = [param.detach() + lambda_ * param.detach().sign() for param in params]
        self.exp_avgs = [torch.zeros_like(param) for param in params]
        self.exp_avg_sqs = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        self.steps += 1
        size = self.lr / (1 - 0.9**self.steps)
        correction = 1 - 0.999**self.steps
        for param, sub_grad, exp_avg, exp_avg_sq in zip(
            self.params, self.sub_grads, self.exp_avgs, self.exp_avg_sqs, strict=True
        ):
            exp_avg.mul_(0.9).add_(param.grad, alpha=0.1)
            exp_avg_sq.mul_(0.999).addcmul_(param.grad, param.grad, value=0.001)
            denominator = (exp_avg_sq.sqrt() / correction**0.5).add_(1e-8)
            sub_grad.add_(-size * torch.div(exp_avg, denominator))
            param.data = torch.sign(sub_grad) * torch.clamp(torch.abs(sub_grad) - self.lambda_, min=0)

    def count(self) -> int:
        """Zeros, tensor by tensor."""
        return sum(int((param.abs() <= 1e-12).sum().item()) for param in self.params)


def together(first: Step, second: Step) -> Step:
    """One after the other."""

    def both() -> None:
        first()
        second()

    return both


def synchronized(step: Step) -> Step:
    """The step, with the device's work done."""
    return together(step, torch.cuda.synchronize)


def network(device: str) -> nn.Module:
    """A network with gradients."""
    model = ECAPA().to(device)
    for param in model.parameters():
        param.grad = 1e-3 * torch.randn_like(param)
    return model


def torch_rows(device: str) -> dict[str, Step]:
    """The peers."""

    def params() -> list[nn.Parameter]:
        return list(network(device).parameters())

    rows: dict[str, Step] = {
        PEER: torch.optim.Adam(params(), lr=1e-4, fused=True).step,
        "torch Adam foreach": torch.optim.Adam(params(), lr=1e-4, foreach=True).step,
    }
    if device == "cuda":
        rows["torch AdamW fused"] = torch.optim.AdamW(params(), lr=1e-4, fused=True).step
    loop, counted = TensorLoop(params(), 1e-4), TensorLoop(params(), 1e-4)
    rows["AdaBreg per-tensor loop"] = loop.step
    rows["AdaBreg per-tensor loop with its count"] = together(counted.step, counted.count)
    return rows


def our_rows(device: str) -> dict[str, Step]:
    """The optimizers of this package, and their controllers."""

    def start(kind: type[BregmanOptimizer], **settings: object) -> BregmanOptimizer:
        return kind(partition(network(device)), lr=1e-4, **settings)

    controlled, exact = start(AdaBreg), start(AdaBreg)
    controller = FeedbackController(controlled, 0.9, ENDLESS, **AT_ONCE)
    exact.step()
    return {
        "AdaBreg": start(AdaBreg).step,
        CONTROLLED: together(controlled.step, controller.step),
        CONTROL: controller.step,
        LINBREG: start(LinBreg, momentum=0.9).step,
        "LinBreg": start(LinBreg).step,
        FALLBACK: start(AdaBreg, implementation="foreach").step,
        "QuantileController alone": QuantileController(exact, 0.9, ENDLESS, **AT_ONCE).step,
    }


def targets(ratios: dict[str, float], share: float) -> dict[str, dict[str, float | bool]]:
    """What was wanted, what was found, whether it is met."""
    wanted = {
        CONTROLLED: (1.15, ratios[CONTROLLED]),
        LINBREG: (1.0, ratios[LINBREG]),
        FALLBACK: (3.3, ratios[FALLBACK]),
        "share of control": (0.15, share),
    }
    return {
        name: {"at_most": most, "found": round(found, 4), "met": found <= most}
        for name, (most, found) in wanted.items()
    }


def main() -> None:
    """Print a row per optimizer and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = torch_rows(device) | our_rows(device)
    if device == "cuda":
        rows = {name: synchronized(step) for name, step in rows.items()}
    found = medians(rows, chosen.rounds)
    size = sum(param.numel() for param in ECAPA().parameters())
    ratios = {name: seconds / found[PEER] for name, seconds in found.items()}
    share = found[CONTROL] / found[CONTROLLED]
    print(
        f"torch {torch.__version__}, {device}, {chosen.threads} threads, median of {chosen.rounds} interleaved rounds"
    )
    for name, seconds in found.items():
        nanoseconds = 1e9 * seconds / size
        print(f"{name:38} {1e3 * seconds:8.2f} ms {nanoseconds:6.3f} ns/parameter {ratios[name]:6.3f} x fused Adam")
    print(f"the controller's share of the step: {100 * share:.1f} % (zeros are counted within the optimizer's step)")
    figures = {
        "benchmark": "optimizer",
        "device": device,
        "threads": chosen.threads,
        "ratios": {name: round(ratio, 4) for name, ratio in ratios.items()},
        "share_of_control": round(share, 4),
        "targets": targets(ratios, share),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
