"""One update: the parts of a batch to gradients, gradients to weights, weights to lambda."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sv_sparse import distributed
from sv_sparse.data.dataset import Batch
from sv_sparse.distributed import rank
from sv_sparse.optim import SupportDiagnostics, clip_grad_norm_
from sv_sparse.training.setup import Experiment

logger = logging.getLogger(__name__)

_SMALLEST_SCALE = 2.0**-10  # of the loss in fp16


class _NetworkAndHead(nn.Module):
    """Filterbank [B, F, T] and speakers [B] to the loss and the cosines."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, filterbank: Tensor, speaker: Tensor) -> tuple[Tensor, Tensor]:
        """See ``AAMSoftmax``."""
        return self.head(self.network(filterbank), speaker)


@dataclass(frozen=True)
class Heard:
    """What the processes' parts of a batch are together.

    Attributes:
        crops: How many.
        unreadable: How many could not be read.
        fewest: Crops of the smallest part.
        signal: A stop signal that came to one of them; 0 for none.
    """

    crops: int
    unreadable: int
    fewest: int
    signal: int


def hear(parts: Sequence[Batch], signals: Sequence[int]) -> Heard:
    """Add up over the processes; all get the same answer."""
    sizes = [len(part.labels) for part in parts]
    lost = sum(len(part.unreadable) for part in parts)
    own = torch.tensor([sum(sizes), lost, min(sizes), signals[0] if signals else 0])
    all_ = distributed.gathered(own)
    crops, unreadable = all_[:, :2].sum(0).tolist()
    return Heard(crops, unreadable, int(all_[:, 2].min()), int(all_[:, 3].max()))


class Update:
    """Makes updates of an experiment's network and head.

    Gradients are those of the mean loss over the whole batch, whatever parts it comes in and however many processes
    share it.

    Args:
        experiment: what is trained.
        diagnostics: told before the weights of a logged step move.
        scaler: of fp16.

    Attributes:
        failed: number of the first step with a loss or gradient that is not finite, 0-dim on the device; 0 for none.
    """

    def __init__(self, experiment: Experiment, diagnostics: SupportDiagnostics, scaler: torch.amp.GradScaler) -> None:
        self.experiment, self.diagnostics, self.scaler = experiment, diagnostics, scaler
        self.settings = experiment.settings["trainer"]
        self._model: Any = None
        self._told = rank() > 0  # of the first step that an overflow in fp16 left out
        self.failed = torch.zeros((), dtype=torch.int64, device=experiment.compute.device)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, updates can be made: batch norms are synchronized, gradients averaged, the model compiled."""
        experiment = self.experiment
        device = experiment.compute.device
        with distributed.synchronized(experiment.network, device):
            model: nn.Module = _NetworkAndHead(experiment.network, experiment.head)
            self._model = experiment.compute.compile(model)
            if distributed.ranks() > 1:
                own = [device.index] if device.type == "cuda" else None
                self._model = DistributedDataParallel(
                    self._model, device_ids=own, broadcast_buffers=False, gradient_as_bucket_view=True
                )
            yield
            self._model = None
            experiment.optimizer.zero_grad()

    def make(self, parts: Sequence[Batch], crops: int, step: int, *, logged: bool) -> tuple[Tensor, Tensor | None]:
        """Move the weights, and lambda.

        Args:
            parts: this process's parts of the batch, each of 2 crops or more.
            crops: of all parts of all processes.
            step: number of this update, from 1 on.
            logged: whether the accuracy is wanted.

        Returns:
            Mean loss and accuracy over the processes, 0-dim on the device; no accuracy where it is not wanted. The
            loss is this process's own share then.

        Raises:
            ArithmeticError: the loss or the gradient is not finite. On a CPU the update was not made.
                On a GPU nothing waits for that: the caller reads ``failed`` with its other figures.
                In fp16 the host reads the scale at every step.
        """
        experiment = self.experiment
        experiment.optimizer.zero_grad()
        loss, hits = self._gradients(parts, crops, logged=logged)
        self.scaler.unscale_(experiment.optimizer)
        params = [param for group in experiment.optimizer.param_groups for param in group["params"]]
        most, sparse = self.settings["clip_norm"] or math.inf, experiment.controller.params
        how = experiment.optimizer.param_groups[0]["implementation"]
        norm = clip_grad_norm_(params, most, on=self.settings["clip_on"], sparse=sparse, implementation=how)
        self._watch(loss, norm, step)
        if experiment.compute.device.type == "cpu":
            self.refuse_non_finite()
        if logged:
            self.diagnostics.mark()
        self._step(step)
        if not logged:
            return loss, None
        loss, accuracy = distributed.average(torch.stack([loss, hits * distributed.ranks() / crops])).unbind()
        return loss, accuracy

    def _gradients(self, parts: Sequence[Batch], crops: int, *, logged: bool) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients; returns this process's share of the loss, and how many crops were told right."""
        experiment = self.experiment
        device = experiment.compute.device
        total, hits = torch.zeros((), device=device), torch.zeros((), device=device)
        for number, part in enumerate(parts, start=1):
            labels = part.labels.to(device, non_blocking=True)
            alone = distributed.ranks() > 1 and number < len(parts)
            with self._model.no_sync() if alone else nullcontext():
                with experiment.compute.autocast():
                    loss, cosine = self._model(experiment.features(part), labels)
                share = loss * (len(labels) * distributed.ranks() / crops)
                self.scaler.scale(share).backward()
            total += share.detach()
            if logged:
                hits += (cosine.argmax(dim=1) == labels).sum()
        return total, hits

    def _step(self, step: int) -> None:
        """Update weights and lambda; in fp16 an overflow may leave both, and lowers the scale."""
        before = self.scaler.get_scale()
        self.scaler.step(self.experiment.optimizer)
        self.scaler.update()
        after = self.scaler.get_scale()
        if after >= before:
            self.experiment.controller.step()
            return
        if not self._told:
            self._told = True
            logger.warning(
                "step %d made no update: in fp16 a gradient overflowed, with the loss scaled by %g; the scale is now "
                "%g. That is usual in the first steps; the log counts such steps after each epoch",
                step,
                before,
                after,
            )
        if after < _SMALLEST_SCALE:
            raise ArithmeticError(
                f"trainer.precision=fp16: gradients overflow although the loss is scaled by {after:g}; "
                "bf16 or fp32 may help"
            )

    def _watch(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """Remember the first step that failed, on the device; in fp16 an overflowing gradient is none."""
        finite = loss.isfinite() & norm.isfinite()  # the norm is the same in all processes
        if self.scaler.is_enabled():
            finite = distributed.average(loss).isfinite()
        self.failed = torch.where((self.failed == 0) & ~finite, step, self.failed)

    def refuse_non_finite(self) -> None:
        """Raise if the loss or the gradient of some step was not finite; waits for the device.

        Raises:
            ArithmeticError: it was; names the step.
        """
        failed = int(self.failed)
        if failed:
            raise ArithmeticError(
                f"step {failed}: the loss or its gradient is not finite; no checkpoint was written since. A "
                f"smaller optim.lr or trainer.precision=fp32 may help"
            )
