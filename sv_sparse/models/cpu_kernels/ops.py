"""ReLU, batch norm, squeeze-excitation and pooling of a network in training on a CPU, by the kernels of kernel.cpp.

With x a convolution's output, b its bias and r = relu(x + b), every unit of ECAPA-TDNN ends in::

    y = gain·(r - m) + offset (+ residual)

where m is the utterance's mean of r over time, and gain and offset, [B, C], follow from the utterances' means and mean
square deviations, [B, C], the norm's weights and the squeeze-excitation, if there is one. So a unit reads its input
once for these moments and once for y; backward, once for the gradients of gain and offset and once for x's. What
lies between moments and gains is small, and is left to autograd. Sums are float32, matrices bfloat16 or float32.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models.cpu_kernels import bindings
from sv_sparse.models.cpu_kernels.bindings import call, empty_image, image, rows, transposed
from sv_sparse.models.layers import without_autocast
from sv_sparse.models.module_checks import (
    is_ordinary,
    is_trained,
    is_untouched,
    keeps_frames,
    moves_steadily,
)
from sv_sparse.optim.memory import empty_float32

Norm = nn.BatchNorm1d | nn.BatchNorm2d
_CAST = {torch.float32, torch.bfloat16, torch.float16}  # types that autocast turns into its own


def can_fuse(
    model: nn.Module,
    x: Tensor,
    convs: Sequence[nn.Module] = (),
    norms: Sequence[nn.Module] = (),
    linears: Sequence[nn.Module] = (),
) -> bool:
    """Return whether the kernels may compute in place of some modules, for this input.

    The kernels stand in for torch's own modules only. Where one of them is replaced, frozen, reparametrized or has a
    hook, torch's operations call it.

    Args:
        model: module that holds them; kernels serve training only.
        x: input of the first of the modules, [B, C, 1, T]; where there are no convolutions, [B, C, T].
        convs: convolutions that the kernels stand in for.
        norms: batch norms that they stand in for.
        linears: linear layers that are called inside a unit, as those of a squeeze-excitation.
    """
    return (
        model.training
        and torch.is_grad_enabled()
        and is_ordinary(x)
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and x.shape[0] * x.shape[-1] > 1  # of which a variance exists
        and (_is_image(x) if convs else x.ndim == 3 and x.dtype in bindings.TYPES)
        and all(is_untouched(conv, nn.Conv2d) and is_trained(conv) and keeps_frames(conv) for conv in convs)
        and all(_is_served(norm) for norm in norms)
        and all(is_untouched(linear, nn.Linear) and is_trained(linear) for linear in linears)
    )


def _is_image(x: Tensor) -> bool:
    """Return whether ``x`` is [B, C, 1, T], and its convolution with a float32 weight is in a type of the kernels."""
    cast = torch.is_autocast_enabled("cpu") and x.dtype in _CAST
    return x.ndim == 4 and x.shape[2] == 1 and (x.dtype == torch.float32 or cast) and compute_dtype(x) in bindings.TYPES


def _is_served(norm: nn.Module) -> bool:
    """Return whether this is torch's own batch norm, untouched and in training."""
    if not (is_untouched(norm, nn.BatchNorm2d) or is_untouched(norm, nn.BatchNorm1d)):
        return False
    return is_trained(norm) and moves_steadily(norm)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type that a convolution of ``x`` computes in."""
    cast = torch.is_autocast_enabled("cpu") and x.dtype in _CAST
    return torch.get_autocast_dtype("cpu") if cast else x.dtype


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a backward pass by kernels refuse in words to be differentiated itself."""

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():  # as it is in a backward pass with create_graph=True alone
            raise RuntimeError(
                "create_graph=True: the CPU kernels of this network have no second derivative; train with "
                "trainer.cpu_kernels=false (in Python, without cpu_kernels.accelerate)"
            )
        return backward(ctx, *grads)

    return checked


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the convolution without its bias; in bfloat16 that of one tap as a product of matrices.

    In float32 torch's convolutions, by oneDNN, are twice as fast as its products, by MKL, on some AMD processors.
    """
    dtype = compute_dtype(x)
    if dtype == torch.bfloat16 and conv.kernel_size == (1, 1):
        return _Product.apply(x, conv.weight, dtype)
    return conv._conv_forward(x, conv.weight, None)


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
    @first_order
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
    own = _own(norm, excitation)
    return _NormalizedRelu.apply(x, residual, bias, norm, excitation, *own)


def _own(norm: Norm, excitation: Any) -> list[Tensor]:
    """Weights of a unit behind its convolution, in the order of their gradients."""
    linears = () if excitation is None else (excitation.squeeze, excitation.expand)
    return [parameter for module in (norm, *linears) for parameter in (module.weight, module.bias)]


class _NormalizedRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, bias: Tensor, norm: Norm, excitation: Any, *own: Tensor
    ) -> Tensor:
        ctx.unit = _Unit(rows(x), bias, norm, excitation)
        ctx.residual = None if residual is None else residual.dtype
        added = None if residual is None else rows(residual.to(x.dtype))
        out = empty_image(ctx.unit.frames)
        ctx.unit.write(rows(out), added=added)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_x, to_bias, *to_own = ctx.unit.gradients(rows(grad))
        to_residual = None if ctx.residual is None else grad.to(ctx.residual)
        return image(to_x), to_residual, to_bias, None, None, *to_own


class _Unit:
    """State of a unit behind its convolution, from its forward pass to its backward pass.

    Args:
        frames: the convolution's output without bias, [B, T, C]. Its memory becomes the gradient's, unless the graph is
            retained.
        bias: the convolution's, [C].
        norm: its running statistics are updated.
        excitation: as of `normalized_relu`.
    """

    def __init__(self, frames: Tensor, bias: Tensor, norm: Norm, excitation: Any = None) -> None:
        self.frames: Tensor | None = frames
        self.bias = bias.detach().contiguous()
        self.means, squares = empty_float32(2, frames.shape[0], frames.shape[2])
        call("moments", (frames,), self.bias, self.means, squares, floor=0)
        self.own = _own(norm, excitation)
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
        if frames is None:
            raise RuntimeError(
                "a second backward pass through the same graph, whose memory is freed; "
                "specify retain_graph=True in the first one"
            )
        again = torch._C._autograd._get_current_graph_task_keep_graph()  # retain_graph=True
        to_frames = torch.empty_like(frames) if again else frames
        if not again:
            self.frames = None  # its memory becomes the gradient's
        count, gain = frames.shape[1], self.outer[0].detach()
        slope, total = empty_float32(2, *self.means.shape)
        call("sums", (frames, grad, more), self.bias, self.means, slope, total, floor=0)
        ends = (*self.inner, *self.own)
        to_means, to_squares, *to_own = torch.autograd.grad(self.outer, ends, (slope, total), retain_graph=again)
        small = self.bias, self.means, gain, to_means / count, to_squares * (2 / count)
        call("gradient", (frames, grad, more, to_frames), *small, total, floor=0)
        return to_frames, total.sum(dim=0), *to_own


def res2(x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[Norm], *, identity_first: bool) -> Tensor:
    """The Res2Net convolution of `layers.Res2Conv`, [B, C, 1, T] to the same; its convolutions pad with zeros."""
    pairs = zip(convs, norms, strict=True)
    own = [parameter for pair in pairs for module in pair for parameter in (module.weight, module.bias)]
    return _Res2.apply(x, compute_dtype(x), convs, norms, identity_first, *own)


class _Res2(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, convs: Any, norms: Any, identity_first: bool, *own: Tensor
    ) -> Tensor:
        frames = rows(x.to(dtype))
        out = empty_image(frames)
        ctx.identity_first, ctx.dtype, ctx.saved = identity_first, x.dtype, []
        ins, outs = (_chunks(each, len(convs) + 1, identity_first) for each in (frames, rows(out)))
        outs.pop().copy_(ins.pop())
        arriving: Any = ins[0].contiguous()
        for conv, norm, after, to in zip(convs, norms, [*ins[1:], None], outs, strict=True):
            how = conv.stride, conv.padding, conv.dilation, False, (0, 0), 1
            weight = conv.weight.to(dtype)
            unit = _Unit(rows(torch.convolution(image(arriving), weight, None, *how)), conv.bias, norm)
            ctx.saved.append((arriving, weight, how, unit))
            arriving = None if after is None else torch.empty_like(arriving)
            unit.write(to, more=after, onward=arriving)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = rows(grad)
        grad_input = torch.empty_like(grads, memory_format=torch.contiguous_format)
        ins, outs = (_chunks(each, len(ctx.saved) + 1, ctx.identity_first) for each in (grads, grad_input))
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
        return image(grad_input).to(ctx.dtype), None, None, None, None, *to_own


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
        zeros = empty_float32(*x.shape[:2]).zero_()
        small = bias.detach().contiguous(), zeros, torch.ones_like(zeros), zeros
        call("affine", (frames, None, None, frames, None), *small, floor=0)
        ctx.save_for_backward(frames)
        return image(frames)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (frames,), grads = ctx.saved_tensors, rows(grad)
        zeros = empty_float32(len(grads), grads.shape[2]).zero_()
        total, out = torch.empty_like(zeros), torch.empty_like(frames)
        small = zeros[0], zeros, torch.ones_like(zeros), zeros, zeros
        call("gradient", (frames, grads, None, out), *small, total, floor=0)
        return image(out), total.sum(dim=0)


class FusedMoments(torch.autograd.Function):
    """Mean and mean square deviation over T of ``pooling.statistics``, in the type of frames; scores may be None."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and mean square deviation, [B, C] each."""
        frames = frames.contiguous()
        batch, _, channels = frames.shape
        most, total, mean, square = empty_float32(4, batch, channels)
        if scores is None:
            call("moments", (frames,), torch.zeros_like(mean[0]), mean, square, floor=-inf)
            ctx.save_for_backward(frames, None, mean)
        else:
            scores = scores.to(frames.dtype).contiguous()
            call("attend", (frames, scores), most, total, mean, square)
            ctx.save_for_backward(frames, scores, most, total, mean, square)
        return mean, square

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_mean: Tensor, grad_square: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of frames and scores."""
        frames, scores, *statistics = ctx.saved_tensors
        to_frames = torch.empty_like(frames)
        if scores is None:
            count, (mean,) = frames.shape[1], statistics
            zeros, total = torch.zeros_like(mean), torch.empty_like(mean)
            small = zeros[0], mean, zeros, grad_mean / count, grad_square * (2 / count)
            call("gradient", (frames, None, None, to_frames), *small, total, floor=-inf)
            return to_frames, None
        to_scores = torch.empty_like(scores)
        ends = grad_mean.contiguous(), grad_square.contiguous()
        call("attend_gradient", (frames, scores, to_frames, to_scores), *statistics, *ends)
        return to_frames, to_scores
