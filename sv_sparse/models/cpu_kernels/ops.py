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
# Types that autocast turns into its own.
_CAST = {torch.float32, torch.bfloat16, torch.float16}


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
        # Of one frame there is no variance.
        and x.shape[0] * x.shape[-1] > 1
        and (_is_image(x) if convs else x.ndim == 3 and x.dtype in bindings.TYPES)
        and all(is_untouched(conv, nn.Conv2d) and is_trained(conv) and keeps_frames(conv) for conv in convs)
        and all(_is_served(norm) for norm in norms)
        and all(is_untouched(linear, nn.Linear) and is_trained(linear) for linear in linears)
    )


def _is_image(x: Tensor) -> bool:
    """Return whether ``x`` is [B, C, 1, T] in a type that the kernels compute its convolution in."""
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
        # Gradients are enabled in a backward pass only by create_graph=True.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True: the CPU kernels of this network have no second derivative; train with "
                "trainer.cpu_kernels=false (in Python, without cpu_kernels.accelerate)"
            )
        return backward(ctx, *grads)

    return checked


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Return the convolution without its bias; in bfloat16 that of one tap as a product of matrices."""
    # In float32 torch's convolutions, by oneDNN, are twice as fast as its products, by MKL, on some AMD processors.
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
        grad_x = image((grads @ matrix).view(frames.shape)).to(dtype) if ctx.needs_input_grad[0] else None
        grad_weight = transposed(grads) @ frames.flatten(0, 1)
        return grad_x, grad_weight.to(weight.dtype).view_as(weight), None


def normalized_relu(
    x: Tensor, bias: Tensor | None, norm: Norm, se: nn.Module | None = None, residual: Tensor | None = None
) -> Tensor:
    """``y = norm(relu(x + bias))``, times ``se``'s gains for it, plus ``residual``: [B, C, 1, T] to the same.

    Args:
        x: bfloat16 or float32.
        bias: [C], of a convolution, which types as optional.
        norm: in training; its running statistics are updated.
        se: means of y over time, [B, C], to gains [B, C]. None: 1.
        residual: of x's shape and type.
    """
    parameters = _affine_parameters(norm, se)
    return _NormalizedRelu.apply(x, residual, bias, norm, se, *parameters)


def _affine_parameters(norm: Norm, se: Any) -> list[Tensor]:
    """Weights of a unit behind its convolution, in the order of their gradients."""
    linears = () if se is None else (se.squeeze, se.expand)
    parameters: list[Tensor] = []
    for module in (norm, *linears):
        parameters.extend((module.weight, module.bias))
    return parameters


class _NormalizedRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, bias: Tensor, norm: Norm, se: Any, *parameters: Tensor
    ) -> Tensor:
        ctx.unit = _Unit(rows(x), bias, norm, se)
        ctx.residual = None if residual is None else residual.dtype
        added = None if residual is None else rows(residual.to(x.dtype))
        out = empty_image(ctx.unit.frames)
        ctx.unit.write(rows(out), added=added)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_bias, *grad_parameters = ctx.unit.gradients(rows(grad))
        grad_residual = None if ctx.residual is None else grad.to(ctx.residual)
        return image(grad_x), grad_residual, grad_bias, None, None, *grad_parameters


class _Unit:
    """State of a unit behind its convolution, from its forward pass to its backward pass.

    Args:
        frames: the convolution's output without bias, [B, T, C]. Its memory becomes the gradient's, unless the graph is
            retained.
        bias: the convolution's, [C].
        norm: its running statistics are updated.
        se: as of `normalized_relu`.
    """

    def __init__(self, frames: Tensor, bias: Tensor, norm: Norm, se: Any = None) -> None:
        self.frames: Tensor | None = frames
        self.bias = bias.detach().contiguous()
        self.means, squares = empty_float32(2, frames.shape[0], frames.shape[2])
        call("moments", (frames,), self.bias, self.means, squares, floor=0)
        self.parameters = _affine_parameters(norm, se)
        self.moments = self.means.clone().requires_grad_(), squares.requires_grad_()
        # Rows of [B, C] are small: autograd differentiates what lies between the kernels.
        with torch.enable_grad(), without_autocast(frames.device):
            self.gain_and_offset = _coefficients(norm, se, *self.moments, self.means, frames.shape[1])

    def write(
        self,
        out: Tensor,
        *,
        added: Tensor | None = None,
        next_chunk: Tensor | None = None,
        next_input: Tensor | None = None,
    ) -> None:
        """Write ``out = y + added``, and ``next_input = out + next_chunk`` if it is there; all [B, T, C]."""
        gain, offset = (tensor.detach() for tensor in self.gain_and_offset)
        call("affine", (self.frames, added, next_chunk, out, next_input), self.bias, self.means, gain, offset, floor=0)

    def gradients(self, grad: Tensor, grad_next: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the gradients of frames, bias, and the weights, from that of y, ``grad + grad_next``."""
        frames = self.frames
        if frames is None:
            raise RuntimeError(
                "a second backward pass through the same graph, whose memory is freed; "
                "specify retain_graph=True in the first one"
            )
        retain_graph = torch._C._autograd._get_current_graph_task_keep_graph()
        grad_frames = frames
        if retain_graph:
            grad_frames = torch.empty_like(frames)
        else:
            # Its memory becomes the gradient's: the largest tensor of a unit is there once.
            self.frames = None
        count, gain = frames.shape[1], self.gain_and_offset[0].detach()
        slope, total = empty_float32(2, *self.means.shape)
        call("sums", (frames, grad, grad_next), self.bias, self.means, slope, total, floor=0)
        ends = (*self.moments, *self.parameters)
        grad_means, grad_squares, *grad_parameters = torch.autograd.grad(
            self.gain_and_offset, ends, (slope, total), retain_graph=retain_graph
        )
        small = self.bias, self.means, gain, grad_means / count, grad_squares * (2 / count)
        call("gradient", (frames, grad, grad_next, grad_frames), *small, total, floor=0)
        return grad_frames, total.sum(dim=0), *grad_parameters


