"""Batch norms in evaluation are a multiplication and an addition for each channel; here they are made just that."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose batch norms are ``x * weight + bias``: mean 0, variance 1, eps 0.

    Its other weights are those of ``network`` to the last bit; scales and shifts are computed in float64 and rounded
    once. What only training needs, the statistics, is gone.

    >>> network = nn.Sequential(nn.BatchNorm1d(1))
    >>> _ = network[0].running_mean.fill_(2.0), network[0].running_var.fill_(4.0)
    >>> folded(network)(torch.tensor([[4.0]])).round(decimals=4)
    tensor([[1.]])
    """
    found = copy.deepcopy(network).eval()
    for name, norm in _norms(found):
        scale, shift = _scale_and_shift(norm)
        plain = _plain(norm)
        plain.weight.copy_(scale)
        plain.bias.copy_(shift)
        found.set_submodule(name, plain)
    return found.requires_grad_(False)


def fold_structure(network: nn.Module) -> None:
    """Put batch norms of the folded kind, not yet filled, in the place of a network's own."""
    network.eval()
    for name, norm in _norms(network):
        network.set_submodule(name, _plain(norm))


def fill_statistics(network: nn.Module) -> None:
    """Give the norms of a network that was built without memory the statistics of the folded kind."""
    for _, norm in _norms(network):
        for name, like in dict(_plain(nn.BatchNorm1d(norm.num_features)).named_buffers()).items():
            setattr(norm, name, like)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """All of a folded network's state, by name, but the statistics that every folded norm has."""
    statistics = {f"{name}.{buffer}" for name, norm in _norms(network) for buffer in dict(norm.named_buffers())}
    return {name: value for name, value in network.state_dict().items() if name not in statistics}


def _norms(network: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]


def _plain(norm: _BatchNorm) -> _BatchNorm:
    assert norm.running_mean is not None, "a norm without statistics cannot be folded"
    return type(norm)(norm.num_features, eps=0.0, device=norm.running_mean.device).eval()


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Both [C], float32."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    return scale.float(), shift.float()
