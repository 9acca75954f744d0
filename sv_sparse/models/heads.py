"""Losses of embeddings: the AAM-softmax head, which is thrown away after training, and the distance to a teacher."""

from math import cos, inf, pi, sin

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Self products of normalized float32 vectors exceed 1 by rounding; the square root below needs room as well.
_COSINE_LIMIT = 1 - 1e-6
# Rows shorter than this are divided by it: a row that sparsity emptied then has a bounded gradient.
_SHORTEST_ROW = 1e-3


class AAMSoftmax(nn.Module):
    """Additive angular margin softmax, in float32 whatever the caller's autocast.

    ``margin`` and ``topk_margin`` may be changed at any time, for instance by a schedule.

    Sources: Deng, Guo, Xue, Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", 2019. Deng,
    Guo, Liu, Gong, Zafeiriou, "Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces", 2020.
    Zhao, Ma, Liu, Xu, "Multi-query multi-head attention pooling and inter-topk penalty for speaker verification", 2022.

    Args:
        embedding_dim: E.
        num_speakers: N, the speakers that occur as labels.
        scale: factor on the cosines, above 0.
        margin: added to the target's angle, in radians, in [0, pi / 2).
        sub_centers: weight vectors of each speaker, at least 1; the nearest to an embedding counts.
        topk: number of other speakers, those nearest to an embedding, whose angle is reduced; 0 for none, and all where
            there are fewer.
        topk_margin: subtracted from their angles, in radians, in [0, pi / 2).

    Attributes:
        weight: [N * sub_centers, E]; the sub-centers of a speaker follow each other.

    Raises:
        ValueError: a setting is out of its bounds.

    >>> head = AAMSoftmax(192, 1000, sub_centers=3, topk=5)
    >>> loss, cosines = head(torch.randn(8, 192), torch.arange(8))
    >>> cosines.shape
    torch.Size([8, 1000])
    """

    def __init__(
        self,
        embedding_dim: int,
        num_speakers: int,
        *,
        scale: float = 32.0,
        margin: float = 0.2,
        sub_centers: int = 1,
        topk: int = 0,
        topk_margin: float = 0.06,
    ) -> None:
        super().__init__()
        if num_speakers < 2:
            raise ValueError(
                f"the head needs at least 2 training speakers, got {num_speakers}; data.val_fraction=0 holds none out"
            )
        if not 0 < scale < inf:
            raise ValueError(f"head.scale must be a finite number above 0, got {scale}")
        for name, angle in (("margin", margin), ("topk_margin", topk_margin)):
            if not 0 <= angle < pi / 2:
                raise ValueError(f"head.{name} must be at least 0 and below pi / 2, got {angle}")
        if sub_centers < 1:
            raise ValueError(f"head.sub_centers must be a whole number, 1 or more, got {sub_centers}")
        if topk < 0:
            raise ValueError(f"head.topk must be a whole number, 0 or more, got {topk}")
        self.scale = scale
        self.margin = margin
        self.sub_centers = sub_centers
        self.topk = min(topk, num_speakers - 1)
        self.topk_margin = topk_margin
        self.weight = nn.Parameter(torch.empty(num_speakers * sub_centers, embedding_dim))
        nn.init.xavier_normal_(self.weight)

    def forward(self, embedding: Tensor, speaker: Tensor) -> tuple[Tensor, Tensor]:
        """Compute loss and cosines.

        Args:
            embedding: [B, E].
            speaker: [B], int64 labels below N.

        Returns:
            The mean loss, 0-dim; and the cosines without margins, [B, N], detached, for accuracy.
        """
        # In 16-bit formats a cosine near 1 has an error of several degrees.
        with torch.autocast(embedding.device.type, enabled=False):
            rows = F.normalize(self.weight.float(), eps=_SHORTEST_ROW)
            cosine = F.linear(F.normalize(embedding.float()), rows).clamp(-_COSINE_LIMIT, _COSINE_LIMIT)
            if self.sub_centers > 1:
                cosine = cosine.unflatten(1, (-1, self.sub_centers)).amax(dim=2)
            index = speaker.unsqueeze(1)
            target = cosine.gather(1, index)
            shifted = cosine.scatter(1, index, self._with_margin(target))
            if self.topk > 0:
                nearest = cosine.detach().scatter(1, index, -inf).topk(self.topk, dim=1).indices
                shifted = shifted.scatter(1, nearest, self._with_topk_margin(cosine.gather(1, nearest)))
            return F.cross_entropy(self.scale * shifted, speaker), cosine.detach()

    def _with_margin(self, target: Tensor) -> Tensor:
        """Return cos(angle + margin) from cos(angle)."""
        # Past pi a cosine rises again, which would reward the wrong direction: a line continues its fall (ArcFace).
        shifted = target * cos(self.margin) - (1 - target * target).sqrt() * sin(self.margin)
        line = target - sin(self.margin) * self.margin
        return torch.where(target > -cos(self.margin), shifted, line)

    def _with_topk_margin(self, cosine: Tensor) -> Tensor:
        """Return cos(angle - topk_margin) from cos(angle)."""
        # Below an angle of 0 a cosine falls again, which would draw a wrong speaker nearer: a line continues its rise.
        shifted = cosine * cos(self.topk_margin) + (1 - cosine * cosine).sqrt() * sin(self.topk_margin)
        line = 1 + cosine - cos(self.topk_margin)
        return torch.where(cosine < cos(self.topk_margin), shifted, line)


def margin_at(progress: float, margin: float, *, start: float = 0.13, end: float = 0.27) -> float:
    """Return the scheduled margin: 0 until ``start``, then rising linearly, ``margin`` from ``end`` on.

    Args:
        progress: share of the run that is done, in [0, 1].
        margin: the final margin in radians.
        start: share of the run at which the margin begins to rise.
        end: share of the run at which it stands, at least ``start``.

    >>> [round(margin_at(p, 0.2, start=0.1, end=0.3), 3) for p in (0.0, 0.1, 0.2, 0.3, 1.0)]
    [0.0, 0.0, 0.1, 0.2, 0.2]
    """
    if not 0 <= start <= end <= 1:
        raise ValueError(f"the margin schedule needs 0 <= start <= end <= 1, got start={start}, end={end}")
    if progress >= end:
        return margin
    if progress <= start:
        return 0.0
    return margin * (progress - start) / (end - start)


class NoHead(nn.Module):
    """The head of a run without labels: no parameters, no loss, no scores.

    >>> NoHead()(torch.randn(2, 192), torch.zeros(2, dtype=torch.int64))
    (tensor(0.), None)
    """

    def forward(self, embedding: Tensor, _speaker: Tensor) -> tuple[Tensor, None]:
        """Return the loss 0, 0-dim float32, and None in place of scores."""
        return torch.zeros((), device=embedding.device), None


def mean_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean cosine similarity of embeddings, in float32 whatever the caller's autocast.

    The loss of a student is 1 - ``mean_cosine``: the mean cosine distance, in [0, 2].

    Args:
        student: [B, E].
        teacher: [B, E], of the same utterances.

    Returns:
        The mean over the batch, 0-dim, in [-1, 1].

    >>> mean_cosine(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor(0.5000)
    """
    # In 16-bit formats a cosine near 1, where training ends, has hardly any digits.
    with torch.autocast(student.device.type, enabled=False):
        return F.cosine_similarity(student.float(), teacher.float(), dim=1).mean()
