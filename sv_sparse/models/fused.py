"""ReLU, batch norm, squeeze-excitation and pooling of a network in training on a CPU, by the kernels of kernel.cpp.

With x a convolution's output, b its bias and r = relu(x + b), every unit of ECAPA-TDNN ends in::

    y = gain·(r - m) + offset (+ residual)

where m is the utterance's mean of r over time, and gain and offset, [B, C], follow from the utterances' means and mean
square deviations, [B, C], the norm's weights and the squeeze-excitation, if there is one. So a unit reads its input
once for these moments and once for y; backward, once for the gradients of gain and offset and once for x's. What
lies between moments and gains is small, and is left to autograd. Sums are float32, matrices bfloat16 or float32.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sv_sparse.models.autocast import without_autocast
from sv_sparse.models.native import call, image, rows, transposed

Norm = nn.BatchNorm1d | nn.BatchNorm2d
IMPLEMENTATIONS = ("fused", "torch")


class Fusable(nn.Module):
    """A module that computes by the kernels here while it trains on a CPU; all else is torch's operations.

    ``implementation`` is ``"fused"`` or ``"torch"``, which never takes the kernels and needs no compiler.
    """

    implementation = "fused"

    def fuses(self, x: Tensor, norms: Sequence[nn.Module] = (), others: Sequence[nn.Module] = ()) -> bool:
        """Whether the kernels serve this input: training on a CPU, torch's own norms, nothing frozen."""
        return (
            self.implementation == "fused"
            and x.device.type == "cpu"
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and _dtype(x) in {torch.bfloat16, torch.float32}
            and x.numel() // x.shape[1] > 1
            and all(_plain(norm) for norm in norms)
            and all(_trained(p) for module in (*norms, *others) for p in module.parameters())
        )


def choose(model: nn.Module, implementation: str) -> None:
    """Set the implementation of all its modules.

    Raises:
        ValueError: There is none of this name.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")
    for module in model.modules():
        if isinstance(module, Fusable):
            module.implementation = implementation


def _trained(param: Tensor) -> bool:
    return param.requires_grad and param.dtype == torch.float32 and param.device.type == "cpu"


def _plain(norm: nn.Module) -> bool:
    """Whether this is exactly torch's batch norm, in training, with weights, and statistics that move steadily."""
    if type(norm) not in {nn.BatchNorm1d, nn.BatchNorm2d}:
        return False
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    return norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None


def _dtype(x: Tensor) -> torch.dtype:
    """What a convolution of x computes in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The convolution without its bias; of one tap, as a product of matrices."""
    if conv.kernel_size != (1, 1):
        return conv._conv_forward(x, conv.weight, None)
    return _Product.apply(x, conv.weight, _dtype(x))


