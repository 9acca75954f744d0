"""Reading of packages: ``model.safetensors``, one file with all that the use of a trained network needs.

A package holds weights without their zeros, folded batch norms, the scoring back-end and a card that
says what the network was trained on. ``sv_sparse.export.package`` writes it. Nothing in it is executed.
Reading refuses by name whatever does not fit together.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sv_sparse.io import checksum
from sv_sparse.models.features import DEFAULT_FEATURES
from sv_sparse.models.layers import keep_channels_last
from sv_sparse.models.registry import build_model
from sv_sparse.runtime.fold_bn import fill_norm_stats, folded_state, replace_norms
from sv_sparse.runtime.package_header import PackageHeader, TensorSpec
from sv_sparse.runtime.sparse_codec import Nonzeros, SparseTensorBytes, decode
from sv_sparse.scoring.backend import Backend

POSITIONS = "positions:"
VALUES = "values:"
BACKEND = "backend."
METADATA_KEY = "sv_sparse"
_EXPORT_HINT = "sv-sparse export RUN --output model.safetensors makes one from a run"


@dataclass(frozen=True)
class Package:
    """Trained network ready for use."""

    # Settings of the network, with its name or, for a class of the user's own, _target_.
    model: dict[str, Any]
    # Of the folded network by name, zeros included.
    weights: Mapping[str, Tensor]
    backend: Backend
    # sample_rate in Hz, mel_bins, and kind, the name of the network's features.
    features: dict[str, Any]
    # Plain data: training data, results, license.
    card: dict[str, Any]
    # Type that weights were rounded to when the file was written: fp32 (not at all), bf16 or fp16.
    dtype: str
    # 64 hexadecimal digits of weights, settings and features. Embeddings of packages with one fingerprint can be
    # compared. The card, the back-end and the form of compression do not count.
    fingerprint: str
    # Import path of the user's own class that may be imported; None for a network of this project.
    model_class: str | None = None

    def network(self) -> nn.Module:
        """Return the folded network with all its zeros, in evaluation mode: [B, F, T] to embedding [B, E]."""
        network = build_folded(self.model, self.features["mel_bins"], self.model_class)
        network.load_state_dict(dict(self.weights), strict=False, assign=True)
        fill_norm_stats(network)
        keep_channels_last(network)
        return network.requires_grad_(False)


def build_folded(model: Mapping[str, Any], mel_bins: int, model_class: str | None = None) -> Any:
    """Return a network with folded norms that has no weights yet, with errors as of ``models.registry.build_model``."""
    trusted = () if model_class is None else (model_class,)
    # Without memory, so that a damaged size is noticed by its shape. Other people's classes may compute buffers when
    # they are built, which the package does not hold: they are built in memory.
    with torch.device("meta" if "name" in model else "cpu"):
        network = build_model(model, mel_bins, trusted)
        replace_norms(network)
    return network


def read_package(path: str | os.PathLike[str], model_class: str | None = None) -> Package:
    """Read a package; everything in it is compared with its checksum and with everything else.

    Args:
        path: The file.
        model_class: Import path of a class of the user's own, such as ``mypkg.net.Net``, which the package may name.
            Classes that the environment variable SV_SPARSE_MODEL_CLASS names are trusted too.

    Raises:
        ValueError: The file is missing, cut off, damaged or of another format, its parts contradict each other, or its
            class is not trusted; the message names the file.
    """
    path = Path(path)
    try:
        return _read(path, model_class)
    # RecursionError: JSON that is nested too deep.
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        problem = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, SafetensorError):
            problem = f"it is damaged, or not a safetensors file ({problem})"
        raise ValueError(f"{path} is not a readable package: {problem}") from error


def _read(path: Path, model_class: str | None) -> Package:
    if path.is_dir():
        raise ValueError(f"it is a folder; {_EXPORT_HINT}")
    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            raise ValueError(f"it has no header of a network: it is damaged, or another file; {_EXPORT_HINT}")
        header = PackageHeader.from_text(text)
        # Sizes are compared before any tensor is decoded.  DECISIONS 53
        network = build_folded(header.model, header.features["mel_bins"], model_class)
        _check_shapes(folded_state(network), header.tensors)
        _check_keys(set(file.keys()), header.tensors)
        weights: dict[str, Tensor] = {}
        backend_tensors: dict[str, Tensor] = {}
        digests = []
        dtype = "fp32"
        for name, spec in sorted(header.tensors.items()):
            nonzeros = _read_tensor(file, name, spec)
            tensor = nonzeros.to_dense().view(spec.shape)
            if name.startswith(BACKEND):
                backend_tensors[name.removeprefix(BACKEND)] = tensor
            else:
                weights[name] = tensor
                digests.append([name, spec.shape, _digest(nonzeros)])
            if spec.dtype != "fp32":
                dtype = spec.dtype
    # Keys are sorted here and tensors above: the order in a file says nothing about a network.
    content = json.dumps([_identity(header.model), header.features, digests], sort_keys=True)
    fingerprint = hashlib.blake2b(content.encode(), digest_size=32).hexdigest()
    backend = _build_backend(header, backend_tensors, network.embedding_dim)
    features = header.features | {"kind": network.features}
    return Package(header.model, weights, backend, features, header.card, dtype, fingerprint, model_class)


def _identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a network that decide its embeddings."""
    # Packages from before the choice of features have no such key, and the same embeddings.
    is_default = model.get("features") == DEFAULT_FEATURES
    return {name: value for name, value in model.items() if name != "features" or not is_default}


