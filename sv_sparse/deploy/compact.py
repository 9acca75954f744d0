"""Networks without their dead channels: smaller ones for any engine, with the same outputs."""

import torch
from torch import nn

from sv_sparse.deploy.compact_ecapa import CompactECAPA
from sv_sparse.deploy.compact_from_ecapa import from_ecapa
from sv_sparse.deploy.compact_from_resnet import from_resnet
from sv_sparse.deploy.compact_resnet import CompactResNet34
from sv_sparse.models.ecapa import ECAPA
from sv_sparse.models.resnet import ResNet34


@torch.no_grad()
def compact(network: nn.Module, round_to: int = 8) -> CompactECAPA | CompactResNet34:
    """A network in evaluation mode that has the outputs of ``network`` and computes none of its dead channels.

    Dead are output channels whose weights are all zero, or that no later layer hears. A dead channel need not be
    zero: a bias and a batch norm make a constant of it, which goes into the bias of the next layers. Outputs differ by
    rounding alone. ``compact(network).settings`` is plain data from which ``hydra.utils.instantiate(settings,
    mel_bins=...)`` builds such a network again; its state fills it.

    Args:
        network: an ECAPA-TDNN or a ResNet34; it stays as it is.
        round_to: channels are filled up with zeros to a multiple, at which convolutions are faster.

    Raises:
        ValueError: the network is of another kind, or ``round_to`` is below 1.

    >>> whole = ECAPA(channels=64, mfa_channels=64)
    >>> _ = whole.mfa.weight.data[8:].zero_()
    >>> compact(whole).settings["mfa_channels"]
    8
    """
    if round_to < 1:
        raise ValueError(f"round_to must be at least 1, got {round_to}")
    made: CompactECAPA | CompactResNet34
    if isinstance(network, ECAPA):
        settings, state = from_ecapa(network, round_to)
        made = CompactECAPA(mel_bins=network.mel_bins, **settings)
    elif isinstance(network, ResNet34):
        settings, state = from_resnet(network, round_to)
        made = CompactResNet34(mel_bins=network.mel_bins, **settings)
    else:
        raise ValueError(f"only ECAPA and ResNet34 can be made compact, got {type(network).__name__}")
    made.load_state_dict(state)
    return made.eval()
