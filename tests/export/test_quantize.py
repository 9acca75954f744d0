"""Files in int8."""

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.deployed import trained
from test_onnx import SMALL, run, voice
from torch.nn import functional as F

from sv_sparse.export.onnx import export_onnx
from sv_sparse.export.quantize import quantize_onnx
from sv_sparse.io import install_command


def heard() -> list[np.ndarray]:
    """Waveforms of several lengths and batch sizes."""
    lengths = [(0.5, 1), (1.1, 2), (2, 1), (0.8, 1)]
    return [np.tile(voice(seconds, seed=seed), (size, 1)) for seed, (seconds, size) in enumerate(lengths)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """The file in float32 and in int8."""
    folder = tmp_path_factory.mktemp("files")
    export_onnx(trained(SMALL), folder / "float.onnx", metadata={"run": "mine"})
    quantize_onnx(folder / "float.onnx", folder / "int8.onnx", heard())
    return folder / "float.onnx", folder / "int8.onnx"


def test_embeddings_keep_their_direction(files):
    for seconds, seed in ((1, 5), (3, 6), (20, 7)):
        before, after = (run(path, voice(seconds, seed=seed)) for path in files)
        assert F.cosine_similarity(before, after).min() > 0.99


def test_the_network_is_in_int8_and_the_features_are_not(files):
    graph = onnx.load(files[1]).graph
    makers = {output: node for node in graph.node for output in node.output}
    kinds = {}
    for node in graph.node:
        if node.op_type in {"Conv", "MatMul", "Gemm"}:
            kinds[node.name] = [makers[name].op_type if name in makers else "" for name in node.input[:2]]
    floats = [name for name, (first, second) in kinds.items() if "DequantizeLinear" not in (first, second)]
    assert len(floats) == 2  # the transform and the filters
    assert all(kind == ["DequantizeLinear"] * 2 for name, kind in kinds.items() if name not in floats)
    assert files[1].stat().st_size < files[0].stat().st_size


def test_metadata_are_kept_and_say_int8(files):
    before, after = ({entry.key: entry.value for entry in onnx.load(path).metadata_props} for path in files)
    assert after == before | {"quantization": "int8"}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "quantization needs at least one input"),
        ([np.zeros((1, 8000))], "each waveform must be float32 [batch, samples], got float64 [1, 8000]"),
        ([np.zeros(8000, np.float32)], "each waveform must be float32 [batch, samples], got float32 [8000]"),
    ],
)
def test_wrong_inputs_are_named(files, inputs: list[np.ndarray], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(message)):
        quantize_onnx(files[0], tmp_path / "int8.onnx", inputs)
    assert not list(tmp_path.iterdir())


def test_only_our_files_in_float32_are_taken(files, tmp_path: Path):
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.onnx: not an ONNX file"):
        quantize_onnx(tmp_path / "text.onnx", tmp_path / "int8.onnx", heard())
    with pytest.raises(ValueError, match=r"int8\.onnx: expected a network as sv-sparse export wrote it, in float32"):
        quantize_onnx(files[1], tmp_path / "int8.onnx", heard())


def test_a_missing_runtime_is_named_with_what_installs_it(files, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(
        ValueError, match=re.escape(f"need the package onnxruntime.quantization: {install_command('onnx')}")
    ):
        quantize_onnx(files[0], tmp_path / "int8.onnx", heard())
