"""The networks that a file may name. No other class is ever built from what a file says."""

import os
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from sv_sparse.models.ecapa_tdnn import ECAPA
from sv_sparse.models.resnet import ResNet34
from sv_sparse.models.se_resnet import SEResNet

_KNOWN: dict[str, type[nn.Module]] = {
    f"{network.__module__}.{network.__qualname__}": network for network in (ECAPA, ResNet34, SEResNet)
}
_WIDEST, _LONGEST = 1 << 16, 64  # value of a setting, and values of one
_MOST = {"res2net_scale": 64, "kernel_sizes": 255, "dilations": 64}
# What constructors raise for settings that are allowed by themselves and do not fit together.
_CONTRADICTIONS = (TypeError, LookupError, ArithmeticError, RuntimeError, StopIteration, AssertionError)


_NAMES: dict[str, type[nn.Module]] = {"ecapa_tdnn": ECAPA, "resnet34": ResNet34, "se_resnet": SEResNet}
MODEL_CLASS_ENV = "SV_SPARSE_MODEL_CLASS"


def build_model(settings: Mapping[str, Any], mel_bins: int, trusted: Collection[str] = ()) -> Any:
    """Return the network of settings with a registry ``name``, or of a trusted class of the user's own."""
    target = settings.get("_target_")
    if "name" in settings:
        name = settings["name"]
        if not isinstance(name, str) or name not in _NAMES:
            raise ValueError(f"its network is {name!r}, expected one of {', '.join(_NAMES)}")
        network = _NAMES[name]
        plain = {key: value for key, value in settings.items() if key != "name"}
        return build_network({"_target_": f"{network.__module__}.{network.__qualname__}", **plain}, mel_bins)
    if isinstance(target, str) and target not in _KNOWN and target in {*trusted, os.environ.get(MODEL_CLASS_ENV)}:
        module, _, class_name = target.rpartition(".")
        arguments = {key: value for key, value in settings.items() if key != "_target_"}
        return getattr(import_module(module), class_name)(mel_bins=mel_bins, **arguments)
    return build_network(settings, mel_bins)


def build_network(model: Mapping[str, Any], mel_bins: int) -> nn.Module:
    """A network from its settings, as in conf/model.

    Args:
        model: settings, with the class as ``_target_``.
        mel_bins: F, of the filterbank that it hears.

    Raises:
        ValueError: the class is none of ours, or a setting is not allowed.
    """
    target = model.get("_target_")
    if not isinstance(target, str) or target not in _KNOWN:
        raise ValueError(f"its network is {target!r}, expected one of {', '.join(_KNOWN)}")
    settings = {name: value for name, value in model.items() if name != "_target_"}
    for name, value in settings.items():
        _check(name, value)
    try:
        return _KNOWN[target](mel_bins=mel_bins, **settings)
    except _CONTRADICTIONS as error:
        raise ValueError(f"its network {target} cannot be built: {error or type(error).__name__}") from error


def _check(name: str, value: Any) -> None:
    """Raise a ValueError unless a setting is a plain value of a size in which networks are built."""
    several = value if isinstance(value, list) else [value]
    most = _MOST.get(name, _WIDEST)
    if len(several) > _LONGEST or not all(_plain(each, most) for each in several):
        raise ValueError(f"its network's {name} is {str(value)[:60]}, which is not allowed")


def _plain(value: Any, most: int) -> bool:
    return isinstance(value, (bool, str)) or (isinstance(value, int) and 0 <= value <= most)


from sv_sparse.models.contract import check_network as check_model  # noqa
