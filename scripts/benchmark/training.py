"""Measure training steps from crops to the update, beside SpeechBrain's and the machine's rate of multiplication.

Every case gets the same 16-bit crops. Ours is the step of sv_sparse/training/trainer.py: features, forward, loss,
backward, clipping, AdaBreg, controller. ``SpeechBrain`` is its recipe's: Fbank, sentence normalization, ECAPA_TDNN,
classifier, angular-margin loss, backward, clipping, torch's Adam. They are compared on the variant that both have,
C=1024 and MFA 3072. The other networks are rated by the multiplications of their convolutions and linear layers (2
operations each, three times those of the forward pass) against the best rate of torch's matrix products at these shapes
in this run.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from interleaved import medians
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sv_sparse.data.augment_ops import AugmentOnDevice
from sv_sparse.data.torchaudio_guard import torchaudio  # noqa: F401  # lets speechbrain import it
from sv_sparse.models.campplus import CAMPlusPlus
from sv_sparse.models.cpu_kernels import accelerate
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.features import Filterbank, crop_samples
from sv_sparse.models.heads import AAMSoftmax
from sv_sparse.models.resnet import ResNet34
from sv_sparse.optim import (
    DENSE_TYPES,
    AdaBreg,
    FeedbackController,
    clip_grad_norm_,
    param_groups,
    sparse_init_,
)

SPEAKERS = 1000
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ECAPA-1024": ECAPA,
    "ECAPA-512": partial(ECAPA, channels=512),
    "CAM++": CAMPlusPlus,
    "ResNet34": ResNet34,
}
SHARED = "ECAPA-1024, MFA 3072"
Device = torch.device


def autocast(device: Device, bf16: bool) -> AbstractContextManager[object]:
    """Return the context of mixed precision, or of none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


class OurStep:
    """Our training step, and its bare forward and backward passes.

    Args:
        network: the network.
        batch: 16-bit crops [B, S] and labels [B].
        bf16: compute in bfloat16 where autocast allows it.
        compiled: use torch.compile.
    """

    def __init__(self, network: nn.Module, batch: tuple[Tensor, Tensor], *, bf16: bool, compiled: bool) -> None:
        self.crops, self.labels = batch
        self.device, self.bf16 = self.crops.device, bf16
        self.network = network.to(self.device)
        self.head = AAMSoftmax(network.embedding_dim, SPEAKERS).to(self.device)  # type: ignore[arg-type]
        self.mixer, self.filterbank = AugmentOnDevice(self.crops.shape[1]), Filterbank().to(self.device)
        if not compiled:
            accelerate(self.network)  # as the training setup does
        network_param_groups = param_groups(network)
        head_groups = param_groups(self.head, dense_types=(*DENSE_TYPES, AAMSoftmax))
        sparse_init_(network_param_groups)
        self.optimizer = AdaBreg([*network_param_groups, *(group | {"name": "head"} for group in head_groups)], lr=1e-3)
        self.controller = FeedbackController(self.optimizer, 0.9, 10_000)
        self.params = [param for group in self.optimizer.param_groups for param in group["params"]]
        self.called = torch.compile(self.network) if compiled else self.network
        self.features = self.filterbank(self.mixer(self.crops, None))

    def passes(self, features: Tensor) -> Tensor:
        """Run forward and backward; return the loss."""
        for param in self.params:
            param.grad = None
        with autocast(self.device, self.bf16):
            embedding = self.called(features)
        loss, _ = self.head(embedding, self.labels)
        loss.backward()
        return loss.detach()

    def bare(self) -> None:
        """Run forward and backward on features that are computed already."""
        self.passes(self.features)
        wait(self.device)

    def step(self) -> None:
        """Do all that the trainer does for a batch."""
        loss = self.passes(self.filterbank(self.mixer(self.crops, None)))
        norm = clip_grad_norm_(self.params, 1.0, sparse_params=self.controller.params)
        torch.stack([loss, norm]).tolist()
        self.optimizer.step()
        self.controller.step()
        wait(self.device)


class SpeechBrainStep:
    """The training step of SpeechBrain's VoxCeleb recipe."""

    def __init__(self, batch: tuple[Tensor, Tensor], *, bf16: bool) -> None:
        from speechbrain.lobes.features import Fbank  # noqa: PLC0415  # after torchaudio
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier  # noqa: PLC0415
        from speechbrain.nnet.losses import AdditiveAngularMargin, LogSoftmaxWrapper  # noqa: PLC0415
        from speechbrain.processing.features import InputNormalization  # noqa: PLC0415

        crops, labels = batch
        self.device, self.bf16 = crops.device, bf16
        self.waveforms, self.labels = crops / 32768, labels[:, None]
        self.lengths = torch.ones(len(crops), device=self.device)
        self.features = Fbank(n_mels=80).to(self.device)
        self.normalize = InputNormalization(norm_type="sentence", std_norm=False).to(self.device)
        self.network = ECAPA_TDNN(80, channels=[1024] * 4 + [3072], lin_neurons=192).to(self.device)
        self.classifier = Classifier(192, out_neurons=SPEAKERS).to(self.device)
        self.loss = LogSoftmaxWrapper(AdditiveAngularMargin(margin=0.2, scale=30))
        self.params = [*self.network.parameters(), *self.classifier.parameters()]
        self.optimizer = torch.optim.Adam(self.params, lr=1e-3)

    def step(self) -> None:
        """Make one update."""
        self.optimizer.zero_grad()
        with torch.no_grad():
            features = self.normalize(self.features(self.waveforms), self.lengths)
        with autocast(self.device, self.bf16):
            outputs = self.classifier(self.network(features, self.lengths))
        loss = self.loss(outputs.float(), self.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 5.0)
        loss.item()
        self.optimizer.step()
        wait(self.device)