def res2(x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[Norm], *, identity_first: bool) -> Tensor:
    """The Res2Net convolution of `layers.Res2Conv`, [B, C, 1, T] to the same; its convolutions pad with zeros."""
    parameters: list[Any] = []
    for conv, norm in zip(convs, norms, strict=True):
        parameters.extend((conv.weight, conv.bias, norm.weight, norm.bias))
    return _Res2.apply(x, compute_dtype(x), convs, norms, identity_first, *parameters)


class _Res2(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, convs: Any, norms: Any, identity_first: bool, *parameters: Tensor
    ) -> Tensor:
        frames = rows(x.to(dtype))
        out = empty_image(frames)
        ctx.identity_first, ctx.dtype, ctx.saved = identity_first, x.dtype, []
        scale = len(convs) + 1
        inputs = _chunks(frames, scale, identity_first)
        outputs = _chunks(rows(out), scale, identity_first)
        outputs.pop().copy_(inputs.pop())
        unit_input: Any = inputs[0].contiguous()
        for conv, norm, next_chunk, output in zip(convs, norms, [*inputs[1:], None], outputs, strict=True):
            conv_options = conv.stride, conv.padding, conv.dilation, False, (0, 0), 1
            weight = conv.weight.to(dtype)
            unit = _Unit(rows(torch.convolution(image(unit_input), weight, None, *conv_options)), conv.bias, norm)
            ctx.saved.append((unit_input, weight, conv_options, unit))
            # Written together with the output: the next unit reads output + next_chunk.
            unit_input = None if next_chunk is None else torch.empty_like(unit_input)
            unit.write(output, next_chunk=next_chunk, next_input=unit_input)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = rows(grad)
        grad_x = torch.empty_like(grads, memory_format=torch.contiguous_format)
        scale = len(ctx.saved) + 1
        grad_outputs = _chunks(grads, scale, ctx.identity_first)
        grad_inputs = _chunks(grad_x, scale, ctx.identity_first)
        grad_inputs.pop().copy_(grad_outputs.pop())
        grad_parameters: list[Tensor] = []
        grad_next = None
        for saved in reversed(ctx.saved):
            unit_input, weight, conv_options, unit = saved
            # An output goes to the result and into the next unit: its gradient is the sum of theirs.
            grad_frames, grad_bias, *grad_norm = unit.gradients(grad_outputs.pop(), grad_next)
            images = image(grad_frames), image(unit_input), weight
            # The third gradient would be the bias's, which the unit has computed.
            mask = True, True, False
            grad_image, grad_weight, _ = torch.ops.aten.convolution_backward(*images, None, *conv_options, mask)
            grad_parameters = [grad_weight.float(), grad_bias, *grad_norm, *grad_parameters]
            grad_next = rows(grad_image)
            grad_inputs.pop().copy_(grad_next)
        return image(grad_x).to(ctx.dtype), None, None, None, None, *grad_parameters


def _chunks(frames: Tensor, scale: int, identity_first: bool) -> list[Tensor]:
    """Return the chunks of the channels [B, T, C / scale], the one that passes unchanged at the end."""
    chunks = list(frames.chunk(scale, dim=2))
    if identity_first:
        chunks.append(chunks.pop(0))
    return chunks


def _coefficients(
    norm: Norm, se: Any, means: Tensor, squares: Tensor, center: Tensor, frames: int
) -> tuple[Tensor, Tensor]:
    """Return gain and offset of a unit from its utterances' means and mean square deviations, all [B, C]."""
    mean = means.mean(dim=0)
    # Variance of a batch: the mean variance within its utterances, plus the variance of their means.
    variance = squares.mean(dim=0) + (means - mean).square().mean(dim=0)
    _update_running(norm, mean.detach(), variance.detach(), len(means) * frames)
    gain = norm.weight * (variance + norm.eps).rsqrt()
    if se is None:
        return gain.expand_as(center).contiguous(), norm.bias + gain * (center - mean)
    se_gain = se.gains(norm.bias + gain * (means - mean))
    return gain * se_gain, (norm.bias + gain * (center - mean)) * se_gain


def _update_running(norm: Norm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Update the running statistics as the norm itself would."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.running_mean.lerp_(mean, norm.momentum)
    # torch normalizes by the biased variance and keeps the unbiased one.
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
        # relu(x + bias) is the affine kernel with gain 1 and offset 0.
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
        grad_frames = torch.empty_like(frames)
        if scores is None:
            count, (mean,) = frames.shape[1], statistics
            zeros, total = torch.zeros_like(mean), torch.empty_like(mean)
            small = zeros[0], mean, zeros, grad_mean / count, grad_square * (2 / count)
            call("gradient", (frames, None, None, grad_frames), *small, total, floor=-inf)
            return grad_frames, None
        grad_scores = torch.empty_like(scores)
        ends = grad_mean.contiguous(), grad_square.contiguous()
        call("attend_gradient", (frames, scores, grad_frames, grad_scores), *statistics, *ends)
        return grad_frames, grad_scores
