"""The training loop: forward, backward, clip, optimizer step, controller step; validation and checkpoints by epoch."""

import logging
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sv_sparse import distributed
from sv_sparse.config.schema import HeadConfig
from sv_sparse.data.dataset import Batch
from sv_sparse.distributed import all_gather, all_gather_objects, rank, world_size
from sv_sparse.models.heads import margin_at, mean_cosine
from sv_sparse.optim import clip_grad_norm_, sparsity, warmup_decay
from sv_sparse.scoring.arrays import Float32Array
from sv_sparse.scoring.backend import Backend
from sv_sparse.signals import StopRequested, capture_stop_signals, defer_stop
from sv_sparse.training.checkpoints import TrainState
from sv_sparse.training.device import oom_hint
from sv_sparse.training.finalize import (
    MIN_CROPS,
    Validation,
    evaluate_untrained,
    mean_training_embedding,
    validate,
)
from sv_sparse.training.logging import MetricLogger, Timer, profiler
from sv_sparse.training.setup import TrainingSetup

logger = logging.getLogger(__name__)

# Below this, fp16 gradients overflow for a reason that scaling does not cure.
_MIN_LOSS_SCALE = 2.0**-10
_HPARAM_METRICS = (
    "sparsity",
    "sparsity_tracked",
    "nonzero_parameters",
    "eer",
    "min_dcf",
    "wall_time_s",
    "validation_eer",
    "validation_teacher_cosine",
    "teacher_cosine",
    "min_teacher_cosine",
)


