"""What a network's zeros amount to: parameters, multiply-accumulates, bytes, whole channels, and the time it takes."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sv_sparse.models.features import FRAMES_PER_SECOND, MEL_BINS

SECONDS = 3.0  # of speech, for multiply-accumulates and latency
_ROUNDS = 9
_VALUE, _COLUMN, _ROW = 4, 2, 4  # bytes of a weight, of its column's number, of where a row begins


@torch.no_grad()
def size_of(network: nn.Module, weights: Mapping[str, Tensor], head: nn.Module) -> dict[str, Any]:
    """Size and cost of a network, of all of it and by layer.

    Args:
        network: filterbank [B, F, T] to embedding [B, E]; put into evaluation mode.
        weights: its convolution and linear weights by parameter name, which may be sparse.
        head: what is thrown away after training; it is counted apart.

    Returns:
        ``layers``: by weight ``parameters``, ``zeros``, ``channels`` and ``inputs`` with those of them that are zero as
        a whole, ``macs`` and ``kept_macs`` for SECONDS of speech (those with a weight that is not zero), ``bytes`` and
        ``packed_bytes``. ``size``: the same of the network as it is saved, with the measured ``latency`` of one
        utterance, zeros computed like any number; and ``head_parameters``.
    """
    network.eval()
    device = next(network.parameters()).device
    bins: Any = getattr(network, "mel_bins", MEL_BINS)
    speech = torch.ones(1, bins, round(FRAMES_PER_SECOND * SECONDS), device=device)
    with _Products(weights) as products:
        network(speech)
    layers = {
        name: _layer(weight) | {"macs": products.all[name], "kept_macs": products.kept[name]}
        for name, weight in weights.items()
    }
    saved = [value for value in network.state_dict().values() if value.is_floating_point()]
    params = list(network.parameters())
    dense = sum(value.numel() * value.element_size() for value in saved)
    total = {name: sum(layer[name] for layer in layers.values()) for name in ("macs", "kept_macs")}
    size = {
        "parameters": sum(param.numel() for param in params),
        "kept_parameters": sum(int(param.count_nonzero()) for param in params),
        **total,
        "bytes": dense,
        "packed_bytes": dense - sum(layer["bytes"] - layer["packed_bytes"] for layer in layers.values()),
        "seconds_of_speech": SECONDS,
        "latency": _latency(network, speech),
        "head_parameters": sum(param.numel() for param in head.parameters()),
    }
    return {"layers": layers, "size": size}


class _Products(TorchDispatchMode):
    """Counts multiplications by each weight, as torch's own counter does for all of them.

    A weight is known by its memory: layers may use parts of it, at different rates.

    Args:
        weights: by name.

    Attributes:
        all: multiply-accumulates of each weight.
        kept: those with a part of it that is not zero.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {weight.untyped_storage().data_ptr(): name for name, weight in weights.items()}
        self.all, self.kept = dict.fromkeys(weights, 0), dict.fromkeys(weights, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            count = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=output) // 2
            tensors = [argument for argument in args if isinstance(argument, Tensor)]
            for part in tensors:
                name = self._names.get(part.untyped_storage().data_ptr())
                if name is not None and part.ndim > 1:
                    self.all[name] += count
                    self.kept[name] += count // part.numel() * int(part.count_nonzero())
        return output


def _layer(weight: Tensor) -> dict[str, int]:
    alive = weight.flatten(2).any(2) if weight.ndim > 2 else weight != 0  # [outputs, inputs]
    kept = int(weight.count_nonzero())
    return {
        "parameters": weight.numel(),
        "zeros": weight.numel() - kept,
        "channels": len(weight),
        "dead_channels": int((~alive.any(1)).sum()),
        "inputs": weight.shape[1],
        "dead_inputs": int((~alive.any(0)).sum()),
        "bytes": _VALUE * weight.numel(),
        "packed_bytes": packed_bytes(weight.numel(), kept, len(weight)),
    }


def packed_bytes(count: int, kept: int, rows: int) -> int:
    """Bytes of a float32 weight without its zeros: with a bit for each place, or the column of each that is left.

    Never more than the dense weight.
    """
    bits, columns = -(-count // 8), _COLUMN * kept + _ROW * (rows + 1)
    return min(_VALUE * count, _VALUE * kept + min(bits, columns))


def _latency(network: nn.Module, speech: Tensor) -> dict[str, Any]:
    """Median seconds of one utterance at a time, from filterbank to embedding; on a CPU with one thread."""
    threads, on_gpu = torch.get_num_threads(), speech.device.type == "cuda"
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(_ROUNDS + 1):
            began = time.perf_counter()
            network(speech)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    return {"seconds": median(seconds[1:]), "device": name, "threads": 1}
