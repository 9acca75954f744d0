"""Reading of packages: ``model.safetensors``, one file with all that the use of a trained network needs.

A package holds the program of a network with its weights without their zeros, the scoring back-end and a card that
says what the network was trained on. ``sv_sparse.export.package`` writes it. Nothing in it is executed, and no class is
needed to read it. Reading refuses by name whatever does not fit together.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sv_sparse.io import checksum
from sv_sparse.runtime.engine.program import Float32Array, Program
from sv_sparse.runtime.engine.program_codec import ProgramParts, join_program
from sv_sparse.runtime.package_header import PackageHeader, TensorSpec
from sv_sparse.runtime.sparse_codec import SparseTensorBytes, decode, decompress
from sv_sparse.scoring.backend import Backend

POSITIONS = "positions:"
VALUES = "values:"
# Beginnings of the names of tensors: of the back-end, and of layers.
BACKEND = "backend."
LAYER = "layer."
CONSTANTS = "program.constants"
STEPS = "program.steps"
METADATA_KEY = "sv_sparse"
# Of all steps together.
_MAX_STEP_INTEGERS = 1 << 22
_EXPORT_HINT = "sv-sparse export RUN --output model.safetensors makes one from a run"


@dataclass(frozen=True)
class Package:
    """Trained network ready for use."""

    program: Program
    backend: Backend
    # sample_rate in Hz, mel_bins, and kind, the name of the network's features.
    features: dict[str, Any]
    # Plain data: training data, results, license.
    card: dict[str, Any]
    # Settings that the network was built from, for information.
    model: dict[str, Any]
    # Type that weights were rounded to when the file was written: fp32 (not at all), bf16 or fp16.
    dtype: str
    # 64 hexadecimal digits of the trained weights, settings and features. Embeddings of packages with one fingerprint
    # can be compared. The card, the back-end and the form of compression do not count.
    fingerprint: str


def read_package(path: str | os.PathLike[str]) -> Package:
    """Read a package; everything in it is compared with its checksum and with everything else.

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing, cut off, damaged or of another format, or its parts contradict each other; the
            message names the file.
    """
    path = Path(path)
    try:
        return _read(path)
    # RecursionError: JSON that is nested too deep.
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        problem = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, SafetensorError):
            problem = f"it is damaged, or not a safetensors file ({problem})"
        raise ValueError(f"{path} is not a readable package: {problem}") from error


def _read(path: Path) -> Package:
    if path.is_dir():
        raise ValueError(f"it is a folder; {_EXPORT_HINT}")
    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            raise ValueError(f"it has no header of a network: it is damaged, or another file; {_EXPORT_HINT}")
        header = PackageHeader.from_text(text)
        # Sizes are compared before any tensor is decoded.  DECISIONS 53
        _check_keys(set(file.keys()), header.tensors)
        tensors: dict[str, Float32Array] = {}
        dtype = "fp32"
        for name, spec in header.tensors.items():
            tensors[name] = _read_tensor(file, name, spec)
            if spec.dtype != "fp32":
                dtype = spec.dtype
        steps = _read_steps(file, header.program)
    weights = {}
    backend_tensors = {}
    for name, tensor in tensors.items():
        if name.startswith(LAYER):
            weights[name.removeprefix(LAYER)] = tensor
        elif name.startswith(BACKEND):
            backend_tensors[name.removeprefix(BACKEND)] = tensor
    about = {key: value for key, value in header.program.items() if key != "steps"}
    constants = tensors.get(CONSTANTS, np.empty(0, np.float32))
    program = join_program(ProgramParts(about, steps, constants.ravel(), weights), header.features["mel_bins"])
    if len(weights) != len(program.layers) or len(weights) + len(backend_tensors) + (constants.size > 0) != len(
        tensors
    ):
        raise ValueError("it has tensors that its program does not need")
    backend = _build_backend(header, backend_tensors, program.embedding_dim)
    return Package(program, backend, header.features, header.card, header.model, dtype, header.fingerprint)


def _check_keys(keys: set[str], tensors: Mapping[str, TensorSpec]) -> None:
    expected = {VALUES + name for name in tensors} | {VALUES + STEPS}
    expected |= {POSITIONS + name for name, spec in tensors.items() if spec.kind != "dense"}
    if keys != expected:
        missing = sorted(expected - keys)[:3]
        raise ValueError(f"it is damaged: it lacks {missing} or has more than its header describes")


def _read_steps(file: Any, program: Mapping[str, Any]) -> NDArray[np.int32]:
    """Return the integers of a program whose bytes are those that were written."""
    described: Any = program.get("steps")
    is_described = isinstance(described, list) and len(described) == 2 and isinstance(described[0], int)
    if not is_described or not 0 <= described[0] <= _MAX_STEP_INTEGERS:
        raise ValueError(f"program has steps {str(described)[:60]}, expected a number and a checksum")
    stored = _read_bytes(file, VALUES + STEPS)
    if described[1] != checksum(stored):
        raise ValueError(f"{STEPS} is damaged: its bytes have changed since they were written")
    return decompress(stored, 4 * described[0]).view(np.int32)


def _read_tensor(file: Any, name: str, spec: TensorSpec) -> Float32Array:
    """Return a tensor whose bytes are those that were written."""
    values = _read_bytes(file, VALUES + name)
    positions = b"" if spec.kind == "dense" else _read_bytes(file, POSITIONS + name)
    # safetensors' own header has no checksum: a change there leaves bytes that are missing or differ.  DECISIONS 72
    if spec.checksum != checksum(values, positions):
        raise ValueError(f"{name} is damaged: its bytes have changed since they were written")
    try:
        nonzeros = decode(SparseTensorBytes(spec.kind, spec.nnz, positions, values), prod(spec.shape), spec.dtype)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    return nonzeros.to_dense().reshape(spec.shape)


def _read_bytes(file: Any, key: str) -> bytes:
    # Asked before it is read: numpy has no type for some that safetensors can name.
    stored = file.get_slice(key)
    if stored.get_dtype() != "U8" or len(stored.get_shape()) != 1:
        raise ValueError(f"{key} is not stored as bytes")
    return file.get_tensor(key).tobytes()


def _build_backend(header: PackageHeader, tensors: Mapping[str, Float32Array], embedding_dim: int) -> Backend:
    mean = tensors.get("mean")
    # Only AS-norm has one.
    cohort = tensors.get("cohort")
    top_n = header.backend["top_n"]
    if mean is None or mean.shape != (embedding_dim,) or set(tensors) - {"mean", "cohort"}:
        raise ValueError(f"it has no mean embedding of size {embedding_dim}, or something beside it")
    if cohort is not None:
        if cohort.ndim != 2 or cohort.shape[1] != embedding_dim:
            raise ValueError(f"its cohort has shape {cohort.shape}, its embeddings size {embedding_dim}")
        # Fewer than two have no standard deviation.
        if not 2 <= top_n <= len(cohort):
            raise ValueError(f"it looks at {top_n} of {len(cohort)} speakers of its cohort")
    return Backend.from_dict({"mean": mean, "cohort": cohort, **header.backend})
