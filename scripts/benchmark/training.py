"""Forward and backward of ECAPA-TDNN on 2 s crops: ours against SpeechBrain's, the same widths, fp32 and bf16."""

import argparse
import json
from collections.abc import Callable
from functools import partial

import torch
from interleaved import medians
from torch import Tensor, nn

from sv_sparse.models.ecapa import ECAPA
from sv_sparse.torchaudio_guard import torchaudio  # noqa: F401  # lets speechbrain import it


def step(model: nn.Module, x: Tensor, bf16: bool) -> None:
    """One forward and backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(x)
    output.float().square().sum().backward()


def main() -> None:
    """Print a row per model and precision."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN  # noqa: PLC0415  # after torchaudio

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    x = torch.randn(chosen.batch, 80, 200)
    theirs = ECAPA_TDNN(80, channels=[chosen.channels] * 4 + [3072], lin_neurons=192)
    ours = ECAPA(channels=chosen.channels, mfa_channels=3072, layout="speechbrain")
    cases: dict[str, Callable[[], None]] = {}
    for precision in ("fp32", "bf16"):
        cases[f"SpeechBrain {precision}"] = partial(step, theirs, x.transpose(1, 2).contiguous(), precision == "bf16")
        cases[f"ours {precision}"] = partial(step, ours, x, precision == "bf16")
    found = medians(cases, chosen.rounds)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, channels {chosen.channels}, MFA 3072")
    ratios = {name: found["SpeechBrain " + name.split()[-1]] / seconds for name, seconds in found.items()}
    for name, seconds in found.items():
        print(f"{name:18} {chosen.batch / seconds:6.1f} utterances/s  {ratios[name]:5.2f} x SpeechBrain")
    rounded = {name: round(ratio, 4) for name, ratio in ratios.items()}
    print(json.dumps({"benchmark": "training", "threads": torch.get_num_threads(), "ratios": rounded}))


if __name__ == "__main__":
    main()
