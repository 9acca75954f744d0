"""Convert weights of SpeechBrain and WeSpeaker to networks of this package; name_maps.py has the names.

Weights do not tell dilations, strides, and floors of variances. They are taken to be those of the published
networks: dilations 1, 2, 3, 4, strides 1, 2, 2, 2; WeSpeaker once floored variances as we do, now at 1e-7.

Features are those of the toolkit: ``features`` of the settings names them, so that embeddings of converted weights are
those of the toolkit's own network, from the waveform on.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.pretrained.name_maps import (
    SPEECHBRAIN_ECAPA,
    SPEECHBRAIN_RESNET,
    WESPEAKER_ECAPA,
    WESPEAKER_RESNET,
    NameMap,
    fill,
    names_in_toolkit,
)
from sv_sparse.models.registry import MODELS
from sv_sparse.models.resnet import ResNet34
from sv_sparse.models.se_resnet import BLOCKS, SEResNet

logger = logging.getLogger(__name__)

DILATIONS = [1, 2, 3, 4]
_CONTEXT_WEIGHT = "pooling.linear1.weight"
# Names in an error.
_MAX_LISTED = 5


class _Shapes:
    """Shapes of their tensors by our names of modules."""

    def __init__(self, state: Mapping[str, Tensor], name_map: NameMap) -> None:
        self.state = state
        self.name_map = name_map

    def get(self, module: str, ndim: int, i: int = 0) -> torch.Size:
        """Return the shape of a module's weight; of a numbered module that of block ``i`` and its part 0.

        Raises:
            ValueError: There is no such weight, or it has another number of axes.
        """
        name = f"{fill(self.name_map[module], i, 0)}.weight"
        if name not in self.state:
            raise ValueError(f"missing {name}")
        shape = self.state[name].shape
        if len(shape) != ndim:
            raise ValueError(f"{name} must have {ndim} axes, got shape {tuple(shape)}")
        return shape


def _ecapa_settings(shapes: _Shapes, layout: str) -> dict[str, Any]:
    # SpeechBrain has convolutions where we have linear layers.
    linear_ndim = 3 if layout == "speechbrain" else 2
    res2_conv = "blocks.{i}.res2.convs.{j}.conv"
    kernel_sizes = [shapes.get("stem.conv", 3)[2]]
    for i in range(len(DILATIONS) - 1):
        kernel_sizes.append(shapes.get(res2_conv, 3, i)[2])
    channels = shapes.get("stem.conv", 3)[0]
    return {
        "channels": channels,
        "mfa_channels": shapes.get("mfa", 3)[0],
        "attention_channels": shapes.get("pooling.linear1", 3)[0],
        "se_channels": shapes.get("blocks.{i}.se.squeeze", linear_ndim)[0],
        "kernel_sizes": kernel_sizes,
        "res2net_scale": channels // shapes.get(res2_conv, 3)[0],
        "dilations": list(DILATIONS),
        "embedding_dim": shapes.get("embedding", linear_ndim)[0],
        "layout": layout,
    }


def _resnet_settings(shapes: _Shapes) -> dict[str, Any]:
    return {
        "base_channels": shapes.get("conv", 4)[0],
        "embedding_dim": shapes.get("embedding", 2)[0],
        "statistics_norm": False,
    }


def _se_resnet_settings(shapes: _Shapes) -> dict[str, Any]:
    return {
        "channels": [shapes.get("stages.{i}.{j}.conv1", 4, i)[0] for i in range(len(BLOCKS))],
        "attention_channels": shapes.get("pooling.linear1", 3)[0],
        "embedding_dim": shapes.get("embedding", 2)[0],
    }


@dataclass(frozen=True)
class _Toolkit:
    """A network of another toolkit."""

    name: str
    # Beginning of names that only this network has.
    prefix: str
    model_class: type[nn.Module]
    # Their names of modules by ours.
    name_map: NameMap
    # Reads the settings of our class from the shapes.
    read_settings: Callable[[_Shapes], dict[str, Any]]
    # Name of the features that it was trained on.
    features: str
    # Kernels are frames by bins; ours are bins by frames.
    transposed: bool = False
    # Beginning of the names of the training head.
    head_prefix: str | None = None
    # Beginnings of names of parts that our class does not have, and what these are.
    unsupported: Mapping[str, str] = field(default_factory=dict)


_TOOLKITS = (
    _Toolkit(
        name="SpeechBrain's ECAPA-TDNN",
        prefix="asp.",
        model_class=ECAPA,
        name_map=SPEECHBRAIN_ECAPA,
        read_settings=lambda shapes: _ecapa_settings(shapes, "speechbrain"),
        features="speechbrain",
    ),
    _Toolkit(
        name="SpeechBrain's ResNet",
        prefix="norm_stats.",
        model_class=SEResNet,
        name_map=SPEECHBRAIN_RESNET,
        read_settings=_se_resnet_settings,
        features="speechbrain",
        transposed=True,
    ),
    _Toolkit(
        name="WeSpeaker's ECAPA-TDNN",
        prefix="layer2.se_res2block.",
        model_class=ECAPA,
        name_map=WESPEAKER_ECAPA,
        read_settings=lambda shapes: _ecapa_settings(shapes, "wespeaker"),
        features="wespeaker",
        head_prefix="projection.",
        unsupported={"bn2.": "a batch norm behind the embedding (emb_bn)"},
    ),
    _Toolkit(
        name="WeSpeaker's ResNet34",
        prefix="seg_1.",
        model_class=ResNet34,
        name_map=WESPEAKER_RESNET,
        read_settings=_resnet_settings,
        features="wespeaker",
        head_prefix="projection.",
        unsupported={"seg_2.": "a second embedding layer (two_emb_layer)", "pool.": "a pooling with weights"},
    ),
)


def convert(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Convert a network of SpeechBrain's or WeSpeaker's to a network of ours.

    Args:
        state: State dict of SpeechBrain's ECAPA_TDNN or ResNet, or of WeSpeaker's ECAPA_TDNN or ResNet34, whose
            head may be in it and is left out.

    Returns:
        The name of the toolkit and its network; the settings of our network with its ``name`` in the registry and its
        ``features``; the state dict of our network, float32 and whole numbers, sharing no memory with ``state``.

    Raises:
        ValueError: It is none of these, keys are missing or left over, shapes do not fit, or it has a part that our
            networks do not have.
    """
    toolkit = _find_toolkit(state)
    network_state = dict(state)
    if toolkit.head_prefix is not None:
        head = sorted(name for name in state if name.startswith(toolkit.head_prefix))
        for name in head:
            del network_state[name]
        if head:
            logger.info("%s: left out the head: %s", toolkit.name, _list(head))
    try:
        settings, weights = _convert(toolkit, network_state)
    except ValueError as error:
        raise ValueError(f"the weights look like those of {toolkit.name}, but do not fit: {error}") from error
    (name,) = [name for name, model_class in MODELS.items() if model_class is toolkit.model_class]
    return toolkit.name, {"name": name, "features": toolkit.features, **settings}, weights


