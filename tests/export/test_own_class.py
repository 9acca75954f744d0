"""A network of the user's own class, which is imported only because the user names it."""

import sys

import onnxruntime
import pytest
import torch
from helpers import deployed

from sv_sparse.export.onnx import export_onnx
from sv_sparse.export.package import write_package
from sv_sparse.runtime.engine.executor import SparseEngine
from sv_sparse.runtime.package import read_package
from sv_sparse.runtime.verifier import Verifier

MODEL_CLASS = "helpers.own_tdnn.TDNN"
MODEL = {"_target_": MODEL_CLASS, "channels": 12}


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setenv("SV_SPARSE_MODEL_CLASS", MODEL_CLASS)
    network = deployed.trained(MODEL, density=0.05)
    monkeypatch.delenv("SV_SPARSE_MODEL_CLASS")
    return network


@pytest.fixture
def path(tmp_path, network):
    path = tmp_path / "m.safetensors"
    backend = deployed.backend(4)
    write_package(path, network, MODEL, backend, {}, features=deployed.FEATURES)
    return path


def test_a_package_of_it_needs_no_class(path, network, monkeypatch):
    monkeypatch.delitem(sys.modules, "helpers.own_tdnn")
    verifier = Verifier.from_pretrained(path)
    assert "helpers.own_tdnn" not in sys.modules
    assert isinstance(verifier.engine.engine, SparseEngine)
    assert read_package(path).model == MODEL
    x = torch.randn(2, 80, 60)
    with torch.no_grad():
        torch.testing.assert_close(verifier.engine(x), network(x), rtol=1e-4, atol=1e-5)


def test_it_becomes_an_onnx_file(network, tmp_path):
    export_onnx(network, tmp_path / "m.onnx", frontend="none", metadata={})
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(2, 80, 60)
    (embedding,) = session.run(["embedding"], {"filterbank": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(embedding), network(x), rtol=1e-4, atol=1e-5)
