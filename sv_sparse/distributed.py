"""Processes that torchrun starts: rank, communication, and synchronized batch normalization.

Everything here also works in a single process, which is rank 0 of 1.
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

# One process may read a corpus this long while the others wait. It does not delay the detection of
# a process that died: torchrun notices that at once.
_TIMEOUT = timedelta(hours=2)
_POLL_SECONDS = 0.01


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group if torchrun started this process, and leave it at the end."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    # gloo beside nccl: messages between updates are CPU tensors, so that nobody waits for a GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # Before nccl starts, which would put all processes on the first GPU.
    if int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, group_rank, group_size = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    prefix = agree_on_store_prefix(store, group_rank, group_size)
    dist.init_process_group(
        backend, timeout=_TIMEOUT, store=dist.PrefixStore(prefix, store), rank=group_rank, world_size=group_size
    )
    yield
    # Not in a finally clause: after an error it may wait for the others, and torchrun for this one.
    dist.destroy_process_group()


def exit_process() -> None:
    """End a process of torchrun whose work is done; do nothing in other processes."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    # Ends data workers and closes log files. It is private, but has been there since Python 2.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without Python's finalization: a thread of torch's process groups that asks for the interpreter meanwhile aborts
    # the process, "terminate called without an active exception".  DECISIONS 38
    os._exit(0)


def agree_on_store_prefix(store: dist.Store, group_rank: int, group_size: int) -> str:
    """Return a random name that all processes of one start share, by the store of all starts."""
    # That store survives restarts, and still holds addresses of processes that are gone.  DECISIONS 38
    own_name = uuid4().hex
    if group_rank > 0:
        # Under keys that are new at each start, rank 0 is asked for its name.
        store.set(f"request/{group_rank}", own_name)
        while not store.check([f"answer/{own_name}"]):
            time.sleep(_POLL_SECONDS)
        prefix = store.get(f"answer/{own_name}").decode()
        store.set(f"confirmed/{prefix}/{group_rank}", "")
        return prefix
    waiting = set(range(1, group_size))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"request/{other}"]):
                request = store.get(f"request/{other}").decode()
                store.set(f"answer/{request}", own_name)
            if store.check([f"confirmed/{own_name}/{other}"]):
                waiting.remove(other)
        time.sleep(_POLL_SECONDS)
    return own_name


def rank() -> int:
    """Return the rank of this process, from 0; rank 0 is the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Return the rank of this process on its machine, which is also the index of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def broadcast_from_rank0(function: Callable[[], T]) -> T:
    """Call a function in rank 0, and return its result in all processes.

    Args:
        function: returns plain data, which is pickled.

    Raises:
        Exception: in rank 0, any exception of ``function``.
        SystemExit: in the other processes then.
    """
    if world_size() == 1:
        return function()
    message: list[Any] = [None]
    try:
        if rank() == 0:
            # A tuple, since the result itself may be None, which stands for an error.
            message = [(function(),)]
    finally:
        dist.broadcast_object_list(message)
    if message[0] is None:
        raise SystemExit(1)
    return message[0][0]


def rank0_first(function: Callable[[], T]) -> T:
    """Call a function in every process, in rank 0 first: the others can read the files it wrote."""
    # Results may be large, or of no use elsewhere: they are not pickled.
    results: list[T] = []
    broadcast_from_rank0(lambda: results.append(function()))
    return results[0] if rank() == 0 else function()


def all_gather(values: Tensor) -> Tensor:
    """Return a small CPU tensor [N] of each process as [world_size, N]."""
    if world_size() == 1:
        return values.unsqueeze(0)
    rows = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(rows, values)
    return torch.stack(rows)


def all_gather_objects(value: T) -> list[T]:
    """Return the plain data of each process, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """Return the mean over the processes of a tensor on the training device."""
    return values if world_size() == 1 else _sum_over_processes(values) / world_size()


def _sum_over_processes(values: Tensor) -> Tensor:
    # all_reduce works in place.
    total = values.clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def broadcast_module(module: nn.Module) -> None:
    """Copy rank 0's parameters and buffers to all processes, in place."""
    if world_size() > 1:
        for value in module.state_dict().values():
            dist.broadcast(value, src=0)


class _AllReduceSum(torch.autograd.Function):
    """Sum of a tensor over the processes, whose gradient is summed over the processes too."""

    # That of torch.distributed.nn is deprecated.
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _sum_over_processes(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum_over_processes(grad)


class SyncedBatchNorm(_BatchNorm):
    """Batch normalization with the statistics of all processes' batches, on a CPU: torch's needs GPUs."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [B, C, ...] by the mean and variance of each channel."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        # Two messages: first the sums, then the squares around the common mean. Squares around zero
        # would need one message only, but cancel in float32.
        count_here = x.new_tensor([x.numel() // x.shape[1]])
        sums = _AllReduceSum.apply(torch.cat([x.sum(axes), count_here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = x - mean.view(shape)
        variance = _AllReduceSum.apply(centered.square().sum(axes)) / count
        self._update_running_stats(mean.detach(), variance.detach() * count / (count - 1))
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)

    @torch.no_grad()
    def _update_running_stats(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        # momentum=None means a cumulative average, as in torch.
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


@contextmanager
def sync_batch_norm(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Synchronize the batch norms of a network over all processes inside the block.

    Args:
        network: network to train.
        device: device that it trains on; torch's SyncBatchNorm serves GPUs, SyncedBatchNorm the CPU.
    """
    norm_class = nn.SyncBatchNorm if device.type == "cuda" else SyncedBatchNorm
    norms: list[tuple[Any, type[_BatchNorm]]] = []
    if world_size() > 1:
        norms = [(module, type(module)) for module in network.modules() if isinstance(module, _BatchNorm)]
    # Classes change while training alone: checkpoints, evaluation and export see the plain network. Parameters,
    # buffers and hooks stay. The number of processes is no hyperparameter: DECISIONS 39
    for module, _ in norms:
        module.__class__ = norm_class
        # All processes; SyncBatchNorm's constructor would have set it.
        module.process_group = None
    try:
        yield
    finally:
        for module, original_class in norms:
            module.__class__ = original_class
            del module.process_group
