"""Convert weights of other toolkits to networks of this package; name_maps.py has the names.

Weights do not tell dilations, strides, and floors of variances. They are taken to be those of the published
networks: dilations 1, 2, 3, 4, strides 1, 2, 2, 2; WeSpeaker once floored variances as we do, now at 1e-7.

Features are those of the toolkit: ``features`` of the settings names them, so that embeddings of converted weights are
those of the toolkit's own network, from the waveform on.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sv_sparse.models.campplus import DILATIONS as CAMPPLUS_DILATIONS
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.pretrained.name_maps import (
    SPEECHBRAIN_ECAPA,
    SPEECHBRAIN_RESNET,
    THREED_SPEAKER_CAMPPLUS,
    WESPEAKER_ECAPA,
    WESPEAKER_RESNET,
    WESPEAKER_XVECTOR,
    NameMap,
    fill,
    names_in_toolkit,
)
from sv_sparse.models.pretrained.state_dict import Difference, compare_names, compare_tensors, list_names, unwrapped
from sv_sparse.models.registry import MODELS
from sv_sparse.models.se_resnet import BLOCKS
from sv_sparse.models.xvector import DILATIONS as XVECTOR_DILATIONS

logger = logging.getLogger(__name__)

DILATIONS = [1, 2, 3, 4]
_CONTEXT_WEIGHT = "pooling.linear1.weight"
# WeSpeaker's ResNets have no norm between pooling and embedding.
RESNET_LAYOUT = {"statistics_norm": False}


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

    def count(self, module: str, i: int) -> int:
        """Return how many parts of block ``i`` have a module, counted from 0 to the first that is missing."""
        count = 0
        while f"{fill(self.name_map[module], i, count)}.weight" in self.state:
            count += 1
        return count


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
        **RESNET_LAYOUT,
    }


def _campplus_settings(shapes: _Shapes) -> dict[str, Any]:
    return {
        "front_channels": shapes.get("front.conv", 4)[0],
        "channels": shapes.get("conv", 3)[0],
        "growth_rate": shapes.get("blocks.{i}.{j}.conv2", 3)[0],
        "bottleneck_channels": shapes.get("blocks.{i}.{j}.conv1", 3)[0],
        "block_layers": [shapes.count("blocks.{i}.{j}.conv1", i) for i in range(len(CAMPPLUS_DILATIONS))],
        "embedding_dim": shapes.get("embedding", 3)[0],
    }


def _xvector_settings(shapes: _Shapes) -> dict[str, Any]:
    return {
        "channels": shapes.get("layers.{i}.conv", 3)[0],
        "statistics_channels": shapes.get("layers.{i}.conv", 3, len(XVECTOR_DILATIONS) - 1)[0],
        "embedding_dim": shapes.get("embedding", 2)[0],
    }


def _se_resnet_settings(shapes: _Shapes) -> dict[str, Any]:
    return {
        "channels": [shapes.get("stages.{i}.{j}.conv1", 4, i)[0] for i in range(len(BLOCKS))],
        "attention_channels": shapes.get("pooling.linear1", 3)[0],
        "embedding_dim": shapes.get("embedding", 2)[0],
    }


@dataclass(frozen=True, eq=False)
class _Toolkit:
    """A network of another toolkit."""

    name: str
    # Beginning of names that few other networks have.
    prefix: str
    # Name of our network in the registry.
    model_name: str
    # Their names of modules by ours.
    name_map: NameMap
    # Reads the settings of our class from the shapes.
    read_settings: Callable[[_Shapes], dict[str, Any]]
    # Name of the features that it was trained on.
    features: str
    # Settings of our class that are not its defaults and on which names depend.
    layout: Mapping[str, Any] = field(default_factory=dict)
    # Kernels are frames by bins; ours are bins by frames.
    transposed: bool = False
    # Beginning of the names of the training head.
    head_prefix: str | None = None
    # Beginnings of names of parts that our class does not have, and what these are.
    unsupported: Mapping[str, str] = field(default_factory=dict)

    @property
    def model_class(self) -> type[nn.Module]:
        """Our class."""
        return MODELS[self.model_name]


def _wespeaker_resnet(depth: int) -> _Toolkit:
    return _Toolkit(
        name=f"WeSpeaker's ResNet{depth}",
        prefix="seg_1.",
        model_name=f"resnet{depth}",
        name_map=WESPEAKER_RESNET,
        read_settings=_resnet_settings,
        features="wespeaker",
        layout=RESNET_LAYOUT,
        head_prefix="projection.",
        unsupported={"seg_2.": "a second embedding layer (two_emb_layer)", "pool.": "a pooling with weights"},
    )


_CAMPPLUS_3DSPEAKER = _Toolkit(
    name="3D-Speaker's CAM++",
    prefix="xvector.",
    model_name="campplus",
    name_map=THREED_SPEAKER_CAMPPLUS,
    read_settings=_campplus_settings,
    features="3dspeaker",
)
_TOOLKITS = (
    _Toolkit(
        name="SpeechBrain's ECAPA-TDNN",
        prefix="asp.",
        model_name="ecapa",
        name_map=SPEECHBRAIN_ECAPA,
        read_settings=lambda shapes: _ecapa_settings(shapes, "speechbrain"),
        features="speechbrain",
        layout={"layout": "speechbrain"},
    ),
    _Toolkit(
        name="SpeechBrain's ResNet",
        prefix="norm_stats.",
        model_name="se_resnet",
        name_map=SPEECHBRAIN_RESNET,
        read_settings=_se_resnet_settings,
        features="speechbrain",
        transposed=True,
    ),
    _CAMPPLUS_3DSPEAKER,
    # The same names: only WeSpeaker saves its head with the network.
    replace(_CAMPPLUS_3DSPEAKER, name="WeSpeaker's CAM++", features="wespeaker", head_prefix="projection."),
    _Toolkit(
        name="WeSpeaker's ECAPA-TDNN",
        prefix="layer2.se_res2block.",
        model_name="ecapa",
        name_map=WESPEAKER_ECAPA,
        read_settings=lambda shapes: _ecapa_settings(shapes, "wespeaker"),
        features="wespeaker",
        head_prefix="projection.",
        unsupported={"bn2.": "a batch norm behind the embedding (emb_bn)"},
    ),
    *(_wespeaker_resnet(depth) for depth in (34, 50, 101, 152, 221, 293)),
    _Toolkit(
        name="WeSpeaker's x-vector TDNN (XVEC)",
        prefix="frame_1.",
        model_name="xvector",
        name_map=WESPEAKER_XVECTOR,
        read_settings=_xvector_settings,
        features="wespeaker",
        head_prefix="projection.",
        unsupported={"pool.": "a pooling with weights"},
    ),
)


def convert(
    state: Mapping[str, Any], model: Mapping[str, Any] | None = None, network: nn.Module | None = None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Convert weights of another toolkit to a network of ours; weights of a known network are taken as they are.

    Args:
        state: State dict of a network of ``kinds()``, or of ``network``. Wrappers such as ``{"state_dict": ...}``, a
            prefix of all names such as ``module.``, and the head of a toolkit are left out, and the log says so.
        model: Settings of ``network``.
        network: Network that the weights may be of too. Default: none.

    Returns:
        The kind of the network in words; the settings of our network with its ``name`` in the registry and its
        ``features``; the state dict of our network, float32 and whole numbers, sharing no memory with ``state``.

    Raises:
        ValueError: It is none of these, keys are missing or left over, shapes do not fit, or it has a part that our
            networks do not have. Where no kind is likely, all kinds are listed, the nearest first.
    """
    if model is not None and network is not None:
        weights = _weights_of(network, state)
        if weights is not None:
            return _own_kind(model), dict(model), weights
    match = _find_toolkit(state)
    if match is None:
        raise ValueError(_describe_all(state, model, network))
    toolkit, tensors, removed = match
    _log_removed(toolkit.name, removed)
    try:
        settings, weights = _convert(toolkit, _without_head(toolkit, tensors))
    except ValueError as error:
        problem = f"the weights look like those of {toolkit.name}, but do not fit: {error}"
        if model is not None and network is not None:
            difference = _nearest_difference(network.state_dict(), state)
            problem += f"; they do not fit {_own_kind(model)} either: {difference}"
        raise ValueError(problem) from error
    return toolkit.name, {"name": toolkit.model_name, "features": toolkit.features, **settings}, weights


