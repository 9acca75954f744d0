"""Pooling over time: frames to their mean and standard deviation, in float32 whatever the precision around them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sv_sparse.models.layers import without_autocast
from sv_sparse.models.module_checks import is_ordinary, is_untouched


class TemporalStatisticsPooling(nn.Module):
    """Mean and standard deviation of each channel and bin over time: [B, C, F, T] to [B, 2·C·F] float32.

    All means come first, then all deviations, each with the channel as the slow axis. The variance is the
    unbiased one.

    >>> TemporalStatisticsPooling()(torch.zeros(5, 4, 3, 7)).shape
    torch.Size([5, 24])
    """

    variance_floor = 1e-8

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, F, T] to [B, 2·C·F].

        Raises:
            ValueError: T is less than 2.
        """
        frames = x.flatten(1, 2).transpose(1, 2)
        return statistics(frames, None, correction=1, variance_floor=self.variance_floor)


class AttentiveStatisticsPooling(nn.Module):
    """Mean and standard deviation under a learned weighting of the frames: [B, C, T] to [B, 2·C] float32.

    Each channel has weights over time of its own, from the frame and the global context::

        weight = softmax over T of linear2(tanh(linear1([x, mean over T, deviation over T])))
        mean = sum of weight·x,  deviation = sqrt(sum of weight·(x - mean)²)

    Fastest where the channels of a frame are side by side in memory.

    Args:
        channels: C.
        attention_channels: Width of the hidden layer.
        hidden_norm: Put a ReLU and a batch norm before the tanh, as SpeechBrain does.
        context_correction: 1 for the unbiased variance in the global context, 0 for the mean square.
        variance_floor: Smallest variance before a root.

    Source: Desplanques et al., "ECAPA-TDNN", 2020, section 3.1.
    """

    def __init__(
        self,
        channels: int,
        attention_channels: int,
        *,
        hidden_norm: bool = False,
        context_correction: int = 1,
        variance_floor: float = 1e-10,
    ) -> None:
        super().__init__()
        self.context_correction = context_correction
        self.variance_floor = variance_floor
        self.linear1 = nn.Linear(3 * channels, attention_channels)
        self.norm = nn.BatchNorm1d(attention_channels) if hidden_norm else None
        self.linear2 = nn.Linear(attention_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, T] to [B, 2·C].

        Raises:
            ValueError: T is less than 2.
        """
        frames = x.transpose(1, 2)
        context = self._statistics(frames, None, correction=self.context_correction)
        scores = self.linear2(torch.tanh(self._apply_linear1(frames, context)))
        return self._statistics(frames, scores, correction=0)

    def _statistics(self, frames: Tensor, scores: Tensor | None, *, correction: int) -> Tensor:
        return statistics(frames, scores, correction=correction, variance_floor=self.variance_floor)

    def _apply_linear1(self, frames: Tensor, context: Tensor) -> Tensor:
        """Return the hidden layer's output for [x, mean, deviation], before tanh: [B, T, hidden]."""
        if is_untouched(self.linear1, nn.Linear):
            # Mean and deviation are the same in all frames: their two thirds of the product are computed once.
            channels = frames.shape[2]
            weight = self.linear1.weight
            constant = F.linear(context, weight[:, channels:], self.linear1.bias)
            hidden = F.linear(frames, weight[:, :channels]) + constant.unsqueeze(1)
        else:
            repeated = context.unsqueeze(1).expand(-1, frames.shape[1], -1)
            hidden = self.linear1(torch.cat([frames.to(context.dtype), repeated], dim=2))
        if self.norm is None:
            return hidden
        return self.norm(F.relu(hidden).flatten(0, 1)).view_as(hidden)


