"""The networks that a file may name. No other class is ever built from what a file says."""

from collections.abc import Mapping
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


_NAMES = {"ecapa_tdnn": ECAPA, "resnet34": ResNet34, "se_resnet": SEResNet}


def build_model(settings, mel_bins, trusted=()):
    model = dict(settings)
    if "name" in model:
        cls = _NAMES[model.pop("name")]
        model["_target_"] = next(k for k, v in _KNOWN.items() if v is cls)
    return build_network(model, mel_bins)


from sv_sparse.models.contract import check_network as check_model  # noqa