def wait(device: Device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def products(frames: int, device: Device) -> dict[str, tuple[Callable[[], object], float]]:
    """Return matrix products at the networks' shapes, with their operations in units of 1e9."""
    cases: dict[str, tuple[Callable[[], object], float]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for inner, outer in ((512, 512), (1024, 1024), (3072, 1536)):
            x, weight = (torch.randn(shape, device=device).to(dtype) for shape in ((frames, inner), (outer, inner)))

            def multiply(x: Tensor = x, weight: Tensor = weight) -> None:
                torch.mm(x, weight.T)
                wait(device)

            cases[f"{name} product {inner} x {outer}"] = multiply, 2e-9 * frames * inner * outer
    return cases


def operations(network: nn.Module, frames: int, batch: int) -> float:
    """Count the operations of a training step's convolutions and linear layers, in units of 1e9."""
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 80, frames, device=next(network.parameters()).device))
    network.train()
    return 3e-9 * batch * counter.get_total_flops()


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="crops in a batch")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a crop")
    parser.add_argument("--rounds", type=int, default=5, help="times that each case is run")
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true", help="torch.compile our networks")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"], help="to compare")
    return parser.parse_args()


def make_steps(args: argparse.Namespace, batch: tuple[Tensor, Tensor]) -> dict[str, OurStep | SpeechBrainStep]:
    """Make a step for each network and precision."""
    steps: dict[str, OurStep | SpeechBrainStep] = {}
    for precision in args.precision:
        bf16 = precision == "bf16"
        network = ECAPA(mfa_channels=3072, layout="speechbrain")
        steps[f"SpeechBrain {precision}"] = SpeechBrainStep(batch, bf16=bf16)
        steps[f"{SHARED} {precision}"] = OurStep(network, batch, bf16=bf16, compiled=args.compile)
    for name, make in NETWORKS.items():
        steps[f"{name} bf16"] = OurStep(make(), batch, bf16=True, compiled=args.compile)
    return steps


def report(
    args: argparse.Namespace, steps: dict[str, OurStep | SpeechBrainStep], seconds: dict[str, float], frames: int
) -> dict[str, float]:
    """Print a row for each step; return the ratios."""
    best = {}
    for precision in ("fp32", "bf16"):
        rates = {
            name: work / seconds[name]
            for name, (_, work) in products(frames * args.batch, Device("meta")).items()
            if name.startswith(precision)
        }
        name = max(rates, key=lambda each: rates[each])
        best[precision] = rates[name]
        print(f"{name}: {rates[name]:.0f} GFLOP/s")
    ratios = {}
    for name, step in steps.items():
        precision = name.split()[-1]
        rate = operations(step.network, frames, args.batch) / seconds[name] if isinstance(step, OurStep) else 0.0
        words = f"{name:28} {1000 * seconds[name]:8.1f} ms {args.batch / seconds[name]:8.1f} utterances/s"
        if isinstance(step, OurStep):
            ratios[f"{name}: share of product rate"] = rate / best[precision]
            ratios[f"{name}: overhead"] = seconds[name] / seconds[f"{name} bare"] - 1
            words += f"  {rate:6.0f} GFLOP/s, {100 * rate / best[precision]:.1f} % of products"
            words += f"  {100 * ratios[f'{name}: overhead']:.1f} % over forward and backward"
        print(words)
    for precision in args.precision:
        ratio = seconds[f"SpeechBrain {precision}"] / seconds[f"{SHARED} {precision}"]
        ratios[f"{precision}: speed over SpeechBrain"] = ratio
        print(f"{SHARED} {precision}: {ratio:.2f} times SpeechBrain")
    return ratios


def main() -> None:
    """Run all cases in turn and print the table."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = Device(args.device)
    samples = crop_samples(args.seconds)
    crops = torch.randint(-8000, 8000, (args.batch, samples), dtype=torch.int16, device=device)
    batch = crops, torch.randint(SPEAKERS, (args.batch,), device=device)
    steps = make_steps(args, batch)
    frames = round(100 * args.seconds)
    cases: dict[str, Callable[[], object]] = {name: step.step for name, step in steps.items()}
    cases |= {f"{name} bare": step.bare for name, step in steps.items() if isinstance(step, OurStep)}
    cases |= {name: multiply for name, (multiply, _) in products(frames * args.batch, device).items()}
    seconds = medians(cases, args.rounds)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, batch {args.batch}, {args.seconds:g} s")
    ratios = {name: round(ratio, 4) for name, ratio in report(args, steps, seconds, frames).items()}
    if device.type == "cuda":
        print(f"peak memory of all cases together: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    print(json.dumps({"benchmark": "training", "device": where, "threads": torch.get_num_threads(), "ratios": ratios}))


if __name__ == "__main__":
    main()
