"""Size and cost of a network with zeros: parameters, multiply-accumulates, bytes, dead channels, latency."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sv_sparse.models.features import FRAMES_PER_SECOND, MEL_BINS

# Of speech, for multiply-accumulates and latency.
SECONDS = 3.0
_NUM_TIMING_ROUNDS = 9
# Of a float32 weight, its column's index, and the offset at which a row begins.
_VALUE_BYTES, _COLUMN_BYTES, _ROW_BYTES = 4, 2, 4


@torch.no_grad()
def measure_complexity(network: nn.Module, weights: Mapping[str, Tensor], head: nn.Module) -> dict[str, Any]:
    """Measure a network's size and cost, as a whole and by layer.

    Args:
        network: filterbank [B, F, T] to embedding [B, E]; it is put into evaluation mode.
        weights: its convolution and linear weights by parameter name, sparse or dense.
        head: classifier that is thrown away after training; only its parameters are counted.

    Returns:
        ``layers``: for each weight ``parameters``, ``zeros``, output ``channels`` and ``inputs`` with the ``dead``
        ones that are all zeros, ``macs`` for SECONDS of speech, ``nonzero_macs`` without those by zeros, ``bytes``
        and ``compressed_bytes``. ``size``: the same for the saved network, and the ``latency`` of an utterance.
    """
    network.eval()
    device = next(network.parameters()).device
    mel_bins: Any = getattr(network, "mel_bins", MEL_BINS)
    speech = torch.ones(1, mel_bins, round(FRAMES_PER_SECOND * SECONDS), device=device)
    with _MacCounter(weights) as counter:
        network(speech)
    layers = {}
    for name, weight in weights.items():
        layers[name] = _layer_size(weight) | {"macs": counter.macs[name], "nonzero_macs": counter.nonzero_macs[name]}
    saved = [value for value in network.state_dict().values() if value.is_floating_point()]
    total_bytes = sum(value.numel() * value.element_size() for value in saved)
    params = list(network.parameters())
    size = {
        "parameters": sum(param.numel() for param in params),
        "nonzero_parameters": sum(int(param.count_nonzero()) for param in params),
        "macs": sum(counter.macs.values()),
        "nonzero_macs": sum(counter.nonzero_macs.values()),
        "bytes": total_bytes,
        "compressed_bytes": total_bytes - sum(layer["bytes"] - layer["compressed_bytes"] for layer in layers.values()),
        "seconds_of_speech": SECONDS,
        "latency": _latency(network, speech),
        "head_parameters": sum(param.numel() for param in head.parameters()),
    }
    return {"layers": layers, "size": size}


class _MacCounter(TorchDispatchMode):
    """Counter of the multiply-accumulates, and of those by nonzeros, for each weight by name."""

    # torch's own counter knows only modules.
    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Memory identifies a weight, since layers may multiply by slices of it (DECISIONS 52).
        self._names = {weight.untyped_storage().data_ptr(): name for name, weight in weights.items()}
        self.macs = dict.fromkeys(weights, 0)
        self.nonzero_macs = dict.fromkeys(weights, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.overloadpacket not in flop_registry:
            return output
        # torch counts a multiply-accumulate as two operations.
        macs = flop_registry[func.overloadpacket](*args, **kwargs, out_val=output) // 2
        for arg in args:
            # A bias has one dimension.
            if not isinstance(arg, Tensor) or arg.ndim < 2:
                continue
            name = self._names.get(arg.untyped_storage().data_ptr())
            if name is not None:
                self.macs[name] += macs
                self.nonzero_macs[name] += macs // arg.numel() * int(arg.count_nonzero())
        return output


def _layer_size(weight: Tensor) -> dict[str, int]:
    # [outputs, inputs]: a convolution's input is dead if all its taps are zero.
    is_nonzero = weight.flatten(2).any(2) if weight.ndim > 2 else weight != 0
    nnz = int(weight.count_nonzero())
    return {
        "parameters": weight.numel(),
        "zeros": weight.numel() - nnz,
        "channels": len(weight),
        "dead_channels": int((~is_nonzero.any(1)).sum()),
        "inputs": weight.shape[1],
        "dead_inputs": int((~is_nonzero.any(0)).sum()),
        "bytes": _VALUE_BYTES * weight.numel(),
        "compressed_bytes": compressed_bytes(weight.numel(), nnz, len(weight)),
    }


def compressed_bytes(numel: int, nnz: int, num_rows: int) -> int:
    """Compute the bytes of a float32 weight without its zeros, at most those of the dense weight.

    >>> compressed_bytes(numel=1000, nnz=100, num_rows=10)
    525
    """
    # Positions are a bit per value, or as in CSR a column index per nonzero, whichever is smaller.
    bitmap_bytes = -(-numel // 8)
    index_bytes = _COLUMN_BYTES * nnz + _ROW_BYTES * (num_rows + 1)
    return min(_VALUE_BYTES * numel, _VALUE_BYTES * nnz + min(bitmap_bytes, index_bytes))


def _latency(network: nn.Module, speech: Tensor) -> dict[str, Any]:
    """Measure the median seconds from filterbank to embedding, on a CPU with one thread."""
    num_threads = torch.get_num_threads()
    on_gpu = speech.device.type == "cuda"
    # With one thread, machines with different numbers of cores can be compared.
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(_NUM_TIMING_ROUNDS + 1):
            start_time = time.perf_counter()
            network(speech)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start_time)
    finally:
        torch.set_num_threads(num_threads)
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    # The first round warms caches up.
    return {"seconds": median(seconds[1:]), "device": device, "threads": 1}
