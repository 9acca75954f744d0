"""Device, precision and compilation of a run."""

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from sv_sparse.distributed import local_rank

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Below that, fewer digits are not worth it.
_MIN_BF16_SPEEDUP = 1.3
_PROBE_SIZE = 1024
_PROBE_ROUNDS = 5


@dataclass(frozen=True)
class DeviceConfig:
    """A device and a precision."""

    # Device of network, head and batches.
    device: torch.device
    # fp32; or bf16 or fp16, in which convolutions and matrix products are computed. Weights, losses, dual variables and
    # the optimizer stay float32.
    precision: str
    # True where torch.compile compiles the training step.
    compiled: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context of mixed precision, if the precision asks for it."""
        dtype = torch.bfloat16 if self.precision == "fp32" else PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """Return a scaler that keeps small gradients from vanishing in fp16; disabled in the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def compile(self, module: nn.Module) -> Callable[..., object]:
        """Return ``module`` for training; evaluation, whose lengths all differ, calls the module itself."""
        return torch.compile(module) if self.compiled else module

    def __str__(self) -> str:
        precision = self.precision if self.precision == "fp32" else f"{self.precision} autocast"
        return f"{self.device} in {precision}{', compiled' if self.compiled else ''}"


def resolve_device_config(device: str, precision: str, compile_: bool | str) -> DeviceConfig:
    """Return what the settings mean on this machine.

    Args:
        device: auto, cpu or cuda.
        precision: fp32, bf16 or fp16.
        compile_: true, false, or auto: on a GPU. On a CPU compiling takes a minute and saves about a tenth.

    Raises:
        ValueError: CUDA is asked for and not available.
    """
    resolved = resolve_device(device, "trainer.device=")
    compiled = resolved.type == "cuda" if compile_ == "auto" else bool(compile_)
    return DeviceConfig(resolved, precision, compiled)


def resolve_device(name: str, setting: str) -> torch.device:
    """Return the device that a name means on this machine; of several GPUs, this process's.

    Args:
        name: auto, cpu or cuda.
        setting: what named it, for messages, up to where the name begins.

    Raises:
        ValueError: CUDA is asked for and not available, or there are fewer GPUs than processes on this machine; begins
            with the setting.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{setting}cuda: no CUDA device is available; use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank() >= torch.cuda.device_count():
        raise ValueError(
            f"{setting}{name}: each process of torchrun --nproc-per-node needs a GPU of its own, there are "
            f"{torch.cuda.device_count()}"
        )
    return torch.device("cuda", local_rank())


def resolve_precision(name: str, device: torch.device) -> tuple[str, str]:
    """Return the precision that a name means on a device.

    Args:
        name: fp32, bf16, fp16, or auto: bf16 where matrix products are faster by it, which is measured.
        device: to measure on.

    Returns:
        The precision, and the reason for it in words.
    """
    if name != "auto":
        return name, f"{name}, as asked"
    speedup = bf16_speedup(device)
    precision = "bf16" if speedup >= _MIN_BF16_SPEEDUP else "fp32"
    return precision, f"{precision}, since matrix products are {speedup:.1f} times as fast in bf16 as in fp32 here"


@torch.no_grad()
def bf16_speedup(device: torch.device) -> float:
    """Return how many times as fast as in fp32 a matrix product is in bf16."""
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    matrices = {dtype: torch.ones(_PROBE_SIZE, _PROBE_SIZE, dtype=dtype, device=device) for dtype in seconds}
    # The first, -1, warms up and is not counted.
    for probe_round in range(-1, _PROBE_ROUNDS):
        for dtype, matrix in matrices.items():
            start_time = time.perf_counter()
            # Waits for the device.
            (matrix @ matrix)[0, 0].item()
            if probe_round >= 0:
                seconds[dtype].append(time.perf_counter() - start_time)
    return statistics.median(seconds[torch.float32]) / statistics.median(seconds[torch.bfloat16])


def disable_malloc_trim() -> None:
    """Let glibc keep the memory that a step frees, for the next one, instead of giving it back to the system.

    A step of ECAPA-TDNN on a CPU is 1.09 times as fast by it: 6,000 page faults instead of 50,000. Other C libraries
    are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    # Numbers of the options in malloc.h.
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    libc = ctypes.CDLL(None)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**28)
    libc.mallopt(mmap_threshold, 2**30)


@contextmanager
def oom_hint(hint: str) -> Iterator[None]:
    """Name settings that help where a device runs out of memory.

    Args:
        hint: in words.

    Raises:
        ValueError: the device ran out of memory; ends with ``hint``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = str(error).split(". ", 1)[0]
        raise ValueError(f"{message}: {hint}") from error