def kinds() -> list[str]:
    """Return the names of all networks of other toolkits that ``convert`` reads."""
    return [toolkit.name for toolkit in _TOOLKITS]


def pretrained_settings(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of our network for weights of another toolkit, as ``convert`` does.

    Args:
        state: State dict, as ``convert`` takes it; only names and shapes are looked at.

    Raises:
        ValueError: It is of none of these networks, or lacks a weight whose shape says a setting.
    """
    match = _find_toolkit(state)
    if match is None:
        raise ValueError(f"weights of none of {', '.join(kinds())}")
    toolkit, tensors, _ = match
    settings = toolkit.read_settings(_Shapes(_without_head(toolkit, tensors), toolkit.name_map))
    return {"name": toolkit.model_name, "features": toolkit.features, **settings}


def _own_kind(model: Mapping[str, Any]) -> str:
    return f"the network of model={model['name']}" if "name" in model else f"the network {model.get('_target_')}"


def _weights_of(network: nn.Module, state: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return weights that fit a network by name and shape; None where they do not."""
    expected = network.state_dict()
    for tensors, removed in unwrapped(state):
        if not str(compare_tensors(expected, tensors)):
            _log_removed("the weights", removed)
            return {name: tensors[name].detach().to("cpu", like.dtype, copy=True) for name, like in expected.items()}
    return None


def _log_removed(kind: str, removed: str) -> None:
    if removed:
        logger.info("%s: unwrapped: %s", kind, removed)


def _find_toolkit(state: Mapping[str, Any]) -> tuple[_Toolkit, dict[str, Tensor], str] | None:
    """Return the likeliest toolkit, the tensors and what was around them; None where no name is one of its own."""
    for tensors, removed in unwrapped(state):
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            continue
        toolkits = []
        for toolkit in _TOOLKITS:
            if any(name.startswith(toolkit.prefix) for name in tensors):
                toolkits.append(toolkit)
        if toolkits:
            # The first of equals.
            return max(toolkits, key=lambda toolkit: _overlap(toolkit, tensors)), tensors, removed
    return None


def _overlap(toolkit: _Toolkit, tensors: Mapping[str, Any]) -> tuple[float, bool]:
    """Return how much the names are those of a toolkit, and whether its head is among them."""
    without_head = _without_head(toolkit, tensors, log=False)
    overlap = compare_names(_expected_names(toolkit), without_head).overlap
    return overlap, len(without_head) < len(tensors)


@cache
def _expected_names(toolkit: _Toolkit) -> frozenset[str]:
    """Return the toolkit's names of the tensors of its network, with the default settings."""
    with torch.device("meta"):
        names = toolkit.model_class(**toolkit.layout).state_dict()
    return frozenset(names_in_toolkit(toolkit.name_map, names).values())


def _without_head(toolkit: _Toolkit, tensors: Mapping[str, Any], *, log: bool = True) -> dict[str, Any]:
    if toolkit.head_prefix is None:
        return dict(tensors)
    head = sorted(name for name in tensors if name.startswith(toolkit.head_prefix))
    if head and log:
        logger.info("%s: left out the head: %s", toolkit.name, list_names(head))
    return {name: value for name, value in tensors.items() if name not in head}


def _describe_all(state: Mapping[str, Any], model: Mapping[str, Any] | None, network: nn.Module | None) -> str:
    """Return an error that says what the weights lack, or have too much, for each kind, the nearest first."""
    differences = {}
    for toolkit in _TOOLKITS:
        all_differences = [compare_names(_expected_names(toolkit), tensors) for tensors, _ in unwrapped(state)]
        differences[toolkit.name] = max(all_differences, key=lambda difference: difference.overlap)
    if model is not None and network is not None:
        differences[_own_kind(model)] = _nearest_difference(network.state_dict(), state)
    ordered = sorted(differences, key=lambda kind: differences[kind].overlap, reverse=True)
    lines = [f"the weights fit no network that can be read; got {list_names(state)}; nearest first:"]
    for kind in ordered:
        lines.append(f"- {kind}: {differences[kind]}")
    return "\n".join(lines)


def _nearest_difference(expected: Mapping[str, Tensor], state: Mapping[str, Any]) -> Difference:
    """Return the smallest difference to what a network expects, with or without the wrappers and prefixes."""
    all_differences = [compare_tensors(expected, tensors) for tensors, _ in unwrapped(state)]
    return max(all_differences, key=lambda difference: difference.overlap)


def _convert(toolkit: _Toolkit, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for prefix, part in toolkit.unsupported.items():
        if any(name.startswith(prefix) for name in state):
            raise ValueError(f"it has {part}, which our network does not have")
    settings = toolkit.read_settings(_Shapes(state, toolkit.name_map))
    with torch.device("meta"):
        expected = toolkit.model_class(**settings).state_dict()
    their_names = names_in_toolkit(toolkit.name_map, expected)
    difference = str(compare_names(their_names.values(), state))
    if difference:
        raise ValueError(difference)
    weights = {}
    for name, like in expected.items():
        their_name = their_names[name]
        weights[name] = _convert_tensor(toolkit, name, their_name, state[their_name], like)
    return settings, weights


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