def pretrained_features(state: Mapping[str, Any]) -> str:
    """Return the name of the features that a network of SpeechBrain's or WeSpeaker's was trained on.

    Args:
        state: State dict, as ``convert`` takes it; only its names are looked at.

    Raises:
        ValueError: It is none of these networks.
    """
    return _find_toolkit(state).features


def _find_toolkit(state: Mapping[str, Any]) -> _Toolkit:
    if all(isinstance(value, Tensor) for value in state.values()):
        for toolkit in _TOOLKITS:
            if any(name.startswith(toolkit.prefix) for name in state):
                return toolkit
    allowed = ", ".join(toolkit.name for toolkit in _TOOLKITS)
    raise ValueError(f"the weights must be a plain state dict of one of {allowed}; got {_list(state)}")


def _convert(toolkit: _Toolkit, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for prefix, part in toolkit.unsupported.items():
        if any(name.startswith(prefix) for name in state):
            raise ValueError(f"it has {part}, which our network does not have")
    settings = toolkit.read_settings(_Shapes(state, toolkit.name_map))
    with torch.device("meta"):
        expected = toolkit.model_class(**settings).state_dict()
    their_names = names_in_toolkit(toolkit.name_map, expected)
    _check_names(set(their_names.values()), set(state))
    weights = {}
    for name, like in expected.items():
        their_name = their_names[name]
        weights[name] = _convert_tensor(toolkit, name, their_name, state[their_name], like)
    return settings, weights


def _check_names(expected: set[str], got: set[str]) -> None:
    problems = []
    if expected - got:
        problems.append(f"missing {_list(sorted(expected - got))}")
    if got - expected:
        problems.append(f"left over {_list(sorted(got - expected))}")
    if problems:
        raise ValueError("; ".join(problems))


def _list(names: Iterable[str]) -> str:
    all_names = [str(name) for name in names]
    if not all_names:
        return "nothing"
    listed = ", ".join(all_names[:_MAX_LISTED])
    num_more = len(all_names) - _MAX_LISTED
    return f"{listed} and {num_more} more" if num_more > 0 else listed


def _convert_tensor(toolkit: _Toolkit, name: str, their_name: str, value: Tensor, like: Tensor) -> Tensor:
    """Return their tensor as ours; ``like`` has our shape and type."""
    # SpeechBrain's ResNet reads an image of frames by bins, ours one of bins by frames.
    if toolkit.transposed and value.ndim == 4:
        value = value.transpose(2, 3)
    if name == _CONTEXT_WEIGHT and toolkit.model_class is ECAPA and 3 * value.shape[1] == like.shape[1]:
        # The same function as without context.
        logger.info("%s: its attention has no global context; the context's weights become zeros", toolkit.name)
        value = torch.cat([value, torch.zeros_like(value), torch.zeros_like(value)], dim=1)
    # Their convolutions over time are one-dimensional, ours have an axis of height one; and a convolution with one tap
    # on single frames is a linear layer here.
    if [size for size in value.shape if size > 1] != [size for size in like.shape if size > 1]:
        raise ValueError(
            f"{their_name} must have shape {tuple(like.shape)}, axes of size one aside, got {tuple(value.shape)}"
        )
    # Averaged checkpoints of WeSpeaker hold counts of batches as fractions: like.dtype makes them whole numbers.
    return value.detach().to("cpu", like.dtype, copy=True).reshape(like.shape).contiguous()
