"""ONNX files that onnxruntime hears as torch hears the network."""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.deployed import MODELS, trained
from torch import Tensor, nn

from sv_sparse.export.onnx import OPSET, ConvFilterbank, export_onnx
from sv_sparse.export.quantize import quantize_onnx
from sv_sparse.io import install_command
from sv_sparse.models import resnet, se_resnet
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.features import FEATURES, Filterbank, build_features, network_features

RATE = 16000
# Exporting takes a few hundredths of a second for each layer: one block, of two chunks, has all kinds of them.
SHORT = {"kernel_sizes": [5, 3], "dilations": [1, 2], "res2net_scale": 2}
SMALL = MODELS["ecapa"] | SHORT
SPEECHBRAIN = MODELS["speechbrain"] | SHORT


def voice(seconds: float, fall: float = 60.0, seed: int = 0) -> Tensor:
    """Syllables of a gliding voice in 16-bit samples, [1, S], its harmonics up to 8 kHz falling by so many dB.

    A third of it is digital silence.
    """
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 10 * np.sin(3 * time)) / RATE
    sound = sum(10 ** (-fall / 20 * k / 60) * np.cos(k * phase + generator.uniform(0, 6)) for k in range(1, 61))
    sound *= np.sin(12 * time).clip(min=0) ** 2
    sound[len(time) // 3 : 2 * len(time) // 3] = 0
    return torch.from_numpy(np.round(sound * (16000 / np.abs(sound).max())).astype(np.float32) / 32768).unsqueeze(0)


def run(path: Path, given: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (embedding,) = session.run(["embedding"], {session.get_inputs()[0].name: given.numpy()})
    return torch.from_numpy(embedding)


@torch.no_grad()
def embed(network: nn.Module, waveform: Tensor) -> Tensor:
    return network(build_features(network_features(network))(waveform))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[nn.Module, Path]:
    """A network and its file with the features inside."""
    network, path = trained(SMALL).train(), tmp_path_factory.mktemp("exported") / "ecapa.onnx"
    export_onnx(network, path, metadata={"run": "ecapa 90 %"})
    assert network.training
    return network.eval(), path


NETWORKS = MODELS | {"ecapa": SMALL, "speechbrain": SPEECHBRAIN}


@pytest.mark.parametrize("model", NETWORKS.values(), ids=NETWORKS)
def test_each_network_has_its_embeddings_at_any_length(model: dict[str, Any], tmp_path: Path, monkeypatch):
    for resnet_class in (resnet.ResNet34, resnet.ResNet50):
        monkeypatch.setattr(resnet_class, "num_blocks", (1, 1, 1, 1))
    monkeypatch.setattr(se_resnet, "BLOCKS", (1, 1, 1, 1))
    network, path = trained(model), tmp_path / "network.onnx"
    export_onnx(network, path, metadata={})
    for seconds in (1, 3, 20):
        waveform = voice(seconds)
        torch.testing.assert_close(run(path, waveform), embed(network, waveform), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seconds", [0.2, 1, 3, 20])
@pytest.mark.parametrize("fall", [0, 60, 90])
def test_faint_harmonics_beside_strong_ones_and_digital_silence_are_heard(exported, seconds: float, fall: float):
    network, path = exported
    waveform = voice(seconds, fall)
    torch.testing.assert_close(run(path, waveform), embed(network, waveform), rtol=0, atol=1e-4)


def test_a_batch_is_its_utterances(exported):
    network, path = exported
    waveforms = torch.cat([voice(1.234, seed=seed) for seed in range(5)])
    torch.testing.assert_close(run(path, waveforms), embed(network, waveforms), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["3dspeaker", "wespeaker", "speechbrain"])
def test_the_file_computes_the_features_of_its_network(kind: str, tmp_path: Path):
    network, path = trained(SMALL | {"features": kind}), tmp_path / "network.onnx"
    export_onnx(network, path, metadata={})
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["features"] == kind
    for waveform in (voice(0.2), voice(3), voice(1.23) + 3277 / 32768, torch.cat([voice(1), 1e-4 * voice(1, seed=1)])):
        torch.testing.assert_close(run(path, waveform), embed(network, waveform), rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [400, 559, 560, 16001])
@pytest.mark.parametrize("kind", FEATURES)
def test_the_features_inside_have_the_frames_of_those_outside(kind: str, samples: int):
    waveform = voice(2)[:, :samples]
    inside, outside = ConvFilterbank(40, kind)(waveform), build_features(kind, mel_bins=40)(waveform)
    torch.testing.assert_close(inside, outside, rtol=0, atol=1e-3)


def test_the_features_are_nearer_to_float64_than_torchs_own():
    waveform = voice(3, fall=120)
    exact = Filterbank().double()
    spectrum = exact.spectrogram(waveform.double())
    truth = exact.mel_scale(spectrum.real**2 + spectrum.imag**2).clamp(min=1.1102e-16).log()
    truth -= truth.mean(dim=-1, keepdim=True)
    ours, torchs = (features(waveform).sub(truth).abs() for features in (ConvFilterbank(80), Filterbank()))
    assert ours.max() < min(2e-4, torchs.max())


def test_the_filterbank_can_be_given_in_float32_and_in_int8(tmp_path: Path):
    network, path, small = trained(SMALL), tmp_path / "ecapa.onnx", tmp_path / "int8.onnx"
    export_onnx(network, path, frontend="none", metadata={})
    filterbanks = [Filterbank()(voice(seconds, seed=seed)) for seed, seconds in enumerate((1, 2, 3))]
    with torch.no_grad():
        truth = network(filterbanks[2])
    torch.testing.assert_close(run(path, filterbanks[2]), truth, rtol=0, atol=1e-4)
    assert shapes(path) == ["filterbank [batch, 80, frames]", "embedding [batch, 16]"]
    quantize_onnx(path, small, [filterbank.numpy() for filterbank in filterbanks[:2]])
    assert nn.functional.cosine_similarity(run(small, filterbanks[2]), truth).min() > 0.99


def shapes(path: Path) -> list[str]:
    """Inputs and outputs as ``name [axes]``."""
    graph = onnx.load(path).graph
    axes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)}
    return [f"{name} [{', '.join(str(a.dim_value or a.dim_param) for a in dims)}]" for name, dims in axes.items()]


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(exported):
    _, path = exported
    model = onnx.load(path)
    said = {entry.key: entry.value for entry in model.metadata_props}
    own = {"sample_rate": "16000", "mel_bins": "80", "features": "sv_sparse", "embedding_dim": "16"}
    assert said == {"run": "ecapa 90 %", **own, "opset": str(OPSET), "frontend": "included"}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert shapes(path) == ["waveform [batch, samples]", "embedding [batch, 16]"]
    assert b".py" not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_weights_are_used_as_they_lie_and_the_image_is_turned_once(exported):
    graph = onnx.load(exported[1]).graph
    weights = {tensor.name for tensor in graph.initializer}
    operators = Counter(node.op_type for node in graph.node)
    assert operators["Transpose"] == 1
    assert operators["Conv"] == 6  # features, first; of the block enter, unit and leave; aggregation
    assert all(node.input[1] in weights for node in graph.node if node.op_type in {"Conv", "Gemm"})


def test_the_network_stays_as_it_is(exported):
    torch.testing.assert_close(exported[0].state_dict(), trained(SMALL).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frontend": "both"}, "frontend must be one of included, none, got 'both'"),
        ({"opset": 17}, "opset must be 18 to 24, got 17"),
        ({"metadata": {"opset": "9", "a": ""}}, "metadata must not have opset: export_onnx writes it"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(message)):
        export_onnx(trained(SMALL), tmp_path / "a.onnx", **{"metadata": {}, **settings})
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_into_one_file_is_refused(tmp_path: Path):
    with torch.device("meta"):
        network = ECAPA(channels=16384)
    with pytest.raises(ValueError, match=r"weights have \d+\.\d GiB, one ONNX file holds at most 2 GiB"):
        export_onnx(network, tmp_path / "a.onnx", metadata={})


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_what_installs_it(package: str, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=re.escape(f"need the package {package}: {install_command('onnx')}")):
        export_onnx(trained(SMALL), tmp_path / "a.onnx", metadata={})
