"""The training loop: crops to loss to update to controller, with validation and checkpoints."""

import logging
import math
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sv_sparse import checkpoint
from sv_sparse.build import Experiment
from sv_sparse.data.dataset import Batch
from sv_sparse.data.loader import UnreadableMeter
from sv_sparse.embedding import Array
from sv_sparse.evaluate import Evaluation
from sv_sparse.head import margin_at
from sv_sparse.interrupts import stop_requests
from sv_sparse.landing import evaluate, training_mean, validate_held_out
from sv_sparse.monitor import Monitor, Timer, as_words
from sv_sparse.optim import SupportDiagnostics, clip_grad_norm_, sparsity, warmup_exponential
from sv_sparse.run import resume_command

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands. ``seconds`` counts all its time, over interruptions."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    seen: int = 0
    unreadable: int = 0


class Trainer:
    """Trains one experiment; ``fit`` continues from the run folder's checkpoint if there is one.

    Args:
        experiment: what to train.
        started: ``time.monotonic()`` at which this process began to work on the run.
    """

    def __init__(self, experiment: Experiment, started: float) -> None:
        self.experiment = experiment
        self.settings = experiment.settings["trainer"]
        self.last = experiment.folder / "checkpoints" / "last.pt"
        self.progress = Progress()
        self.best: dict[str, Any] = {}
        self.at_start: list[dict[str, Any]] = []
        self.diagnostics = SupportDiagnostics(experiment.controller)
        self.meter = UnreadableMeter(experiment.settings["data"]["max_unreadable"])
        self.started = started
        if self.last.is_file():
            self._restore()
        self.monitor = Monitor(experiment.folder, self.progress.step)
        self.timer = Timer()

    def fit(self) -> None:
        """Train to the last epoch.

        Raises:
            SystemExit: SIGINT or SIGTERM came; a checkpoint was written and the message says how to continue.
            ArithmeticError: the loss is not finite; the update was not made.
            ValueError: too many recordings cannot be read.
            OSError: something cannot be written.
        """
        if not self.last.is_file():
            mean = training_mean(self.experiment)
            self.at_start = [evaluation.as_dict() for evaluation in evaluate(self.experiment, mean)]
            self._save()
        with stop_requests() as requests, self.monitor.progress(self.progress.step, self.experiment.total_steps):
            while self.progress.epoch < self.settings["epochs"]:
                self._train_epoch(requests)
                self._finish_epoch()

    def _train_epoch(self, requests: list[int]) -> None:
        experiment, progress = self.experiment, self.progress
        experiment.batches.epoch, experiment.batches.start_batch = progress.epoch, progress.batch
        experiment.network.train()
        for batch in self.timer.waits(experiment.loader):
            self.meter.update(batch)
            if len(batch.labels) >= 2:  # batch normalization needs two
                self._update(batch)
            progress.batch += 1
            progress.step += 1
            self.monitor.advance()
            if requests:
                self._stop(requests[0])

    def _update(self, batch: Batch) -> None:
        experiment, device = self.experiment, self.experiment.compute.device
        self._schedule()
        labels = batch.labels.to(device, non_blocking=True)
        experiment.optimizer.zero_grad()
        with experiment.compute.autocast():
            embedding = experiment.network(experiment.features(batch))
        loss, cosine = experiment.head(embedding, labels)
        loss.backward()
        params = [param for group in experiment.optimizer.param_groups for param in group["params"]]
        most, sparse = self.settings["clip_norm"] or math.inf, experiment.controller.params
        norm = clip_grad_norm_(params, most, on=self.settings["clip_on"], sparse=sparse)
        self._refuse_non_finite(loss, norm)
        logged = (self.progress.step + 1) % self.settings["log_every"] == 0
        if logged:
            self.diagnostics.mark()
        experiment.optimizer.step()
        experiment.controller.step()
        self.timer.count(len(batch.labels))
        if logged:
            self._log(loss, (cosine.argmax(dim=1) == labels).float().mean())

    def _schedule(self) -> None:
        """Learning rate and margin of this step: pure functions of the step. A turn of the margin is a new regime."""
        step, total = self.progress.step, self.experiment.total_steps
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

    def _refuse_non_finite(self, loss: Tensor, norm: Tensor) -> None:
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()  # the step's one wait for the device
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise ArithmeticError(
                f"step {self.progress.step + 1}: the loss is {loss_value} and the gradient norm {norm_value}; the "
                f"update was not made. A smaller optim.lr or trainer.precision=fp32 may help; the last checkpoint is "
                f"{self.last}"
            )

    def _log(self, loss: Tensor, accuracy: Tensor) -> None:
        experiment, controller = self.experiment, self.experiment.controller
        measured = {
            "loss": loss.detach(),
            "accuracy": accuracy,
            "lambda": controller.lambda_,
            "sparsity/network": sparsity(list(experiment.sparse_params.values())),
            "sparsity/trained": controller.sparsity(),
            "sparsity/all": sparsity(list(experiment.network.parameters())),
        }
        measured |= {f"support/{name}": value for name, value in self.diagnostics.read().items()}
        values = torch.stack([value.float().to(loss.device) for value in measured.values()]).tolist()
        target = controller.target
        row = {"step": self.progress.step + 1, "epoch": self.progress.epoch} | dict(zip(measured, values, strict=True))
        row |= {"target_sparsity": target, "gap": target - row["sparsity/trained"]}
        row |= {"lr": experiment.optimizer.param_groups[0]["lr"], "margin": experiment.head.margin}
        row |= self.timer.read()
        self.monitor.keep(row)
        self.monitor.show(row)

    def _finish_epoch(self) -> None:
        progress = self.progress
        progress.epoch, progress.batch = progress.epoch + 1, 0
        row: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step}
        own = self.experiment.sparse_params
        measured = sparsity(self.experiment.target_params()).item()
        row["sparsity"] = measured
        validated = validate_held_out(self.experiment)
        if validated is not None:
            row["validation_eer"] = validated[0].eer
            self._keep_best(*validated, measured)
        self.monitor.keep(row)
        self.monitor.layers({name: sparsity([param]).item() for name, param in own.items()}, progress.step)
        self.monitor.duals(self.diagnostics.histogram(), progress.step)
        logger.info("%s", as_words(row))
        self._save()
        self.timer.restart()

    def _keep_best(self, validation: Evaluation, mean: Array, measured: float) -> None:
        """Keep the network with the lowest validation EER among those near the target sparsity."""
        near = abs(measured - self.experiment.controller.target_sparsity) <= self.settings["band"]
        if near and validation.eer < self.best.get("validation_eer", math.inf):
            self.best = {"validation_eer": validation.eer, "epoch": self.progress.epoch, "sparsity": measured}
            self.save_network("best.pt", mean, self.best)

    def _stop(self, number: int) -> None:
        self._save()
        self.monitor.bar.close()
        self.monitor.close()
        logger.info("stopped by %s at step %d", signal.Signals(number).name, self.progress.step)
        logger.info("continue with: %s", resume_command(self.experiment.folder))
        raise SystemExit(128 + number)

    def _save(self) -> None:
        """Write everything that continuing needs to last.pt."""
        experiment = self.experiment
        self.progress.seen, self.progress.unreadable = self.meter.seen, self.meter.unreadable
        state = {
            "config": experiment.settings,
            "model": experiment.network.state_dict(),
            "head": experiment.head.state_dict(),
            "optimizer": experiment.optimizer.state_dict(),
            "controller": experiment.controller.state_dict(),
            "diagnostics": self.diagnostics.state_dict(),
            "progress": asdict(self.progress) | {"seconds": self.seconds()},
            "generators": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
            "best": self.best,
            "at_start": self.at_start,
            "started_sparse": experiment.started_sparse,
        }
        checkpoint.save(self.last, state)

    def _restore(self) -> None:
        experiment = self.experiment
        state = checkpoint.load(self.last, checkpoint.TRAINING_KEYS)
        experiment.network.load_state_dict(state["model"])
        experiment.head.load_state_dict(state["head"])
        experiment.optimizer.load_state_dict(state["optimizer"])
        experiment.controller.load_state_dict(state["controller"])
        self.diagnostics.load_state_dict(state["diagnostics"])
        self.progress = Progress(**state["progress"])
        self.meter.seen, self.meter.unreadable = self.progress.seen, self.progress.unreadable
        torch.set_rng_state(state["generators"]["cpu"])
        if len(state["generators"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["generators"]["cuda"])
        self.best, self.at_start = state["best"], state["at_start"]
        experiment.started_sparse = state["started_sparse"]
        logger.info("continuing %s at step %d", experiment.folder, self.progress.step)

    def save_network(self, name: str, mean: Array, figures: dict[str, Any]) -> None:
        """Write a network file: what using the network needs."""
        state = {
            "config": self.experiment.settings,
            "model": self.experiment.network.state_dict(),
            "mean": torch.from_numpy(mean),
            "figures": figures,
        }
        checkpoint.save(self.last.with_name(name), state)

    def finish(self, results: dict[str, Any]) -> None:
        """Give tensorboard the hyperparameters with the final figures, and close."""
        figures = {name: results[name] for name in ("sparsity", "eer", "min_dcf", "seconds")}
        self.monitor.finish(self.experiment.settings, figures)
        self.monitor.close()

    def seconds(self) -> float:
        """Time spent on the run so far, interruptions left out."""
        return self.progress.seconds + time.monotonic() - self.started
