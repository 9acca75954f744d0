"""ONNX files with weights and activations of eight bits."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sv_sparse.export.onnx import FILTERBANK, optional, quiet
from sv_sparse.io import atomic_write

_OPERATORS = ["Conv", "MatMul", "Gemm"]


def quantize_onnx(source: Path, path: Path, inputs: Iterable[np.ndarray]) -> None:
    """Write a file of `sv_sparse.export.onnx.export_onnx` with its convolutions and matrix products in int8.

    Their inputs and outputs are unsigned, between the smallest and the largest value that ``inputs`` caused: a few
    dozen utterances of the kind that will be judged. Their weights are signed, with a scale for each output channel.
    All else stays float32, the features included: sums and products between layers in int8 cost most of the accuracy
    and save no time. Embeddings change, so a mean, a cohort and a calibration are to be computed anew.

    The operators are standard ones with ``QuantizeLinear`` and ``DequantizeLinear`` around them. Weights use 7 of the
    8 bits, without which sums overflow on x86 processors that lack VNNI.

    Args:
        source: as `export_onnx` wrote it, with the features inside or outside.
        path: the file; its folder must exist. Metadata are those of ``source``, and ``quantization``.
        inputs: waveforms [B, S] or filterbanks [B, F, T], as ``source`` takes them, float32, of any lengths.

    Raises:
        ValueError: ``source`` or an input is of another kind, there is no input, or the packages for ONNX are missing.
        OSError: a file cannot be read or written.
    """
    onnx, quantization = optional("onnx"), optional("onnxruntime.quantization")
    model = _read(source)
    kind = quantization.QuantType
    with TemporaryDirectory() as folder, quiet("root"):
        quantized = Path(folder) / "quantized.onnx"
        quantization.quantize_static(
            model,
            quantized,
            _Reader(model.graph.input[0], inputs),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            nodes_to_exclude=_nodes_before(model.graph, FILTERBANK),
            per_channel=True,
            reduce_range=True,
            activation_type=kind.QUInt8,
            weight_type=kind.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        written = onnx.load(quantized)
    del written.metadata_props[:]
    written.metadata_props.extend(model.metadata_props)
    written.metadata_props.add(key="quantization", value="int8")
    onnx.checker.check_model(written, full_check=True)
    with atomic_write(path) as file:
        file.write(written.SerializeToString())


def _read(source: Path) -> Any:
    """The file as an ``onnx.ModelProto``.

    Raises:
        ValueError: It is not one of ours, or is quantized already.
        OSError: It cannot be read.
    """
    try:
        model = optional("onnx").load_model_from_string(source.read_bytes())
    except optional("google.protobuf.message").DecodeError:
        raise ValueError(f"{source}: not an ONNX file") from None
    keys = {entry.key for entry in model.metadata_props}
    if "embedding_dim" not in keys or "quantization" in keys:
        raise ValueError(f"{source}: expected a network as it was exported, in float32")
    return model


def _nodes_before(graph: Any, value: str) -> list[str]:
    """Names of the nodes that a value is computed by."""
    makers = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    values = [value]
    while values:
        node = makers.get(values.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            values += node.input
    return sorted(found)


class _Reader:
    """What onnxruntime takes calibration inputs from: one after the other, then None."""

    def __init__(self, graph_input: Any, inputs: Iterable[np.ndarray]) -> None:
        self._name = graph_input.name
        self._axes = [axis.dim_value or axis.dim_param for axis in graph_input.type.tensor_type.shape.dim]
        self._inputs = iter(inputs)
        self._any = False

    def get_next(self) -> dict[str, np.ndarray] | None:
        array = next(self._inputs, None)
        if array is None:
            if not self._any:
                raise ValueError("quantization needs at least one input")
            return None
        if array.dtype != np.float32 or not self._fits(array.shape):
            wanted = f"float32 [{', '.join(map(str, self._axes))}]"
            raise ValueError(f"each {self._name} must be {wanted}, got {array.dtype} {list(array.shape)}")
        self._any = True
        return {self._name: array}

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self._axes) and all(
            size == axis for size, axis in zip(shape, self._axes, strict=True) if isinstance(axis, int)
        )
