"""Export of networks to ONNX files, for onnxruntime and other engines."""

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
from torch.nn import functional as F

from sv_sparse.data.decoding import SAMPLE_RATE
from sv_sparse.io import atomic_write, install_command
from sv_sparse.models.features import (
    DEFAULT_FEATURES,
    build_features,
    crop_samples,
    log_normalize,
    network_features,
)

# The version that torch's exporter writes without a conversion.
OPSET = 18
FRONTENDS = ("included", "none")
# Name of the value between features and network, also where it is the input.
FILTERBANK = "filterbank"
_OPSETS = range(OPSET, 25)
# Largest protobuf message.
_MAX_BYTES = 2**31 - 1
# Length of the example that is traced.
_EXAMPLE_FRAMES = 57
# Fewer may leave a pooling without deviations.
_MIN_FRAMES = 9


def export_onnx(
    network: nn.Module, path: Path, *, frontend: str = "included", metadata: Mapping[str, str], opset: int = OPSET
) -> None:
    """Write a network in evaluation mode as one ONNX file, complete or not at all.

    The file has one input and one output, ``embedding`` [B, E], float32; B and the length are free. An
    utterance must have as many frames as the network needs: the file does not check it, and gives NaN or
    an engine's error. Embeddings are torch's but for rounding.

    Args:
        network: Network with ``mel_bins`` and ``embedding_dim``; it is not changed.
        path: The file; its folder must exist.
        frontend: ``included``: the input is ``waveform`` [B, S] in [-1, 1] at 16 kHz. ``none``: the input is
            ``filterbank`` [B, F, T], as `sv_sparse.models.features.build_features` computes it.
        metadata: Written to the file's metadata, along with ``sample_rate`` (Hz), ``mel_bins``, ``features``,
            ``embedding_dim``, ``opset`` and ``frontend``.
        opset: Version of ONNX's operators, 18 to 24. Default: 18.

    Raises:
        ValueError: An argument is not allowed, the file would exceed 2 GiB, or the packages for ONNX are missing.
        OSError: The file cannot be written.
    """
    onnx = require_module("onnx")
    require_module("onnxscript")
    if frontend not in FRONTENDS:
        raise ValueError(f"frontend must be one of {', '.join(FRONTENDS)}, got {frontend!r}")
    if opset not in _OPSETS:
        raise ValueError(f"opset must be {_OPSETS[0]} to {_OPSETS[-1]}, got {opset}")
    # Before the export, at whose end protobuf would refuse such a message.
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"the network's weights have {num_bytes / 2**30:.1f} GiB, one ONNX file holds at most 2 GiB")
    speaker_model: Any = network
    properties = {
        "sample_rate": SAMPLE_RATE,
        "mel_bins": speaker_model.mel_bins,
        "features": network_features(network),
        "embedding_dim": speaker_model.embedding_dim,
        "opset": opset,
        "frontend": frontend,
    }
    reserved = sorted(properties.keys() & metadata.keys())
    if reserved:
        raise ValueError(f"metadata must not have {', '.join(reserved)}: export_onnx writes it")
    # From 1 to 20 s a component differs from torch's by at most 3e-6 of the norm, which is 1.2e-5 for speech and a
    # trained network.
    model = _export_program(network, speaker_model.mel_bins, frontend == "included", opset)
    assert model.opset_import[0].version == opset, model.opset_import
    # The filterbank is an output only so that it keeps its name.
    del model.graph.output[1:]
    # Notes of torch's exporter name the source file of each node, on this machine.
    del model.graph.metadata_props[:]
    for entries in (model.graph.node, model.graph.value_info, model.graph.input, model.graph.output):
        for entry in entries:
            del entry.metadata_props[:]
    for key, value in {**metadata, **properties}.items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


def require_module(name: str) -> Any:
    """Return a module that only ONNX files need; raise ValueError, which says how to install it, if it is missing."""
    try:
        return importlib.import_module(name)
    # The light installation has none of them.
    except ModuleNotFoundError as error:
        raise ValueError(f"ONNX files need the package {error.name}: {install_command('onnx')}") from error


@contextmanager
def silence_logger(name: str) -> Iterator[None]:
    """Hide Python warnings, and a logger's records below errors: other packages' notes to their developers."""
    logger = logging.getLogger(name)
    # Without any handler, Python adds one that prints to the root logger at the first message.
    null_handler = logging.NullHandler()

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(is_error)
    logger.addHandler(null_handler)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.removeFilter(is_error)
        logger.removeHandler(null_handler)