def _check_shapes(weights: Mapping[str, Tensor], tensors: Mapping[str, TensorSpec]) -> None:
    different = sorted({name for name in tensors if not name.startswith(BACKEND)} ^ weights.keys())
    if different:
        raise ValueError(f"its network has other weights than it stores: {', '.join(different[:3])}")
    for name, weight in weights.items():
        if tensors[name].shape != tuple(weight.shape):
            raise ValueError(f"{name} has shape {tensors[name].shape}, its network has {tuple(weight.shape)}")


def _check_keys(keys: set[str], tensors: Mapping[str, TensorSpec]) -> None:
    expected = {VALUES + name for name in tensors}
    expected |= {POSITIONS + name for name, spec in tensors.items() if spec.kind != "dense"}
    if keys != expected:
        missing = sorted(expected - keys)[:3]
        raise ValueError(f"it is damaged: it lacks {missing} or has more than its header describes")


def _read_tensor(file: Any, name: str, spec: TensorSpec) -> Nonzeros:
    """Return the nonzero elements of a tensor whose bytes are those that were written."""
    values = _read_bytes(file, VALUES + name)
    positions = b"" if spec.kind == "dense" else _read_bytes(file, POSITIONS + name)
    # safetensors' own header has no checksum: a change there leaves bytes that are missing or differ.  DECISIONS 72
    if spec.checksum != checksum(values, positions):
        raise ValueError(f"{name} is damaged: its bytes have changed since they were written")
    try:
        return decode(SparseTensorBytes(spec.kind, spec.nnz, positions, values), prod(spec.shape), spec.dtype)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


def _read_bytes(file: Any, key: str) -> bytes:
    # Asked before it is read: numpy has no type for some that safetensors can name.
    stored = file.get_slice(key)
    if stored.get_dtype() != "U8" or len(stored.get_shape()) != 1:
        raise ValueError(f"{key} is not stored as bytes")
    return file.get_tensor(key).tobytes()


def _digest(nonzeros: Nonzeros) -> str:
    """Return a digest of a tensor's values and positions."""
    # Not of the compressed bytes, which another version of zstd changes: packages of one network must stay comparable.
    digest = hashlib.blake2b(str(len(nonzeros.values)).encode())
    if nonzeros.positions is not None:
        # 32 bits are enough for MAX_VALUES positions.
        digest.update(nonzeros.positions.astype("<i4").data)
    digest.update(nonzeros.values.numpy().data)
    return digest.hexdigest()


def _build_backend(header: PackageHeader, tensors: Mapping[str, Tensor], embedding_dim: int) -> Backend:
    mean = tensors.get("mean")
    # Only AS-norm has one.
    cohort = tensors.get("cohort")
    top_n = header.backend["top_n"]
    if mean is None or tuple(mean.shape) != (embedding_dim,) or set(tensors) - {"mean", "cohort"}:
        raise ValueError(f"it has no mean embedding of size {embedding_dim}, or something beside it")
    if cohort is not None:
        if cohort.ndim != 2 or cohort.shape[1] != embedding_dim:
            raise ValueError(f"its cohort has shape {tuple(cohort.shape)}, its embeddings size {embedding_dim}")
        # Fewer than two have no standard deviation.
        if not 2 <= top_n <= len(cohort):
            raise ValueError(f"it looks at {top_n} of {len(cohort)} speakers of its cohort")
    return Backend.from_dict({"mean": mean, "cohort": cohort, **header.backend})
