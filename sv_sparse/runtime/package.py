"""One file that holds all of a trained network that using it needs: ``model.safetensors``.

Weights without their zeros, batch norms folded, what turns embeddings into decisions, and a card that says what it was
trained on. A safetensors file; nothing in it is run. Reading refuses whatever does not fit together, by name.

Each tensor and the description have a check sum, which is compared before they are used. The names and places of
tensors, in the file's own header, have none: where these change, bytes are missing, or are not those of the check sum.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors
from torch import Tensor, nn

from sv_sparse.io import atomic_write, checksum
from sv_sparse.models.layers import keep_channels_last
from sv_sparse.models.registry import build_network
from sv_sparse.runtime import package_header as description
from sv_sparse.runtime.fold_bn import fill_statistics, fold_structure, folded, weights_of
from sv_sparse.runtime.package_header import Description, Stored
from sv_sparse.runtime.sparse_codec import VALUES, Nonzeros, Packed, pack, unpack_nonzeros
from sv_sparse.scoring.backend import Backend

logger = logging.getLogger(__name__)

_PLACES, _VALUES, _KEY = "places:", "values:", "sv_sparse"
_BACKEND = "backend."
_MAX_HEADER = 16 << 20  # bytes
_TRAINING_ONLY = {"implementation"}  # settings of a network that change no embedding
_HOW = "one is made from a run by: sv-sparse export RUN --to model.safetensors"


@dataclass(frozen=True)
class Package:
    """A trained network ready for use.

    Attributes:
        model: settings of the network, with its class as ``_target_``.
        weights: of the folded network, by name, zeros and all.
        backend: from embeddings to scores and decisions.
        features: ``sample_rate`` in Hz, ``mel_bins``.
        card: what it was trained on, how well it does, under which licence: plain data.
        values: what weights were rounded to when it was written: ``fp32`` (not at all), ``bf16`` or ``fp16``.
        fingerprint: of the weights, the network's class, its settings and the features: packages of one network, whose
            embeddings can be compared, have one. Neither the card counts, nor the back-end, nor how weights were
            compressed, nor what only training asks (``implementation``). 64 hexadecimal digits.
    """

    model: dict[str, Any]
    weights: Mapping[str, Tensor]
    backend: Backend
    features: dict[str, int]
    card: dict[str, Any]
    values: str
    fingerprint: str

    def network(self) -> nn.Module:
        """The folded network with all its zeros, in evaluation mode: filterbank [B, F, T] to embedding [B, E]."""
        network = _empty(self.model, self.features["mel_bins"])
        network.load_state_dict(dict(self.weights), strict=False, assign=True)
        fill_statistics(network)
        keep_channels_last(network)
        return network.requires_grad_(False)


def write_package(
    path: Path,
    network: nn.Module,
    model: Mapping[str, Any],
    backend: Backend,
    card: Mapping[str, Any],
    *,
    features: Mapping[str, int],
    values: str = "fp32",
) -> None:
    """Write a network's package, whole or not at all.

    Args:
        path: the file, ``.safetensors``.
        network: filterbank [B, F, T] to embedding [B, E].
        model: settings that its class, named by ``_target_``, is built from.
        backend: from embeddings to scores.
        card: plain data about it.
        features: ``sample_rate`` in Hz and ``mel_bins``.
        values: what convolution and linear weights are rounded to, one of VALUES.

    Raises:
        ValueError: a weight is not finite, or the network is of no known class.
        OSError: the file cannot be written.
    """
    if values not in VALUES:
        raise ValueError(f"values must be one of {', '.join(VALUES)}, got {values!r}")
    arrays: dict[str, Any] = {}
    stored: dict[str, Stored] = {}
    for name, tensor in _everything(network, backend).items():
        kind = values if tensor.ndim > 1 and not name.startswith(_BACKEND) else "fp32"
        try:
            packed = pack(tensor, kind)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        digest = checksum(packed.values, packed.places)
        stored[name] = Stored(packed.kind, tuple(tensor.shape), packed.kept, kind, digest)
        arrays[_VALUES + name] = np.frombuffer(packed.values, np.uint8)
        if packed.places:
            arrays[_PLACES + name] = np.frombuffer(packed.places, np.uint8)
    plain = {name: backend.to_dict()[name] for name in ("top_n", "calibration")}
    about = Description(dict(model), dict(features), plain, dict(card), stored)
    _empty(about.model, about.features["mel_bins"])  # what cannot be read again is not written
    content = to_safetensors(arrays, metadata={_KEY: description.to_text(about)})
    with atomic_write(path) as file:
        file.write(content)


def read_package(path: str | os.PathLike[str]) -> Package:
    """Read a package, everything in it compared with its check sum and with everything else.

    One that an earlier version wrote, without check sums (format 1), is read with a warning.

    Raises:
        ValueError: it is missing, cut off, damaged, of another kind or version, or its parts contradict each other;
            names the file.
    """
    path = Path(path)
    try:
        return _read(path)
    except SafetensorError as error:
        problem = f"it is damaged, or no safetensors file ({_first_line(error)})"
        raise ValueError(f"{path} is not a readable package: {problem}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable package: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _read(path: Path) -> Package:
    _refuse_long_header(path)
    with safe_open(path, framework="numpy") as file:
        about = description.of_text((file.metadata() or {}).get(_KEY))
        network = _empty(about.model, about.features["mel_bins"])
        _compare_shapes(weights_of(network), about.stored)
        expected = {_VALUES + name for name in about.stored}
        expected |= {_PLACES + name for name, each in about.stored.items() if each.kind != "dense"}
        if set(file.keys()) != expected:
            lacking = sorted(expected - set(file.keys()))[:3]
            raise ValueError(f"it is damaged: it lacks {lacking} or has more than it describes")
        tensors: dict[str, Tensor] = {}
        digests: dict[str, bytes] = {}
        for name, each in about.stored.items():
            nonzeros = _read_tensor(file, name, each)
            tensors[name] = nonzeros.tensor().view(each.shape)
            if not name.startswith(_BACKEND):
                digests[name] = _digest(nonzeros)
    if not about.has_check_sums:
        logger.warning("%s has no check sums, so damage goes unnoticed: export it again with this version", path)
    backend = _backend(about, {key: tensors.pop(key) for key in list(tensors) if key.startswith(_BACKEND)}, network)
    kinds = {each.values for each in about.stored.values()} - {"fp32"}
    values = next(iter(kinds), "fp32")
    return Package(about.model, tensors, backend, about.features, about.card, values, _fingerprint(about, digests))


def _refuse_long_header(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"it is a folder; {_HOW}")
    with path.open("rb") as file:
        start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, path.stat().st_size - 8):
        raise ValueError(f"it is damaged, or no safetensors file; {_HOW}")


def _empty(model: Mapping[str, Any], mel_bins: int) -> nn.Module:
    """The folded network without memory."""
    with torch.device("meta"):
        network = build_network(model, mel_bins)
        fold_structure(network)
    return network


def _everything(network: nn.Module, backend: Backend) -> dict[str, Tensor]:
    tensors = {_BACKEND + key: value for key, value in backend.to_dict().items() if isinstance(value, Tensor)}
    return weights_of(folded(network)) | tensors


def _compare_shapes(weights: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> None:
    names = {name for name in stored if not name.startswith(_BACKEND)}
    if names != set(weights):
        different = sorted(names ^ set(weights))
        raise ValueError(f"its network has other weights than it stores: {', '.join(different[:3])}")
    for name, weight in weights.items():
        if stored[name].shape != tuple(weight.shape):
            raise ValueError(f"{name} has shape {stored[name].shape}, its network has {tuple(weight.shape)}")


def _read_tensor(file: Any, name: str, each: Stored) -> Nonzeros:
    """A tensor's nonzero elements, once its bytes are those that were written."""
    parts = [_VALUES] if each.kind == "dense" else [_VALUES, _PLACES]
    slices = [file.get_slice(part + name) for part in parts]
    if any(part.get_dtype() != "U8" or len(part.get_shape()) != 1 for part in slices):
        raise ValueError(f"{name} is stored as something else than bytes")
    frames = {part: file.get_tensor(part + name).tobytes() for part in parts}
    packed = Packed(each.kind, each.kept, frames.get(_PLACES, b""), frames[_VALUES])
    if each.check_sum is not None and each.check_sum != checksum(packed.values, packed.places):
        raise ValueError(f"{name} is damaged: its bytes have changed since they were written")
    try:
        return unpack_nonzeros(packed, prod(each.shape), each.values)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def _digest(nonzeros: Nonzeros) -> bytes:
    """Of a tensor's elements, as values and places, which is less to read than all its zeros."""
    digest = hashlib.blake2b(str(len(nonzeros.values)).encode())
    if nonzeros.places is not None:
        digest.update(nonzeros.places.astype("<i4").data)  # MAX_VALUES places fit
    digest.update(nonzeros.values.numpy().data)
    return digest.digest()


