"""Small untrained networks with the names and shapes of other toolkits' files."""

import torch
from torch import Tensor

from sv_sparse.data.torchaudio_guard import torchaudio  # noqa: F401  # lets speechbrain import it
from sv_sparse.models.pretrained.name_maps import WESPEAKER_RESNET, names_in_toolkit
from sv_sparse.models.resnet import ResNet34


def speechbrain_ecapa() -> dict[str, Tensor]:
    """Return the state dict of SpeechBrain's ECAPA-TDNN, as its checkpointer saves it."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN  # noqa: PLC0415  # after torchaudio

    torch.manual_seed(0)
    widths = {"channels": [16, 16, 16, 16, 24], "attention_channels": 8, "se_channels": 8, "res2net_scale": 4}
    return ECAPA_TDNN(80, lin_neurons=16, **widths).state_dict()


def wespeaker_resnet34() -> dict[str, Tensor]:
    """Return the state dict of WeSpeaker's ResNet34."""
    torch.manual_seed(0)
    state = ResNet34(base_channels=8, embedding_dim=12, statistics_norm=False).state_dict()
    names = names_in_toolkit(WESPEAKER_RESNET, state)
    return {names[name]: value for name, value in state.items()}
