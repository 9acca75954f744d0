"""Sparse networks without a compiler: torch's compressed rows (CSR) for layers that gain by them."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models.layers import keep_channels_last

CSR_FROM = 0.88  # sparsity of a layer from which torch's CSR product is the faster one


class TorchEngine:
    """Filterbank [B, F, T] to embedding [B, E], float32, by torch alone.

    Args:
        network: folded; it is taken over and changed.

    Attributes:
        layers: whose products are sparse.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)
        keep_channels_last(self.network)
        self.layers = _use_rows(self.network)
        convs = [
            conv for conv in self.network.modules() if isinstance(conv, nn.Conv2d) and conv.padding_mode != "zeros"
        ]
        self._least = 1 + max((int(conv.padding[1]) for conv in convs), default=0)  # frames that have a mirror image

    @torch.no_grad()
    def __call__(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E].

        Raises:
            ValueError: it has too few frames.
        """
        if filterbank.shape[-1] < self._least:
            raise ValueError(
                f"expected at least {self._least} frames, got {filterbank.shape[-1]}; use longer utterances"
            )
        return self.network(filterbank)


class CSRConv(nn.Module):
    """A convolution with its zeros left out: [B, C_in, H, W] to [B, C_out, H', W']."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.rows = _rows(conv.weight.flatten(1))
        self.bias = conv.bias
        self.like = conv

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H', W']."""
        conv = self.like
        height, width = (int(amount) for amount in conv.padding)
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, (width, width, height, height), mode=mode) if width or height else x
        sizes = [
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, dilation, kernel, stride in zip(
                x.shape[2:], conv.dilation, conv.kernel_size, conv.stride, strict=True
            )
        ]
        patches = F.unfold(x, conv.kernel_size, conv.dilation, stride=conv.stride)  # [B, C_in·kernel, places]
        found = self.rows @ patches.permute(1, 0, 2).flatten(1)
        found = found.view(conv.out_channels, len(x), *sizes).transpose(0, 1)
        return found if self.bias is None else found + self.bias[:, None, None]


class CSRLinear(nn.Module):
    """A linear layer with its zeros left out: [..., in] to [..., out]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.rows = _rows(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        found = (self.rows @ x.flatten(0, -2).T).T.view(*x.shape[:-1], -1)
        return found if self.bias is None else found + self.bias


def _rows(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return weight.contiguous().to_sparse_csr()


def _use_rows(network: nn.Module) -> list[str]:
    """Replace layers that gain; those whose weight is read by the module around them stay."""
    found = []
    for name, module in list(network.named_modules()):
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or name == "pooling.hidden":
            continue
        sparsity = 1 - float(module.weight.count_nonzero()) / module.weight.numel()
        if sparsity > CSR_FROM:
            network.set_submodule(name, CSRConv(module) if isinstance(module, nn.Conv2d) else CSRLinear(module))
            found.append(name)
    return found