def _fingerprint(about: Description, digests: Mapping[str, bytes]) -> str:
    """Of what makes embeddings, whatever else the file says and however it says it."""
    settings = {name: value for name, value in about.model.items() if name not in _TRAINING_ONLY}
    settings["_target_"] = settings["_target_"].rpartition(".")[2]  # the class, in whatever module it is defined
    weights = [[name, about.stored[name].shape, digest.hex()] for name, digest in sorted(digests.items())]
    content = json.dumps([settings, about.features, weights], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=32).hexdigest()


def _backend(about: Description, tensors: Mapping[str, Tensor], network: nn.Module) -> Backend:
    named = {name.removeprefix(_BACKEND): value for name, value in tensors.items()}
    size = network.embedding_dim
    mean, cohort = named.get("mean"), named.get("cohort")
    if mean is None or tuple(mean.shape) != (size,) or set(named) - {"mean", "cohort"}:
        raise ValueError(f"it has no mean embedding of size {size}, or something beside it")
    if cohort is not None and (cohort.ndim != 2 or cohort.shape[1] != size):
        raise ValueError(f"its cohort has shape {tuple(cohort.shape)}, its embeddings size {size}")
    if cohort is not None and not 2 <= about.backend["top_n"] <= len(cohort):
        raise ValueError(f"it looks at {about.backend['top_n']} of {len(cohort)} speakers of its cohort")
    return Backend.from_dict({"mean": mean, "cohort": cohort, **about.backend})
