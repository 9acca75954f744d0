"""One update of ECAPA-TDNN's 14.66 M parameters: ours against torch's fused Adam, with and without the controller."""

import argparse

import torch
from interleaved import medians

from sv_sparse.models.ecapa import ECAPA
from sv_sparse.optim import AdaBreg, FeedbackController, LinBreg, partition


def main() -> None:
    """Print a row per optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    models = {name: ECAPA() for name in ("Adam", "AdaBreg", "LinBreg", "controlled")}
    for model in models.values():
        for param in model.parameters():
            param.grad = 1e-3 * torch.randn_like(param)
    controlled = AdaBreg(partition(models["controlled"]), lr=1e-4)
    controller = FeedbackController(controlled, 0.9, 1_000)

    def step_and_control() -> None:
        controlled.step()
        controller.step()

    found = medians(
        {
            "torch.optim.Adam(fused=True)": torch.optim.Adam(models["Adam"].parameters(), lr=1e-4, fused=True).step,
            "LinBreg(momentum=0.9)": LinBreg(partition(models["LinBreg"]), lr=1e-4, momentum=0.9).step,
            "AdaBreg": AdaBreg(partition(models["AdaBreg"]), lr=1e-4).step,
            "AdaBreg and FeedbackController": step_and_control,
        },
        chosen.rounds,
    )
    peer = found["torch.optim.Adam(fused=True)"]
    print(f"torch {torch.__version__}, {chosen.threads} threads, median of {chosen.rounds} rounds")
    for name, seconds in found.items():
        print(f"{name:30} {1000 * seconds:7.1f} ms  {seconds / peer:5.2f} x fused Adam")


if __name__ == "__main__":
    main()
