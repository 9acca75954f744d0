"""Networks trained with SpeechBrain or WeSpeaker, under our names: `convert`.

`sv_sparse.models.pretrained.name_maps` has the names. What changes besides:

- Axes of size one: their convolutions over time are one-dimensional, ours have an axis of height one, and a
  convolution with one tap on single frames is a linear layer here.
- SpeechBrain's ResNet sees an image of frames by bins, ours of bins by frames: its kernels are transposed.
- SpeechBrain's filterbank is 10·log10 of the energy, ours the natural logarithm; both have the mean over time
  removed. The first convolution's weight is multiplied by 10 / ln 10.
- An attention without global context gets zeros as the weights of the context, which is the same function.
- Averaged checkpoints of WeSpeaker hold counts of batches as fractions; they become whole numbers.

Weights do not tell dilations, strides, and floors of variances. They are taken to be those of the published
networks: dilations 1, 2, 3, 4, strides 1, 2, 2, 2; WeSpeaker once floored variances as we do, now at 1e-7.

The features of SpeechBrain and ours stay alike, not equal. Theirs has frames centred on multiples of 10 ms (2.5 ms
off ours), a transform of 400 points (ours: 512) that is no longer than the window, filters from 0 Hz (ours: 20 Hz)
that are triangles over Hz (ours: over mel), and no value more than 80 dB below the loudest (ours: no such floor).
The lowest bins differ most, and so do recordings with digital silence. So embeddings of converted weights are not
quite SpeechBrain's; from the same filterbank they are.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.pretrained.name_maps import (
    SPEECHBRAIN_ECAPA,
    SPEECHBRAIN_RESNET,
    WESPEAKER_ECAPA,
    WESPEAKER_RESNET,
    Modules,
    fill,
    their_names,
)
from sv_sparse.models.registry import MODELS
from sv_sparse.models.resnet import ResNet34
from sv_sparse.models.se_resnet import BLOCKS, SEResNet

logger = logging.getLogger(__name__)

DECIBELS = 10 / math.log(10)
DILATIONS = [1, 2, 3, 4]
CONTEXT = "pooling.hidden.weight"
NAMED_IN_ERRORS = 5


class _Source:
    """Shapes of their tensors, asked for by our modules' names."""

    def __init__(self, state: Mapping[str, Tensor], modules: Modules) -> None:
        self.state = state
        self.modules = modules

    def shape(self, module: str, axes: int, i: int = 0) -> torch.Size:
        """Shape of a weight, where the module has counts that of block ``i`` and its part 0.

        Raises:
            ValueError: There is no such weight, or it has another number of axes.
        """
        name = f"{fill(self.modules[module], i, 0)}.weight"
        if name not in self.state:
            raise ValueError(f"missing {name}")
        shape = self.state[name].shape
        if len(shape) != axes:
            raise ValueError(f"{name} must have {axes} axes, got shape {tuple(shape)}")
        return shape


def _ecapa_settings(source: _Source, layout: str) -> dict[str, Any]:
    convolutional = 3 if layout == "speechbrain" else 2  # axes of what is a linear layer here
    unit = "blocks.{i}.res2.units.{j}.conv"
    blocks = range(len(DILATIONS) - 1)
    channels = source.shape("first.conv", 3)[0]
    return {
        "channels": channels,
        "mfa_channels": source.shape("mfa", 3)[0],
        "attention_channels": source.shape("pooling.hidden", 3)[0],
        "se_channels": source.shape("blocks.{i}.excitation.squeeze", convolutional)[0],
        "kernel_sizes": [source.shape("first.conv", 3)[2], *(source.shape(unit, 3, i)[2] for i in blocks)],
        "res2net_scale": channels // source.shape(unit, 3)[0],
        "dilations": list(DILATIONS),
        "embedding_dim": source.shape("embedding", convolutional)[0],
        "layout": layout,
    }


def _resnet_settings(source: _Source) -> dict[str, Any]:
    return {
        "base_channels": source.shape("conv", 4)[0],
        "embedding_dim": source.shape("embedding", 2)[0],
        "statistics_norm": False,
    }


def _se_resnet_settings(source: _Source) -> dict[str, Any]:
    return {
        "channels": [source.shape("stages.{i}.{j}.conv1", 4, i)[0] for i in range(len(BLOCKS))],
        "attention_channels": source.shape("pooling.hidden", 3)[0],
        "embedding_dim": source.shape("embedding", 2)[0],
    }


@dataclass(frozen=True)
class Kind:
    """A network of a toolkit.

    Attributes:
        name: For messages.
        mark: Beginning of names that only this kind has.
        network: Our class.
        modules: Our modules and theirs.
        settings: Reads our class's settings from the shapes.
        first: Our weight that sees the filterbank, to be multiplied for SpeechBrain; none for WeSpeaker.
        transposed: Whether kernels are frames by bins.
        dropped: Beginning of names that are no part of the network.
        refused: Beginnings of names of parts that our class does not have, and what these are.
    """

    name: str
    mark: str
    network: type[nn.Module]
    modules: Modules
    settings: Callable[[_Source], dict[str, Any]]
    first: str | None = None
    transposed: bool = False
    dropped: str | None = None
    refused: Mapping[str, str] | None = None


