"""Check on a CUDA GPU what could not be checked without one; the end is a table for an issue.

Each section makes rows of the table; one that fails says why in its row, and the others go on:

- ``method``: optimizers, penalties and controllers compute what they compute on the CPU, in float64.
- ``networks``: features, augmentation, and each network's loss and gradient are those of the CPU.
- ``waits``: a training step does not wait for the GPU unless it is logged; a logged one waits once.
- ``precision``: bf16 and fp16 learn what fp32 learns.
- ``compile``: so does what torch.compile makes of a step, which is compiled once.
- ``processes``: two processes over NCCL, on two GPUs, end as one process does.
- ``speed``: utterances per second against SpeechBrain; the optimizer against torch's fused Adam.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optimizer
import soundfile
import torch
import training
from interleaved import medians
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sv_sparse.config.overrides import parse_command_line
from sv_sparse.config.schema import Config, load_config
from sv_sparse.data.augment import Augmentation
from sv_sparse.data.augment_ops import AugmentOnDevice, mask_filterbank
from sv_sparse.data.dataset import Batch
from sv_sparse.data.noise import NOISE_KINDS, build_noise_store
from sv_sparse.evaluation.corpus import load_corpus
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.features import FEATURES, MEL_BINS, build_features, crop_samples
from sv_sparse.models.heads import AAMSoftmax
from sv_sparse.models.registry import build_model
from sv_sparse.optim import (
    AdaBreg,
    FeedbackController,
    GradualMagnitudePruning,
    LinBreg,
    ProxSGD,
    QuantileController,
    clip_grad_norm_,
    param_groups,
)
from sv_sparse.optim.bregman_optimizer import BACKENDS, BregmanOptimizer
from sv_sparse.optim.controllers.base import Controller
from sv_sparse.training.logging import read_rows
from sv_sparse.training.setup import TrainingSetup, build_setup
from sv_sparse.training.trainer import Trainer, reduce_batch_info

ROOT = Path(__file__).parents[2]
RATE = 16000
OK, FAILED, NEEDS = "ok", "FAILED", "not run"
SMALL = {
    "ecapa": ("channels=64", "mfa_channels=96", "attention_channels=16", "se_channels=16"),
    "resnet34": ("base_channels=16",),
    "se_resnet": ("channels=[16,16,32,32]", "attention_channels=16"),
}
MODELS = ("ecapa", "ecapa_speechbrain", "resnet34", "se_resnet")
# Calls of the CUDA runtime that wait; cudaDeviceSynchronize is called by the profiler itself.
_WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy", "Memcpy DtoH")


class Row(NamedTuple):
    """One line of the table."""

    check: str
    result: str
    detail: str


class Options(NamedTuple):
    """Settings of the sections.

    Attributes:
        device: where to compute.
        quick: fewer cases and repeats.
        folder: where files may be written.
    """

    device: torch.device
    quick: bool
    folder: Path


def row(check: str, passed: bool, detail: str) -> Row:
    """A line that says whether a check has passed."""
    return Row(check, OK if passed else FAILED, detail)


def needs_cuda(check: str) -> Row:
    """A line for what only a GPU can show."""
    return Row(check, NEEDS, "needs CUDA")


def method(options: Options) -> Iterator[Row]:
    """Compare weights after some steps with the CPU's, in float64: none is at the threshold there."""
    optimizers: dict[str, Callable[..., BregmanOptimizer]] = {
        "AdaBreg": partial(AdaBreg, lr=0.01, weight_decay=0.01),
        "LinBreg": partial(LinBreg, lr=0.05, momentum=0.9, nesterov=True),
        "ProxSGD": partial(ProxSGD, lr=0.05),
    }
    controllers: dict[str, Callable[..., Controller]] = {
        "l1": QuantileController,
        "group": FeedbackController,
        "none": GradualMagnitudePruning,
    }
    ways = [way for way in ("auto", "foreach") if way in BACKENDS]
    for name, (penalty, controller) in product(optimizers, controllers.items()):
        if name == "ProxSGD":
            if penalty == "none":
                continue
            controller = FeedbackController  # noqa: PLW2901  # it has no duals to order
        for way in [None] if name == "ProxSGD" else ways:
            optimizer_class = optimizers[name]
            on_cpu = optimizers[name]
            if way is not None:
                optimizer_class = partial(optimizer_class, backend=way)
                on_cpu = partial(on_cpu, backend="foreach")
            here = _moved(optimizer_class, penalty, controller, options.device)
            there = _moved(on_cpu, penalty, controller, torch.device("cpu"))
            apart = max(float((a.cpu() - b).abs().max()) for a, b in zip(here, there, strict=True))
            same = all(torch.equal(a.cpu() == 0, b == 0) for a, b in zip(here, there, strict=True))
            words = f"largest difference {apart:.1e}, zeros {'equal' if same else 'DIFFER'}"
            yield row(f"{name}, {penalty}, {way or 'foreach'}", same and apart < 1e-9, words)


