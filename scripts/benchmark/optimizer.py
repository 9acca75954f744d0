"""One update of ECAPA-TDNN's 14.66 M parameters: our optimizers and controllers against torch's fused Adam.

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
from sv_sparse.optim import AdaBreg, BregmanOptimizer, FeedbackController, LinBreg, QuantileController, param_groups

PEER = "torch Adam fused"
CONTROLLED = "AdaBreg with control and count"
CONTROL = "FeedbackController alone"
LINBREG = "LinBreg momentum 0.9"
FALLBACK = "AdaBreg foreach"
TOTAL_STEPS = 10**6  # so that the controllers never freeze here
# the controllers work as in the middle of a run
WITHOUT_RAMP: dict[str, Any] = {"ramp_start": None, "ramp_end": None, "initial_sparsity": 0.99}
MAX_RATIOS = {CONTROLLED: 1.15, LINBREG: 1.0, FALLBACK: 3.3}  # of torch's fused Adam
MAX_CONTROL_FRACTION = 0.15  # of the step with control

Step = Callable[[], object]


class TensorLoop:
    """AdaBreg as papers publish it: a loop over tensors, a new tensor for each operation."""

    def __init__(self, params: Sequence[Tensor], lr: float, lambda_: float = 0.1) -> None:
        self.params = params
        self.lr = lr
        self.lambda_ = lambda_
        self.steps = 0
        self.sub_grads = [param.detach() + lambda_ * param.detach().sign() for param in params]
        self.exp_avgs = [torch.zeros_like(param) for param in params]
        self.exp_avg_sqs = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def step(self) -> None:
        """Make one update."""
        self.steps += 1
        size = self.lr / (1 - 0.9**self.steps)
        correction = 1 - 0.999**self.steps
        for param, sub_grad, exp_avg, exp_avg_sq in zip(
            self.params, self.sub_grads, self.exp_avgs, self.exp_avg_sqs, strict=True
        ):
            assert param.grad is not None
            exp_avg.mul_(0.9).add_(param.grad, alpha=0.1)
            exp_avg_sq.mul_(0.999).addcmul_(param.grad, param.grad, value=0.001)
            denominator = (exp_avg_sq.sqrt() / correction**0.5).add_(1e-8)
            sub_grad.add_(-size * torch.div(exp_avg, denominator))
            param.data = torch.sign(sub_grad) * torch.clamp(torch.abs(sub_grad) - self.lambda_, min=0)

    def count_zeros(self) -> int:
        """Count zeros, tensor by tensor."""
        return sum(int((param.abs() <= 1e-12).sum().item()) for param in self.params)


def in_sequence(first: Step, second: Step) -> Step:
    """Return a step that makes two, one after the other."""

    def both() -> None:
        first()
        second()

    return both


def network_with_gradients(device: str) -> nn.Module:
    """Return a network of its own."""
    network = ECAPA().to(device)
    for param in network.parameters():
        param.grad = 1e-3 * torch.randn_like(param)
    return network


def torch_rows(device: str) -> dict[str, Step]:
    """Return the steps of torch's optimizers, and of the loop over tensors."""

    def params() -> list[nn.Parameter]:
        return list(network_with_gradients(device).parameters())

    rows: dict[str, Step] = {
        PEER: torch.optim.Adam(params(), lr=1e-4, fused=True).step,
        "torch Adam foreach": torch.optim.Adam(params(), lr=1e-4, foreach=True).step,
    }
    if device == "cuda":
        rows["torch AdamW fused"] = torch.optim.AdamW(params(), lr=1e-4, fused=True).step
    loop = TensorLoop(params(), 1e-4)
    counting_loop = TensorLoop(params(), 1e-4)
    rows["AdaBreg per-tensor loop"] = loop.step
    rows["AdaBreg per-tensor loop with its count"] = in_sequence(counting_loop.step, counting_loop.count_zeros)
    return rows


def our_rows(device: str) -> dict[str, Step]:
    """Return the steps of this package's optimizers and controllers."""

    def build(optimizer: Callable[..., BregmanOptimizer], **settings: object) -> BregmanOptimizer:
        return optimizer(param_groups(network_with_gradients(device)), lr=1e-4, **settings)

    controlled = build(AdaBreg)
    controller = FeedbackController(controlled, 0.9, TOTAL_STEPS, **WITHOUT_RAMP)
    with_quantile = build(AdaBreg)
    with_quantile.step()
    return {
        "AdaBreg": build(AdaBreg).step,
        CONTROLLED: in_sequence(controlled.step, controller.step),
        CONTROL: controller.step,
        LINBREG: build(LinBreg, momentum=0.9).step,
        "LinBreg": build(LinBreg).step,
        FALLBACK: build(AdaBreg, backend="foreach").step,
        "QuantileController alone": QuantileController(with_quantile, 0.9, TOTAL_STEPS, **WITHOUT_RAMP).step,
    }


def compare_with_targets(ratios: dict[str, float], control_fraction: float) -> dict[str, dict[str, float | bool]]:
    """Return each target with the measured value and whether it is met."""
    measured = {name: ratios[name] for name in MAX_RATIOS} | {"share of control": control_fraction}
    limits = MAX_RATIOS | {"share of control": MAX_CONTROL_FRACTION}
    targets: dict[str, dict[str, float | bool]] = {}
    for name, limit in limits.items():
        targets[name] = {"at_most": limit, "measured": round(measured[name], 4), "met": measured[name] <= limit}
    return targets


def main() -> None:
    """Print a row for each optimizer and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = torch_rows(device) | our_rows(device)
    if device == "cuda":
        rows = {name: in_sequence(step, torch.cuda.synchronize) for name, step in rows.items()}
    seconds = medians(rows, args.rounds)
    size = sum(param.numel() for param in ECAPA().parameters())
    ratios = {name: value / seconds[PEER] for name, value in seconds.items()}
    control_fraction = seconds[CONTROL] / seconds[CONTROLLED]
    print(f"torch {torch.__version__}, {device}, {args.threads} threads, median of {args.rounds} interleaved rounds")
    for name, value in seconds.items():
        nanoseconds = 1e9 * value / size
        print(f"{name:38} {1e3 * value:8.2f} ms {nanoseconds:6.3f} ns/parameter {ratios[name]:6.3f} x fused Adam")
    print(
        f"the controller takes {100 * control_fraction:.1f} % of the step "
        "(zeros are counted within the optimizer's step)"
    )
    figures = {
        "benchmark": "optimizer",
        "device": device,
        "threads": args.threads,
        "ratios": {name: round(ratio, 4) for name, ratio in ratios.items()},
        "share_of_control": round(control_fraction, 4),
        "targets": compare_with_targets(ratios, control_fraction),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