KINDS = (
    Kind(
        "SpeechBrain's ECAPA-TDNN",
        "asp.",
        ECAPA,
        SPEECHBRAIN_ECAPA,
        lambda source: _ecapa_settings(source, "speechbrain"),
        first="first.conv.weight",
    ),
    Kind(
        "SpeechBrain's ResNet",
        "norm_stats.",
        SEResNet,
        SPEECHBRAIN_RESNET,
        _se_resnet_settings,
        first="conv.weight",
        transposed=True,
    ),
    Kind(
        "WeSpeaker's ECAPA-TDNN",
        "layer2.se_res2block.",
        ECAPA,
        WESPEAKER_ECAPA,
        lambda source: _ecapa_settings(source, "wespeaker"),
        dropped="projection.",
        refused={"bn2.": "a batch norm behind the embedding (emb_bn)"},
    ),
    Kind(
        "WeSpeaker's ResNet34",
        "seg_1.",
        ResNet34,
        WESPEAKER_RESNET,
        _resnet_settings,
        dropped="projection.",
        refused={"seg_2.": "a second embedding layer (two_emb_layer)", "pool.": "a pooling with weights"},
    ),
)


def convert(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """A network of SpeechBrain's or WeSpeaker's as a network of ours.

    Args:
        state: State dict of SpeechBrain's ECAPA_TDNN or ResNet, or of WeSpeaker's ECAPA_TDNN or ResNet34, whose
            head may be in it and is left out.

    Returns:
        What it is, in words; the settings of our network with its ``name`` in the registry; the state dict of
        our network, float32 and whole numbers, sharing no memory with ``state``.

    Raises:
        ValueError: It is none of these, keys are missing or left over, shapes do not fit, or it has a part that our
            networks do not have.
    """
    kind = _kind(state)
    network_state = {
        name: value for name, value in state.items() if kind.dropped is None or not name.startswith(kind.dropped)
    }
    if len(network_state) < len(state):
        logger.info("%s: left out the head: %s", kind.name, _list(sorted(set(state) - set(network_state))))
    try:
        settings, weights = _converted(kind, network_state)
    except ValueError as error:
        raise ValueError(f"the weights look like those of {kind.name}, but do not fit: {error}") from error
    (name,) = [name for name, network in MODELS.items() if network is kind.network]
    return kind.name, {"name": name, **settings}, weights


def _kind(state: Mapping[str, Tensor]) -> Kind:
    if all(isinstance(value, Tensor) for value in state.values()):
        for kind in KINDS:
            if any(name.startswith(kind.mark) for name in state):
                return kind
    allowed = ", ".join(kind.name for kind in KINDS)
    raise ValueError(f"the weights must be a plain state dict of one of {allowed}; got {_list(state)}")


def _converted(kind: Kind, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for beginning, part in (kind.refused or {}).items():
        if any(name.startswith(beginning) for name in state):
            raise ValueError(f"it has {part}, which our network does not have")
    settings = kind.settings(_Source(state, kind.modules))
    with torch.device("meta"):
        expected = kind.network(**settings).state_dict()
    source_names = their_names(kind.modules, expected)
    _check_names(set(source_names.values()), set(state))
    weights = {
        name: _fitted(kind, name, source_names[name], state[source_names[name]], like)
        for name, like in expected.items()
    }
    if kind.first is not None:
        weights[kind.first] *= DECIBELS
    return settings, weights


def _check_names(expected: set[str], got: set[str]) -> None:
    missing, left_over = sorted(expected - got), sorted(got - expected)
    problems = [f"{what} {_list(names)}" for what, names in (("missing", missing), ("left over", left_over)) if names]
    if problems:
        raise ValueError("; ".join(problems))


def _list(names: Iterable[str]) -> str:
    first = [str(name) for name in names]
    more = len(first) - NAMED_IN_ERRORS
    return ", ".join(first[:NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "" if first else "nothing")


def _fitted(kind: Kind, name: str, source_name: str, value: Tensor, like: Tensor) -> Tensor:
    """Their tensor as ours: ``like`` has the shape and the type."""
    if kind.transposed and value.ndim == 4:
        value = value.transpose(2, 3)
    if name == CONTEXT and kind.network is ECAPA and 3 * value.shape[1] == like.shape[1]:
        logger.info("%s: its attention has no global context; the context's weights become zeros", kind.name)
        value = torch.cat([value, torch.zeros_like(value), torch.zeros_like(value)], dim=1)
    if [size for size in value.shape if size > 1] != [size for size in like.shape if size > 1]:
        raise ValueError(
            f"{source_name} must have shape {tuple(like.shape)}, axes of size one aside, got {tuple(value.shape)}"
        )
    return value.detach().to("cpu", like.dtype, copy=True).reshape(like.shape).contiguous()
