"""Networks to ONNX files, for onnxruntime and other engines."""

import copy
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse.export.onnx_features import ConvolvedFilterbank
from sv_sparse.io import atomic_write, install_command
from sv_sparse.models.features import crop_samples

OPSET = 18  # what torch's exporter speaks without a conversion
_OPSETS = range(OPSET, 25)
SAMPLE_RATE = 16000
FEATURES = ("inside", "outside")
FILTERBANK = "filterbank"  # the name of the features' result, whether it is computed inside or given
_MOST_BYTES = 2**31 - 1  # of a protobuf message
_FRAMES, _LEAST_FRAMES = 57, 9  # of the example that is traced; fewer may leave a pooling nothing to deviate from


def export_onnx(
    network: nn.Module, path: Path, *, features: str = "inside", metadata: Mapping[str, str], opset: int = OPSET
) -> None:
    """Write a network in evaluation mode as one ONNX file, whole or not at all.

    The file has one input and one output, ``embedding`` [B, E], float32; B and the length are free. An utterance must
    have as many frames as the network asks for: the file does not check it, and gives NaN or an engine's error.
    Embeddings are torch's but for rounding: for 1 to 20 s a component differs by at most 3e-6 of the norm, which is
    1.2e-5 for speech and a trained network.

    Args:
        network: one of ours, with ``mel_bins`` and ``embedding_dim``; it stays as it is.
        path: the file; its folder must exist.
        features: ``inside``: the input is ``waveform`` [B, S] in [-1, 1] at 16 kHz; ``outside``: it is ``filterbank``
            [B, F, T], by `sv_sparse.models.features.Filterbank`.
        metadata: goes into the file's metadata, along with ``sample_rate`` (Hz), ``mel_bins``, ``embedding_dim``,
            ``opset`` and ``features``.
        opset: version of ONNX's operators, 18 to 24.

    Raises:
        ValueError: an argument is not allowed, the file would exceed 2 GiB, or the packages for ONNX are missing.
        OSError: the file cannot be written.
    """
    onnx = optional("onnx")
    optional("onnxscript")
    if features not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {features!r}")
    if opset not in _OPSETS:
        raise ValueError(f"opset must be {_OPSETS[0]} to {_OPSETS[-1]}, got {opset}")
    _check_size(network)
    ours: Any = network
    own = {
        "sample_rate": SAMPLE_RATE,
        "mel_bins": ours.mel_bins,
        "embedding_dim": ours.embedding_dim,
        "opset": opset,
        "features": features,
    }
    if taken := sorted(own.keys() & metadata.keys()):
        raise ValueError(f"metadata must not have {', '.join(taken)}, which the file says by itself")
    model = _traced(network, ours.mel_bins, inside=features == "inside", opset=opset)
    assert model.opset_import[0].version == opset, model.opset_import
    _strip(model)
    for key, value in {**metadata, **own}.items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


def optional(name: str) -> Any:
    """A module of the packages that only ONNX files need.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"ONNX files need the package {error.name}: {install_command('onnx')}") from error


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Hide warnings, and a logger's, of other packages about themselves."""
    log, silence = logging.getLogger(logger), logging.NullHandler()
    log.addFilter(_is_an_error)
    log.addHandler(silence)  # a root logger without any gets one that prints, at the first message
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.removeFilter(_is_an_error)
        log.removeHandler(silence)


def _is_an_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


class _WithFilterbank(nn.Module):
    """Waveform [B, S] to embedding and filterbank: as an output, the latter keeps its name."""

    def __init__(self, features: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.network = network

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        filterbank = self.features(waveform)
        return self.network(filterbank), filterbank


def _check_size(network: nn.Module) -> None:
    """Raise a ValueError if the weights do not fit into one file."""
    count = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if count > _MOST_BYTES:
        raise ValueError(f"the network's weights have {count / 2**30:.1f} GiB, one ONNX file holds at most 2 GiB")


@torch.no_grad()
def _traced(network: nn.Module, mel_bins: int, *, inside: bool, opset: int) -> Any:
    """The network as an ``onnx.ModelProto``; with the features inside, the value between both is `FILTERBANK`."""
    module = copy.deepcopy(network).cpu().eval()
    batch = torch.export.Dim("batch", min=1)
    if inside:
        module = _WithFilterbank(ConvolvedFilterbank(mel_bins), module)
        example = torch.zeros(2, crop_samples(_FRAMES / 100))
        shape = {0: batch, 1: torch.export.Dim("samples", min=crop_samples(_LEAST_FRAMES / 100))}
    else:
        example = torch.zeros(2, mel_bins, _FRAMES)
        shape = {0: batch, 2: torch.export.Dim("frames", min=_LEAST_FRAMES)}
    with quiet("torch.onnx._internal.exporter._registration"):
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=(shape,),
            input_names=["waveform" if inside else FILTERBANK],
            output_names=["embedding", FILTERBANK] if inside else ["embedding"],
            opset_version=opset,
            verbose=False,
        )
        assert program is not None
        # Weights that are cut or transposed before their use become weights, which quantization recognizes.
        limits = {"input_size_limit": _MOST_BYTES, "output_size_limit": _MOST_BYTES}
        optional("onnxscript.optimizer").optimize(program.model, **limits)
    return program.model_proto


def _strip(model: Any) -> None:
    """Remove the output that only had to be named, and the notes on where in which source files a node was made."""
    del model.graph.output[1:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del part.metadata_props[:]
