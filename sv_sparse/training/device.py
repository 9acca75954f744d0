"""Where and how numbers are computed: device, precision, compilation."""

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
_PAYS = 1.3  # times as fast as fp32: below that, fewer digits are not worth it
_PROBE_SIZE = 1024
_PROBE_ROUNDS = 5


@dataclass(frozen=True)
class Compute:
    """A device and a precision.

    Attributes:
        device: Where.
        precision: fp32; or bf16 or fp16, in which convolutions and products are computed. Weights, losses, duals and
            the optimizer stay float32.
        compiled: Whether torch.compile makes the training step.
    """

    device: torch.device
    precision: str
    compiled: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision where it is on."""
        dtype = torch.bfloat16 if self.precision == "fp32" else PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """What keeps small gradients from vanishing in fp16; it does nothing in the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def compile(self, module: nn.Module) -> Callable[..., object]:
        """``module`` for training; evaluation, whose lengths all differ, calls the module itself."""
        return torch.compile(module) if self.compiled else module

    def __str__(self) -> str:
        how = self.precision if self.precision == "fp32" else f"{self.precision} autocast"
        return f"{self.device} in {how}{', compiled' if self.compiled else ''}"


def choose_compute(device: str, precision: str, compile_: bool | str) -> Compute:
    """What the settings mean here.

    Args:
        device: auto, cpu or cuda.
        precision: fp32, bf16 or fp16.
        compile_: true, false, or auto: on a GPU. On a CPU it takes a minute for about a tenth.

    Raises:
        ValueError: CUDA is asked for and not available.
    """
    chosen = choose_device(device, "trainer.device=")
    return Compute(chosen, precision, chosen.type == "cuda" if compile_ == "auto" else bool(compile_))


def choose_device(name: str, setting: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here; of several GPUs, this process's own.

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


def choose_precision(name: str, device: torch.device) -> tuple[str, str]:
    """The precision that ``auto`` means here: bf16 where products of matrices are faster by it, which is measured.

    Returns:
        The precision, and why it was chosen, in words.
    """
    if name != "auto":
        return name, f"{name}, as asked"
    gain = bf16_gain(device)
    chosen = "bf16" if gain >= _PAYS else "fp32"
    return chosen, f"{chosen}, since products of matrices are {gain:.1f} times as fast in bf16 as in fp32 here"


@torch.no_grad()
def bf16_gain(device: torch.device) -> float:
    """How many times as fast as in fp32 a product of matrices is in bf16."""
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    matrices = {dtype: torch.ones(_PROBE_SIZE, _PROBE_SIZE, dtype=dtype, device=device) for dtype in seconds}
    for counted in range(-1, _PROBE_ROUNDS):
        for dtype, matrix in matrices.items():
            began = time.perf_counter()
            (matrix @ matrix)[0, 0].item()  # waits for the device
            if counted >= 0:
                seconds[dtype].append(time.perf_counter() - began)
    return statistics.median(seconds[torch.float32]) / statistics.median(seconds[torch.bfloat16])


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a step frees, for the next one, instead of giving it back to the system.

    A step of ECAPA-TDNN on a CPU is 1.09 times as fast by it: 6,000 page faults instead of 50,000. Other C libraries
    are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # as malloc.h numbers them
    libc = ctypes.CDLL(None)
    for option, value in ((trim_threshold, 2**31 - 1), (top_pad, 2**28), (mmap_threshold, 2**30)):
        libc.mallopt(option, value)


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Say what to change where a device has too little memory.

    Raises:
        ValueError: there was not enough; ends with ``advice``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).split(". ", 1)[0]
        raise ValueError(f"{said}: {advice}") from error
