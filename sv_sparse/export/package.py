"""Writing of packages: a trained network in one file, which ``sv_sparse.runtime.package`` reads."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors
from torch import Tensor, nn

from sv_sparse.export.operations import lower
from sv_sparse.io import atomic_write, checksum
from sv_sparse.models.features import DEFAULT_FEATURES, network_features
from sv_sparse.runtime.engine.program_codec import split_program
from sv_sparse.runtime.package import BACKEND, CONSTANTS, LAYER, METADATA_KEY, POSITIONS, STEPS, VALUES
from sv_sparse.runtime.package_header import PackageHeader, TensorSpec
from sv_sparse.runtime.sparse_codec import DTYPES, compress, encode
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
) -> None:
    """Write the package of a network, complete or not at all.

    Args:
        path: The file, ``.safetensors``.
        network: Network from filterbank [1, F, T] to embedding [1, E], with the statistics of its norms. It may be of
            any class whose operations have kernels.
        model: Settings of the network, for information and for the fingerprint.
        backend: Scoring back-end.
        card: Plain data about the network.
        features: ``sample_rate`` in Hz and ``mel_bins``.
        dtype: Type that convolution and linear weights are rounded to, one of DTYPES.

    Raises:
        NoProgramError: An operation of the network has no kernel; the message names it and its place.
        ValueError: A weight is not finite, or ``dtype`` is not allowed.
        OSError: The file cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    network = network.eval()
    kind = network_features(network)
    parts = split_program(lower(network, features["mel_bins"]))
    tensors = {LAYER + name: weight for name, weight in parts.weights.items()}
    if parts.constants.size:
        tensors[CONSTANTS] = parts.constants
    backend_state = backend.to_dict()
    for name, value in backend_state.items():
        if isinstance(value, Tensor):
            tensors[BACKEND + name] = value.numpy()
    arrays: dict[str, Any] = {}
    specs: dict[str, TensorSpec] = {}
    for name, tensor in tensors.items():
        # All else stays exact: scales, shifts and biases are a thousandth of the values and act on all of them.
        tensor_dtype = dtype if name.startswith(LAYER) else "fp32"
        try:
            encoded = encode(tensor, tensor_dtype)
        except ValueError as error:
            raise ValueError(f"{name.removeprefix(LAYER)} {error}") from error
        # DECISIONS 72
        stored_checksum = checksum(encoded.values, encoded.positions)
        specs[name] = TensorSpec(encoded.kind, tensor.shape, encoded.nnz, tensor_dtype, stored_checksum)
        arrays[VALUES + name] = np.frombuffer(encoded.values, np.uint8)
        if encoded.positions:
            arrays[POSITIONS + name] = np.frombuffer(encoded.positions, np.uint8)
    steps = compress(parts.steps.tobytes())
    arrays[VALUES + STEPS] = np.frombuffer(steps, np.uint8)
    header = PackageHeader(
        fingerprint=_fingerprint(network, model, features, kind, dtype),
        model=dict(model),
        features=dict(features) | {"kind": kind},
        backend={name: backend_state[name] for name in ("top_n", "calibration")},
        card=dict(card),
        program=parts.about | {"steps": [len(parts.steps), checksum(steps)]},
        tensors=specs,
    )
    content = to_safetensors(arrays, metadata={METADATA_KEY: header.to_text()})
    with atomic_write(path) as file:
        file.write(content)


def _fingerprint(
    network: nn.Module, model: Mapping[str, Any], features: Mapping[str, int], kind: str, dtype: str
) -> str:
    """Return a digest of all that decides embeddings."""
    # Not of the program: a later version may compute the same network in other steps.
    settings = {name: value for name, value in model.items() if name != "features" or value != DEFAULT_FEATURES}
    if "_target_" in settings:
        # Where a class lies decides nothing.
        settings["_target_"] = str(settings["_target_"]).rpartition(".")[2]
    digest = hashlib.blake2b(digest_size=32)
    digest.update(json.dumps([settings, dict(features), kind, dtype], sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(f"{name} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().float().contiguous().numpy().data)
    return digest.hexdigest()
