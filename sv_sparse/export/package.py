"""Writing of packages: a trained network in one file, which ``sv_sparse.runtime.package`` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors
from torch import Tensor, nn

from sv_sparse.io import atomic_write, checksum
from sv_sparse.runtime.fold_bn import fold_batch_norm, folded_state
from sv_sparse.runtime.package import BACKEND, METADATA_KEY, POSITIONS, VALUES, build_folded
from sv_sparse.runtime.package_header import PackageHeader, TensorSpec
from sv_sparse.runtime.sparse_codec import DTYPES, encode
from sv_sparse.scoring.backend import Backend


def write_package(
    path: Path,
    network: nn.Module,
    model: Mapping[str, Any],
    backend: Backend,
    card: Mapping[str, Any],
    *,
    features: Mapping[str, int],
    dtype: str = "fp32",
    model_class: str | None = None,
) -> None:
    """Write the package of a network, complete or not at all.

    Args:
        path: The file, ``.safetensors``.
        network: Network from filterbank [B, F, T] to embedding [B, E], with the statistics of its norms.
        model: Settings that its class is built from, as ``models.registry.build_model`` takes them.
        backend: Scoring back-end.
        card: Plain data about the network.
        features: ``sample_rate`` in Hz and ``mel_bins``.
        dtype: Type that convolution and linear weights are rounded to, one of DTYPES.
        model_class: Import path of the network's class where it is the user's own.

    Raises:
        ValueError: A weight is not finite, ``dtype`` is not allowed, or the class is unknown.
        OSError: The file cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    tensors = folded_state(fold_batch_norm(network))
    backend_state = backend.to_dict()
    for name, value in backend_state.items():
        if isinstance(value, Tensor):
            tensors[BACKEND + name] = value
    arrays: dict[str, Any] = {}
    specs: dict[str, TensorSpec] = {}
    for name, tensor in tensors.items():
        # Vectors stay exact: scales, shifts and biases are a thousandth of the values and act on all of them.
        is_rounded = tensor.ndim > 1 and not name.startswith(BACKEND)
        tensor_dtype = dtype if is_rounded else "fp32"
        try:
            encoded = encode(tensor, tensor_dtype)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        # DECISIONS 72
        stored_checksum = checksum(encoded.values, encoded.positions)
        specs[name] = TensorSpec(encoded.kind, tuple(tensor.shape), encoded.nnz, tensor_dtype, stored_checksum)
        arrays[VALUES + name] = np.frombuffer(encoded.values, np.uint8)
        if encoded.positions:
            arrays[POSITIONS + name] = np.frombuffer(encoded.positions, np.uint8)
    backend_settings = {name: backend_state[name] for name in ("top_n", "calibration")}
    header = PackageHeader(dict(model), dict(features), backend_settings, dict(card), specs)
    # Raises for what could not be read again.
    build_folded(header.model, header.features["mel_bins"], model_class)
    content = to_safetensors(arrays, metadata={METADATA_KEY: header.to_text()})
    with atomic_write(path) as file:
        file.write(content)
