"""ECAPA-TDNN, in the layouts of the two public toolkits whose weights and results it is compared with."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sv_sparse.models.layers import (
    ConvReluNorm,
    SERes2Block,
    as_odd_sizes,
    check_at_least,
    is_int,
    keep_channels_last,
    same_conv,
    to_image,
    without_autocast,
)
from sv_sparse.models.module_checks import relu_after
from sv_sparse.models.pooling import AttentiveStatisticsPooling

LAYOUTS = ("wespeaker", "speechbrain")


class ECAPA(nn.Module):
    """Filterbank [B, F, T] to embedding [B, E] in float32, whatever the precision around it.

    A convolution, blocks of dilated Res2Net convolutions with squeeze-excitation one after the other, a 1x1
    convolution over the outputs of all blocks (multi-layer feature aggregation, MFA), attentive statistics
    pooling with global context, batch norm, one linear layer. All utterances of a batch have the same length:
    there is no mask.

    ``layout`` picks between details on which the toolkits differ:

    ============================  =============  ==================
    detail                        ``wespeaker``  ``speechbrain``
    ============================  =============  ==================
    input continues beyond ends   by zeros       by its mirror image
    Res2Net's unchanged chunk     the last       the first
    MFA                           conv, ReLU     conv, ReLU, norm
    attention's hidden layer      conv, tanh     conv, ReLU, norm, tanh
    variance of global context    unbiased       mean square
    ============================  =============  ==================

    Args:
        mel_bins: F.
        channels: Width of the first convolution and the blocks, divisible by ``res2net_scale``.
        mfa_channels: Width after aggregation.
        attention_channels: Width of the attention's hidden layer.
        se_channels: Width of the squeeze.
        res2net_scale: Number of chunks of channels in a Res2Net convolution.
        kernel_sizes: Taps of the first convolution, then of each block's Res2Net convolution; odd.
        dilations: Frames between two taps, as many as ``kernel_sizes``.
        embedding_dim: E.
        layout: ``wespeaker`` or ``speechbrain``.

    Raises:
        ValueError: An argument is not allowed.

    Source: Desplanques, Thienpondt, Demuynck, "ECAPA-TDNN: Emphasized Channel Attention, Propagation and
    Aggregation in TDNN Based Speaker Verification", 2020.

    >>> model = ECAPA(channels=16, mfa_channels=24)
    >>> model(torch.randn(2, 80, 50)).shape
    torch.Size([2, 192])
    """

    def __init__(
        self,
        mel_bins: int = 80,
        channels: int = 1024,
        mfa_channels: int = 1536,
        attention_channels: int = 128,
        se_channels: int = 128,
        res2net_scale: int = 8,
        kernel_sizes: Iterable[int] = (5, 3, 3, 3),
        dilations: Iterable[int] = (1, 2, 3, 4),
        embedding_dim: int = 192,
        layout: str = "wespeaker",
    ) -> None:
        super().__init__()
        check_at_least(1, mel_bins=mel_bins, channels=channels, mfa_channels=mfa_channels)
        check_at_least(1, attention_channels=attention_channels, se_channels=se_channels)
        check_at_least(1, embedding_dim=embedding_dim)
        check_at_least(2, res2net_scale=res2net_scale)
        if channels % res2net_scale:
            raise ValueError(f"channels must be divisible by res2net_scale={res2net_scale}, got {channels}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        (stem_size, stem_dilation), *block_taps = _taps(kernel_sizes, dilations)
        speechbrain = layout == "speechbrain"

        self.mel_bins = mel_bins
        self.embedding_dim = embedding_dim
        self.stem = ConvReluNorm(mel_bins, channels, stem_size, stem_dilation, reflect=speechbrain)
        self.blocks = nn.ModuleList(
            SERes2Block(channels, se_channels, res2net_scale, *taps, identity_first=speechbrain, reflect=speechbrain)
            for taps in block_taps
        )
        self.mfa = same_conv(len(block_taps) * channels, mfa_channels)
        self.mfa_norm = nn.BatchNorm2d(mfa_channels) if speechbrain else None
        self.pooling = AttentiveStatisticsPooling(
            mfa_channels,
            attention_channels,
            hidden_norm=speechbrain,
            context_correction=0 if speechbrain else 1,
            variance_floor=1e-12 if speechbrain else 1e-10,
        )
        self.norm = nn.BatchNorm1d(2 * mfa_channels)
        self.embedding = nn.Linear(2 * mfa_channels, embedding_dim)
        keep_channels_last(self)

    def forward(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E].

        Raises:
            ValueError: T is less than 2.
        """
        x = self.stem(to_image(filterbank))
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        # Multi-layer feature aggregation: blocks near the input keep what deeper ones have smoothed away.
        x = self._aggregate(torch.cat(outputs, dim=1))
        if self.mfa_norm is not None:
            x = self.mfa_norm(x)
        statistics = self.pooling(x.squeeze(2))
        # In float32, so that embeddings of a model under autocast are not rounded to eight bits.
        with without_autocast(statistics.device):
            return self.embedding(self.norm(statistics))

    def _aggregate(self, x: Tensor) -> Tensor:
        """Map the outputs of all blocks [B, C, 1, T] to [B, C', 1, T]."""
        # A method of its own for cpu_kernels, which replaces it.
        return relu_after(self.mfa, x)


def _taps(kernel_sizes: Iterable[int], dilations: Iterable[int]) -> list[tuple[int, int]]:
    """Return checked pairs of kernel size and dilation: that of the first convolution, then of each block."""
    sizes = as_odd_sizes("kernel_sizes", kernel_sizes)
    steps = tuple(dilations)
    if not all(is_int(step) and step >= 1 for step in steps):
        raise ValueError(f"dilations must be whole numbers of at least 1, got {list(steps)}")
    if len(sizes) != len(steps) or len(sizes) < 2:
        raise ValueError(
            "kernel_sizes and dilations must be equally long and name the first convolution and at least one "
            f"block, got {list(sizes)} and {list(steps)}"
        )
    return list(zip(sizes, steps, strict=True))