def _moved(
    make: Callable[..., BregmanOptimizer], penalty: str, controller: Callable[..., Controller], device: torch.device
) -> list[Tensor]:
    """Return the weights of a small network after twelve steps on drawn gradients, and finalize()."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(8, 32, 3), nn.BatchNorm1d(32), nn.Conv1d(32, 16, 5)).double().to(device)
    bregman = make(param_groups(model, penalty=penalty), lambda_init=0.05)
    settings = {"ramp_start": None, "ramp_end": None} if controller is GradualMagnitudePruning else {}
    control = controller(bregman, 0.6, 12, **settings)
    draw = torch.Generator().manual_seed(1)
    for _ in range(12):
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=draw, dtype=param.dtype).to(device)
        clip_grad_norm_(model.parameters(), 1.0, sparse_params=control.params, backend="foreach")
        bregman.step()
        control.step()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "finaliz")  # a baseline that cannot reach its target says so
        control.finalize()
    return [param.detach() for param in model.parameters()]


def networks(options: Options) -> Iterator[Row]:
    """Features, augmentation and networks, against the CPU; float32 without TF32."""
    device, cpu = options.device, torch.device("cpu")
    with _exact_products():
        augmentation = _augmentation(options.folder)
        plans = [augmentation.sample(0, 0, f"utterance{number}") for number in range(16)]
        crop = crop_samples(1.0)
        longest = max(augmentation.num_input_samples(plan, crop) for plan in plans)
        waveforms = torch.randint(-9000, 9000, (16, longest), generator=_draw(), dtype=torch.int16)
        extras = augmentation.collate(plans, crop)
        mixer = AugmentOnDevice(crop, augmentation.speeds)
        mixed = [mixer(waveforms.to(where), extras.to(where)) for where in (device, cpu)]
        yield _compared("augmentation (speed, rooms, noise)", mixed[0], mixed[1], 1e-3)
        # The last are those of the networks below.
        for kind in FEATURES:
            banks = [build_features(kind).to(where)(mixed[1].to(where)) for where in (device, cpu)]
            yield _compared(f"features {kind}", banks[0], banks[1], 1e-3)
        masked = [mask_filterbank(banks[1].to(where), extras.mask.to(where)) for where in (device, cpu)]
        yield _compared("masks", masked[0], masked[1], 0.0)
        for name in MODELS:
            losses, grads = zip(*(_gradients(name, banks[1], where) for where in (device, cpu)), strict=True)
            yield _compared(f"{name}: loss", losses[0], losses[1], 1e-3)
            yield _compared(f"{name}: gradient", grads[0], grads[1], 1e-2)


def _gradients(name: str, features: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Loss of a narrow network, and its gradient as a whole."""
    torch.manual_seed(0)
    network = build_model(_config(f"model={name}", *_narrow(name)).model_settings, MEL_BINS)
    head = AAMSoftmax(network.embedding_dim, 8)
    nn.ModuleList([network, head]).to(device)
    loss, _ = head(network(features.to(device)), torch.arange(len(features), device=device) % 8)
    loss.backward()
    return loss.detach(), torch.cat([param.grad.flatten() for param in network.parameters()])


def _compared(check: str, here: Tensor, there: Tensor, most: float) -> Row:
    """A line for a tensor of the device and one of the CPU."""
    apart = float((here.detach().cpu() - there.detach()).norm() / there.detach().norm().clamp(min=1e-12))
    return row(check, apart <= most, f"relative difference {apart:.1e}, at most {most:g}")


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of matrices in all digits of float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def waits(options: Options) -> Iterator[Row]:
    """Waits of the host in training steps, as torch's sync debug mode and its profiler see them."""
    _augmentation(options.folder)
    for title, words in {
        "feedback": [],
        "quantile": ["sparsity=quantile"],
        "augmented": [
            "augment=musan_rirs_speed",
            f"augment.noise_dir={options.folder / 'store'}",
            "augment.aug_prob=0.9",
        ],
        "bf16": ["trainer.precision=bf16"],
    }.items():
        counts, places = _waits_of_steps(options, words)
        if options.device.type != "cuda":
            yield needs_cuda(f"waits in a step, {title}")
            continue
        passed = counts == {"logged": 1, "other": 0}
        words_ = f"sync debug mode: {counts['other']} in steps that are not logged, {counts['logged']} in a logged one"
        yield row(f"waits in a step, {title}", passed, f"{words_} {places if not passed else ''}".strip())
    yield _profiled_waits(options)


