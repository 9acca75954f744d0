"""Networks by name. A file names a network of this registry, or a class that the user has to trust."""

import logging
import os
import sys
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from sv_sparse.models.campplus import CAMPlusPlus
from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.features import DEFAULT_FEATURES, check_features
from sv_sparse.models.resnet import ResNet34, ResNet50, ResNet101, ResNet152, ResNet221, ResNet293
from sv_sparse.models.se_resnet import SEResNet
from sv_sparse.models.xvector import XVector

MODELS: dict[str, type[nn.Module]] = {
    "ecapa": ECAPA,
    "campplus": CAMPlusPlus,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
    "resnet221": ResNet221,
    "resnet293": ResNet293,
    "se_resnet": SEResNet,
    "xvector": XVector,
}
logger = logging.getLogger(__name__)

# Import paths of classes that are trusted, separated by commas.
MODEL_CLASS_ENV = "SV_SPARSE_MODEL_CLASS"

# Files are not trusted: their settings are bounded before any memory is taken.
_MAX_VALUE = 1 << 16
_MAX_LENGTH = 64
# Frames of 10 ms.
_PROBE_FRAMES = 50
_MAX_VALUE_OF = {"res2net_scale": 64, "kernel_sizes": 255, "dilations": 64, "block_layers": 64}
# What constructors raise for settings that are allowed one by one and do not fit together.
_BUILD_ERRORS = (TypeError, LookupError, ArithmeticError, RuntimeError, StopIteration, AssertionError)


def build_model(settings: Mapping[str, Any], mel_bins: int, trusted: Collection[str] = ()) -> Any:
    """Build a network.

    Args:
        settings: arguments of its class, with ``name``, its name in ``MODELS``; or with ``_target_``, the import path
            of a class of the user's own, such as ``mypkg.net.Net``. docs/extending.md says what that needs. Beside
            them ``features``, the name of the features that it takes, which the class does not see; settings from
            before there was a choice have none, and mean ``sv_sparse``.
        mel_bins: F, of the filterbank that it takes.
        trusted: import paths of the user's own classes that may be imported, because the user named them on a command
            line. Those of the environment variable SV_SPARSE_MODEL_CLASS may be imported too. No other class is
            imported: settings may come from a file of somebody else.

    Returns:
        The network on the CPU, as ``protocol.SpeakerModel`` describes it, with its attribute ``features``.

    Raises:
        ValueError: the name is unknown, the class is not trusted or cannot be imported, or a setting is not allowed.

    >>> build_model({"name": "resnet34", "base_channels": 16, "embedding_dim": 64}, mel_bins=80).embedding_dim
    64
    """
    features = features_of(settings)
    arguments = {name: value for name, value in settings.items() if name != "features"}
    network: Any
    if "_target_" in arguments:
        path = arguments.pop("_target_")
        network = import_class(path, trusted)(mel_bins=mel_bins, **arguments)
        _set_sizes(network, mel_bins)
        # A module of that name would be hidden by the text.
        if hasattr(network, "features"):
            raise ValueError(f"{path}: rename its attribute features, which holds the name of the network's features")
    else:
        network = _build_registered(arguments.pop("name", None), mel_bins, arguments)
    network.features = features
    return network


def features_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the features of a network's settings; of settings from before the choice, ``sv_sparse``.

    Raises:
        ValueError: there are no such features.
    """
    return check_features(settings.get("features", DEFAULT_FEATURES))


def _build_registered(name: Any, mel_bins: int, arguments: Mapping[str, Any]) -> nn.Module:
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"its network is {name!r}, expected one of {', '.join(MODELS)}")
    for setting, value in arguments.items():
        _check_bounds(setting, value)
    try:
        return MODELS[name](mel_bins=mel_bins, **arguments)
    except _BUILD_ERRORS as error:
        raise ValueError(f"its network {name} cannot be built: {error or type(error).__name__}") from error


def import_class(path: Any, trusted: Collection[str], kind: str = "network", setting: str = "model") -> Any:
    """Import a class of the user's own, also from the current folder, if it is trusted.

    Args:
        path: import path, such as ``mypkg.net.Net``.
        trusted: import paths that the user named; those of SV_SPARSE_MODEL_CLASS are trusted too.
        kind: what the class is, for messages. Default: network.
        setting: of the command line, that names it with ``_target_``. Default: model.

    Raises:
        ValueError: it is not trusted, or cannot be imported.
    """
    from_environment = os.environ.get(MODEL_CLASS_ENV, "").split(",")
    if path not in {*trusted, *from_environment}:
        for_commands = f"--model-class {path}, for training " if setting == "model" else ""
        raise ValueError(
            f"its {kind} is {path}, a class of your own. Code is imported only if you name it: give "
            f"{for_commands}{setting}._target_={path}, or set {MODEL_CLASS_ENV}={path}"
        )
    module_name, _, class_name = str(path).rpartition(".")
    # Console scripts and train.py do not have the current folder on the path.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"its {kind} cannot be imported, {setting}._target_={path}: {error}") from error


def _set_sizes(network: Any, mel_bins: int) -> None:
    """Give a network of the user's own the attributes of ``protocol.SpeakerModel`` that its class does not have."""
    if not hasattr(network, "mel_bins"):
        network.mel_bins = mel_bins
    if hasattr(network, "embedding_dim"):
        return
    modes = [(module, module.training) for module in network.modules()]
    # Dropout would draw random numbers, batch norm would move.
    network.eval()
    try:
        with torch.no_grad():
            network.embedding_dim = network(torch.zeros(1, mel_bins, _PROBE_FRAMES)).shape[1]
    except Exception:
        # Somebody else's code; before training protocol.check_model says what is wrong.
        logger.debug("the size of the embeddings is not known", exc_info=True)
    for module, training in modes:
        module.training = training


def _check_bounds(name: str, value: Any) -> None:
    """Raise a ValueError unless a setting is a plain value of a size in which networks are built."""
    values = value if isinstance(value, list) else [value]
    maximum = _MAX_VALUE_OF.get(name, _MAX_VALUE)
    for element in values:
        is_plain = isinstance(element, (bool, str)) or (isinstance(element, int) and 0 <= element <= maximum)
        if not is_plain or len(values) > _MAX_LENGTH:
            raise ValueError(f"its network's {name} is {str(value)[:60]}, which is not allowed")
