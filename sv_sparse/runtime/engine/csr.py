"""Torch engine: networks without a compiler, with compressed rows (CSR) for layers that are faster by them."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models.layers import keep_channels_last

# Sparsity of a layer from which torch's CSR product is faster than its dense one.  DECISIONS 57
CSR_MIN_SPARSITY = 0.88
# Layers whose weight is sliced by the module around them.
_READ_FROM_OUTSIDE = {"pooling.linear1"}


class TorchEngine:
    """Filterbank [B, F, T] to embedding [B, E], float32, by torch alone.

    Args:
        network: Folded network; it is changed.
        use_csr: Replace very sparse layers, whose names are in ``csr_layers`` then. Default: True.
    """

    def __init__(self, network: nn.Module, *, use_csr: bool = True) -> None:
        self.network = network.eval().requires_grad_(False)
        keep_channels_last(self.network)
        self.csr_layers: list[str] = []
        self._min_frames = 1
        if use_csr:
            # As many frames must have a mirror image; torch's own error does not say what to do.
            for module in self.network.modules():
                if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
                    self._min_frames = max(self._min_frames, 1 + int(module.padding[1]))
            self.csr_layers = _convert_to_csr(self.network)

    @torch.no_grad()
    def __call__(self, filterbank: Tensor) -> Tensor:
        """Map filterbank [B, F, T] to embedding [B, E]; raise ValueError for too few frames."""
        frames = filterbank.shape[-1]
        if frames < self._min_frames:
            raise ValueError(f"expected at least {self._min_frames} frames, got {frames}; use longer utterances")
        return self.network(filterbank)


class CSRConv(nn.Module):
    """Convolution without the zeros of its weight: [B, C_in, H, W] to [B, C_out, H', W']."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = _to_csr(conv.weight.flatten(1))
        self.bias = conv.bias
        self.template = conv

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H', W']."""
        conv = self.template
        # Only in columns: kernels of several rows stay dense.
        pad = int(conv.padding[1])
        if pad:
            mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
            x = F.pad(x, (pad, pad, 0, 0), mode=mode)
        rows = -(-x.shape[2] // conv.stride[0])
        # [B, C_in * taps, positions].
        patches = F.unfold(x, conv.kernel_size, conv.dilation, stride=conv.stride)
        product = self.weight @ patches.permute(1, 0, 2).flatten(1)
        product = product.view(conv.out_channels, len(x), rows, -1).transpose(0, 1)
        return product if self.bias is None else product + self.bias[:, None, None]


class CSRLinear(nn.Module):
    """Linear layer without the zeros of its weight: [..., in] to [..., out]."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = _to_csr(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        product = (self.weight @ x.flatten(0, -2).T).T.view(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def _to_csr(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return weight.contiguous().to_sparse_csr()


def _convert_to_csr(network: nn.Module) -> list[str]:
    """Replace the layers that gain by it, and return their names."""
    names = []
    for name, module in list(network.named_modules()):
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or name in _READ_FROM_OUTSIDE:
            continue
        # Copying the patches of a kernel over time and frequency takes longer than its dense product: a ResNet34 of
        # 90 % zeros needs 291 ms by CSR where it needs 70 ms by dense convolutions.
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1:
            continue
        sparsity = 1 - float(module.weight.count_nonzero()) / module.weight.numel()
        if sparsity > CSR_MIN_SPARSITY:
            csr_layer = CSRConv(module) if isinstance(module, nn.Conv2d) else CSRLinear(module)
            network.set_submodule(name, csr_layer)
            names.append(name)
    return names