def _waits_of_steps(options: Options, words: list[str]) -> tuple[dict[str, int], str]:
    """Train some steps after others that are not counted; how often the host waited, and where."""
    counts, places = {"logged": 0, "other": 0}, Counter[str]()
    with _training(options, *words, "trainer.log_interval=3") as step:
        for number in range(1, 7):
            with _sync_debug_mode(options.device) as messages:
                step()
            if number > 3:
                counts["logged" if number % 3 == 0 else "other"] += len(messages)
                places.update(f"{Path(each.filename).name}:{each.lineno}" for each in messages)
    return counts, ", ".join(f"{place} x {count}" for place, count in places.most_common(5))


@contextmanager
def _sync_debug_mode(device: torch.device) -> Iterator[list[warnings.WarningMessage]]:
    """Inside, each wait for the GPU is a warning in the list."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        messages: list[warnings.WarningMessage] = []
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield messages
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            messages += [warning for warning in caught if "synchronizing CUDA operation" in str(warning.message)]


def _profiled_waits(options: Options) -> Row:
    """Waits that torch's profiler counts in three steps that are not logged."""
    check = "waits in three steps by the profiler"
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (options.device.type == "cuda")]
    with _training(options, "trainer.log_interval=100") as step:
        for _ in range(3):
            step()
        with profile(activities=activities) as profiler:
            for _ in range(3):
                step()
    if options.device.type != "cuda":
        return needs_cuda(check)
    events = profiler.key_averages()
    counts = {event.key: event.count for event in events if event.key.partition(" (")[0] in _WAITS}
    return row(check, not counts, json.dumps(counts) if counts else "none")


def precision(options: Options) -> Iterator[Row]:
    """Compare losses in bf16 with those in fp32; in fp16, whose first steps overflow, they fall."""
    plain = _losses(options, "trainer.precision=fp32")
    yield _alike("training in bf16", _losses(options, "trainer.precision=bf16"), plain, 0.1)
    losses = _losses(options, "trainer.precision=fp16")
    fallen = bool(np.isfinite(losses).all()) and losses[-1] < 0.8 * losses[0]
    yield row("training in fp16", fallen, f"loss from {losses[0]:.4f} to {losses[-1]:.4f}, fp32 {plain[-1]:.4f}")


def compile_(options: Options) -> Iterator[Row]:
    """Compare losses of compiled steps with those of plain ones, and count what is compiled late."""
    plain = _losses(options)
    ways = [["trainer.compile=true"], ["trainer.compile=true", "optim.backend=compile"]]
    for words in ways[:1] if options.quick else ways:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        start_time = time.perf_counter()
        graphs: list[int] = []
        losses = _losses(options, *words, after=lambda: graphs.append(_graphs()))  # noqa: B023  # called in this turn
        yield _alike(" ".join(words), losses, plain, 0.02, f", {time.perf_counter() - start_time:.0f} s")
        again = graphs[-1] - graphs[2]
        detail = f"{again} times; once is right, where the margin begins to rise"
        yield row(f"{' '.join(words)}: compiled again after the third step", again <= 1, detail)


def _graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _losses(options: Options, *words: str, after: Callable[[], object] = lambda: None) -> list[float]:
    """The loss of each of some steps."""
    with _training(options, *words, "trainer.log_interval=1") as step:
        for _ in range(20):
            step()
            after()
        folder = step.folder
    return [line["loss"] for line in read_rows(folder / "metrics.jsonl") if "loss" in line]


def _alike(check: str, here: list[float], there: list[float], most: float, detail: str = "") -> Row:
    """A line for the losses of the first steps of two runs, compared beside the first loss."""
    apart = max(abs(a - b) for a, b in zip(here[:6], there[:6], strict=True)) / there[0]
    words = f"loss of step 6 {here[5]:.4f}, expected {there[5]:.4f}, apart by at most {apart:.2%}, allowed {most:.0%}"
    return row(check, bool(np.isfinite(here).all()) and apart <= most, words + detail)


