"""A user's own network, as it would lie outside the project."""

import torch
from torch import Tensor, nn


class TDNN(nn.Module):
    """Two convolutions over time and a mean: [B, F, T] to [B, E]; ``scale`` is computed, not trained."""

    def __init__(self, mel_bins: int, channels: int = 8, embedding_dim: int = 4) -> None:
        super().__init__()
        self.mel_bins = mel_bins
        self.embedding_dim = embedding_dim
        self.conv = nn.Conv1d(mel_bins, channels, 5, padding=2)
        self.norm = nn.BatchNorm1d(channels)
        self.grouped = nn.Conv2d(channels, channels, (1, 3), padding="same", groups=channels)
        self.embedding = nn.Linear(channels, embedding_dim)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, channels), persistent=False)

    def forward(self, filterbank: Tensor) -> Tensor:
        x = self.norm(self.conv(filterbank).relu())
        x = self.grouped(x.unsqueeze(2)).squeeze(2)
        return nn.functional.linear(x.mean(dim=2) * self.scale, self.embedding.weight, self.embedding.bias)
