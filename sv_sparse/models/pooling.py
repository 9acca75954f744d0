"""From frames to one vector: statistics over time, in float32 whatever the precision around them.

Means and variances over some hundred frames lose digits in 16-bit formats, and a variance that comes out as zero
has an infinite square-root slope. So everything here is float32, variances are sums of squared deviations
from the mean (never a difference of two large numbers), and they are floored before the root, which makes the
gradient zero, not infinite, where a channel is constant.
"""

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

        weight = softmax over T of score(tanh(hidden([x, mean over T, deviation over T])))
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
        self.hidden = nn.Linear(3 * channels, attention_channels)
        self.norm = nn.BatchNorm1d(attention_channels) if hidden_norm else None
        self.score = nn.Linear(attention_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, T] to [B, 2·C].

        Raises:
            ValueError: T is less than 2.
        """
        frames = x.transpose(1, 2)
        context = self._statistics(frames, None, correction=self.context_correction)
        scores = self.score(torch.tanh(self._hidden(frames, context)))
        return self._statistics(frames, scores, correction=0)

    def _statistics(self, frames: Tensor, scores: Tensor | None, *, correction: int) -> Tensor:
        return statistics(frames, scores, correction=correction, variance_floor=self.variance_floor)

    def _hidden(self, frames: Tensor, context: Tensor) -> Tensor:
        """Return the hidden layer's output for [x, mean, deviation], before tanh: [B, T, hidden]."""
        if is_untouched(self.hidden, nn.Linear):  # without repeating the constant two thirds T times
            channels = frames.shape[2]
            weight = self.hidden.weight
            constant = F.linear(context, weight[:, channels:], self.hidden.bias)
            hidden = F.linear(frames, weight[:, :channels]) + constant.unsqueeze(1)
        else:
            repeated = context.unsqueeze(1).expand(-1, frames.shape[1], -1)
            hidden = self.hidden(torch.cat([frames.to(context.dtype), repeated], dim=2))
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
    with without_autocast(frames.device):
        if torch.is_grad_enabled() and is_ordinary(frames) and (scores is None or is_ordinary(scores)):
            mean, variance = (moments or _Moments).apply(frames, scores)
        else:
            mean, variance = _moments(frames, scores)
        return torch.cat([mean, (factor * variance).clamp(min=variance_floor).sqrt()], dim=1)


def _weight(frames: Tensor, scores: Tensor | None) -> Tensor | float:
    return 1 / frames.shape[1] if scores is None else torch.softmax(scores, dim=1, dtype=torch.float32)


def _moments(frames: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and mean square deviation over T, each [B, C]."""
    x, weight = frames.float(), _weight(frames, scores)
    mean = (x * weight).sum(dim=1, keepdim=True)
    return mean.squeeze(1), ((x - mean).square() * weight).sum(dim=1)


def _pieces(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The whole batch; on a CPU one utterance after the other, whose float32 copies stay in its cache."""
    first = tensors[0]
    assert first is not None
    size = 1 if first.device.type == "cpu" else len(first)
    for start in range(0, len(first), size):
        yield tuple(None if tensor is None else tensor[start : start + size] for tensor in tensors)


class _Moments(torch.autograd.Function):
    """`_moments` with its gradient in closed form, so that no float32 copy of [B, T, C] is kept.

    With w the weights, m and v the two results and d = x - m, the gradients g_m and g_v give::

        x: w·(g_m + 2·g_v·d)        scores: w·(d·(g_m + g_v·d) - g_v·v)

    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        parts = [_moments(*piece) for piece in _pieces(frames, scores)]
        mean, variance = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(frames, scores, mean, variance)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> tuple[Tensor | None, Tensor | None]:
        frames, scores, mean, variance = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_ordinary(grad_mean):  # create_graph=True, is_grads_batched=True
            return _gradients_by_autograd(frames, scores, (grad_mean, grad_variance), ctx.needs_input_grad)
        grad_frames = torch.empty_like(frames)
        grad_scores = None if scores is None else torch.empty_like(scores)
        rows = (tensor.unsqueeze(1) for tensor in (mean, variance, grad_mean, grad_variance))
        for x, s, to_x, to_s, m, v, g_m, g_v in _pieces(frames, scores, grad_frames, grad_scores, *rows):
            weight = _weight(x, s)
            deviation = x - m
            slope = torch.addcmul(g_m, g_v, deviation)
            if to_s is not None:
                to_s.copy_(deviation.mul_(slope).sub_(g_v * v).mul_(weight))
            to_x.copy_(slope.mul_(2).sub_(g_m).mul_(weight))
        return grad_frames, grad_scores


def _gradients_by_autograd(
    frames: Tensor, scores: Tensor | None, grads: tuple[Tensor, Tensor], needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return those of `_moments`, which can be differentiated again and computed for many gradients at once."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Scores come from frames: as views of their own, each has its own gradient alone.
        frames, scores = frames.view_as(frames), None if scores is None else scores.view_as(scores)
        ends = [tensor for tensor, need in zip((frames, scores), needed, strict=True) if need and tensor is not None]
        to_ends = iter(torch.autograd.grad(_moments(frames, scores), ends, grads, create_graph=create_graph))
    to_frames = next(to_ends) if needed[0] else None
    return to_frames, next(to_ends) if needed[1] else None
