"""The few lines that torchrun needs: which process this is, and what the processes tell each other.

Everything here also holds for a process of its own, which is number 0 of 1 and tells nobody. The number of processes
changes how fast a run is, not what it computes: a batch is divided among them, gradients are averaged, and batch
normalization has the statistics of the whole batch.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)  # that one process may be busy alone; torchrun notices at once when it ends


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started, where it did, and leave them at the end."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, number, count = next(dist.rendezvous("env://", timeout=_PATIENCE))
    own_store = dist.PrefixStore(name_of_start(store, number, count), store)
    dist.init_process_group(backend, timeout=_PATIENCE, store=own_store, rank=number, world_size=count)
    yield
    dist.destroy_process_group()  # not after an error: it may wait for the others, and torchrun for this process


def end() -> None:
    """End a process that torchrun started and whose work is done, without Python's finalization.

    Threads of torch's process groups may still be there, and one that asks for the interpreter while that is taken
    down aborts the process: "terminate called without an active exception". Threads that Python would wait for are
    not waited for.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    atexit._run_exitfuncs()  # data workers, log files
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def name_of_start(store: dist.Store, number: int, count: int) -> str:
    """A name that the processes of one start agree on: torchrun's store still holds what earlier starts wrote.

    The first process names it. It tells whoever asks, by a name that nobody asked by before, until all have heard.
    """
    own = uuid4().hex
    if number > 0:
        store.set(f"asks/{number}", own)
        while not store.check([f"answer/{own}"]):
            time.sleep(0.01)
        name = store.get(f"answer/{own}").decode()
        store.set(f"heard/{name}/{number}", "")
        return name
    waiting = set(range(1, count))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", own)
        waiting = {other for other in waiting if not store.check([f"heard/{own}/{other}"])}
        time.sleep(0.01)
    return own


def rank() -> int:
    """Number of this process, from 0 on; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Number of this process on its machine, and of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all processes.

    Raises:
        Exception: whatever ``make`` raises, in the first process.
        SystemExit: in the others then.
    """
    if ranks() == 1:
        return make()
    answer: list[Any] = [None]
    if rank() == 0:
        try:
            answer = [("made", make())]
        finally:
            dist.broadcast_object_list(answer)
    else:
        dist.broadcast_object_list(answer)
    if answer[0] is None:
        raise SystemExit(1)
    return answer[0][1]


def first_before_others(make: Callable[[], T]) -> T:
    """What each process makes for itself, the first one before the others: they find what it wrote."""
    if rank() == 0:
        made: list[T] = []
        from_first(lambda: made.append(make()))
        return made[0]
    from_first(make)
    return make()


def gathered(own: Tensor) -> Tensor:
    """A small CPU tensor [N] of each process, [ranks, N]."""
    if ranks() == 1:
        return own.unsqueeze(0)
    rows = [torch.empty_like(own) for _ in range(ranks())]
    dist.all_gather(rows, own)
    return torch.stack(rows)


def gathered_objects(own: T) -> list[T]:
    """Plain data of each process, in all of them."""
    if ranks() == 1:
        return [own]
    found: list[Any] = [None] * ranks()
    dist.all_gather_object(found, own)
    return found


def average(values: Tensor) -> Tensor:
    """Mean over the processes of a tensor on the device."""
    if ranks() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / ranks()


@torch.no_grad()
def share_first(network: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers, in place."""
    if ranks() > 1:
        for value in network.state_dict().values():
            dist.broadcast(value, src=0)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes; what depends on it in one depends on the tensors of all."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(_BatchNorm):
    """Batch norm with the statistics of all processes' batches, on a CPU, where torch's own does not run."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [B, C, ...]."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        summed = _Sum.apply(torch.cat([x.sum(axes), x.new_tensor([x.numel() // x.shape[1]])]))
        count = summed[-1].detach()
        mean = summed[:-1] / count
        centered = x - mean.view(shape)
        variance = _Sum.apply(centered.square().sum(axes)) / count
        self._keep(mean.detach(), variance.detach() * count / (count - 1))
        normal = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


@contextmanager
def synchronized(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, each batch norm of ``network`` has the statistics of all processes' batches; alone, it is as it was."""
    kind = nn.SyncBatchNorm if device.type == "cuda" else SyncedBatchNorm
    own = [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    before = own if ranks() > 1 else []
    for name, module in before:
        network.set_submodule(name, _sharing(kind, module), strict=True)
    try:
        yield
    finally:
        for name, module in before:
            module.train(network.get_submodule(name).training)
            network.set_submodule(name, module, strict=True)


def _sharing(kind: type[_BatchNorm], module: _BatchNorm) -> _BatchNorm:
    """A batch norm of another kind with the same parameters and buffers."""
    made = kind(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    made._parameters, made._buffers = module._parameters, module._buffers
    return made.train(module.training)