class ModelWithLoss(nn.Module):
    """Network and losses as one module, so that they are compiled and distributed together.

    Args:
        network: filterbank [B, F, T] to embedding [B, E].
        head: embeddings and labels to loss and scores.
        distill_weight: factor on the mean cosine distance to the teacher's embeddings. Default: 1.
    """

    def __init__(self, network: nn.Module, head: nn.Module, distill_weight: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.distill_weight = distill_weight

    def forward(
        self, filterbank: Tensor, labels: Tensor, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute the loss of a batch.

        Args:
            filterbank: [B, F, T].
            labels: training speakers [B], int64.
            target: the teacher's embeddings [B, E]. Default: there is no teacher.

        Returns:
            The mean loss, 0-dim; the cosines with all speakers [B, K], None without a head; and the mean cosine with
            the teacher, 0-dim and detached, None without a teacher.
        """
        embedding = self.network(filterbank)
        loss, cosines = self.head(embedding, labels)
        if target is None:
            return loss, cosines, None
        teacher_cosine = mean_cosine(embedding, target)
        return loss + self.distill_weight * (1 - teacher_cosine), cosines, teacher_cosine.detach()


@dataclass(frozen=True)
class GlobalBatchInfo:
    """Size of a batch over all processes."""

    # Crops that could be read.
    num_crops: int
    # Crops that could not.
    num_unreadable: int
    # Crops of the smallest micro-batch of any process.
    min_part_size: int
    # A stop signal that one of the processes received; 0 for none.
    stop_signal: int


def reduce_batch_info(micro_batches: Sequence[Batch], signals: Sequence[int]) -> GlobalBatchInfo:
    """Combine the sizes of a batch over the processes; all get the same answer.

    Args:
        micro_batches: this process's parts of the batch.
        signals: stop signals that this process received.
    """
    sizes = [len(micro_batch.labels) for micro_batch in micro_batches]
    num_unreadable = sum(len(micro_batch.unreadable) for micro_batch in micro_batches)
    local = torch.tensor([sum(sizes), num_unreadable, min(sizes), _first_signal(signals)])
    by_rank = all_gather(local)
    return GlobalBatchInfo(
        num_crops=int(by_rank[:, 0].sum()),
        num_unreadable=int(by_rank[:, 1].sum()),
        min_part_size=int(by_rank[:, 2].min()),
        stop_signal=int(by_rank[:, 3].max()),
    )


def _first_signal(signals: Sequence[int]) -> int:
    """Return the first stop signal that came; 0 for none."""
    return signals[0] if signals else 0


class Trainer:
    """Trains what ``build_setup`` made; ``train`` continues from the run folder's checkpoint if there is one.

    Args:
        setup: network, head, optimizer, controller and data.
        start_time: ``time.monotonic()`` at which this process began to work on the run.

    Attributes:
        state: what checkpoints hold.
        last_validation: of the network as it is; None if it was not validated.
        failed_step: the first step with a loss or gradient that is not finite, 0-dim on the device; 0 for none.
    """

    def __init__(self, setup: TrainingSetup, start_time: float) -> None:
        self.setup = setup
        self.config = setup.config.trainer
        self.state = TrainState(setup, start_time)
        self.metrics = MetricLogger(setup.run_dir, self.state.progress.step, self.state.progress.rows)
        self.timer = Timer()
        self.last_save_time = start_time
        self.last_validation: Validation | None = None
        self.failed_step = torch.zeros((), dtype=torch.int64, device=setup.device.device)
        self._model: Any = None
        # One process tells of the first overflow in fp16.
        self._overflow_logged = rank() > 0

    def train(self) -> None:
        """Train to the last step, and load what the run delivers: the last network, the best, or an average.

        Raises:
            StopRequested: a stop signal came; everything up to the last update is saved.
            ArithmeticError: the loss is not finite, or no step made an update.
            ValueError: too many recordings cannot be read, or the device has too little memory.
            OSError: something cannot be written, or processes that read crops died again and again.
        """
        config = self.config
        hint = (
            f"lower trainer.batch_size={config.batch_size} or trainer.crop_seconds={config.crop_seconds}, "
            f"raise trainer.grad_accum_steps={config.grad_accum_steps}, "
            f"or take trainer.precision=bf16 or a smaller model"
        )
        with oom_hint(hint):
            if not self.state.has_checkpoint:
                if self.setup.config.data.evaluate_untrained:
                    # In the run's precision: it is only a comparison.
                    with self.setup.device.autocast():
                        mean = mean_training_embedding(self.setup)
                        self.state.untrained_metrics = evaluate_untrained(self.setup, mean)
                # Before the first checkpoint, with which a run is resumed.
                self.state.save_teacher()
                self._save()
            with self._training_mode(), self.metrics.progress(self.state.progress.step, self.setup.total_steps):
                # A resumed run may have been stopped between the end of an epoch and its validation.
                self._validate_and_save()
                while self._should_continue():
                    self._train_epoch()
                    self._validate_and_save()
        self._check_some_update()
        if self.state.select_final_weights():
            self.last_validation = None
            with defer_stop():
                # With the head that belongs to the network.
                self._save()

    @contextmanager
    def _training_mode(self) -> Iterator[None]:
        """Inside, batch norms are synchronized, gradients averaged over processes, and the model is compiled."""
        setup = self.setup
        device = setup.device.device
        with distributed.sync_batch_norm(setup.network, device):
            model = ModelWithLoss(setup.network, setup.head, setup.config.distill.weight)
            self._model = setup.device.compile(model)
            if world_size() > 1:
                self._model = DistributedDataParallel(
                    self._model,
                    device_ids=[device.index] if device.type == "cuda" else None,
                    # Batch norms are synchronized already.
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )
            yield
            self._model = None
            setup.optimizer.zero_grad()

    def _train_epoch(self) -> None:
        """Train to the end of an epoch, or of the run; a stop signal waits for the end of a step."""
        setup, progress = self.setup, self.state.progress
        grad_accum_steps = self.config.grad_accum_steps
        setup.sampler.epoch = progress.epoch
        setup.sampler.start = progress.step_in_epoch * grad_accum_steps
        setup.train_mode()
        with capture_stop_signals() as signals:
            with profiler(setup.run_dir, enabled=self.config.profile) as profile_step:
                batches = iter(self.timer.timed(setup.loader))
                while progress.step < setup.total_steps:
                    micro_batches = list(islice(batches, grad_accum_steps))
                    if not micro_batches:
                        break
                    info = reduce_batch_info(micro_batches, signals)
                    self._count_recordings(micro_batches, info)
                    self._apply_schedules()
                    if info.min_part_size >= MIN_CROPS:
                        self._train_step(micro_batches, info.num_crops)
                    progress.step_in_epoch += 1
                    progress.step += 1
                    self.metrics.step()
                    profile_step()
                    self._save_if_due()
                    # Processes that train together stop at the same step: reduce_batch_info told all of them.
                    stop_signal = info.stop_signal if world_size() > 1 else _first_signal(signals)
                    if stop_signal:
                        self._save()
                        logger.info("stopped by %s at step %d", signal.Signals(stop_signal).name, progress.step)
                        raise StopRequested(stop_signal)
            progress.epoch += 1
            progress.step_in_epoch = 0
            progress.validated = False
            # Before the validation, so that nothing is lost however that ends.
            self._save()
            stop_signal = int(all_gather(torch.tensor([_first_signal(signals)])).max())
            if stop_signal:
                raise StopRequested(stop_signal)

    def _train_step(self, micro_batches: Sequence[Batch], num_crops: int) -> None:
        """Make one update of the weights and of lambda.

        Gradients are those of the mean loss over the whole batch, whatever micro-batches it comes in and however many
        processes share it.

        Args:
            micro_batches: this process's parts of the batch.
            num_crops: crops of all micro-batches of all processes.
        """
        setup, scaler = self.setup, self.state.scaler
        optimizer, controller = setup.optimizer, setup.controller
        device = setup.device.device
        step = self.state.progress.step + 1
        is_logged = step % self.config.log_interval == 0

        optimizer.zero_grad()
        totals = self._backward(micro_batches, num_crops, is_logged=is_logged)

        # Clip. By default only gradients of nonzero weights enter the norm: those of zeros are many, and would shrink
        # every step several times.
        scaler.unscale_(optimizer)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        grad_norm = clip_grad_norm_(
            params,
            self.config.max_grad_norm or math.inf,
            scope=self.config.clip_scope,
            sparse_params=controller.params,
            backend=optimizer.param_groups[0]["backend"],
        )
        self._record_non_finite(totals["loss"], grad_norm, step)
        if device.type == "cpu":
            # On a GPU this would wait for the device; there it comes with the logged metrics.
            self._check_finite()
        if is_logged:
            # Which weights are nonzero before the update.
            self.state.diagnostics.snapshot()

        # Update the weights by their dual variables, then lambda by the sparsity that came of it.
        previous_scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        # In fp16 a gradient that is not finite lowers the scale, and the optimizer's step was left out: lambda follows
        # updates only.
        overflowed = scaler.get_scale() < previous_scale
        if overflowed:
            self._handle_overflow(previous_scale, step)
        else:
            controller.step()

        self.timer.count(num_crops)
        if is_logged:
            # Processes have parts of one loss, and their own crops.
            means = distributed.all_reduce_mean(torch.stack(list(totals.values())))
            self._log_step(dict(zip(totals, means.unbind(), strict=True)))

    def _backward(self, micro_batches: Sequence[Batch], num_crops: int, *, is_logged: bool) -> dict[str, Tensor]:
        """Compute the gradients of a batch.

        Args:
            micro_batches: this process's parts of the batch.
            num_crops: crops of all micro-batches of all processes.
            is_logged: whether more than the loss is needed.

        Returns:
            0-dim tensors on the device, whose means over the processes are those over all crops: ``loss``, and where it
            is logged ``accuracy``, with a head that has scores, and ``teacher_cosine``, with a teacher.
        """
        setup = self.setup
        device = setup.device.device
        totals = {"loss": torch.zeros((), device=device)}
        num_correct = torch.zeros((), device=device)
        for index, micro_batch in enumerate(micro_batches, start=1):
            labels = micro_batch.labels.to(device, non_blocking=True)
            # Only the last micro-batch averages gradients over the processes: the sum is the same, at less traffic.
            skip_sync = world_size() > 1 and index < len(micro_batches)
            # DistributedDataParallel averages over processes, so that shares sum to the mean over all crops.
            share = len(labels) * world_size() / num_crops
            with self._model.no_sync() if skip_sync else nullcontext():
                with setup.device.autocast():
                    features, target = setup.extract_step_inputs(micro_batch)
                    loss, cosines, teacher_cosine = self._model(features, labels, target)
                loss_share = loss * share
                self.state.scaler.scale(loss_share).backward()
            totals["loss"] += loss_share.detach()
            if is_logged and cosines is not None:
                num_correct += (cosines.argmax(dim=1) == labels).sum()
                totals["accuracy"] = num_correct * world_size() / num_crops
            if is_logged and teacher_cosine is not None:
                totals["teacher_cosine"] = totals.get("teacher_cosine", 0) + teacher_cosine * share
        return totals

    def _count_recordings(self, micro_batches: Sequence[Batch], info: GlobalBatchInfo) -> None:
        """Name the recordings that could not be used, and end the run where they are too many."""
        for micro_batch in micro_batches:
            self.state.unreadable.warn(micro_batch.unreadable)
        self.state.unreadable.add(info.num_crops + info.num_unreadable, info.num_unreadable)

    def _apply_schedules(self) -> None:
        """Set learning rate and margin of this step: functions of the step alone, so that resuming needs no state."""
        step, total_steps = self.state.progress.step, self.setup.total_steps
        factor = warmup_decay(
            step,
            total_steps,
            decay=self.setup.config.lr_decay,
            warmup_fraction=self.config.warmup_fraction,
            final_lr_fraction=self.config.final_lr_fraction,
        )
        for group in self.setup.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        head = self.setup.config.head
        # A loss of the user's own has its own schedule.
        if not isinstance(head, HeadConfig):
            return
        for name in ("margin", "topk_margin"):
            margin = margin_at(
                step / total_steps, getattr(head, name), start=head.margin_warmup_start, end=head.margin_warmup_end
            )
            setattr(self.setup.head, name, margin)
        # Where the margin begins or ends to rise, gradients change: the controller takes its full gain again.
        turns = {math.ceil(fraction * total_steps) for fraction in (head.margin_warmup_start, head.margin_warmup_end)}
        if step > 0 and step in turns:
            self.setup.controller.reset_gain()

    def _handle_overflow(self, previous_scale: float, step: int) -> None:
        """Log the first step whose fp16 gradients overflowed; raise an ArithmeticError if scaling does not help."""
        loss_scale = self.state.scaler.get_scale()
        if not self._overflow_logged:
            self._overflow_logged = True
            logger.warning(
                "step %d made no update: in fp16 a gradient overflowed, with the loss scaled by %g; the scale is now "
                "%g. That is usual in the first steps; the log counts such steps after each epoch",
                step,
                previous_scale,
                loss_scale,
            )
        if loss_scale < _MIN_LOSS_SCALE:
            raise ArithmeticError(
                f"trainer.precision=fp16: gradients overflow although the loss is scaled by {loss_scale:g}; "
                "bf16 or fp32 may help"
            )

    def _record_non_finite(self, loss: Tensor, grad_norm: Tensor, step: int) -> None:
        """Store the first step that is not finite on the device, without waiting for it."""
        # The norm is the same in all processes.
        finite = loss.isfinite() & grad_norm.isfinite()
        # An overflowing fp16 gradient is no failure.
        if self.state.scaler.is_enabled():
            finite = distributed.all_reduce_mean(loss).isfinite()
        self.failed_step = torch.where((self.failed_step == 0) & ~finite, step, self.failed_step)

    def _check_finite(self) -> None:
        """Raise an ArithmeticError if the loss or gradient of some step was not finite; waits for the device."""
        failed_step = int(self.failed_step)
        if failed_step:
            raise ArithmeticError(
                f"step {failed_step}: the loss or its gradient is not finite; no checkpoint was written since. A "
                f"smaller optim.lr or trainer.precision=fp32 may help"
            )

    def _log_step(self, metrics: Mapping[str, Tensor]) -> None:
        """Log the metrics of a step. A GPU is waited for here, and in fp16 for each step's loss scale.

        Args:
            metrics: 0-dim tensors on the training device: ``loss``, and what else the losses give.
        """
        setup, controller = self.setup, self.setup.controller
        tensors = {
            **metrics,
            "lambda": controller.lambda_,
            "sparsity/network": self._sparsity(list(setup.sparse_params.values())),
            "sparsity/regularized": controller.sparsity(),
            "sparsity/all": self._sparsity(list(setup.network.parameters())),
        }
        for name, value in self.state.diagnostics.compute().items():
            tensors[f"support/{name}"] = value
        device = setup.device.device
        scalars = [value.float().to(device, non_blocking=True) for value in tensors.values()]
        # Whether a step failed comes with the metrics, in one copy from the device.
        *values, failed_step = torch.stack([*scalars, self.failed_step.float()]).tolist()
        if failed_step:
            self._check_finite()
        row: dict[str, Any] = {"step": self.state.progress.step + 1, "epoch": self.state.progress.epoch}
        row |= dict(zip(tensors, values, strict=True))
        row["target_sparsity"] = controller.target
        row["sparsity_error"] = controller.target - row["sparsity/regularized"]
        row["lr"] = setup.optimizer.param_groups[0]["lr"]
        if isinstance(setup.config.head, HeadConfig):
            row["margin"] = setup.head.margin
        row |= self.timer.read()
        self.metrics.log(row)
        self.metrics.show(row)

    def _sparsity(self, params: Sequence[Tensor]) -> Tensor:
        """Return the fraction of exact zeros, from the optimizer's count where it has one."""
        return 1 - self.setup.optimizer.count_nonzero(params).sum() / sum(param.numel() for param in params)

    def _validate_and_save(self) -> None:
        """Validate after an epoch, once, and save; a stop signal ends the validation, not the saving."""
        progress = self.state.progress
        if progress.validated:
            return
        validation = self.last_validation = validate(self.setup)
        with defer_stop():
            current_sparsity = sparsity(self.setup.regularized_params()).item()
            self._check_ranks_agree(current_sparsity)
            row: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, "sparsity": current_sparsity}
            row |= validation.metrics()
            if validation.eer is not None and validation.mean is not None:
                self._update_best(validation.eer, validation.mean, current_sparsity)
            skipped = self._steps_without_update()
            if skipped:
                row["steps_without_update"] = skipped
            logger.info("%s", self._describe_epoch(row))
            row["layers"] = {name: sparsity([param]).item() for name, param in self.setup.sparse_params.items()}
            histogram = self.state.diagnostics.dual_histogram()
            if histogram is not None:
                row["dual_histogram"] = histogram.tolist()
            self.metrics.log(row)
            progress.validated = True
            self._save()
            self.state.save_epoch_checkpoint()
        self.timer.restart()

    def _describe_epoch(self, row: Mapping[str, Any]) -> str:
        """Return an epoch's metrics in words, for the log."""
        # With max_steps a run has another number of epochs.
        epochs = "" if self.config.max_steps else f" of {self.config.epochs}"
        text = f"epoch {row['epoch']}{epochs}, step {row['step']} of {self.setup.total_steps}: "
        text += f"sparsity {100 * row['sparsity']:.2f} %"
        if "validation_eer" in row:
            text += f", validation EER {100 * row['validation_eer']:.2f} %"
        if "validation_teacher_cosine" in row:
            text += f", mean cosine to the teacher {row['validation_teacher_cosine']:.4f}"
        if "steps_without_update" in row:
            text += f", {row['steps_without_update']} steps without an update"
        return text

    def _check_ranks_agree(self, current_sparsity: float) -> None:
        """Raise an AssertionError if lambda or sparsity differ: processes never exchange them while training."""
        by_rank = all_gather_objects((self.setup.controller.lambda_.item(), current_sparsity))
        assert len(set(by_rank)) == 1, f"lambda and sparsity differ between processes: {by_rank}"

    def _update_best(self, val_eer: float, mean: Float32Array, current_sparsity: float) -> None:
        """Keep the network with the lowest validation EER among those near the target sparsity."""
        state, controller = self.state, self.setup.controller
        is_near = abs(current_sparsity - controller.target_sparsity) <= self.config.best_sparsity_tolerance
        if is_near and val_eer < state.best.get("validation_eer", math.inf):
            state.progress.epochs_since_best = 0
            state.best = {"validation_eer": val_eer, "epoch": state.progress.epoch, "sparsity": current_sparsity}
            metrics = {**state.best, "lambda": controller.lambda_.item(), "sparse_init": self.setup.sparse_init}
            state.save_network("best.pt", Backend(mean), metrics)
        elif state.best:
            state.progress.epochs_since_best += 1

    def _should_continue(self) -> bool:
        """Return whether steps are left and early stopping has not struck; a begun epoch is always finished."""
        progress, patience = self.state.progress, self.config.early_stop_patience
        if progress.step_in_epoch > 0:
            return True
        out_of_patience = patience is not None and progress.epochs_since_best >= patience
        return progress.step < self.setup.total_steps and not out_of_patience

    def _steps_without_update(self) -> int:
        """Return how many of the steps so far left the weights alone."""
        return self.state.progress.step - self.setup.controller.steps

    def _check_some_update(self) -> None:
        """Raise an ArithmeticError if the run left the weights as they were."""
        steps = self.state.progress.step
        if not steps or self._steps_without_update() < steps:
            return
        if self.state.scaler.is_enabled():
            raise ArithmeticError(
                f"trainer.precision=fp16: gradients overflowed at each of the {steps} steps, so none made an update; "
                f"the loss is scaled by {self.state.scaler.get_scale():g} now, and by half after each overflow: "
                f"train longer, or take bf16 or fp32"
            )
        raise ArithmeticError(
            f"none of the {steps} steps made an update: each had fewer than {MIN_CROPS} crops that could be read for "
            f"a process, and batch normalization needs {MIN_CROPS}"
        )

    def _save_if_due(self) -> None:
        minutes = self.config.checkpoint_interval_minutes
        if minutes is not None and time.monotonic() - self.last_save_time > 60 * minutes:
            self._save()

    def _save(self) -> None:
        # Weights that are not finite never replace a good checkpoint.
        self._check_finite()
        self.metrics.sync()
        self.state.save(self.metrics.rows)
        self.last_save_time = time.monotonic()

    def finish(self, results: dict[str, Any], figures: Mapping[str, Figure]) -> None:
        """Give tensorboard the settings with the final metrics, and the report's figures, and close it."""
        final = {name: results[name] for name in _HPARAM_METRICS if results.get(name) is not None}
        # Of the first trial list, as the other metrics.
        cllrs = [evaluation["cllr"] for evaluation in results["evaluations"].values()]
        if cllrs and cllrs[0] is not None:
            final["cllr"] = cllrs[0]
        self.metrics.finish(self.setup.config.to_dict(), final, figures, self.state.progress.step)
        self.metrics.close()