def processes(options: Options) -> Iterator[Row]:
    """A run by torchrun in two processes beside one in one process."""
    check = "two processes over NCCL" if options.device.type == "cuda" else "two processes over gloo"
    if options.device.type == "cuda" and torch.cuda.device_count() < 2:
        yield Row(check, NEEDS, f"needs two GPUs, found {torch.cuda.device_count()}")
        return
    results = {}
    for count in (1, 2):
        folder = options.folder / f"processes{count}"
        launch = [
            "torch.distributed.run",
            f"--nproc-per-node={count}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0",
        ]
        command = [sys.executable, "-m", *launch, str(ROOT / "train.py"), *_words(options), f"run_dir={folder}"]
        done = subprocess.run(
            [*command, "trainer.epochs=1", "trainer.max_steps=6", "trainer.log_interval=1"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=os.environ | {"TQDM_DISABLE": "1"},
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            yield Row(check, FAILED, f"{count} processes: {lines[-1] if lines else 'no message'}")
            return
        losses = [line["loss"] for line in read_rows(folder / "metrics.jsonl") if "loss" in line]
        results[count] = losses, json.loads((folder / "results.json").read_text())["sparsity"]
    yield _alike(f"{check}: loss", results[2][0], results[1][0], 0.02)
    yield row(f"{check}: sparsity", results[2][1] == results[1][1], f"{results[2][1]:.4%}, alone {results[1][1]:.4%}")


class _Step:
    """One step of a run at each call."""

    def __init__(self, trainer: Trainer, setup: TrainingSetup, batches: Iterator[Batch]) -> None:
        self.trainer, self.batches, self.folder = trainer, batches, setup.run_dir

    def __call__(self) -> None:
        parts = [next(self.batches)]
        self.trainer._apply_schedules()
        self.trainer._train_step(parts, reduce_batch_info(parts, []).num_crops)
        self.trainer.state.progress.step += 1


@contextmanager
def _training(options: Options, *words: str) -> Iterator[_Step]:
    """A run of a narrow network on made-up speech, to be stepped by hand."""
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    config = _config(*_words(options), *words)
    setup = build_setup(config, folder, load_corpus(config, folder))
    trainer = Trainer(setup, time.monotonic())
    setup.network.train()
    with trainer._training_mode(), trainer.metrics.progress(0, setup.total_steps):
        yield _Step(trainer, setup, _endless(setup))
    trainer.metrics.close()


def _endless(setup: TrainingSetup) -> Iterator[Batch]:
    """Batches of one epoch after the other."""
    while True:
        yield from setup.loader
        setup.sampler.epoch += 1
        setup.sampler.start = 0


def _config(*words: str) -> Config:
    """Return the settings that a command line would make."""
    return load_config(parse_command_line([]).compose(["run_name=gpu", *words]))


def _narrow(name: str) -> list[str]:
    """Settings of a network that is quick."""
    return [f"model.{word}" for word in SMALL.get(name, SMALL["ecapa"])]


def _words(options: Options) -> list[str]:
    """Settings of all short runs."""
    corpus = _corpus(options.folder / "corpus")
    general = (
        *("data=folder", f"data.root={corpus}", f"data.trial_lists={corpus}/trials.txt", "data.val_fraction=0"),
        *("target_sparsity=0.8", "trainer.batch_size=16", "trainer.crop_seconds=0.5", "trainer.num_bn_crops=16"),
        *("trainer.num_workers=0", "trainer.precision=fp32", "trainer.compile=false", "trainer.epochs=20"),
        f"trainer.device={options.device.type}",
    )
    default = [f"optim.backend={'auto' if 'auto' in BACKENDS else 'foreach'}"]
    return [*general, *_narrow("ecapa"), *default]


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _corpus(folder: Path) -> Path:
    """Made-up speech of eight speakers, written once, and a trial list of two of them."""
    if folder.is_dir():
        return folder
    draw = np.random.default_rng(0)
    keys = []
    time_ = np.arange(RATE) / RATE
    for speaker, utterance in product(range(10), range(8)):
        voice = sum(np.sin(2 * np.pi * (90 + 23 * speaker) * k * time_ + draw.uniform(0, 6)) / k for k in range(1, 12))
        keys.append(f"speaker{speaker}/session{utterance % 2}/{utterance}.wav")
        (folder / keys[-1]).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / keys[-1], 0.1 * voice + 0.02 * draw.normal(size=RATE), RATE)
    test_keys = keys[-16:]
    lines = [f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}\n" for a, b in product(test_keys, test_keys) if a < b]
    (folder / "trials.txt").write_text("".join(lines))
    return folder


def _augmentation(folder: Path) -> Augmentation:
    """Made-up noises and rooms, written once, and all that is done with them."""
    store = folder / "store"
    if not store.is_dir():
        draw = np.random.default_rng(1)
        for kind in (*NOISE_KINDS, "simulated_rirs"):
            (folder / "noise" / kind).mkdir(parents=True)
            for number in range(3):
                fade = np.exp(-np.arange(8000) / 500) if kind == "simulated_rirs" else 1.0
                soundfile.write(folder / "noise" / kind / f"{number}.wav", 0.1 * draw.normal(size=8000) * fade, RATE)
        build_noise_store([folder / "noise"], store)
    return Augmentation(noise_dir=str(store), aug_prob=0.9, speed_perturb=(1.0, 0.9, 1.1), spec_augment_prob=1.0)


def speed(options: Options) -> Iterator[Row]:
    """Whole training steps against SpeechBrain's, and updates alone against torch's fused Adam."""
    cuda, rounds = options.device.type == "cuda", 3 if options.quick else 15
    batch, seconds_each = (128, 2.0) if cuda else (2, 0.3)
    crops = torch.randint(-8000, 8000, (batch, crop_samples(seconds_each)), dtype=torch.int16)
    data = crops.to(options.device), torch.randint(training.SPEAKERS, (batch,)).to(options.device)
    for name in ("fp32", "bf16") if cuda else ("fp32",):
        bf16 = name == "bf16"
        network = ECAPA(mfa_channels=3072, layout="speechbrain")
        step = training.OurStep(network, data, bf16=bf16, compiled=cuda and not options.quick)
        peer = training.SpeechBrainStep(data, bf16=bf16)
        seconds = medians({"ours": step.step, "SpeechBrain": peer.step}, rounds)
        ratio = seconds["SpeechBrain"] / seconds["ours"]
        words = ", ".join(f"{who} {batch / each:.0f} utterances/s" for who, each in seconds.items())
        yield row(f"speed of training, {training.SHARED}, {name}", ratio >= 1, f"{words}: {ratio:.2f} times")
        del step, peer
    if not cuda:
        yield needs_cuda("speed of the optimizer")
        return
    rows = {optimizer.PEER: optimizer.torch_rows("cuda")[optimizer.PEER]}
    rows |= {name: step for name, step in optimizer.our_rows("cuda").items() if name in _TIMED}
    seconds = medians(
        {name: optimizer.in_sequence(step, torch.cuda.synchronize) for name, step in rows.items()}, rounds
    )
    for name in _TIMED:
        ratio = seconds[name] / seconds[optimizer.PEER]
        detail = f"{1000 * seconds[name]:.2f} ms, fused Adam {1000 * seconds[optimizer.PEER]:.2f} ms: {ratio:.2f} times"
        yield row(f"speed of the optimizer, {name}", ratio <= 2, detail)


_TIMED = (optimizer.CONTROLLED, optimizer.FALLBACK, optimizer.LINBREG)
SECTIONS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "method": method,
    "networks": networks,
    "waits": waits,
    "precision": precision,
    "compile": compile_,
    "processes": processes,
    "speed": speed,
}