class ConvFilterbank(nn.Module):
    """`Filterbank` at 16 kHz whose windowed Fourier transform is a matrix: [B, S] to [B, F, T] float32.

    An engine that multiplies in TF32 must be told not to, or must be given the filterbank.

    Args:
        mel_bins: F.
        features: Name of the kind of features. Default: sv_sparse.

    >>> ConvFilterbank(80)(torch.randn(3, 32240)).shape
    torch.Size([3, 80, 200])
    """

    transform: Tensor
    mel_filters: Tensor

    def __init__(self, mel_bins: int, features: str = DEFAULT_FEATURES) -> None:
        super().__init__()
        original = build_features(features, SAMPLE_RATE, mel_bins)
        self.settings = original.settings
        self.spectrogram = original.spectrogram
        window = self.spectrogram.window.double()
        filters = original.mel_scale.fb.T
        samples = torch.arange(len(window), dtype=torch.float64)
        # ONNX's STFT has 1.5 to 13 times the error of the convolution in onnxruntime.  DECISIONS 59
        angles = torch.outer(torch.arange(filters.shape[1]), samples) * (2 * torch.pi / self.spectrogram.n_fft)
        waves = torch.cat([angles.cos(), angles.sin()]) * window
        self.register_buffer("transform", waves.float())
        self.register_buffer("mel_filters", filters.clone())

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveform [B, S], S enough for a frame, to filterbank [B, F, T]."""
        # It differs from `Filterbank` where a voice's spectrum falls steeply and digital silence interrupts it, by up
        # to 1.5e-4 in a bin for a fall of 60 dB (5e-6 on average), by up to 1.2e-3 for 120 dB. Most of that is the
        # rounding of torch's fast transform: this is 1 to 7 times as near to float64 in the worst bin.
        if self.settings.remove_dc_offset or self.settings.preemphasis_coefficient:
            # A convolution could do this too. It would leave rounding errors of an offset where there is silence.
            spectrum = (self.spectrogram.frames(waveform) @ self.transform.T).transpose(1, 2)
        else:
            # Twice as fast.
            kernels = self.transform.unsqueeze(1)
            shift = self.spectrogram.hop_length
            padding = self.spectrogram.padding
            spectrum = F.conv1d(waveform.unsqueeze(1), kernels, stride=shift, padding=padding)
        real, imaginary = spectrum.chunk(2, dim=1)
        power = real * real + imaginary * imaginary
        return log_normalize(self.mel_filters @ power, self.settings)


class _WithFilterbank(nn.Module):
    """Network from waveform [B, S] to embedding and filterbank; as an output, the filterbank keeps its name."""

    def __init__(self, features: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.network = network

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        filterbank = self.features(waveform)
        return self.network(filterbank), filterbank


@torch.no_grad()
def _export_program(network: nn.Module, mel_bins: int, with_frontend: bool, opset: int) -> Any:
    """Return the network as an ``onnx.ModelProto``."""
    module: nn.Module = copy.deepcopy(network).cpu().eval()
    batch = torch.export.Dim("batch", min=1)
    # Examples of two utterances: torch.export takes a size of one for a constant.
    if with_frontend:
        features = network_features(network)
        module = _WithFilterbank(ConvFilterbank(mel_bins, features), module)
        example = torch.zeros(2, crop_samples(_EXAMPLE_FRAMES / 100, SAMPLE_RATE, features))
        min_samples = crop_samples(_MIN_FRAMES / 100, SAMPLE_RATE, features)
        shape = {0: batch, 1: torch.export.Dim("samples", min=min_samples)}
        input_name = "waveform"
        output_names = ["embedding", FILTERBANK]
    else:
        example = torch.zeros(2, mel_bins, _EXAMPLE_FRAMES)
        shape = {0: batch, 2: torch.export.Dim("frames", min=_MIN_FRAMES)}
        input_name = FILTERBANK
        output_names = ["embedding"]
    with silence_logger("torch.onnx._internal.exporter._registration"):
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            dynamic_shapes=(shape,),
            input_names=[input_name],
            output_names=output_names,
            opset_version=opset,
            verbose=False,
        )
        assert program is not None
        # Quantization recognizes only constants as weights. Without a limit of size, weights that are sliced or
        # transposed before their use are folded to constants.
        require_module("onnxscript.optimizer").optimize(
            program.model, input_size_limit=_MAX_BYTES, output_size_limit=_MAX_BYTES
        )
    return program.model_proto