class _Product(torch.autograd.Function):
    """x [B, C, 1, T] times a weight [C', C, 1, 1]: [B, C', 1, T]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        frames = rows(x.to(dtype))
        matrix = weight.flatten(1).to(dtype)
        ctx.save_for_backward(frames, matrix)
        ctx.like = weight, x.dtype
        return image(F.linear(frames, matrix))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        frames, matrix = ctx.saved_tensors
        weight, dtype = ctx.like
        grads = rows(grad).flatten(0, 1)
        to_x = image((grads @ matrix).view(frames.shape)).to(dtype) if ctx.needs_input_grad[0] else None
        to_weight = transposed(grads) @ frames.flatten(0, 1)
        return to_x, to_weight.to(weight.dtype).view_as(weight), None


def normalized_relu(
    x: Tensor, bias: Tensor | None, norm: Norm, excitation: nn.Module | None = None, residual: Tensor | None = None
) -> Tensor:
    """``y = norm(relu(x + bias))``, times ``excitation``'s gains for it, plus ``residual``: [B, C, 1, T] to the same.

    Args:
        x: bfloat16 or float32.
        bias: [C], of a convolution, which types as optional.
        norm: in training; its running statistics are updated.
        excitation: means of y over time, [B, C], to gains [B, C]. None: 1.
        residual: of x's shape and type.
    """
    own = [*norm.parameters(), *(excitation.parameters() if excitation is not None else ())]
    return _NormalizedRelu.apply(x, residual, bias, norm, excitation, *own)


class _NormalizedRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, bias: Tensor, norm: Norm, excitation: Any, *own: Tensor
    ) -> Tensor:
        ctx.unit = _Unit(rows(x), bias, norm, excitation)
        ctx.residual = None if residual is None else residual.dtype
        added = None if residual is None else rows(residual.to(x.dtype))
        out = torch.empty_like(ctx.unit.frames, memory_format=torch.contiguous_format)
        ctx.unit.write(out, added=added)
        return image(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_x, to_bias, *to_own = ctx.unit.gradients(rows(grad))
        to_residual = None if ctx.residual is None else grad.to(ctx.residual)
        return image(to_x), to_residual, to_bias, None, None, *to_own


class _Unit:
    """What follows a convolution, from one forward pass to its backward pass.

    Args:
        frames: the convolution's output without bias, [B, T, C]. Its memory becomes the gradient's.
        bias: the convolution's, [C].
        norm: its running statistics are updated.
        excitation: as of `normalized_relu`.
    """

    def __init__(self, frames: Tensor, bias: Tensor, norm: Norm, excitation: Any = None) -> None:
        self.frames: Tensor | None = frames
        self.bias = bias
        self.means, squares = torch.empty(2, frames.shape[0], frames.shape[2])
        call("moments", (frames,), bias, self.means, squares, floor=0)
        self.own = [*norm.parameters(), *(excitation.parameters() if excitation is not None else ())]
        self.inner = self.means.clone().requires_grad_(), squares.requires_grad_()
        with torch.enable_grad(), without_autocast(frames.device):
            self.outer = _coefficients(norm, excitation, *self.inner, self.means, frames.shape[1])

    def write(
        self, out: Tensor, *, added: Tensor | None = None, more: Tensor | None = None, onward: Tensor | None = None
    ) -> None:
        """``out = y + added``, and ``onward = out + more`` if it is there; all [B, T, C]."""
        gain, offset = (tensor.detach() for tensor in self.outer)
        call("affine", (self.frames, added, more, out, onward), self.bias, self.means, gain, offset, floor=0)

    def gradients(self, grad: Tensor, more: Tensor | None = None) -> tuple[Tensor, ...]:
        """From the gradient of y, ``grad + more``: those of frames, bias, and the weights of norm and excitation."""
        frames = self.frames
        self.frames = None
        if frames is None:
            raise RuntimeError("there can be one backward pass through a fused unit; its memory is used up")
        count, gain = frames.shape[1], self.outer[0].detach()
        slope, total = torch.empty(2, *self.means.shape)
        call("sums", (frames, grad, more), self.bias, self.means, slope, total, floor=0)
        to_means, to_squares, *to_own = torch.autograd.grad(self.outer, (*self.inner, *self.own), (slope, total))
        small = self.bias, self.means, gain, to_means / count, to_squares * (2 / count)
        call("gradient", (frames, grad, more, frames), *small, total, floor=0)
        return frames, total.sum(dim=0), *to_own


def res2(x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[Norm], *, identity_first: bool) -> Tensor:
    """The Res2Net convolution of `layers.Res2Conv`, [B, C, 1, T] to the same; its convolutions pad with zeros."""
    own = [p for pair in zip(convs, norms, strict=True) for module in pair for p in module.parameters()]
    return _Res2.apply(x, _dtype(x), convs, norms, identity_first, *own)


class _Res2(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, convs: Any, norms: Any, identity_first: bool, *own: Tensor
    ) -> Tensor:
        frames = rows(x.to(dtype))
        out = torch.empty_like(frames, memory_format=torch.contiguous_format)
        ctx.identity_first, ctx.dtype, ctx.saved = identity_first, x.dtype, []
        ins, outs = (_chunks(each, len(convs) + 1, identity_first) for each in (frames, out))
        outs.pop().copy_(ins.pop())
        arriving: Any = ins[0].contiguous()
        for conv, norm, after, to in zip(convs, norms, [*ins[1:], None], outs, strict=True):
            how = conv.stride, conv.padding, conv.dilation, False, (0, 0), 1
            weight = conv.weight.to(dtype)
            unit = _Unit(rows(torch.convolution(image(arriving), weight, None, *how)), conv.bias, norm)
            ctx.saved.append((arriving, weight, how, unit))
            arriving = None if after is None else torch.empty_like(arriving)
            unit.write(to, more=after, onward=arriving)
        return image(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = rows(grad)
        found = torch.empty_like(grads, memory_format=torch.contiguous_format)
        ins, outs = (_chunks(each, len(ctx.saved) + 1, ctx.identity_first) for each in (grads, found))
        outs.pop().copy_(ins.pop())
        to_own: list[Tensor] = []
        more = None
        for (arrived, weight, how, unit), part, to in reversed(list(zip(ctx.saved, ins, outs, strict=True))):
            to_frames, to_bias, *to_norm = unit.gradients(part, more)
            images = image(to_frames), image(arrived), weight
            back, to_weight, _ = torch.ops.aten.convolution_backward(*images, None, *how, (True, True, False))
            to_own = [to_weight.float(), to_bias, *to_norm, *to_own]
            more = rows(back)
            to.copy_(more)
        return image(found).to(ctx.dtype), None, None, None, None, *to_own


def _chunks(frames: Tensor, scale: int, identity_first: bool) -> list[Tensor]:
    """Chunks of the channels [B, T, C / scale], the one that passes unchanged at the end."""
    chunks = list(frames.chunk(scale, dim=2))
    return [*chunks[1:], chunks[0]] if identity_first else chunks


def _coefficients(
    norm: Norm, excitation: Any, means: Tensor, squares: Tensor, centre: Tensor, frames: int
) -> tuple[Tensor, Tensor]:
    """Gain and offset of a unit from its utterances' means and mean square deviations, all [B, C]."""
    mean = means.mean(dim=0)
    variance = squares.mean(dim=0) + (means - mean).square().mean(dim=0)
    _update_running(norm, mean.detach(), variance.detach(), len(means) * frames)
    gain = norm.weight * (variance + norm.eps).rsqrt()
    if excitation is None:
        return gain.expand_as(centre).contiguous(), norm.bias + gain * (centre - mean)
    excited = excitation.gains(norm.bias + gain * (means - mean))
    return gain * excited, (norm.bias + gain * (centre - mean)) * excited


def _update_running(norm: Norm, mean: Tensor, variance: Tensor, count: int) -> None:
    """As the norm itself would."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    norm.num_batches_tracked.add_(1)


def relu(x: Tensor, bias: Tensor | None) -> Tensor:
    """``relu(x + bias)``: [B, C, 1, T] and [C] to [B, C, 1, T]. It takes x's memory."""
    return _Relu.apply(x, bias)


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        frames = rows(x.detach())
        zeros = torch.zeros(x.shape[:2])
        call("affine", (frames, None, None, frames, None), bias, zeros, torch.ones_like(zeros), zeros, floor=0)
        ctx.save_for_backward(frames)
        return image(frames)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (frames,), grads = ctx.saved_tensors, rows(grad)
        zeros = torch.zeros(len(grads), grads.shape[2])
        total, out = torch.empty_like(zeros), torch.empty_like(frames)
        small = zeros[0], zeros, torch.ones_like(zeros), zeros, zeros
        call("gradient", (frames, grads, None, out), *small, total, floor=0)
        return image(out), total.sum(dim=0)