def machine(device: torch.device) -> str:
    """Say in words what was checked."""
    words = [f"torch {torch.__version__}", f"Python {sys.version.split()[0]}"]
    if device.type == "cuda":
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0]
        names = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        words = [*(f"{count} x {name}" for name, count in names.items()), f"driver {driver}", *words]
        words += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    return ", ".join(words)


def rows_of(name: str, options: Options) -> Iterator[Row]:
    """The lines of a section; where it fails, why."""
    try:
        yield from SECTIONS[name](options)
    except Exception as error:  # noqa: BLE001  # whatever it is, the other sections go on
        text = " ".join(str(error).split())
        yield Row(name, FAILED, f"{type(error).__name__}: {text[:300]}")


def table(rows: list[Row]) -> str:
    """Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in each] for each in rows]
    return "\n".join(["| check | result | detail |", "|---|---|---|", *(f"| {' | '.join(each)} |" for each in cells)])


def main() -> None:
    """Run the sections and print the table; the status is 1 where a check has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), help="these sections")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script itself out")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py checks a CUDA GPU, and torch finds none here; --device cpu tries the script itself out")
    device = torch.device(arguments.device)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            for each in rows_of(name, Options(device, arguments.quick, Path(folder))):
                print(f"{each.result:8} {each.check}: {each.detail}", flush=True)
                rows.append(each)
    print(f"\n{machine(device)}\n\n{table(rows)}")
    sys.exit(any(each.result == FAILED for each in rows))


if __name__ == "__main__":
    main()