def statistics(
    frames: Tensor,
    scores: Tensor | None,
    *,
    correction: int,
    variance_floor: float,
    moments: type[torch.autograd.Function] | None = None,
) -> Tensor:
    """Mean and standard deviation over T, weighted or not: [B, T, C] to [B, 2·C] float32.

    Args:
        frames: [B, T, C], T at least 2.
        scores: The weights are their softmax over T, [B, T, C]; without scores all weights are 1/T.
        correction: The mean square deviation is multiplied by T / (T - ``correction``).
        variance_floor: Smallest variance before the root.
        moments: function of frames and scores that computes mean and mean square deviation; by default torch's.

    Raises:
        ValueError: T is less than 2.

    >>> statistics(torch.tensor([[[1.0], [3.0]]]), None, correction=0, variance_floor=1e-8)
    tensor([[2., 1.]])
    """
    count = frames.shape[1]
    if count < 2:
        raise ValueError(f"pooling needs at least 2 frames at its input, got {count}; use longer utterances")
    factor = count / (count - correction)
    # Over some hundred frames, means and variances lose digits in 16-bit formats.
    with without_autocast(frames.device):
        if torch.is_grad_enabled() and is_ordinary(frames) and (scores is None or is_ordinary(scores)):
            mean, variance = (moments or _Moments).apply(frames, scores)
        else:
            mean, variance = _moments(frames, scores)
        # The slope of a square root is infinite at 0. Below the floor it is 0, so constant channels do no harm.
        return torch.cat([mean, (factor * variance).clamp(min=variance_floor).sqrt()], dim=1)


def _frame_weights(frames: Tensor, scores: Tensor | None) -> Tensor | float:
    if scores is None:
        return 1 / frames.shape[1]
    return torch.softmax(scores, dim=1, dtype=torch.float32)


def _moments(frames: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and mean square deviation over T, each [B, C]."""
    x = frames.float()
    weight = _frame_weights(frames, scores)
    mean = (x * weight).sum(dim=1, keepdim=True)
    # Not as a difference of two large numbers, E[x²] - E[x]², which cancels.
    return mean.squeeze(1), ((x - mean).square() * weight).sum(dim=1)


def _split(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Yield the whole batch; on a CPU one utterance after the other."""
    frames = tensors[0]
    assert frames is not None
    # The float32 copies of one utterance stay in a CPU's cache.
    size = 1 if frames.device.type == "cpu" else len(frames)
    for start in range(0, len(frames), size):
        yield tuple(tensor if tensor is None else tensor[start : start + size] for tensor in tensors)


class _Moments(torch.autograd.Function):
    """`_moments` with its gradient in closed form, so that no float32 copy of [B, T, C] is kept.

    With w the weights, m and v the two results and d = x - m, the gradients g_m and g_v give::

        x: w·(g_m + 2·g_v·d)        scores: w·(d·(g_m + g_v·d) - g_v·v)

    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        moments = [_moments(*part) for part in _split(frames, scores)]
        mean, variance = (torch.cat(parts) for parts in zip(*moments, strict=True))
        ctx.save_for_backward(frames, scores, mean, variance)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor | None, Tensor | None]:
        frames, scores, mean, variance = ctx.saved_tensors
        # Gradients are enabled here by create_graph=True; gradients of a vmap come from is_grads_batched=True.
        if torch.is_grad_enabled() or not is_ordinary(grad_mean):
            return _gradients_by_autograd(frames, scores, (grad_mean, grad_variance), ctx.needs_input_grad)
        grad_frames = torch.empty_like(frames)
        grad_scores = None if scores is None else torch.empty_like(scores)
        rows = (tensor.unsqueeze(1) for tensor in (mean, variance, grad_mean, grad_variance))
        for x, s, grad_x, grad_s, m, v, g_m, g_v in _split(frames, scores, grad_frames, grad_scores, *rows):
            weight = _frame_weights(x, s)
            deviation = x - m
            slope = torch.addcmul(g_m, g_v, deviation)
            if grad_s is not None:
                grad_s.copy_(deviation.mul_(slope).sub_(g_v * v).mul_(weight))
            # g_m + 2·g_v·d, from the slope that is there already.
            grad_x.copy_(slope.mul_(2).sub_(g_m).mul_(weight))
        return grad_frames, grad_scores


def _gradients_by_autograd(
    frames: Tensor, scores: Tensor | None, grads: tuple[Tensor, Tensor], needs_grad: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of `_moments`, which can be differentiated again and computed for many gradients at once."""
    create_graph = torch.is_grad_enabled()
    inputs = []
    with torch.enable_grad():
        # Scores come from frames. As views of their own, each has its own gradient alone.
        frames = frames.view_as(frames)
        if needs_grad[0]:
            inputs.append(frames)
        if scores is not None:
            scores = scores.view_as(scores)
        if scores is not None and needs_grad[1]:
            inputs.append(scores)
        gradients = list(torch.autograd.grad(_moments(frames, scores), inputs, grads, create_graph=create_graph))
    grad_frames = gradients.pop(0) if needs_grad[0] else None
    grad_scores = gradients.pop(0) if needs_grad[1] else None
    return grad_frames, grad_scores
