"""The training loop: crops to loss to update to controller, with validation and checkpoints."""

import logging
import math
import signal
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from sv_sparse.data.dataset import Batch
from sv_sparse.distributed import gathered, gathered_objects, ranks
from sv_sparse.models.heads import margin_at
from sv_sparse.optim import sparsity, warmup_exponential
from sv_sparse.scoring.arrays import Float32Array
from sv_sparse.scoring.backend import Backend
from sv_sparse.signals import Stopped, stop_requests, stopped_afterwards
from sv_sparse.training.checkpoints import RunState
from sv_sparse.training.device import memory_advice
from sv_sparse.training.finalize import evaluate_at_start, training_mean, validate_held_out
from sv_sparse.training.logging import Monitor, Timer, as_words, profiled
from sv_sparse.training.setup import Experiment
from sv_sparse.training.update import Heard, Update, hear

logger = logging.getLogger(__name__)


class Trainer:
    """Trains one experiment; ``fit`` continues from the run folder's checkpoint if there is one.

    Args:
        experiment: what to train.
        started: ``time.monotonic()`` at which this process began to work on the run.
    """

    def __init__(self, experiment: Experiment, started: float) -> None:
        self.experiment = experiment
        self.settings = experiment.settings["trainer"]
        self.state = RunState(experiment, started)
        self.update = Update(experiment, self.state.diagnostics, self.state.scaler)
        self.monitor = Monitor(experiment.folder, self.state.progress.step, self.state.progress.rows)
        self.timer = Timer()
        self.saved = started
        self.judged: float | None = None  # EER of held-out speakers, of the network as it is

    def fit(self) -> None:
        """Train to the last step, and take what is to be delivered: the last network, the best, or an average.

        Raises:
            Stopped: a stop signal came; everything up to the last update is saved.
            ArithmeticError: the loss is not finite, see ``Update.make``; or no step made an update.
            ValueError: too many recordings cannot be read, or the device has too little memory.
            OSError: something cannot be written, or processes that read crops died again and again.
        """
        trainer = self.settings
        advice = (
            f"lower trainer.batch_size={trainer['batch_size']} or trainer.crop_seconds={trainer['crop_seconds']}, "
            f"raise trainer.accumulate={trainer['accumulate']}, or take trainer.precision=bf16 or a smaller model"
        )
        with memory_advice(advice):
            if not self.state.begun:
                mean = training_mean(self.experiment)
                with self.experiment.compute.autocast():  # it is only what the end is compared with
                    self.state.at_start = evaluate_at_start(self.experiment, mean)
                self._save()
            total = self.experiment.total_steps
            with self.update.ready(), self.monitor.progress(self.state.progress.step, total):
                self._judge()
                while self._goes_on():
                    self._train_epoch()
                    self._judge()
        self._refuse_no_update()
        if self.state.choose():
            self.judged = None
            with stopped_afterwards():
                self._save()  # the head that belongs to the network

    def _steps_without_update(self) -> int:
        """Return how many of the steps so far left the weights alone."""
        return self.state.progress.step - self.experiment.controller.steps

    def _refuse_no_update(self) -> None:
        """Raise an ArithmeticError if the whole run left the weights as they were."""
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
            f"none of the {steps} steps made an update: each had fewer than 2 crops that could be read for a process, "
            f"and batch normalization needs 2"
        )

    def _train_epoch(self) -> None:
        """Train to the end of an epoch, or of the run; a stop signal waits for the end of a step."""
        experiment, progress = self.experiment, self.state.progress
        batches, accumulate = experiment.batches, self.settings["accumulate"]
        batches.epoch, batches.start = progress.epoch, progress.batch * accumulate
        experiment.network.train()
        with stop_requests() as requests:
            with profiled(experiment.folder, wanted=self.settings["profile"]) as step_done:
                source = iter(self.timer.waits(experiment.loader))
                while progress.step < experiment.total_steps and (parts := list(islice(source, accumulate))):
                    heard = hear(parts, requests)
                    self._train_step(parts, heard)
                    step_done()
                    stop = heard.signal if ranks() > 1 else next(iter(requests), 0)  # several stop at the same step
                    if stop:
                        self._save()
                        logger.info("stopped by %s at step %d", signal.Signals(stop).name, progress.step)
                        raise Stopped(stop)
            progress.epoch, progress.batch, progress.judged = progress.epoch + 1, 0, False
            self._save()  # before the validation, so that nothing is lost however that ends
            stop = int(gathered(torch.tensor([next(iter(requests), 0)])).max())
            if stop:
                raise Stopped(stop)

    def _train_step(self, parts: Sequence[Batch], heard: Heard) -> None:
        progress = self.state.progress
        for part in parts:
            self.state.meter.report(part)
        self.state.meter.count(heard.crops + heard.unreadable, heard.unreadable)
        self._schedule()
        if heard.fewest >= 2:  # batch normalization needs two
            logged = (progress.step + 1) % self.settings["log_every"] == 0
            loss, accuracy = self.update.make(parts, heard.crops, progress.step + 1, logged=logged)
            self.timer.count(heard.crops)
            if accuracy is not None:
                self._log(loss, accuracy)
        progress.batch += 1
        progress.step += 1
        self.monitor.advance()
        minutes = self.settings["checkpoint_minutes"]
        if minutes is not None and time.monotonic() - self.saved > 60 * minutes:
            self._save()

    def _schedule(self) -> None:
        """Learning rate and margin of this step: pure functions of the step. A turn of the margin is a new regime."""
        step, total = self.state.progress.step, self.experiment.total_steps
        factor = warmup_exponential(step, total, warmup=self.settings["warmup"], final=self.settings["final_lr"])
        for group in self.experiment.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.experiment.head.margin = margin_at(
            step / total,
            self.experiment.settings["head"]["margin"],
            start=self.settings["margin_start"],
            end=self.settings["margin_end"],
        )
        turns = {math.ceil(self.settings[name] * total) for name in ("margin_start", "margin_end")}
        if step in turns - {0}:
            self.experiment.controller.rearm()

    def _log(self, loss: Tensor, accuracy: Tensor) -> None:
        experiment, controller = self.experiment, self.experiment.controller
        measured = {
            "loss": loss,
            "accuracy": accuracy,
            "lambda": controller.lambda_,
            "sparsity/network": self._sparsity(list(experiment.sparse_params.values())),
            "sparsity/trained": controller.sparsity(),
            "sparsity/all": self._sparsity(list(experiment.network.parameters())),
        }
        measured |= {f"support/{name}": value for name, value in self.state.diagnostics.read().items()}
        figures = [value.float().to(loss.device, non_blocking=True) for value in measured.values()]
        # The only place where a step waits for a GPU: what says whether a step failed comes with the figures.
        *values, failed = torch.stack([*figures, self.update.failed.float()]).tolist()
        if failed:
            self.update.refuse_non_finite()
        target = controller.target
        row = {"step": self.state.progress.step + 1, "epoch": self.state.progress.epoch} | dict(
            zip(measured, values, strict=True)
        )
        row |= {"target_sparsity": target, "gap": target - row["sparsity/trained"]}
        row |= {"lr": experiment.optimizer.param_groups[0]["lr"], "margin": experiment.head.margin}
        row |= self.timer.read()
        self.monitor.keep(row)
        self.monitor.show(row)

    def _sparsity(self, params: Sequence[Tensor]) -> Tensor:
        """Fraction of exact zeros, of what the optimizer has counted where it has."""
        return 1 - self.experiment.optimizer.count_nonzero(params).sum() / sum(param.numel() for param in params)

    def _judge(self) -> None:
        """Validate after an epoch, once, and save; a stop signal ends the validation, not the saving."""
        progress = self.state.progress
        if progress.judged:
            return
        validated = validate_held_out(self.experiment)
        with stopped_afterwards():
            measured = sparsity(self.experiment.target_params()).item()
            self._assert_same(measured)
            row: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, "sparsity": measured}
            if validated is not None:
                row["validation_eer"] = self.judged = validated[0]
                self._keep_best(*validated, measured)
            if without := self._steps_without_update():
                row["steps_without_update"] = without
            logger.info("%s", as_words(row))
            histogram = self.state.diagnostics.histogram()
            own = self.experiment.sparse_params
            row["layers"] = {name: sparsity([param]).item() for name, param in own.items()}
            self.monitor.keep(row if histogram is None else row | {"duals": histogram.tolist()})
            progress.judged = True
            self._save()
            self.state.keep_epoch()
        self.timer.restart()

    def _assert_same(self, measured: float) -> None:
        """All processes have the same lambda and sparsity, though they never tell each other while training."""
        found = gathered_objects((self.experiment.controller.lambda_.item(), measured))
        assert len(set(found)) == 1, f"lambda and sparsity differ between processes: {found}"

    def _keep_best(self, judged: float, mean: Float32Array, measured: float) -> None:
        """Keep the network with the lowest validation EER among those near the target sparsity."""
        state = self.state
        near = abs(measured - self.experiment.controller.target_sparsity) <= self.settings["band"]
        if near and judged < state.best.get("validation_eer", math.inf):
            state.progress.stale = 0
            state.best = {"validation_eer": judged, "epoch": state.progress.epoch, "sparsity": measured}
            figures = {
                "lambda": self.experiment.controller.lambda_.item(),
                "started_sparse": self.experiment.started_sparse,
            }
            state.save_network("best.pt", Backend(mean), state.best | figures)
        elif state.best:
            state.progress.stale += 1

    def _goes_on(self) -> bool:
        """Whether there are steps left, and the validation has got better lately; an epoch that was begun is ended."""
        progress, patience = self.state.progress, self.settings["patience"]
        stale = patience is not None and progress.stale >= patience
        return progress.batch > 0 or (progress.step < self.experiment.total_steps and not stale)

    def _save(self) -> None:
        self.update.refuse_non_finite()
        self.monitor.sync()
        self.state.save(self.monitor.rows)
        self.saved = time.monotonic()

    def finish(self, results: dict[str, Any], figures: Mapping[str, Figure]) -> None:
        """Give tensorboard the hyperparameters with the final numbers, and the report's figures, and close."""
        names = (
            "sparsity",
            "sparsity_before_landing",
            "nonzero_parameters",
            "eer",
            "min_dcf",
            "seconds",
            "validation_eer",
        )
        final = {name: results[name] for name in names if results.get(name) is not None}
        cllr = next(iter(results["evaluations"].values()))["cllr"]
        final |= {} if cllr is None else {"cllr": cllr}
        self.monitor.finish(self.experiment.settings, final, figures, self.state.progress.step)
        self.monitor.close()
