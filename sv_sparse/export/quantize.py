"""Quantization of ONNX files: weights and activations of eight bits."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np

from sv_sparse.export.onnx import FILTERBANK, require_module, silence_logger
from sv_sparse.io import atomic_write


def quantize_onnx(source: Path, path: Path, inputs: Iterable[np.ndarray]) -> None:
    """Write a file of `sv_sparse.export.onnx.export_onnx` with int8 convolutions and matrix products.

    Weights are signed, with a scale for each output channel. Activations are unsigned, between the smallest
    and the largest value that ``inputs`` caused. Everything else stays float32, the filterbank included.
    Embeddings change, so a mean, a cohort and a calibration must be computed again.

    Args:
        source: File that `export_onnx` wrote, with or without frontend.
        path: File to write; its folder must exist. It has the metadata of ``source``, and ``quantization``.
        inputs: Waveforms [B, S] or filterbanks [B, F, T], as ``source`` takes them, float32, of any lengths: dozens
            of utterances of the kind that the file will be used for.

    Raises:
        ValueError: ``source`` or an input is of another kind, there is no input, or the packages for ONNX are missing.
        OSError: A file cannot be read or written.
    """
    onnx = require_module("onnx")
    quantization = require_module("onnxruntime.quantization")
    try:
        model = onnx.load_model_from_string(source.read_bytes())
    except require_module("google.protobuf.message").DecodeError:
        raise ValueError(f"{source}: not an ONNX file") from None
    keys = {entry.key for entry in model.metadata_props}
    if "embedding_dim" not in keys or "quantization" in keys:
        raise ValueError(f"{source}: expected a network as sv-sparse export wrote it, in float32")
    with TemporaryDirectory() as folder, silence_logger("root"):
        temporary = Path(folder) / "quantized.onnx"
        quantization.quantize_static(
            model,
            temporary,
            SimpleNamespace(get_next=partial(next, _calibration_inputs(model.graph.input[0], inputs), None)),
            # Standard operators with QuantizeLinear and DequantizeLinear around them, for any engine.  DECISIONS 59
            quant_format=quantization.QuantFormat.QDQ,
            # Sums and products between layers in int8 cost most of the accuracy and save no time.
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=_nodes_before(model.graph, FILTERBANK),
            per_channel=True,
            # 7 of the 8 bits, without which sums overflow on x86 processors that lack VNNI.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        quantized = onnx.load(temporary)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    quantized.metadata_props.add(key="quantization", value="int8")
    onnx.checker.check_model(quantized, full_check=True)
    with atomic_write(path) as file:
        file.write(quantized.SerializeToString())


def _nodes_before(graph: Any, value: str) -> list[str]:
    """Return the names of all nodes up to the one that computes a value; none where the value is an input."""
    # In a file each node comes after those whose values it reads: all of the network's come after the filterbank.
    names = []
    for node in graph.node:
        names.append(node.name)
        if value in node.output:
            return names
    return []


def _calibration_inputs(graph_input: Any, inputs: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Yield inputs as onnxruntime asks for them."""
    name = graph_input.name
    # Sizes, or names of axes that are free.
    axes = [axis.dim_value or axis.dim_param for axis in graph_input.type.tensor_type.shape.dim]
    num_inputs = 0
    for array in inputs:
        has_shape = array.ndim == len(axes)
        for axis, size in zip(axes, array.shape, strict=False):
            has_shape &= isinstance(axis, str) or axis == size
        if array.dtype != np.float32 or not has_shape:
            expected = f"float32 [{', '.join(map(str, axes))}]"
            raise ValueError(f"each {name} must be {expected}, got {array.dtype} {list(array.shape)}")
        num_inputs += 1
        yield {name: array}
    if not num_inputs:
        raise ValueError("quantization needs at least one input")
