"""Batch norms in evaluation reduced to one multiplication and one addition for each channel."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose batch norms compute ``x * weight + bias``.

    The copy's norms have mean 0, variance 1 and eps 0, so it is an ordinary network of the same class.

    >>> network = nn.Sequential(nn.BatchNorm1d(1))
    >>> _ = network[0].running_mean.fill_(2.0), network[0].running_var.fill_(4.0)
    >>> fold_batch_norm(network)(torch.tensor([[4.0]])).round(decimals=4)
    tensor([[1.]])
    """
    network = copy.deepcopy(network).eval()
    for name, norm in _norms(network):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # float64, so that scale and shift are rounded once.
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if norm.affine:
            shift = shift + norm.bias.double()
        # Not multiplied into the convolution before it, whose weights would no longer be those that were trained:
        # DECISIONS 53
        folded_norm = _identity_norm(norm)
        folded_norm.weight.copy_(scale.float())
        folded_norm.bias.copy_(shift.float())
        network.set_submodule(name, folded_norm)
    return network.requires_grad_(False)


def replace_norms(network: nn.Module) -> None:
    """Put folded norms, with weight 1 and bias 0, in the place of a network's own."""
    network.eval()
    for name, norm in _norms(network):
        network.set_submodule(name, _identity_norm(norm))


def fill_norm_stats(network: nn.Module) -> None:
    """Give the folded norms of a network on the meta device their statistics: mean 0, variance 1."""
    for _, norm in _norms(network):
        norm.running_mean = torch.zeros(norm.num_features)
        norm.running_var = torch.ones(norm.num_features)
        norm.num_batches_tracked = torch.tensor(0)


def folded_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the state of a folded network by name, without the statistics that all folded norms share."""
    state = dict(network.state_dict())
    for name, norm in _norms(network):
        for buffer_name, _ in norm.named_buffers():
            del state[f"{name}.{buffer_name}"]
    return state


def _norms(network: nn.Module) -> list[tuple[str, _BatchNorm]]:
    # A norm without running statistics computes them from its input and cannot be folded.
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    return [(name, norm) for name, norm in norms if norm.running_mean is not None]


def _identity_norm(norm: _BatchNorm) -> _BatchNorm:
    assert norm.running_mean is not None
    return type(norm)(norm.num_features, eps=0.0, device=norm.running_mean.device).eval()
