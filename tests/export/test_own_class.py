"""A network of the user's own class, which is imported only because the user names it."""

import logging

import onnxruntime
import pytest
import torch
from helpers import deployed

from sv_sparse.export.onnx import export_onnx
from sv_sparse.export.package import write_package
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
    write_package(path, network, MODEL, backend, {}, features=deployed.FEATURES, model_class=MODEL_CLASS)
    return path


def test_a_package_never_imports_the_class_that_it_names(path, network, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=rf"m\.safetensors is not a readable package: .*{MODEL_CLASS}"):
        read_package(path)
    with pytest.raises(ValueError, match=MODEL_CLASS):
        read_package(path, "helpers.own_tdnn.Other")
    monkeypatch.setenv("SV_SPARSE_MODEL_CLASS", MODEL_CLASS)
    assert read_package(path).model == MODEL


def test_its_embeddings_are_those_of_the_network_by_torch_and_the_log_says_what_that_costs(path, network, caplog):
    with caplog.at_level(logging.WARNING):
        verifier = Verifier.from_pretrained(path, model_class=MODEL_CLASS)
    assert "no program for TDNN" in caplog.text
    assert "falling back to the torch engine" in caplog.text
    assert "four times as long" in caplog.text
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
